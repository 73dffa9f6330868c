"""The recipe of a training run: its settings, checked. Importing this needs no torch, so that a command's help can be made of it."""

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from types import NoneType
from typing import get_args

# The native variants' names are written down, because the help says them before torch is loaded; a test compares them with the variants.
MODELS = ("expert", "qwen2", "gpt", "gpt-moe", "gpt-mla", "gpt-mtp", "gpt-moe-mla-mtp")
PRECISIONS = ("no", "bf16", "fp16")
SIZES = ("d_model", "n_layers", "n_heads", "d_ff", "max_seq_len", "batch_size", "n_kv_heads", "n_experts", "n_chosen", "n_shared_experts")
SIZES += ("kv_lora_rank", "q_lora_rank", "mtp_depth")  # what these cost is held against the memory there is (``building.check_size``)
# Of each step a seed is made by a multiplication, and 64 bits hold it; others may say 10⁹.
LARGEST = dict(seed=10**12) | dict.fromkeys(SIZES, 10**27)
BALANCE = "by default 0.01, with the balanced gate 0"


def of_some(told: str, needs: str | None = None):
    """The field of a setting that only some models have; left out it is None, which stands for their builder's default.

    Args:
        told: what the help of its option says.
        needs: the builder's argument that a model must have for the setting to mean something; by default the one of its name.
    """
    return field(default=None, metadata=dict(help=told, needs=needs))


def check_value(name: str, kind: type, value: object) -> None:
    """Whether a setting is of its kind, such as ``int | None``, and a number of it finite, and not too large to mean anything.

    Raises:
        ValueError: it is not.
    """
    kinds = get_args(kind) or (kind,)
    if value is None and NoneType in kinds:
        return
    if str in kinds:
        if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"{name}={value!r:.60}: give a text of characters that can be written")
        return
    if type(value) is not int and not (float in kinds and type(value) is float):
        raise ValueError(f"{name}={value!r:.60}: give a {'' if float in kinds else 'whole '}number")
    most = LARGEST.get(name, 10**9)
    if not -most <= value <= most:  # NaN is neither
        shown = value if abs(value) < 10**40 or type(value) is float else "a number of more than 40 digits"
        raise ValueError(f"{name}={shown}: give a number up to {most:,}")


