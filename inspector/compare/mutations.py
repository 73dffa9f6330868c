"""Classic mistakes of porting a model, planted in a copy of it: does the search for the first difference name the place?

Each mutation says in words what it does, changes a copy in place, and returns the name of the place where the copy now
differs (``records.comparison.Place.name``), or says why it does not apply. A new one is a function and a row of ``MUTATIONS``.

Shape letters: B batch, T tokens, D hidden, H heads, K head width.
"""

import copy
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from inspect import signature
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..inside.attention import ChangedAttention
from ..loading.loaded import Loaded, attach, check_loaded
from ..models import GroupedQueryAttention, MultiHeadLatentAttention, RotaryEmbedding
from ..parts.heads import forward, own_logits
from ..parts.quantised import QuantisedLinear
from ..parts.splitting import input_embedding, probe_ids
from ..parts.watching import Watch, copied, first_tensor
from ..records.comparison import Place, Planted
from .divergence import diverge, parents, record

Words = tuple[str, str]  # in English and in Russian


class NotApplicable(Exception):  # noqa: N818 - no error: the model does not have what the mutation changes
    """Why a mutation does not apply to a model, in English and in Russian."""


class Patient:
    """A copy of a model, to be changed.

    Args:
        m: the model that is copied.
    """

    def __init__(self, m: Loaded):
        self.m = replace(m, model=copy.deepcopy(m.model))
        self.model = self.m.model
        self.modules = self.m.modules
        self.calls, _ = record(self.m, probe_ids(self.model))
        self.roles = [role for role in self.calls if "#" not in role]  # those that run, in that order
        self.parents = parents(self.calls, list(self.calls))  # of every call

    def layer(self, *roles: str, fits: Callable[[nn.Module], bool] = lambda module: True) -> str:
        """A layer in the middle that has these roles, such as "layers.2"; ``fits`` asks more of the first of them.

        Raises:
            NotApplicable: there is none.
        """
        every = dict.fromkeys(
            found[0] for role in self.roles if (found := re.match(r"layers\d*\.\d+(?=\.|$)", role))
        )  # also where none runs
        have = [layer for layer in every if all(f"{layer}.{role}" in self.roles for role in roles)]
        have = [layer for layer in have if fits(self.modules[f"{layer}.{roles[0]}"])]
        weights = {layer: next(self.modules[f"{layer}.{roles[0]}"].parameters(), None) for layer in have}
        have = [layer for i, layer in enumerate(have) if not any(weights[layer] is weights[before] for before in have[:i])]
        if not have:
            listed = " + ".join(roles)
            raise NotApplicable(f"no layer has a suitable {listed}", f"ни в одном слое нет подходящих {listed}")
        return have[len(have) // 2]

    def place_of(self, run: Callable[[Callable[[], None]], None]) -> str:
        """The name of the place of an operation: ``run`` is handed a function, and puts it where the operation runs.

        Raises:
            NotApplicable: it does not run.
        """
        events: list[tuple[str, str]] = []
        run(lambda: events.append(("here", "")))
        modules = {role: self.modules[role] for role in self.roles}
        begin, end = (lambda call, kind=kind: events.append((kind, call.name)) for kind in ("begin", "end"))
        with Watch(modules, begin, end):
            forward(self.model, probe_ids(self.model))
        if ("here", "") not in events:
            raise NotApplicable("it computes this in another way", "она вычисляет это иначе")
        here = events.index(("here", ""))
        inside = [role for kind, role in events[:here] if kind == "begin" and ("end", role) not in events[:here]][-1]
        if inside not in self.parents.values():
            return inside
        after = events[here : events.index(("end", inside))]
        following = next((role for kind, role in after if kind == "begin" and self.parents[role] == inside), None)
        return Place(inside, ("",), following).name


def rope_base(patient: Patient) -> str:
    """The base θ of the frequencies θ^(−2i/K)."""
    for module in patient.model.modules():
        if isinstance(getattr(module, "inv_freq", None), Tensor):
            module.inv_freq.pow_(1.5)
        elif isinstance(module, RotaryEmbedding):
            module.theta **= 1.5
    first = next((role for role in patient.roles if role.endswith(".attn")), None)
    return around_rope(patient, lambda own, *tensors, **options: own(*tensors, **options), first)


def rope_layout(patient: Patient) -> str:
    """Pairs (2i, 2i+1) are turned, where the model turns (i, i + K/2)."""

    def interleaved(own: Callable, q_BHTK: Tensor, k_BHTK: Tensor, *angles, **options) -> tuple[Tensor, Tensor]:
        turned = own(*(x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2) for x in (q_BHTK, k_BHTK)), *angles, **options)
        return tuple(x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2) for x in turned)

    return around_rope(patient, interleaved)


