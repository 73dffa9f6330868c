"""Every causal LM of transformers, tiny: is it split, does the loop give what ``generate()`` gives, are its roles and costs known?"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from io import StringIO

import torch
import transformers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..compare.verifying import verify
from ..loading.finding import first_line, quiet
from ..loading.loaded import Loaded, attach
from ..loop.caching import REMEDY, CacheError, cached, logits_after
from ..loop.decoding import next_logits
from ..parts.costs import costs, kv_numbers_per_token
from ..parts.heads import forward
from ..parts.precision import LiftedCasts, in_dtype, plain_experts
from ..parts.roles import roles, unrecognised
from ..parts.splitting import SplitError
from ..parts.structure import Running
from ..parts.watching import largest_difference
from ..records.generation import Sampling
from .tiny import NOT_ALONE, tiny_model, types

PROMPT = (5, 17, 29, 41, 53)
FOLLOWING = (8, 30, 71, 60, 2, 14)  # past the windows of the tiny models
STEPS = 8
SAMPLINGS = (Sampling(temperature=0), Sampling(temperature=0.9, top_p=0.95, seed=1))
COUNTED = 24  # tokens in the forward pass whose FLOPs are counted
CLOSE = 0.01
CLOSE_WITH_CACHE = 1e-5


@dataclass(frozen=True)
class Coverage:
    """What became of one model type.

    Args:
        model_type: its name in ``config.json``.
        head: what the head does; empty where there is no split.
        split: "proved", "refused" or "not built".
        greedy, sampled: levels of the verdicts against ``generate(use_cache=False)``.
        cached: that of the sampled one with a KV-cache, against ``generate(use_cache=True)``; "refused" where it cannot read with one.
        roles: every module of its layers that holds weights has a role.
        flops: FLOPs told from shapes, divided by those that torch counts; None where torch's counter breaks off.
        cache: numbers in the KV-cache told from shapes equal those that transformers keeps; None where it keeps another kind.
        reason: why it was refused or not built, or what makes a verdict less than bitwise.
        of_cache: why there is no cached verdict, or what a cache changes by more than rounding.
    """

    model_type: str
    head: str = ""
    split: str = "proved"
    greedy: str = ""
    sampled: str = ""
    cached: str = ""
    roles: bool = False
    flops: float | None = None
    cache: bool | None = None
    reason: str = ""
    of_cache: str = ""

    @property
    def wrong(self) -> bool:
        """Whether its split was proved and the loop still differs from ``generate()``, for no reason that is known."""
        unexplained = {self.greedy, self.sampled} != {"bitwise"} and not self.reason
        return self.split == "proved" and (unexplained or self.cached not in ("bitwise", "refused"))


def coverage(names: list[str] | None = None, threads: int = 1) -> Iterator[Coverage]:
    """A row for each model type, as it comes, computed with ``threads`` threads: for tiny tensors a second one costs more than it gives.

    Raises:
        ValueError: a name that ``AutoModelForCausalLM`` does not know.
    """
    if unknown := sorted(set(names or []) - set(types())):
        like = near(unknown[0])
        remedy = f"did you mean {', '.join(like)}?" if like else "docs/coverage.md lists them, such as gpt2, llama, qwen2"
        raise ValueError(f"{unknown[0]!r} is no model_type of AutoModelForCausalLM in transformers {transformers.__version__}: {remedy}")
    return examined(dict.fromkeys(names or types()), threads)


def near(name: str, most: int = 5) -> list[str]:
    """The model types that a wrong one may stand for, the likeliest first: alike in writing, or one begins with or holds the other."""
    own = name.lower()
    alike = get_close_matches(own, types(), most)
    held = [known for known in types() if (len(own) > 1 and own in known) or (len(known) > 2 and known in own)]
    return list(dict.fromkeys([*alike, *held]))[:most]


def examined(names: Iterable[str], threads: int) -> Iterator[Coverage]:
    """The rows of these types; torch's own number of threads is as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for name in names:
            yield examine(name)
    finally:
        torch.set_num_threads(before)


