"""Take a language model apart, run it by hand, and prove that the parts are the model.

The public names are imported when they are first used: ``import inspector`` loads no torch.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "Loaded": "loaded",
    "Run": "records.generation",
    "Sampling": "records.generation",
    "Split": "splitting",
    "Step": "records.generation",
    "Verdict": "records.comparison",
    "attach": "loaded",
    "attention": "attention_weights",
    "decode": "decoding",
    "experts": "routing",
    "further": "further_tokens",
    "latents": "latent_keys",
    "lens": "logit_lens",
    "diverge": "divergence",
    "load": "loading",
    "run": "decoding",
    "split": "splitting",
    "trace": "tracing",
    "tree": "structure",
    "verify": "verifying",
}
_MODULES = ("contributions", "interventions", "speculation")
__all__ = sorted([*_HOMES, *_MODULES])


def __getattr__(name: str):
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module 'inspector' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