def position(patient: Patient) -> str:
    """Every token one place later; under RoPE, which sees distances only, keys one place later than queries."""
    sinusoids = next((module.pe for module in patient.model.modules() if isinstance(getattr(module, "pe", None), Tensor)), None)
    table_TD = getattr(patient.modules.get("embed_pos"), "weight", sinusoids)
    if table_TD is not None:
        table_TD.copy_(table_TD.roll(-1, 0))
        return "embed_pos" if "embed_pos" in patient.roles else "→ layers.0"

    def queries_earlier(own: Callable, q_BHTK: Tensor, k_BHTK: Tensor, *angles, **options):
        before_T = (torch.arange(angles[0].shape[1], device=q_BHTK.device) - 1).clamp(min=0)
        q, _ = own(q_BHTK, k_BHTK, *(x[:, before_T] if isinstance(x, Tensor) else x for x in angles), **options)
        return q, own(q_BHTK, k_BHTK, *angles, **options)[1]

    return around_rope(patient, queries_earlier)


def query_bias(patient: Patient) -> str:
    """The bias of the queries, or of queries, keys and values where they are one projection."""
    part = "attn.qkv" if any(role.endswith(".attn.qkv") for role in patient.roles) else "attn.q"
    role = f"{patient.layer(part, fits=lambda module: getattr(module, 'bias', None) is not None)}.{part}"
    patient.modules[role].bias.zero_()
    return role


