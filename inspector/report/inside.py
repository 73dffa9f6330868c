"""What the page shows of one pass over the prompt and everything generated. Shape letters: T tokens, P positions of the window, H heads."""

import base64
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..inside.attention import attended
from ..inside.contributions import contributions
from ..inside.experts import experts
from ..inside.further import further
from ..inside.latents import latents
from ..inside.lens import lenses
from ..loading.loaded import Loaded
from ..loop.decoding import shortest
from ..parts.errors import InvariantError, NoPartError, NoSumError
from ..records.effects import Contributions
from ..records.generation import Run
from ..records.inside import Attention, Lens
from ..records.mechanisms import Experts, Latents
from ..records.report import AttentionWeights, Inside, LensGrid, LensLayer, Words

LONGEST = 2048  # tokens of a text that is looked into
WINDOW = 128  # the last positions of a text, of which the views tell one by one
WHOLE = 64  # tokens of a text whose attention maps are whole
ROOM = 700_000  # bytes that all attention weights may take, before base64
MOST = 16  # keys of a row, where not all are told
LIGHT = 20_000_000  # weights of a model up to which contributions are computed for every step; beyond for the last one

Missing = dict[str, Words]


VIEWS = dict(
    attention="внимание",
    lens="логит-линза",
    contributions="вклады",
    experts="эксперты",
    latents="латенты",
    further="дальнейшие токены",
)


def check_length(tokens: int) -> None:
    """Refuses a text that is too long to look into. Raises ``ValueError``."""
    if tokens > LONGEST:
        raise ValueError(
            f"a text of {tokens} tokens is too long to look into: the page does so up to {LONGEST}: give a shorter prompt or a smaller "
            "--max-new-tokens"
        )


def inside(m: Loaded, run: Run, said: Callable[[str, str], None] = lambda english, russian: None) -> Inside:
    """The views of the last pass of a run of ``m``. What is refused is named in ``missing``; what a model does not have is left out.

    ``said`` is told in the two languages which view is being made.

    Raises:
        ValueError: the text is longer than ``LONGEST``.
    """
    ids = [token.id for token in run.prompt] + [step.token.id for step in run.steps]
    ids = ids[: run.context_length]
    check_length(len(ids))
    begin = max(0, len(ids) - WINDOW)
    missing: Missing = {}

    def view(name: str, make: Callable[[], object]):
        said(f"looking inside: {name}", f"взгляд внутрь: {VIEWS[name]}")
        try:
            return make()
        except NoPartError:
            return None
        except (ValueError, InvariantError) as error:
            missing[name] = why(name, error)
            return None

    seen, weights, strongest = view("attention", lambda: heads(m, ids, begin)) or (None, (), 0)
    return Inside(
        length=len(ids),
        begin=begin,
        lens=view("lens", lambda: lens_grid(*lenses(m, ids, begin))),
        attention=seen,
        weights=weights,
        strongest=strongest,
        contributions=view("contributions", lambda: to_steps(m, run)) or {},
        experts=view("experts", lambda: in_window(experts(m, ids), begin)),
        latents=view("latents", lambda: without_sizes(latents(m, ids))),
        further=view("further", lambda: replace(further(m, ids), prompt=(), notices=())),
        missing=missing,
    )


def mentioned_inside(inside: Inside) -> set[int]:
    """The ids of the tokens that the lens names."""
    layers = inside.lens.layers if inside.lens else ()
    return {id for layer in layers for ids in layer.ids for id in ids} | set(inside.lens.choices if inside.lens else ())


def lens_grid(read: tuple[Lens, ...], apart: float) -> LensGrid:
    """The lens at all positions, by layers."""
    layers = []
    for rows in zip(*(one.rows for one in read), strict=True):
        layers.append(
            LensLayer(
                role=rows[0].role,
                ids=tuple(tuple(guess.token.id for guess in row.top) for row in rows),
                probabilities=tuple(tuple(shortest(guess.probability) for guess in row.top) for row in rows),
                entropy=tuple(shortest(row.entropy) for row in rows),
                rank=tuple(row.rank for row in rows),
                probability=tuple(shortest(row.probability) for row in rows),
            )
        )
    return LensGrid(read[0].norm, tuple(one.choice.id for one in read), tuple(layers), apart)