def examine(model_type: str) -> Coverage:
    """Builds a tiny model of a type, splits it, and runs the loop against ``generate()``, greedy and sampled."""
    if model_type in NOT_ALONE:
        return Coverage(model_type, split="not built", reason=NOT_ALONE[model_type])
    with quiet(bars=True), redirect_stdout(StringIO()):  # Reformer prints
        try:
            model = tiny_model(model_type)
        except Exception as error:  # a new type whose configuration the table of tiny sizes does not fit yet
            return Coverage(model_type, split="not built", reason=f"{type(error).__name__}: {first_line(error)}")
        try:
            m = attach(model)
        except SplitError as error:
            return Coverage(model_type, split="refused", reason=str(error))
        verdicts = [verify(m, PROMPT, sampling, STEPS) for sampling in SAMPLINGS]
        level, of_cache = with_cache(m)
        found = roles(model, m.split.backbone_name, m.split.head_names)
        runs = Running(model).counts
        return Coverage(
            model_type,
            head=m.split.describe(),
            greedy=verdicts[0].level,
            sampled=verdicts[1].level,
            cached=level,
            roles="layers.0" in found.values() and not any(unrecognised(model, found)),
            flops=flops_ratio(model, found, runs),
            cache=cache_agrees(m, found, runs),
            reason=next(filter(None, (v.cause for v in verdicts)), "") or ("" if m.split.causal else "reads its whole context both ways"),
            of_cache=of_cache,
        )


def with_cache(m: Loaded) -> tuple[str, str]:
    """The level of the verdict with a KV-cache, and what must be known of it; or "refused", and why the model cannot read with one."""
    try:
        level = verify(m, PROMPT, SAMPLINGS[1], STEPS, kv_cache=True).level
    except CacheError as error:
        return "refused", str(error).removesuffix(f": {REMEDY}")
    share = drift(m)
    if share > CLOSE_WITH_CACHE:  # in float64 no rounding is as large
        with in_dtype(m.model, torch.float64, constants=False), plain_experts(m.model), LiftedCasts():
            share = drift(m)
    other = f"with a cache, in generate() too, logits are others than without, by up to {share:.1g} of the largest"
    return level, other if share > CLOSE_WITH_CACHE else ""


def drift(m: Loaded) -> float:
    """The largest difference of logits that are read with a cache from those without, as a share of the largest, over a few steps."""
    ids_T = torch.tensor([*PROMPT, *FOLLOWING])
    rows_T = [ids_T[:length] for length in range(len(PROMPT), len(ids_T) + 1)]
    backbone = cached(m, len(ids_T))
    read = [logits_after(backbone, m.split, [row_T])[0] for row_T in rows_T]
    anew = [next_logits(m.split, row_T[None]) for row_T in rows_T]
    return max(largest_difference(a_V, b_V) / float(b_V.abs().max()) for a_V, b_V in zip(read, anew, strict=True))


def flops_ratio(model: nn.Module, found: dict[str, str], runs: Counter) -> float | None:
    """FLOPs per token told from shapes, divided by what torch counts with eager attention and eager experts."""
    told = costs(model, found, runs, COUNTED)[0].flops
    try:
        for switch in ("set_attn_implementation", "set_experts_implementation"):
            if hasattr(model, switch):
                try:
                    getattr(model, switch)("eager")
                except (ValueError, NotImplementedError):  # it has one way only
                    pass
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            forward(model, torch.arange(COUNTED)[None] + 3)
    except AssertionError:  # the counter's own, where a model hands views of its weights from module to module
        return None
    return round(told * COUNTED / counter.get_total_flops(), 3)


@torch.no_grad()
def cache_agrees(m: Loaded, found: dict[str, str], runs: Counter) -> bool | None:
    """Whether the cache that the model fills on a short prompt holds as many numbers as its shapes tell."""
    ids = torch.tensor([PROMPT[:2]])
    try:
        layers = m.model(ids, use_cache=True).past_key_values.layers
        kept = sum(t.numel() for layer in layers for t in (getattr(layer, "keys", None), getattr(layer, "values", None)) if t is not None)
    except Exception:  # a cache of another kind, or none
        return None
    return kept == (kv_numbers_per_token(m.model, found, runs) or 0) * ids.shape[1]


def totals(rows: list[Coverage]) -> dict[str, int]:
    """The figures of a whole table."""
    built = [row for row in rows if row.split != "not built"]
    proved = [row for row in built if row.split == "proved"]
    return {
        "registered": len(rows),
        "built": len(built),
        "proved": len(proved),
        "refused": len(built) - len(proved),
        "bitwise, greedy and sampled": sum({row.greedy, row.sampled} == {"bitwise"} for row in proved),
        "cached, bitwise": sum(row.cached == "bitwise" for row in proved),
        "cached, other logits than without": sum(row.cached == "bitwise" and row.of_cache != "" for row in proved),
        "cached, refused": sum(row.cached == "refused" for row in proved),
        "other, for a known reason": sum({row.greedy, row.sampled} != {"bitwise"} and not row.wrong for row in proved),
        "wrong": sum(row.wrong for row in rows),
        "every layer role recognised": sum(row.roles for row in rows),
        "FLOPs within 1 % of torch's count": sum(row.flops is not None and abs(row.flops - 1) <= CLOSE for row in rows),
        "KV-cache as told": sum(row.cache is True for row in rows),
    }


