"""What does a smaller precision cost, and what does it save? Bytes, tokens per second, and how far the predictions move."""

import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..loading.loaded import Loaded
from ..loading.texts import check_repeats
from ..loop.caching import CachedBackbone, cached
from ..parts.quantised import QuantisedLinear, stored_bytes
from ..parts.watching import Watch, submodules
from ..training.corpus import build
from .limits import bytes_per_second, timed
from .loop import probe_ids

WAYS = {  # name → arguments of ``load``; the first is what the others are held against
    "float32": dict(dtype="float32"),
    "bfloat16": dict(dtype="bfloat16"),
    "float16": dict(dtype="float16"),
    "int8": dict(dtype="float32", quantise="int8"),
    "int8-dynamic": dict(dtype="float32", quantise="int8-dynamic"),
    "int4": dict(dtype="float32", quantise="int4"),
}
LINES = 32  # of the held-out text
PROMPT, NEW = 16, 32  # tokens that are read, and then made one by one


def held_out(m: Loaded) -> list[list[int]]:
    """The held-out names of the embedded corpus, ids of a line each; of a model without a tokenizer random ids, as many."""
    if m.tokenizer is None:
        return [probe_ids(m, length)[0].tolist() for length in range(8, min(8 + LINES, m.context_length or 8 + LINES))]
    limit = m.context_length or PROMPT + NEW
    return [ids for line in build().validation[:LINES] if len(ids := m.encode(line, raw=True)[:limit]) > 0]


@torch.no_grad()
def log_probabilities(m: Loaded, lines: Sequence[Sequence[int]]) -> Tensor:
    """ln p of every next token of every line, [tokens, V] float32 on the CPU."""
    logits = [m.split.head(m.split.backbone(torch.tensor([ids], device=m.device)))[0] for ids in lines]
    return torch.cat([one.float().cpu() for one in logits]).log_softmax(-1)


def moved(of_whole: Tensor, other: Tensor) -> dict:
    """How far predictions [tokens, V] are from those in float32: the mean KL in nats, and the share of tokens whose best one is the same.

    KL(p‖p̂) = Σ p·(ln p − ln p̂), p in float32; a token that neither gives any probability adds nothing.
    """
    p = of_whole.double().exp()
    terms = torch.where(p > 0, p * (of_whole.double() - other.double()), 0.0)
    return dict(kl=float(terms.sum(-1).mean()), agreement=float((of_whole.argmax(-1) == other.argmax(-1)).double().mean()))


def next_token(m: Loaded, backbone: CachedBackbone, ids_1T: Tensor) -> Tensor:
    """One greedy step of the cached loop, [1, 1]."""
    with torch.no_grad():
        hidden_BTD = backbone(ids_1T)
        return m.split.head(hidden_BTD[:, -1:] if m.split.last_alone else hidden_BTD)[:, -1:].argmax(-1)


def continued(m: Loaded, prompt_1T: Tensor, new: int) -> float:
    """Seconds of ``new`` greedy steps of one token each, behind a prompt that was read before."""
    backbone = cached(m, prompt_1T.shape[1] + new)
    last_11 = next_token(m, backbone, prompt_1T)

    def steps() -> None:
        nonlocal last_11
        for _ in range(new):
            last_11 = next_token(m, backbone, last_11)

    return timed(steps)


def read_bytes(m: Loaded) -> int:
    """The weights that a step of one token reads: those of the modules that run in it, without tables in which rows are looked up."""
    ran = set()
    with Watch(submodules(m.model), before=lambda call: ran.add(call.module)), torch.no_grad():
        m.split.head(m.split.backbone(probe_ids(m, 1)))
    held = {}
    for module in ran:
        if not isinstance(module, nn.Embedding):
            buffers = list(module.buffers(recurse=False)) if isinstance(module, QuantisedLinear) else []
            held |= {id(weight): weight for weight in (*module.parameters(recurse=False), *buffers)}
    return sum(weight.numel() * weight.element_size() for weight in held.values())


def measure(
    load: Callable[..., Loaded], rounds: int = 3, said: Callable[[str, str], None] = lambda *words: None
) -> tuple[list[dict], dict[str, int | float]]:
    """A row for each of ``WAYS``, and what the rows have in common.

    The ways take turns in every round, after one that does not count; ``speed_up`` is the median of the rounds' ratios, so that a
    machine whose speed drifts does not favour one. ``of_limit`` is the speed beside that of reading the weights once, as fast as a
    sum reads memory.

    Args:
        load: arguments of ``inspector.load`` beside the name → the model so loaded; all are kept at once.
        rounds: that count.
        said: is told what runs, in English and Russian.

    Raises:
        ValueError: the model is quantised already, reads too few tokens, or cannot be run so.
    """
    check_repeats(rounds=rounds)
    models = {}
    for name, arguments in WAYS.items():
        said(f"loading in {name}", f"загрузка в {name}")
        models[name] = load(**arguments)
        models[name].check_open()
    whole = models["float32"]
    context = whole.context_length or PROMPT + NEW
    if context < 4:
        raise ValueError(f"{whole.origin.name} reads at most {context} tokens: too few for the measurement")
    prompt_1T = probe_ids(whole, min(PROMPT, context // 2))
    new = min(NEW, context - prompt_1T.shape[1] - 1)
    lines = held_out(whole)
    rows, of_whole = {}, None
    for name, m in models.items():
        said(f"held-out text in {name}", f"отложенный текст в {name}")
        own = log_probabilities(m, lines)
        of_whole = own if of_whole is None else of_whole
        rows[name] = dict(way=name, bytes=stored_bytes(m.model), read_bytes=read_bytes(m)) | moved(of_whole, own)
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name in list(models) if turn % 2 else list(models)[::-1]:
            said(f"round {turn} of {rounds}: {name}", f"раунд {turn} из {rounds}: {name}")
            times[name].append(continued(models[name], prompt_1T, new))
    gigabytes = bytes_per_second(whole.device) / 1e9
    for name, row in rows.items():
        counted = times[name][1:]
        row["tokens_per_s"] = new / statistics.median(counted)
        row["speed_up"] = statistics.median(a / b for a, b in zip(times["float32"][1:], counted, strict=True))
        row["of_limit"] = row["tokens_per_s"] * row["read_bytes"] / (1e9 * gigabytes)
    common = dict(gb_per_s=gigabytes, held_out_tokens=len(of_whole), random_ids=whole.tokenizer is None, new_tokens=new)
    return list(rows.values()), common
