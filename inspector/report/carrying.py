"""A model for the page to run: its weights in float16, and the description that render/page/script/carried.js builds it from.

Only models whose every module that script knows are carried; of published ones those that have a native form. Shape letters: T tokens,
V vocabulary.
"""

import json
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..loading.finding import LoadError
from ..loading.loaded import Loaded, check_loaded
from ..loading.native import native_config
from ..models import (
    Backbone,
    BalancedGate,
    Block,
    ExpertBackbone,
    FeedForward,
    GroupedQueryAttention,
    MixtureOfExperts,
    MultiHeadAttention,
    MultiHeadLatentAttention,
    MultiTokenPrediction,
    NoisyTopKGate,
    PositionalEncoding,
    RMSNorm,
    RotaryEmbedding,
    SwiGLU,
)
from ..models.backbone import hidden_of
from ..models.families import FAMILIES, native_weights
from ..models.positions import frequencies
from ..parts.splitting import probe_ids
from ..records.carried import Carried, CarriedPart, CarriedTensor
from ..records.notices import Notice
from ..records.report import Side

MOST = 825_000  # numbers that a page carries: two bytes each, and four letters for three bytes, are 2.2 MB
LONGEST = 256  # tokens that a page reads: it keeps the attention of every head
KINDS: dict[type[nn.Module], tuple[str, ...]] = {  # the modules that carried.js knows, with their attributes that it needs
    Backbone: ("scale",),
    ExpertBackbone: ("scale",),
    Block: ("norm_first",),
    MultiHeadAttention: ("n_heads",),
    GroupedQueryAttention: ("n_heads", "n_kv_heads"),
    MultiHeadLatentAttention: ("n_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "scale"),
    FeedForward: (),
    SwiGLU: (),
    MixtureOfExperts: (),
    NoisyTopKGate: ("n_chosen",),
    BalancedGate: ("n_chosen", "scale", "norm_topk_prob", "n_groups", "n_chosen_groups"),
    MultiTokenPrediction: (),
    PositionalEncoding: (),
    RotaryEmbedding: ("factor",),
    RMSNorm: ("eps",),
    nn.LayerNorm: ("eps",),
    nn.Linear: (),
    nn.Embedding: (),
    nn.GELU: ("approximate",),
    nn.Dropout: (),
    nn.ModuleList: (),
}
SILENT = (nn.Dropout, nn.ModuleList)  # which do nothing of their own while nobody trains


class NotCarriedError(ValueError):
    """Why a model cannot be carried, and what that would need."""

    def __init__(self, english: str, russian: str):
        super().__init__(english)
        self.notice = Notice("carried", english, russian)


def no(english: str, russian: str) -> NoReturn:
    """Raises ``NotCarriedError``."""
    raise NotCarriedError(english, russian)


@dataclass(frozen=True)
class Native:
    """The modules of a model that is made of ours."""

    backbone: Backbone
    head: nn.Module
    depths: tuple[MultiTokenPrediction, ...]

    def named(self) -> dict[str, nn.Module]:
        """Every module by the name that it has in the page."""
        tops = {"backbone": self.backbone, "lm_head": self.head} | {f"mtp.{k}": depth for k, depth in enumerate(self.depths)}
        return {name: part for top, module in tops.items() for name, part in module.named_modules(prefix=top, remove_duplicate=False)}


def with_model(side: Side, m: Loaded) -> tuple[Side, bytes]:
    """The side of a report with what the page runs its model with, and the weights for that; or with the reason, and none."""
    try:
        record, weights = carry(m)
    except NotCarriedError as reason:
        return replace(side, not_carried=reason.notice), b""
    return replace(side, carried=record), weights


@torch.no_grad()
def carry(m: Loaded) -> tuple[Carried, bytes]:
    """A model for the page: what carried.js builds it from, and its weights one after another, float16 in little-endian bytes.

    Each weight is rounded to the nearest float16, of two equally near ones to the even. The page computes in float64.

    Raises:
        NotCarriedError: it cannot be carried.
        ValueError: it is no loaded model.
    """
    check_loaded(m)
    native = checked(m)
    modules = native.named()
    tensors, chunks = laid_out(m, modules)
    known, size = m.texts, native.head.out_features
    tokens = [known.token(id) for id in range(size)]
    record = Carried(
        model=m.origin.name,
        parts={name: part(module) for name, module in modules.items() if not isinstance(module, SILENT)},
        tensors=tensors,
        texts=tuple(token.text for token in tokens),
        special=tuple(token.id for token in tokens if token.special),
        stops=m.stop_ids,
        context=min(m.context_length or LONGEST, LONGEST),
        **(alphabet_of(m.tokenizer, size) or {}),
    )
    return record, b"".join(chunks)


def checked(m: Loaded) -> Native:
    """The native modules of a model, every one of them known to the page, and together what the model computes."""
    name = m.origin.name
    if (why := getattr(m.model, "opaque", None)) is not None:
        no(f"{name}: {why}", f"{name} вычисляет другая среда, и модулей для страницы у неё нет")
    count = sum(weight.numel() for weight in {id(w): w for w in m.model.state_dict(keep_vars=True).values()}.values())
    if count > MOST:
        megabytes = count * 2 * 4 / 3 / 1e6
        no(
            f"{name} has {count:,} numbers, {megabytes:,.1f} MB as float16 in a page: a page carries at most {MOST:,} (2.2 MB)",
            f"У {name} {count:,} чисел, в странице это {megabytes:,.1f} МБ в float16: страница несёт не больше {MOST:,} (2.2 МБ)",
        )
    if any(weight.is_meta for weight in m.model.parameters()):
        no(f"the weights of {name} lie on disk: load it whole", f"Веса {name} лежат на диске: загрузите её целиком")
    native = native_of(m)
    for where, module in native.named().items():
        other = (module is native.head and type(module) is not nn.Linear) or (type(module) is nn.GELU and module.approximate != "none")
        if other or type(module) not in KINDS:
            kind = repr(module) if isinstance(module, nn.GELU) else type(module).__name__
            no(
                f"{where} of {name} is a {kind}, which the page's script does not know: it would need that module written in JavaScript",
                f"{where} у {name} — это {kind}, которого сценарий страницы не знает: нужен этот модуль, написанный на JavaScript",
            )
    ids_1T = probe_ids(m.model)
    own = native.head(hidden_of(native.backbone(ids_1T.to(native.head.weight.device)))[0]).cpu()
    theirs = m.split.head(m.split.backbone(ids_1T)).cpu()
    if own.shape != theirs.shape or not near(own, theirs):
        no(
            f"{name} computes something else than its backbone and its linear head: the page would need that, too",
            f"{name} вычисляет не только то, что дают её backbone и линейная голова: странице понадобилось бы и остальное",
        )
    return native


def near(a: Tensor, b: Tensor) -> bool:
    """Whether two ways to compute the same agree in half of the digits."""
    return bool((a.float() - b.float()).abs().max() <= torch.finfo(b.dtype).eps ** 0.5 * b.abs().max())


def native_of(m: Loaded) -> Native:
    """The native modules that a model consists of, or that a published one of a known family becomes."""
    model, name = m.model, m.origin.name
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if type(model).__module__.startswith("transformers.models.") and kind in FAMILIES:
        try:
            config = native_config(name, model.config)
        except LoadError as error:
            no(f"{error}", f"Нативной формы у {name} нет: {error}")
        whole = config.build().eval()
        weights = {key: weight.float().cpu() for key, weight in native_weights(model.config, model.state_dict().items())}
        missing, unexpected = whole.load_state_dict(weights, strict=False)
        if set(missing) - ({"lm_head.weight"} if config.tie_word_embeddings else set()) or unexpected:
            no(
                f"the weights of {name} are not those of a {kind} alone: are they quantised, or is there an adapter? Load it without",
                f"Веса {name} — не только веса {kind}: они квантованы или есть адаптер? Загрузите без этого",
            )
        return Native(whole.backbone, whole.lm_head, ())
    modules = dict(model.named_modules())
    backbone, head = modules.get(m.split.backbone_name), modules.get(m.split.head_name)
    if not isinstance(backbone, Backbone) or head is None:
        known = ", ".join(FAMILIES)
        no(
            f"{name} is a {type(model).__name__}: a page runs models made of inspector.models, and {known} through their native form; it "
            "would need the modules of this one written in JavaScript",
            f"{name} — это {type(model).__name__}: страница считает модели из inspector.models, а {known} — в их нативной форме; ей нужны "
            "были бы модули этой модели, написанные на JavaScript",
        )
    return Native(backbone, head, tuple(getattr(model, "mtp", ())))


def part(module: nn.Module) -> CarriedPart:
    """The description of a module."""
    settings = {name: getattr(module, name) for name in KINDS[type(module)]}
    if isinstance(module, RotaryEmbedding):  # as they are used, to the last bit of float32, whatever they are made of
        settings["frequencies"] = tuple(frequencies(module.width, module.theta, module.scaling).tolist())
    return CarriedPart(type(module).__name__, settings)


def laid_out(m: Loaded, modules: dict[str, nn.Module]) -> tuple[dict[str, CarriedTensor], list[bytes]]:
    """Where each weight and each buffer lies, and the numbers."""
    tensors: dict[str, CarriedTensor] = {}
    chunks: list[bytes] = []
    places: dict[tuple[int, tuple[int, ...]], int] = {}  # of weights that are one: address and shape → numbers before
    end = 0
    for name, module in modules.items():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for key, weight in own:
            same = weight.data_ptr(), tuple(weight.shape)
            if same not in places:
                half = weight.detach().cpu().float().half()
                if not half.isfinite().all():
                    largest = float(weight.detach().abs().max())
                    no(
                        f"{name}.{key} of {m.origin.name} holds {largest:.3g}: float16 ends at 65504",
                        f"В {name}.{key} у {m.origin.name} есть {largest:.3g}: float16 кончается на 65504",
                    )
                chunks.append(half.contiguous().numpy().astype("<f2").tobytes())
                places[same], end = end, end + weight.numel()
            tensors[f"{name}.{key}"] = CarriedTensor(tuple(weight.shape), places[same])
    return tensors, chunks


def alphabet_of(tokenizer: PreTrainedTokenizerBase | None, size: int) -> dict | None:
    """Of a tokenizer that makes a token of every character: ``alphabet``, ``begin``, ``unknown`` and ``composed`` of ``Carried``.

    None for every other one, since its pages would have to have its rules.
    """
    if tokenizer is None or tokenizer.chat_template is not None or not tokenizer.is_fast:
        return None
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    whole = dict(type="Split", pattern=dict(Regex=r"[\s\S]"), behavior="Isolated", invert=False)
    vocabulary, added = rules["model"].get("vocab"), rules["added_tokens"]
    plain = {token["content"] for token in added if not (token["lstrip"] or token["rstrip"] or token["single_word"] or token["normalized"])}
    if (
        rules["model"]["type"] != "WordLevel"
        or rules["pre_tokenizer"] != whole
        or rules["normalizer"] not in (None, dict(type="NFC"))
        or len(plain) != len(added)
        or any(len(piece) != 1 and piece not in plain for piece in vocabulary)
        or max(vocabulary.values()) >= size
    ):
        return None
    begin = tokenizer("")["input_ids"]
    a = next((piece for piece in vocabulary if piece not in plain), None)
    if a is None or tokenizer(a)["input_ids"] != [*begin, vocabulary[a]]:  # it puts something behind a text
        return None
    return dict(
        alphabet={piece: id for piece, id in sorted(vocabulary.items(), key=lambda item: item[1])},
        begin=tuple(begin),
        unknown=tokenizer.unk_token_id,
        composed=rules["normalizer"] is not None,
    )
