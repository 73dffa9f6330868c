"""What a model does without a module for it, in words: where position comes in, where norms stand, how parts follow each other."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from ..records.structure import Fact, TraitDifference, Traits
from .tables import table
from .text import Translate, both, visible

# trait → its name
NAMES = {
    "sizes": ("sizes", "размеры"),
    "embedding": ("embeddings", "эмбеддинги"),
    "positions": ("positions", "позиции"),
    "norm": ("norms", "нормы"),
    "residual": ("order", "порядок"),
    "attention": ("attention", "внимание"),
    "feed_forward": ("feed-forward", "feed-forward"),
    "bias": ("biases", "смещения"),
    "head": ("head", "голова"),
}
PLACES = {
    "pre": ("{} before each part (pre-norm)", "{} перед каждой частью (pre-norm)"),
    "post": ("{} after each sum (post-norm)", "{} после каждой суммы (post-norm)"),
    "sandwich": ("{} before and after each part (sandwich)", "{} перед каждой частью и после неё (sandwich)"),
    "branch": ("{} on what each part gives, before the sum", "{} на выходе каждой части, до суммы"),
    "stream": ("{} before each part, the residual begins behind it", "{} перед каждой частью, residual начинается после неё"),
    "none": ("none", "нет"),
    "several": ("{} in several places", "{} в нескольких местах"),
}
# (trait, kind) → how a fact is said; {} stands for its detail
WORDS: dict[tuple[str, str], tuple[str, str]] = {
    ("sizes", "layers"): ("layers: {}", "слоёв: {}"),
    ("sizes", "width"): ("width {}", "ширина {}"),
    ("sizes", "vocabulary"): ("vocabulary {}", "словарь {}"),
    ("embedding", "plain"): ("as they are", "без изменений"),
    ("embedding", "scale"): ("× {}", "× {}"),
    ("embedding", "norm"): ("{}", "{}"),
    ("embedding", "linear"): ("Linear {}", "Linear {}"),
    ("positions", "rope"): ("RoPE turns q and k in attention", "RoPE поворачивает q и k во внимании"),
    ("positions", "learned"): ("learned table {}, added to the embeddings", "обучаемая таблица {}, прибавляется к эмбеддингам"),
    ("positions", "sinusoids"): ("sinusoids {}, added to the embeddings", "синусоиды {}, прибавляются к эмбеддингам"),
    ("positions", "table"): ("fixed table {}, added to the embeddings", "постоянная таблица {}, прибавляется к эмбеддингам"),
    ("positions", "alibi"): ("ALiBi: a bias by distance, added to q·kᵀ", "ALiBi: к q·kᵀ прибавляется смещение по расстоянию"),
    ("positions", "learned_bias"): ("learned bias by distance, added to q·kᵀ", "к q·kᵀ прибавляется обучаемое смещение по расстоянию"),
    ("positions", "relative"): ("relative: q is held against distances", "относительные: q сравнивается с расстояниями"),
    ("positions", "factor"): ("a factor by position", "множитель по позиции"),
    ("positions", "order"): ("the recurrence or convolution reads tokens in order", "рекуррентность или свёртка читает токены по порядку"),
    ("positions", "none"): ("none", "нет"),
    ("residual", "sequential"): (
        "{} + residual, then feed-forward + residual",
        "{} + residual, затем feed-forward + residual",
    ),
    ("residual", "reversed"): ("feed-forward + residual, then {} + residual", "feed-forward + residual, затем {} + residual"),
    ("residual", "parallel"): ("{} and feed-forward side by side, one sum", "{} и feed-forward рядом, одна сумма"),
    ("residual", "parallel one norm"): (
        "{} and feed-forward side by side behind one norm, one sum",
        "{} и feed-forward рядом после одной нормы, одна сумма",
    ),
    ("residual", "alone"): ("one part + residual", "одна часть + residual"),
    ("residual", "none"): ("no residual", "без residual"),
    ("attention", "heads"): ("heads: {}", "голов: {}"),
    ("attention", "kv_heads"): ("of keys and values: {}", "у ключей и значений: {}"),
    ("attention", "latent"): ("keys and values from a latent (MLA)", "ключи и значения из латента (MLA)"),
    ("attention", "cap"): ("scores capped softly at {}", "soft cap оценок {}"),
    ("attention", "window"): ("window {}", "окно {}"),
    ("attention", "recurrent"): ("none, but {}", "нет, вместо него {}"),
    ("attention", "mixer"): ("{}", "{}"),
    ("feed_forward", "gated"): ("{}(gate) × up", "{}(gate) × up"),
    ("feed_forward", "plain"): ("{}", "{}"),
    ("feed_forward", "?"): ("activation not told", "активация не определена"),
    ("feed_forward", "width"): ("width {}", "ширина {}"),
    ("feed_forward", "experts"): ("experts: {}", "экспертов: {}"),
    ("feed_forward", "experts of"): ("{} of {} experts", "{} из {} экспертов"),
    ("feed_forward", "none"): ("none", "нет"),
    ("bias", "bias"): ("{}", "{}"),
    ("bias", "none"): ("none", "нет"),
    ("head", "tied"): ("Linear {}, tied to the embedding", "Linear {}, веса эмбеддинга"),
    ("head", "own"): ("Linear {}, weights of its own", "Linear {}, свои веса"),
    ("head", "bias"): ("+ bias", "+ bias"),
    ("head", "through"): ("{}", "{}"),
    ("head", "scale"): ("× {}", "× {}"),
    ("head", "cap"): ("soft cap {}", "soft cap {}"),
    ("head", "?"): ("then what is not told", "затем неизвестное"),
}
MIXING = {"": ("attention", "внимание"), "recurrence": ("recurrence", "рекуррентность"), "convolution": ("convolution", "свёртка")}
PARTS = {"attn": ("attention", "внимание"), "mlp": ("feed-forward", "feed-forward")}


def trait_name(trait: str, t: Translate) -> str:
    """What a trait is called."""
    return t(*NAMES[trait])


def trait_words(trait: str, facts: Sequence[Fact] | None, t: Translate) -> str:
    """A trait in words."""
    if facts is None:
        return t("not told", "не определено")
    return ("; " if trait in ("norm", "residual") else ", ").join(fact_words(trait, fact, t) for fact in facts) or "–"


def fact_words(trait: str, fact: Fact, t: Translate) -> str:
    """One fact in words."""
    kind, details = fact.kind, [t("an unknown number", "неизвестное число") if fact.detail == "?" else fact.detail]
    if trait == "norm":
        part, _, place = kind.rpartition("_")
        said = t(*PLACES[place]).format(*details)
        said = f"{t(*PARTS[part])}: {said}" if part else said
    else:
        if trait == "residual":
            kind += " one norm" * fact.detail.endswith("1")
            mixing = fact.detail.removesuffix("1").strip()
            details = [t(*MIXING.get(mixing, (mixing, mixing)))]
        if kind == "experts" and "/" in fact.detail:
            kind, details = "experts of", fact.detail.split("/")[::-1]
        said = " ".join(t(*WORDS[trait, kind]).format(*details).split()).replace(" ,", ",")
    if trait == "positions" and kind == "rope" and fact.detail:
        said += t(", {} of {} numbers", ", {} из {} чисел").format(*fact.detail.split("/"))
    if fact.layers:
        said += t(f" (layers {fact.layers})", f" (слои {fact.layers})")
    return visible(said)


def trait_table(rows: Sequence[TraitDifference], names: Sequence[str], t: Translate) -> Table:
    """The traits of two models side by side; where they differ stands out, and what is not told of one is no difference yet."""
    result = table("    " + t("trait", "свойство"), *(visible(name) for name in names), wide=(1, 2))
    for row in rows:
        style = "dim" if row.equal else "bold yellow"
        sign = "=" if row.equal else "?" if row.a is None or row.b is None else "≠"
        words = (trait_words(row.trait, of, t) for of in (row.a, row.b))
        result.add_row(Text(f"{sign}   {trait_name(row.trait, t)}", style), *(Text(said, style) for said in words))
    return result


def labelled() -> Table:
    """An empty table without lines, whose first column keeps its names at any width."""
    result = Table.grid(padding=(0, 2))
    result.add_column(no_wrap=True)
    return result


def trait_list(facts: Traits, t: Translate) -> Table:
    """The traits of one model, a line each."""
    result = labelled()
    for trait, of in facts.items():
        result.add_row(Text(trait_name(trait, t), "dim"), Text(trait_words(trait, of, t)))
    return result


def architectures(rows: Sequence[TraitDifference], names: Sequence[str], t: Translate) -> Table:
    """What differs between two architectures, a line each, without what is alike."""
    result = labelled()
    result.add_row(Text(t("what differs", "что различается"), "bold"), *(Text(visible(name), "bold") for name in names))
    for row in rows:
        if not row.equal:
            result.add_row(Text(trait_name(row.trait, t), "dim"), *(Text(trait_words(row.trait, of, t)) for of in (row.a, row.b)))
    return result


def names_in_both(traits: Traits) -> dict[str, tuple[str, str]]:
    """Trait → what it is called, for a page."""
    return {trait: both(lambda t, trait=trait: trait_name(trait, t)) for trait in traits}


def words_in_both(traits: Traits) -> dict[str, tuple[str, str]]:
    """Trait → what its facts say, for a page."""
    return {trait: both(lambda t, trait=trait, facts=facts: trait_words(trait, facts, t)) for trait, facts in traits.items()}
