"""Take a language model apart, run it by hand, and prove that the parts are the model.

The public names are imported when they are first used: ``import inspector`` loads no torch.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "Loaded": "loading",
    "Run": "records",
    "Sampling": "records",
    "Split": "splitting",
    "Step": "records",
    "Verdict": "records",
    "decode": "decoding",
    "load": "loading",
    "run": "decoding",
    "split": "splitting",
    "tree": "structure",
    "verify": "verifying",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'inspector' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *_HOMES})
