"""The loop compiled by torch.compile: backbone and head as the compiler makes them, warmed up before the first step."""

import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..loading.finding import first_line
from ..loading.loaded import Loaded
from ..parts.heads import hidden_states
from ..parts.kinds import of_transformers
from ..parts.outputs import takes_use_cache
from ..records.notices import Notice

REMEDY = "leave --compile out"


def compiled(m: Loaded, ids_1T: Tensor) -> tuple[Loaded, float]:
    """``m`` whose split runs compiled, for contexts of any length, and the seconds that its first passes took.

    ``Loaded.compiled`` is the same as one function, so that ``verify`` holds it against the model as it was. The compiled model's
    logits differ from that one's by rounding: it fuses operations, and adds in another order. A head that is not one module is run as
    it is.

    Args:
        m: what ``inspector.load`` or ``inspector.attach`` returns.
        ids_1T: a prompt, on which it is compiled, and once more with another token behind it.

    Raises:
        ValueError: there is no compiler, the model has no module that is its backbone, or the compiler breaks off.
    """
    name = m.origin.name
    if hasattr(m.model, "opaque"):
        raise ValueError(f"{name}: another runtime computes it, and --compile compiles modules: {REMEDY}")
    if not m.split.backbone_name or m.split.sequence_first:
        raise ValueError(f"{name} has no module that is its backbone, which --compile compiles: {REMEDY}")
    check_compiler(m.device)
    base = m.model.get_submodule(m.split.backbone_name)
    options = {"use_cache": False} if of_transformers(base) and takes_use_cache(type(base)) else {}
    fast_base = torch.compile(base, dynamic=True)
    fast_head = torch.compile(m.split.head, dynamic=True) if isinstance(m.split.head, nn.Module) else m.split.head

    def backbone(ids_BT: Tensor) -> Tensor:
        return hidden_states(fast_base(ids_BT, **options))

    def whole(ids_BT: Tensor) -> Tensor:
        with torch.no_grad():
            return fast_head(backbone(ids_BT))

    started = time.perf_counter()
    try:
        with torch.no_grad():
            for length in (ids_1T.shape[1], ids_1T.shape[1] + 1):
                hidden_1TD = backbone(torch.cat([ids_1T, ids_1T[:, -1:]], dim=1)[:, :length])
                fast_head(hidden_1TD[:, -1:] if m.split.last_alone else hidden_1TD)
    except Exception as error:  # whatever the compiler makes of a model
        raise ValueError(f"{name} cannot be compiled: {type(error).__name__}: {first_line(error).rstrip('.')}: {REMEDY}") from error
    took = time.perf_counter() - started
    notice = Notice(
        "compiled",
        f"The loop runs compiled by torch.compile: its first passes took {took:.1f} s, which no step's time holds",
        f"Цикл скомпилирован torch.compile: первые проходы заняли {took:.1f} с, во время шагов они не входят",
    )
    return replace(m, split=replace(m.split, backbone=backbone, head=fast_head), compiled=whole, notices=(*m.notices, notice)), took


def check_compiler(device: torch.device) -> None:
    """Refuses a machine without what torch.compile generates code with: for the CPU a C++ compiler. Raises ``ValueError``."""
    if device.type != "cpu":
        return  # there Triton does, which comes with torch
    from torch._inductor.cpp_builder import get_cpp_compiler  # here, because it imports the compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # InvalidCxxCompiler, whose message lists what it looked for
        raise ValueError(f"--compile needs a C++ compiler, and there is none: install g++ or clang, set CXX to one, or {REMEDY}") from error