def kv_heads(patient: Patient) -> str:
    """Query head h reads key-value head h mod n, where it is h div (H/n)."""

    def modulo(call: Callable, q_BHTK: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None):
        heads, n = q_BHTK.shape[1], k.shape[1]
        order_H = torch.arange(heads, device=q_BHTK.device).reshape(-1, n).T.flatten()  # those of the first, of the second …
        (out_BTHK, *rest) = call(q_BHTK[:, order_H], k, v, mask, scale)
        return (out_BTHK[:, :, order_H.argsort()], *rest)

    attn = patient.modules[f"{patient.layer('attn')}.attn"]
    if isinstance(attn, GroupedQueryAttention) and 1 < attn.n_kv_heads < attn.n_heads:

        def planted(mark: Callable[[], None]) -> None:
            attn.to_all_heads = lambda x_BGSK: [mark(), x_BGSK.repeat(1, attn.n_heads // attn.n_kv_heads, 1, 1)][1]

        return patient.place_of(planted)
    config = getattr(patient.model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads, shared = (getattr(config, name, None) or 0 for name in ("num_attention_heads", "num_key_value_heads"))
    if not 1 < shared < heads:
        raise NotApplicable("its query heads do not share several key-value heads", "в ней нет нескольких общих голов ключей и значений")
    return around_attention(patient, modulo)


def softmax_scale(patient: Patient) -> str:
    """The scale of q·kᵀ, squared: 1/K for 1/√K."""
    return around_attention(patient, lambda call, q, k, v, mask, scale: call(q, k, v, mask, (scale or q.shape[-1] ** -0.5) ** 2))


def mask(patient: Patient) -> str:
    """Every token sees the next one."""

    def one_more(call: Callable, q_BHTK: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None):
        length = q_BHTK.shape[2]
        seen_TT = torch.ones(length, length, dtype=torch.bool, device=q_BHTK.device).tril(1)
        if mask is None:
            mask = torch.where(seen_TT, 0.0, -torch.inf).to(q_BHTK.dtype)[None, None]
        else:
            next_TT = seen_TT & ~seen_TT.tril()
            mask = mask | next_TT if mask.dtype == torch.bool else mask.masked_fill(next_TT, 0.0)
        return call(q_BHTK, k, v, mask, scale)

    return around_attention(patient, one_more)


def gate_and_up(patient: Patient) -> str:
    """The weights of the two, in one matrix or in two."""
    if any(role.endswith("mlp.gate_up") for role in patient.roles):
        role = f"{patient.layer('mlp.gate_up')}.mlp.gate_up"
        weight = patient.modules[role].weight
        weight.copy_(weight.roll(weight.shape[0] // 2, 0))
        return role
    pair = next(experts_pairs(patient), ("mlp.gate", "mlp.up"))
    layer = patient.layer(*pair, fits=lambda module: isinstance(module, nn.Linear))
    gate, up = (patient.modules[f"{layer}.{part}"] for part in pair)
    if gate.weight.shape != up.weight.shape:
        raise NotApplicable("gate and up have different shapes", "у gate и up разные размеры")
    gate.weight, up.weight = up.weight, gate.weight
    gate.bias, up.bias = up.bias, gate.bias
    return min((f"{layer}.{part}" for part in pair), key=patient.roles.index)


def experts_pairs(patient: Patient) -> Iterator[tuple[str, str]]:
    """Roles in a layer of gate and up of an expert that is a module and that runs, where no layer has a feed-forward without experts."""
    if any(role.endswith(".mlp.gate") for role in patient.roles):
        return
    for role in patient.roles:
        if found := re.fullmatch(r"layers\.\d+\.(mlp\.experts\.\d+)\.gate", role):
            yield f"{found[1]}.gate", f"{found[1]}.up"


def activation(patient: Patient) -> str:
    """SiLU for GELU and the other way round; the exact GELU for its approximation by tanh and the other way round."""
    x = torch.linspace(-4, 4, 81, dtype=patient.calls[patient.roles[-1]].states[0].dtype, device=patient.m.device)
    others = ((F.silu, F.gelu), (F.gelu, tanh_gelu), (tanh_gelu, F.gelu))
    layer = patient.layer("mlp")
    for name, module in patient.modules[f"{layer}.mlp"].named_modules():
        if name and "act" in name and not list(module.parameters()):
            other = next((other for own, other in others if torch.allclose(module(x), own(x), atol=1e-6)), None)
            if other is not None:
                return patient.place_of(lambda mark: setattr(module, "forward", lambda x: [mark(), other(x)][1]))  # noqa: B023 - returned at once
    raise NotApplicable("its activation is no module, or none known here", "её активация не модуль или здесь неизвестна")


def tanh_gelu(x: Tensor) -> Tensor:
    """GELU approximated by tanh (Hendrycks & Gimpel 2016, arXiv 1606.08415)."""
    return F.gelu(x, approximate="tanh")


def norm_eps(patient: Patient) -> str:
    """ε in the root of every norm, ten times as large: it shows where the numbers are small, as in the first layer."""
    names = ("variance_epsilon", "eps", "epsilon")

    def known(module: nn.Module) -> str | None:
        """The attribute in which a norm has its ε, a number; torch's RMSNorm can have None there."""
        return next((name for name in names if isinstance(getattr(module, name, None), (int, float))), None)

    norms = [role for role in patient.roles if "norm" in role and known(patient.modules[role])]
    if not norms:
        raise NotApplicable("its norms have no ε that is known here", "у её норм нет ε, известного здесь")
    for role in norms:
        name = known(patient.modules[role])
        setattr(patient.modules[role], name, 10 * getattr(patient.modules[role], name))
    return norms[0]


def norm_order(patient: Patient) -> str:
    """x = norm(x + f(x)) where the model has x = x + f(norm(x)), or the other way round.

    Which of the two the model has is tried out: the one that gives the layer's own output.
    """
    index = patient.layer("attn", "mlp", "norm_attn", "norm_mlp")
    layer = patient.modules[index]
    attn, mlp, norm_attn, norm_mlp = (patient.modules[f"{index}.{part}"] for part in ("attn", "mlp", "norm_attn", "norm_mlp"))
    own, takes = signature(layer.forward), signature(attn.forward).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in takes.values())

    def wired(before: bool, *args, **options) -> Tensor:
        """The layer's forward, with the norms before or after; what it is given beside x goes on to attention by name."""
        x_BTD, *_ = args if args else options.values()
        given = dict(own.bind(*args, **options).arguments)
        given = {name: value for name, value in given.items() if value is not x_BTD}
        given |= next((given.pop(p.name, {}) for p in own.parameters.values() if p.kind is p.VAR_KEYWORD), {})
        given = {name: value for name, value in given.items() if name in takes or open_ended}
        for norm, part in ((norm_attn, lambda x: first_tensor(attn(x, **given))), (norm_mlp, lambda x: first_tensor(mlp(x)))):
            x_BTD = x_BTD + part(norm(x_BTD)) if before else norm(x_BTD + part(x_BTD))
        return x_BTD

    given, gave = [], []
    with Watch({index: layer}, lambda call: given.append(copied((call.args, call.options))), lambda call: gave.append(copied(call.output))):
        forward(patient.model, probe_ids(patient.model))
    output = gave[0]

    def rewired(before: bool) -> Tensor:
        args, options = copied(given[0])  # a part may write into what it is given
        return wired(before, *args, **options)

    fits = {before: alike(first_tensor(output), lambda before=before: rewired(before)) for before in (True, False)}
    if True not in fits.values():
        raise NotApplicable("its layers are not two norms, both before or both after", "в её слоях не две нормы, обе до или обе после")
    layer.forward = lambda *args, **options: repackaged(wired(not fits[True], *args, **options), copied(output))
    return Place(index, before=next(role for role in patient.roles if patient.parents[role] == index)).name


def alike(tensor: Tensor, run: Callable[[], Tensor]) -> bool:
    """Whether ``run`` gives a tensor, but for rounding; a layer that calls its parts in another way may make it break off."""
    try:
        return torch.allclose(run(), tensor, rtol=1e-3, atol=1e-4)
    except (TypeError, RuntimeError, ValueError):
        return False


def repackaged(tensor: Tensor, output: object) -> object:
    """A tensor in the form of what a module returned: alone, or first of several."""
    return tensor if isinstance(output, Tensor) else (tensor, *output[1:])


def embedding_scale(patient: Patient) -> str:
    """Embeddings go on without their factor, such as √D."""
    embedding = patient.modules.get("embed")  # none where ids are looked up in a parameter, or made one-hot
    if isinstance(getattr(embedding, "embed_scale", None), Tensor):
        embedding.embed_scale.fill_(1.0)
        return "embed"
    if isinstance(getattr(embedding, "embed_scale", None), float):
        embedding.embed_scale = 1.0
        return "embed"
    backbone = patient.model.get_submodule(patient.m.split.backbone_name)
    for name in ("scale", "embed_scale", "embedding_multiplier"):
        if isinstance(getattr(backbone, name, None), (int, float)) and getattr(backbone, name) != 1:
            setattr(backbone, name, 1.0)
            return "→ layers.0"
    raise NotApplicable("its embeddings are not scaled", "её эмбеддинги не умножаются")


def tying(patient: Patient) -> str:
    """A head that should be the embedding's transpose keeps the weights that it began with; one of its own is the embedding's."""
    head, embedding = patient.modules.get("head"), input_embedding(patient.model)
    if not isinstance(head, nn.Linear) or embedding is None or head.weight.shape != embedding.weight.shape:
        raise NotApplicable("its head is no linear layer of the embedding's shape", "её голова не линейный слой размера эмбеддинга")
    if head.weight is embedding.weight:
        generator = torch.Generator().manual_seed(0)
        random = torch.randn(head.weight.shape, generator=generator).to(head.weight)
        head.weight = nn.Parameter(random * head.weight.std(), requires_grad=False)
    else:
        head.weight = embedding.weight
    return "head"


def transposed(patient: Patient) -> str:
    """A square projection's weight, as it happens between frameworks that store [in, out] and [out, in]."""
    square = lambda module: isinstance(module, (nn.Linear, Conv1D)) and module.weight.shape[0] == module.weight.shape[1]  # noqa: E731
    for part in ("attn.o", "attn.q"):
        try:
            role = f"{patient.layer(part, fits=square)}.{part}"
        except NotApplicable:
            continue
        patient.modules[role].weight.copy_(patient.modules[role].weight.T.clone())
        return role
    raise NotApplicable("no projection of attention is square", "ни одна проекция внимания не квадратная")


def around_rope(patient: Patient, change: Callable, attn_role: str | None = None) -> str:
    """Lets an attention turn queries and keys by ``change(own, q, k, cos, sin, …)``, with transformers' function as ``own``."""
    attn = patient.modules[attn_role or f"{patient.layer('attn')}.attn"]
    home, own = sys.modules[type(attn).__module__], attn.forward
    turn = getattr(home, "apply_rotary_pos_emb", None)
    angles = (module for module in patient.model.modules() if hasattr(module, "inv_freq") or isinstance(module, RotaryEmbedding))
    if turn is None or next(angles, None) is None:
        raise NotApplicable("it has no RoPE, or one that is not changed from outside", "в ней нет RoPE, или снаружи он не меняется")

    latent = isinstance(attn, MultiHeadLatentAttention)  # keys and values of latents, which are not turned, are made between

    def replaced(mark: Callable[[], None]) -> None:
        def forward(*args, **options):
            home.apply_rotary_pos_emb = lambda *tensors, **more: [latent or mark(), change(turn, *tensors, **more)][1]
            meeting = ChangedAttention(lambda call, *given: [mark(), call(*given)][1]) if latent else nullcontext()
            try:
                with meeting:
                    return own(*args, **options)
            finally:
                home.apply_rotary_pos_emb = turn

        attn.forward = forward

    return patient.place_of(replaced)


def around_attention(patient: Patient, change: Callable) -> str:
    """Lets a layer compute attention by ``change(call, q, k, v, mask, scale)``, where ``call`` of these five is its own function.

    That is transformers' attention interface, which gives (output [B, T, H, K], weights), or torch's function, which gives
    an output [B, H, T, K].
    """
    attn = patient.modules[f"{patient.layer('attn')}.attn"]
    home, own = sys.modules[type(attn).__module__], attn.forward
    interfaces = getattr(home, "ALL_ATTENTION_FUNCTIONS", None)

    def replaced(mark: Callable[[], None]) -> None:
        def marked(*given):
            mark()
            return change(*given)

        def chosen(*which):
            inner = interfaces.get_interface(*which)

            def interface(module, query, key, value, attention_mask, *rest, scaling=None, **more):
                def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None):
                    return inner(module, q, k, v, mask, *rest, scaling=scale, **more)

                return marked(call, query, key, value, attention_mask, scaling)

            return interface

        def through_interface(*args, **options):
            home.ALL_ATTENTION_FUNCTIONS = SimpleNamespace(get_interface=chosen)
            try:
                return own(*args, **options)
            finally:
                home.ALL_ATTENTION_FUNCTIONS = interfaces

        def through_torch(*args, **options):
            with ChangedAttention(marked):
                return own(*args, **options)

        attn.forward = through_torch if interfaces is None else through_interface

    return patient.place_of(replaced)


@dataclass(frozen=True)
class Mutation:
    """A mistake to plant: what it does, in words, and the function that changes a copy and names the place.

    ``plant`` raises ``NotApplicable`` where the model does not have what it changes.
    """

    words: Words
    plant: Callable[[Patient], str]


MUTATIONS = {
    "rope-base": Mutation(("another base of RoPE: θ^1.5 for θ", "другое основание RoPE: θ^1,5 вместо θ"), rope_base),
    "rope-layout": Mutation(
        ("RoPE turns neighbours (2i, 2i+1), not halves (i, i+K/2)", "RoPE вращает соседей (2i, 2i+1), а не половины (i, i+K/2)"),
        rope_layout,
    ),
    "position": Mutation(
        ("positions are off by one (RoPE: queries against keys)", "позиции сдвинуты на одну (RoPE: запросы против ключей)"), position
    ),
    "query-bias": Mutation(("the bias of the queries is forgotten", "забыт bias запросов"), query_bias),
    "kv-heads": Mutation(
        ("key-value heads repeat as 0 1 0 1, not as 0 0 1 1", "головы ключей и значений повторены как 0 1 0 1, а не 0 0 1 1"), kv_heads
    ),
    "softmax-scale": Mutation(
        ("the scale before softmax is squared: 1/K for 1/√K", "множитель перед softmax в квадрате: 1/K вместо 1/√K"), softmax_scale
    ),
    "mask": Mutation(("the mask is off by one: the next token is seen", "маска сдвинута на один: виден следующий токен"), mask),
    "transposed": Mutation(("a square projection is transposed", "квадратная проекция транспонирована"), transposed),
    "gate-up": Mutation(("gate and up are swapped", "gate и up переставлены"), gate_and_up),
    "activation": Mutation(
        ("another activation: GELU for SiLU, tanh for erf in GELU", "другая активация: GELU вместо SiLU, tanh вместо erf в GELU"),
        activation,
    ),
    "norm-eps": Mutation(("ten times the ε of the norms", "ε норм в десять раз больше"), norm_eps),
    "norm-order": Mutation(("the norm after, not before, or before, not after", "норма после, а не до, или до, а не после"), norm_order),
    "embedding-scale": Mutation(("the factor of the embeddings is forgotten", "забыт множитель эмбеддингов"), embedding_scale),
    "tying": Mutation(
        ("a tied head is not tied, or one that is not tied is", "голова с общими весами без них, или наоборот"),
        tying,
    ),
}


def mutate(m: Loaded, ids: Sequence[int] | None = None, names: Sequence[str] = ()) -> Iterator[Planted]:
    """Plants each mutation (or those of ``names``) in a copy of a model of its own, and looks for the difference.

    ``ids`` are tokens to feed, by default the probe of the split. The model itself stays as it is, bit for bit.

    Raises:
        ValueError: there is no such mutation, the prompt is wrong or the model is quantised, before anything runs; or as ``diverge`` does.
    """
    check_loaded(m)
    m.check_open()
    if any(isinstance(module, QuantisedLinear) for module in m.model.modules()):
        raise ValueError(f"{m.origin.name} is quantised, and mistakes are planted in whole weights: leave quantise out")
    if isinstance(names, str):
        raise ValueError(f"names={names!r}: give a list, [{names!r}]")
    if unknown := [name for name in names if name not in MUTATIONS]:
        raise ValueError(f"there is no mutation {unknown[0]!r}: choose of {', '.join(MUTATIONS)}")
    ids = [min(id, m.vocab_size - 1) for id in probe_ids(m.model)[0].tolist()] if ids is None else m.prompt(ids)[0].tolist()
    return (planted(m, ids, name) for name in names or MUTATIONS)


@torch.no_grad()
def planted(m: Loaded, ids: Sequence[int], name: str) -> Planted:
    """One mutation in a copy of a model, and what the comparison says of the two."""
    mutation, patient = MUTATIONS[name], Patient(m)
    ids_1T = torch.tensor([ids], device=m.device)
    try:
        expected = mutation.plant(patient)
        if torch.equal(own_logits(m.model, ids_1T), own_logits(patient.model, ids_1T)):
            raise NotApplicable("it changes no logit of this model", "на логитах этой модели она не сказывается")
    except NotApplicable as why:
        return Planted(name, mutation.words, None, why.args)
    copied = attach(patient.model, m.tokenizer, replace(m.origin, name=f"{m.origin.name} + {name}"))
    return Planted(name, mutation.words, expected, divergence=diverge(m, copied, ids))
