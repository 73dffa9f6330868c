"""Which code computes attention: an implementation of transformers', or a kernel of torch's fused call."""

import torch

from .checking import LoadError

KERNELS = {
    "flash": torch.backends.cuda.enable_flash_sdp,
    "efficient": torch.backends.cuda.enable_mem_efficient_sdp,
    "math": torch.backends.cuda.enable_math_sdp,
    "cudnn": torch.backends.cuda.enable_cudnn_sdp,
}
ON_CPU = ("flash", "math")
IMPLEMENTATIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
CHOICES = (*IMPLEMENTATIONS, *(f"sdpa-{kernel}" for kernel in KERNELS))


def attend_by(name: str, choice: str | None, device: torch.device, transformers: bool) -> str | None:
    """What to hand to transformers as ``attn_implementation`` for a choice; None leaves the checkpoint's.

    A kernel (``sdpa-math``) is set for the whole process, until another is, as torch has it.

    Args:
        name: of the model, for messages.
        choice: one of ``CHOICES``, or None.
        device: where the model will run.
        transformers: it is built by transformers; our own modules and a user's know the fused call alone.

    Raises:
        LoadError: there is no such choice, or not here.
    """
    if choice is None:
        return None
    if choice not in CHOICES:
        raise LoadError(f"attn_implementation {choice!r:.60}: choose one of {', '.join(CHOICES)}")
    implementation, _, kernel = choice.partition("-")
    if kernel and device.type == "cpu" and kernel not in ON_CPU:
        raise LoadError(f"attn_implementation {choice!r} is for CUDA: on the CPU choose of {', '.join(f'sdpa-{one}' for one in ON_CPU)}")
    if implementation != "sdpa" and not transformers:
        raise LoadError(f"{name}: attn_implementation {choice!r} is of transformers' models: choose sdpa or a kernel of it")
    for one, enable in KERNELS.items() if kernel else ():
        enable(one == kernel)
    return implementation if transformers else None