def heads(m: Loaded, ids: list[int], begin: int) -> tuple[Attention, tuple[AttentionWeights, ...], int]:
    """The summary of all heads, their weights packed, and of how many keys of a row these tell; 0 for all of them."""
    length, causal = len(ids), m.split.causal
    whole: list[tuple[str, Tensor]] = []  # role → bytes [H, …]
    best: list[tuple[str, Tensor, Tensor]] = []  # role → weights and keys [H, P, K]

    def keep(role: str, weights_HTT: Tensor) -> None:
        weights_HTT = weights_HTT.float().cpu()
        if length <= WHOLE:
            lower_TT = torch.ones(length, length, dtype=torch.bool).tril() if causal else torch.ones(length, length, dtype=torch.bool)
            whole.append((role, in_bytes(weights_HTT[:, lower_TT])))
        values, keys = weights_HTT[:, begin:].topk(min(MOST, length), dim=-1)
        best.append((role, values, keys))

    seen = replace(attended(m, ids, (), keep), prompt=(), notices=())
    if whole and sum(packed.numel() for _, packed in whole) <= ROOM:
        return seen, tuple(AttentionWeights(role, len(packed), encoded(packed)) for role, packed in whole), 0
    kind = torch.uint8 if length <= 256 else torch.uint16
    rows = sum(values.shape[0] * values.shape[1] for _, values, _ in best)
    strongest = max(1, min(MOST, length, ROOM // (rows * (1 + kind.itemsize))))
    made = []
    for role, values, keys in best:
        kept_HPK = values[..., :strongest]
        held_HP = kept_HPK.sum(-1).clamp(max=1.0)
        packed = encoded(in_bytes(kept_HPK)), encoded(keys[..., :strongest].to(kind))
        made.append(AttentionWeights(role, len(values), *packed, held=float(held_HP.mean()), least=float(held_HP.min())))
    return seen, tuple(made), strongest


def in_bytes(weights: Tensor) -> Tensor:
    """Weights as shares of 255, rounded."""
    return (weights * 255).round().to(torch.uint8)


def encoded(numbers: Tensor) -> str:
    """The bytes of whole numbers, the lower first, in base64."""
    array = numbers.contiguous().numpy()
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()


def to_steps(m: Loaded, run: Run) -> dict[str, Contributions]:
    """Contributions to the token chosen at every step, or at the last one where the model is large."""
    every = sum(p.numel() for p in m.model.parameters()) <= LIGHT
    steps = run.steps if every else run.steps[-1:]
    ids = [token.id for token in run.prompt] + [step.token.id for step in run.steps]
    return {str(step.index): replace(contributions(m, ids[: step.context_length], step.token.id), prompt=(), notices=()) for step in steps}


def in_window(record: Experts, begin: int) -> Experts:
    """The choices of the tokens in the window; the load is that of the whole text."""
    return replace(record, prompt=(), notices=(), mixtures=tuple(replace(one, choices=one.choices[begin:]) for one in record.mixtures))


def without_sizes(record: Latents) -> Latents:
    """What each layer keeps of a token, without the sizes of every one of them."""
    return replace(record, prompt=(), notices=(), layers=tuple(replace(one, tokens=()) for one in record.layers))


# What an error says → the same in Russian. Others are quoted as they are.
KNOWN = (
    ("is post-norm", "норма стоит в этой модели на всём потоке, за слоем, поэтому поток — не сумма того, что записали слои"),
    ("no layers that run as modules", "ни один её слой не вызывается как модуль, и потока, который можно разложить, нет"),
    ("do not write into one stream", "её слои пишут не в один поток"),
    ("goes through more than additions", "её поток проходит не только через сложения"),
    ("gives NaN", "она даёт здесь NaN"),
    ("hands out no weights", "её внимание не отдаёт весов, и softmax по всем токенам в нём не виден"),
    ("recognised as attention", "ни один её модуль не узнан как внимание"),
    ("not run as modules", "её слои не вызываются как модули"),
    ("recognised as a layer", "ни один её модуль не узнан как слой"),
    ("a lens would leave out", "между последним слоем и головой стоит не только последняя норма, и линза бы это пропустила"),
    ("not to 1", "веса внимания не дают в сумме 1"),
    ("NaN among the weights", "среди весов внимания NaN"),
)
SAID = {NoSumError: "её логит — не сумма того, что пишут её части", InvariantError: "не выполняется то, что должно быть верно"}


def why(name: str, error: Exception) -> Words:
    """Why a view is refused: what the error says, and the same in Russian, with the error behind it where it is not known there."""
    line = " ".join(str(error).split())
    russian = next((words for part, words in KNOWN if part in line), None)
    if russian is None:
        general = next((words for kind, words in SAID.items() if isinstance(error, kind)), "модель этого не даёт")
        russian = f"{general} ({line})"
    return line, russian