HEADS = (  # in English and Russian
    ("type", "тип"),
    ("head", "голова"),
    ("split", "разделение"),
    ("greedy", "жадно"),
    ("sampled", "сэмплирование"),
    ("cached", "с кэшем"),
    ("roles", "роли"),
    ("FLOPs", "FLOP"),
    ("kept", "в кэше"),
    ("reason", "причина"),
)
FIGURES = {  # of ``totals``, in Russian
    "registered": "зарегистрировано",
    "built": "построено",
    "proved": "доказано",
    "refused": "отклонено",
    "bitwise, greedy and sampled": "бит в бит, жадно и с сэмплированием",
    "cached, bitwise": "с кэшем, бит в бит",
    "cached, other logits than without": "с кэшем, логиты иные, чем без него",
    "cached, refused": "с кэшем, отклонено",
    "other, for a known reason": "иначе, по известной причине",
    "wrong": "неверно",
    "every layer role recognised": "у всего в слоях есть роль",
    "FLOPs within 1 % of torch's count": "FLOP отличаются от счётчика torch не больше чем на 1 %",
    "KV-cache as told": "KV-кэш такой, как сказано",
}


def cells(row: Coverage, t: Callable[[str, str], str]) -> tuple[str, ...]:
    """A row as text, a cell for each of ``HEADS``; ``t`` picks the English or the Russian, levels of verdicts and reasons are English."""
    words = {True: t("yes", "да"), False: t("no", "нет"), None: "–"}
    splits = {"proved": t("proved", "доказано"), "refused": t("refused", "отклонено"), "not built": t("not built", "не построено")}
    told = row.split == "proved"
    cached = t("refused", "отклонено") if row.cached == "refused" else row.cached
    figures = [words[row.roles] if told else "–", "–" if row.flops is None else f"{row.flops:.3f}", words[row.cache]]
    levels, reason = (row.greedy, row.sampled, cached), "; ".join(filter(None, [row.reason, row.of_cache]))
    return tuple(cell or "–" for cell in (row.model_type, row.head, splits[row.split], *levels, *figures, reason))


def markdown(rows: list[Coverage]) -> str:
    """The page of the whole table, in English."""
    escaped = (tuple(re.sub(r"([|<>*_`])", r"\\\1", cell) for cell in cells(row, lambda english, _: english)) for row in rows)
    table = [
        f"| {' | '.join(english for english, _ in HEADS)} |",
        "|" + "---|" * len(HEADS),
        *(f"| {' | '.join(row)} |" for row in escaped),
    ]
    figures = [f"- {name}: {number}" for name, number in totals(rows).items()]
    return "\n".join([INTRODUCTION.format(version=transformers.__version__), *figures, "", *table, ""])


INTRODUCTION = """# Every causal language model of transformers

Written by `inspector coverage --markdown docs/coverage.md` with transformers {version}; a test compares. Each type that is
registered for `AutoModelForCausalLM` is built tiny, with random weights large enough that a soft cap bites and with scales,
caps and biases off their defaults; BERT-like types with `is_decoder=True`. It is split, the split is proved, and eight
steps of the manual loop are held against `generate(use_cache=False)`, greedy and sampled.

- **head**: everything that the model does after its backbone, in order.
- **split**: proved (`head(backbone(ids))` equals `model(ids).logits` bit for bit), refused, or not built.
- **greedy**, **sampled**: levels of the verdicts.
- **cached**: level of the sampled one with a KV-cache, of the loop with `--kv-cache` against `generate(use_cache=True)`; refused where
  a model cannot read with one. What reading with a cache changes by more than rounding, in transformers itself, stands under
  the reasons: positions that `generate()` counts otherwise, windows, searches, and the one-step formulas of recurrent layers.
- **roles**: every module with weights in its layers has a role (`attn.q`, `mlp.down`, `norm_attn` …).
- **FLOPs**: FLOPs per token told from shapes, divided by what torch's `FlopCounterMode` counts with eager attention and eager
  experts; – where the counter breaks off. Off by more than a per cent are: recurrent layers, told by the formula of one step where
  transformers runs them in chunks of a sequence; layers that search for the tokens to attend to (DeepSeek's indexer and its kin),
  whose search is not told; Llama 4, which computes all experts and chooses afterwards; CPM-Ant, which puts a prompt of its own
  before the tokens; attention with other products than q·kᵀ and p·v (DiffLlama, Inkling); and layers without a role.
- **kept**: the numbers in the KV-cache told from shapes are those that transformers keeps; – where it keeps no such cache, or breaks
  off without arguments of its own.
"""
