"""Take a language model apart, run it by hand, and prove that the parts are the model.

The public names are imported when they are first used: ``import inspector`` loads no torch.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "InvariantError": "parts.errors",
    "Loaded": "loading.loaded",
    "Run": "records.generation",
    "Sampling": "records.generation",
    "Session": "loop.stepping",
    "Split": "parts.splitting",
    "Step": "records.generation",
    "Verdict": "records.comparison",
    "ablate": "inside.interventions",
    "attach": "loading.loaded",
    "attention": "inside.attention",
    "cache": "compare.caching",
    "contributions": "inside.contributions",
    "decode": "loop.decoding",
    "diverge": "compare.divergence",
    "effect": "inside.interventions",
    "experts": "inside.experts",
    "further": "inside.further",
    "latents": "inside.latents",
    "lens": "inside.lens",
    "load": "loading.loading",
    "page": "report.pages",
    "patch": "inside.interventions",
    "quantise": "parts.quantised",
    "replay": "loop.stepping",
    "run": "loop.decoding",
    "scale": "inside.interventions",
    "speculate": "loop.speculation",
    "split": "parts.splitting",
    "trace": "inside.tracing",
    "tree": "parts.structure",
    "verify": "compare.verifying",
}
_MODULES = {"interventions": "inside.interventions", "speculation": "loop.speculation"}
__all__ = sorted([*_HOMES, *_MODULES])


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module 'inspector' has no attribute {name!r}")
    value = (
        import_module(f".{_MODULES[name]}", __name__) if name in _MODULES else getattr(import_module(f".{_HOMES[name]}", __name__), name)
    )
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
