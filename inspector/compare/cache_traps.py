"""Mistakes that a KV-cache invites, each made on purpose in a tiny random model, beside the same loop without the mistake.

Shape letters: B rows, T tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM, Phi3Config, Phi3ForCausalLM

from ..parts.cache_costs import window_of
from ..parts.costs import text_config
from ..parts.precision import LiftedCasts
from ..parts.watching import Watch, largest_difference
from ..records.caching import Trap

VOCABULARY, WIDTH, HEADS, LAYERS = 64, 32, 4, 2
STEPS = 20  # length of the text
SWITCH = 12  # tokens that LongRoPE's model was trained for first
WINDOW = 8
PADDING = 5
SIZES = dict(vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS)
SIZES |= dict(num_key_value_heads=HEADS // 2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)

Logits = Iterator[Tensor]  # of the newest token [V], for texts of 1, 2, … tokens


@torch.no_grad()
def traps(model: nn.Module) -> tuple[Trap, ...]:
    """All of them. ``model`` is the one that is asked about: a trap says whether it has the property."""
    rope = getattr(text_config(model), "rope_parameters", None) or {}
    kinds = {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)}
    windows = any(window_of(model, f"layers.{i}.attn") for i in range(getattr(text_config(model), "num_hidden_layers", None) or 0))
    with torch.random.fork_rng(devices=[]), Watch.aside():
        return (
            trap("longrope", longrope(), SWITCH, long_right, long_wrong, own="longrope" in kinds),
            trap("window", mistral(), WINDOW, plain_cache, window_forgotten, own=windows),
            trap("padding", gpt2(), PADDING, padded_right, padded_wrong),
        )


def trap(kind: str, model: nn.Module, limit: int, right: Callable, wrong: Callable, own: bool = False) -> Trap:
    """A trap's record: both loops against the model without a cache, in float32 and in float64."""
    ids_T = torch.randint(3, VOCABULARY, (STEPS,), generator=torch.Generator().manual_seed(1))
    reference = list(uncached(model, ids_T))
    loops = {loop: list(loop(model, ids_T)) for loop in (right, wrong)}
    apart = {loop: [largest_difference(a, b) for a, b in zip(reference, logits, strict=True)] for loop, logits in loops.items()}
    with LiftedCasts():
        double = model.double()
        exact = list(uncached(double, ids_T))
        in64 = {loop: max(largest_difference(a, b) for a, b in zip(exact, loop(double, ids_T), strict=True)) for loop in (right, wrong)}
    begins = next(i for i, value in enumerate(apart[wrong], 1) if value > 100 * max(max(apart[right]), torch.finfo(torch.float32).eps))
    return Trap(
        kind=kind,
        model=type(model).__name__,
        limit=limit,
        begins=begins,
        right=max(apart[right]),
        wrong=max(apart[wrong]),
        right_in_float64=in64[right],
        wrong_in_float64=in64[wrong],
        flipped=sum(bool(a.argmax() != b.argmax()) for a, b in zip(reference, loops[wrong], strict=True)),
        steps=STEPS,
        own=own,
    )


def uncached(model: nn.Module, ids_T: Tensor) -> Logits:
    """The whole text at every step."""
    for length in range(1, len(ids_T) + 1):
        yield model(ids_T[None, :length], use_cache=False).logits[0, -1]


def plain_cache(model: nn.Module, ids_T: Tensor) -> Logits:
    """Each token once, with the cache that fits the configuration."""
    kept = DynamicCache(config=model.config)
    for id in ids_T:
        yield model(id.view(1, 1), past_key_values=kept, use_cache=True).logits[0, -1]


def longrope() -> nn.Module:
    """A Phi-3 whose RoPE turns with other factors as soon as the text is longer than ``SWITCH``."""
    torch.manual_seed(0)
    pairs = WIDTH // HEADS // 2
    factors = dict(short_factor=[1.0] * pairs, long_factor=[4.0] * pairs)
    rope = dict(rope_type="longrope", rope_theta=10_000.0, factor=64 / SWITCH, original_max_position_embeddings=SWITCH, **factors)
    config = Phi3Config(**SIZES, original_max_position_embeddings=SWITCH, rope_parameters=rope, initializer_range=0.3)
    return Phi3ForCausalLM(config).eval()


def long_wrong(model: nn.Module, ids_T: Tensor) -> Logits:
    """The cache is kept beyond the switch: its keys were turned with the short factors."""
    yield from plain_cache(model, ids_T)


def long_right(model: nn.Module, ids_T: Tensor) -> Logits:
    """At the switch all is read anew, as ``generate()`` of transformers does."""
    yield from plain_cache(model, ids_T[:SWITCH])
    kept = DynamicCache(config=model.config)
    yield model(ids_T[None, : SWITCH + 1], past_key_values=kept, use_cache=True).logits[0, -1]
    for id in ids_T[SWITCH + 1 :]:
        yield model(id.view(1, 1), past_key_values=kept, use_cache=True).logits[0, -1]


def mistral() -> nn.Module:
    """A Mistral that looks ``WINDOW`` tokens back."""
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=WINDOW, initializer_range=0.3)).eval()


def window_forgotten(model: nn.Module, ids_T: Tensor) -> Logits:
    """A cache that keeps everything, and a mask without the window: one row looks at all that is kept."""
    window, model.config.sliding_window = model.config.sliding_window, None
    try:
        yield from plain_cache(model, ids_T)
    finally:
        model.config.sliding_window = window


def gpt2() -> nn.Module:
    """A GPT-2, whose positions are learned."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=64,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config).eval()


def padded(model: nn.Module, ids_T: Tensor, ahead: int) -> Logits:
    """The text in a batch, behind ``PADDING`` tokens that fill its row up; positions after the first step are ``ahead`` too far."""
    kept = DynamicCache(config=model.config)
    filled_T = torch.cat([ids_T.new_zeros(PADDING), ids_T])
    mask_1T = torch.cat([ids_T.new_zeros(PADDING), torch.ones_like(ids_T)])[None]
    first = torch.arange(PADDING + 1)[None].sub(PADDING).clamp(min=0)
    options = dict(past_key_values=kept, use_cache=True)
    yield model(filled_T[None, : PADDING + 1], attention_mask=mask_1T[:, : PADDING + 1], position_ids=first, **options).logits[0, -1]
    for place in range(1, len(ids_T)):
        positions, slots = torch.tensor([[place + ahead]]), PADDING + place + 1
        yield model(ids_T[None, place : place + 1], attention_mask=mask_1T[:, :slots], position_ids=positions, **options).logits[0, -1]


def padded_right(model: nn.Module, ids_T: Tensor) -> Logits:
    """Positions count real tokens."""
    yield from padded(model, ids_T, ahead=0)


def padded_wrong(model: nn.Module, ids_T: Tensor) -> Logits:
    """Positions count what the cache holds, padding too."""
    yield from padded(model, ids_T, ahead=PADDING)