def taken_by(model: str) -> Collection[str]:
    """The settings that a model has."""
    from ..models.arguments import arguments_of  # here, because it loads torch

    return ("n_kv_heads",) if model == "qwen2" else arguments_of(model)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result of a training run, apart from the corpus itself.

    Sizes as in ``ExpertModel``, and those of some models as in the variants' builders (``inspector.models.variants``).
    ``batch_size`` is that of all processes together. ``w_importance`` and ``w_load`` weigh the losses that balance experts
    (0.01 by default; 0 with the balanced gate, whose bias moves by ``bias_speed`` a step, 0.001 by default), ``w_mtp`` that
    of the predictions further ahead (λ, 0.3 by default). ``mixed_precision``: "no", "bf16" or "fp16".
    """

    model: str = "expert"
    corpus: str = "names"
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    d_ff: int | None = None
    max_seq_len: int | None = None
    dropout: float = 0.1
    steps: int = 1500
    batch_size: int = 128
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    n_kv_heads: int | None = of_some("Heads for keys and values (not of mla, expert); by default half.")
    n_experts: int | None = of_some("Experts in each block (moe); by default 4.")
    n_chosen: int | None = of_some("Experts that a token goes to (moe); by default 2.")
    n_shared_experts: int | None = of_some("Experts that every token goes to as well (moe); by default 0.")
    gate: str | None = of_some("noisy or balanced: what chooses them (moe); by default noisy.")
    kv_lora_rank: int | None = of_some("Width of the latent of keys and values (mla); by default d_model/2.")
    q_lora_rank: int | None = of_some("Width of the latent of queries (mla); by default they have none.")
    mtp_depth: int | None = of_some("Predictions further ahead (mtp); by default 1.")
    w_importance: float | None = of_some(f"Weight of the loss for equal shares of the gates (moe); {BALANCE}.", "n_experts")
    w_load: float | None = of_some("Weight of the loss for equal numbers (moe, noisy); by default 0.01.", "n_experts")
    w_mtp: float | None = of_some("Weight of the predictions further ahead (mtp); by default 0.3.", "mtp_depth")
    bias_speed: float | None = of_some("Step of the bias of the balanced gate (moe); by default 0.001.", "n_experts")
    mixed_precision: str = "no"

    def __post_init__(self):
        for own in fields(self):
            check_value(own.name, own.type, getattr(self, own.name))
        if self.model not in MODELS:
            raise ValueError(f"model {self.model!r}: choose one of {', '.join(MODELS)}")
        taken = taken_by(self.model)
        for name, needed in NEEDED.items():
            if getattr(self, name) is not None and needed not in taken:
                raise ValueError(f"{name}={getattr(self, name)}: model {self.model} has no such setting: leave it out")
        for name, gate in (("w_load", "noisy"), ("bias_speed", "balanced")):
            if getattr(self, name) is not None and (self.gate or "noisy") != gate:
                raise ValueError(f"{name}={getattr(self, name)}: it is for the {gate} gate alone: leave it out or set gate={gate}")
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(f"mixed_precision={self.mixed_precision!r}: choose one of {', '.join(PRECISIONS)}")
        for name in ("d_model", "n_layers", "n_heads", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a positive number")
        least_of = dict(warmup=0, seed=0, weight_decay=0, d_ff=1, max_seq_len=2, n_shared_experts=0) | dict.fromkeys(OF_LOSSES, 0)
        least_of |= dict.fromkeys(("n_kv_heads", "n_experts", "n_chosen", "kv_lora_rank", "q_lora_rank", "mtp_depth"), 1)
        for name, least in least_of.items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: give a number from {least} up")
        self.check_heads(taken)
        if "n_experts" in taken:
            self.check_experts()
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: give a number from 0 up to, not including, 1")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: give a positive number")

    def check_heads(self, taken: Collection[str]) -> None:
        """Whether the heads fit the width and each other; ``taken`` are the settings of this model. Raises ``ValueError``."""
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}: choose a number of heads that divides it"
            )
        if "n_kv_heads" not in taken:
            return
        if self.n_heads % (self.n_kv_heads or 1):
            raise ValueError(
                f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}: choose a number of heads that divides it"
            )
        if self.d_model // self.n_heads % 2:
            raise ValueError(f"d_model={self.d_model} and n_heads={self.n_heads} make heads of odd width: RoPE turns pairs, make it even")

    def check_experts(self) -> None:
        """Whether a gate can choose so many experts of so many. Raises ``ValueError``."""
        if self.gate not in (None, "noisy", "balanced"):
            raise ValueError(f"gate={self.gate!r}: choose one of noisy, balanced")
        n_experts, n_chosen = (4 if self.n_experts is None else self.n_experts), (2 if self.n_chosen is None else self.n_chosen)
        if n_chosen > n_experts:
            raise ValueError(f"n_chosen={n_chosen}: there are n_experts={n_experts} to choose of: lower it, or give more experts")
        if self.gate == "balanced" and n_chosen == 1:
            raise ValueError("n_chosen=1: the one expert's share would always be 1, and the balanced gate could not learn: give 2 or more")

    def loss_weights(self) -> dict[str, float]:
        """What ``losses`` takes, with the defaults filled in."""
        balance = 0.0 if self.gate == "balanced" else 1e-2
        defaults = dict(w_importance=balance, w_load=balance, w_mtp=0.3)
        return {name: default if getattr(self, name) is None else getattr(self, name) for name, default in defaults.items()}


# A setting that only some models have → the builder's argument that it needs: the one of its name, or for what trains it that of a part.
NEEDED = {setting.name: setting.metadata["needs"] or setting.name for setting in fields(Recipe) if setting.metadata}
OF_SOME = tuple(name for name, needed in NEEDED.items() if name == needed)
OF_LOSSES = tuple(name for name, needed in NEEDED.items() if name != needed)
