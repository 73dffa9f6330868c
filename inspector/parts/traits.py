"""What tells two architectures apart and has no module: found in one watched pass, on the meta device too, not in a list of models.

Where position comes in, where norms stand, whether attention and feed-forward run one after the other or side by side, heads,
windows, soft caps, activations, scales. Every trait is a tuple of ``Fact``; None where the pass does not tell it.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from ..records.structure import Fact, Traits
from .costs import attention_widths, first_of, outputs, recurrent, text_config, window
from .costs import parts as parts_of
from .dataflow import COMPLEX, IDS, LEARNED, POSITION, TABLE, WAVE, Flow, Made, Seen
from .residuals import ADD, PRODUCT, TIMES, LayerSum, norm_kind
from .roles import spans, wrapped_layer

GATHER = {"gather", "index", "index_select", "take_along_dim"}
LAYER = re.compile(r"layers\d*\.\d+")
ACTIVATIONS = {"silu": "SiLU", "relu": "ReLU", "mish": "Mish", "hardswish": "Hardswish", "elu": "ELU", "leaky_relu": "LeakyReLU"}
BENDS = {*ACTIVATIONS, "gelu", "tanh", "sigmoid", "erf"}
CUT = {"", "mm", "addmm", "bmm", "baddbmm", "matmul", "split", "split_with_sizes", "slice", "chunk", "select", "unbind", "_grouped_mm"}


def traits(model: nn.Module, roles: dict[str, str]) -> Traits:
    """The traits of a model whose modules have these roles: trait → facts, None where they cannot be told.

    ``sizes``, ``embedding``, ``positions``, ``norm``, ``residual``, ``attention``, ``feed_forward``, ``bias``, ``head``.
    """
    try:
        flow = Flow(model)
    except Exception:
        flow = None
    told = Told(model, roles, flow)
    answers: dict[str, Callable[[], tuple[Fact, ...] | None]] = {
        "sizes": told.sizes,
        "embedding": told.embedding,
        "positions": told.positions,
        "norm": told.norm,
        "residual": told.residual,
        "attention": told.attention,
        "feed_forward": told.feed_forward,
        "bias": told.bias,
        "head": told.head,
    }
    return {name: answer() if flow is not None or name in ("sizes", "bias") else None for name, answer in answers.items()}


class Told:
    """Answers about one model, a trait each: a tuple of facts, or None.

    Args:
        model: the model.
        roles: module name → role.
        flow: its pass; None where it broke off.
    """

    def __init__(self, model: nn.Module, roles: dict[str, str], flow: Flow | None):
        self.model, self.roles, self.flow = model, roles, flow
        self.config = text_config(model)
        self.layers = [seen for seen in flow.calls if LAYER.fullmatch(roles.get(seen.name, ""))] if flow else []
        self.layers = self.layers or self.uncalled()
        self.sums = [LayerSum(layer, self.roles) for layer in self.layers if layer.given is not None and layer.gave is not None]

    def uncalled(self) -> list[Seen]:
        """Layers that no module is called for, as what the calls in each were given, up to what those of the next one were."""
        if self.flow is None:
            return []
        places: dict[str, list[Seen]] = {}
        for seen in self.flow.calls:
            if (found := re.match(r"layers\d*\.\d+(?=\.)", self.roles.get(seen.name, ""))) and seen.given is not None:
                places.setdefault(found[0], []).append(seen)
        layers, names = [], {role: name for name, role in self.roles.items()}
        for role, inside in places.items():
            again = next((i for i, seen in enumerate(inside) if i and seen.name == inside[0].name), len(inside))
            inside = inside[:again]
            last = max(seen.last for seen in inside)
            behind = next((seen.given for seen in self.flow.calls if seen.first >= last and seen.given is not None), self.flow.logits)
            name = names.get(role, f"({role})")
            call = replace(inside[0].call, role=name, module=nn.Module())
            layers.append(Seen(call, inside[0].given, inside[0].first, last, behind, inside, self.flow.made[inside[0].first : last]))
            self.roles = self.roles | {name: role}
        return layers

    def named(self, role: str) -> list[str]:
        """Names of the modules with a role."""
        return [name for name, own in self.roles.items() if own == role]

    def number(self, layer: Seen) -> int:
        """A layer's number."""
        return int(self.roles[layer.name].rpartition(".")[2])

    def by_layer(self, values: Sequence[tuple[Seen, tuple[str, str]]], among: Sequence[Seen] | None = None) -> tuple[Fact, ...]:
        """Facts (kind, detail) of layers, each once, with the layers that it holds in where those are not all."""
        everywhere = {self.number(layer) for layer in (self.layers if among is None else among)}
        facts: dict[tuple[str, str], set[int]] = {}
        for layer, fact in values:
            facts.setdefault(fact, set()).add(self.number(layer))
        return tuple(Fact(*fact, "" if where == everywhere else spans(sorted(where))) for fact, where in facts.items())

    def mixing(self) -> list[Seen]:
        """The layers with attention."""
        return [s.layer for s in self.sums if any(s.inner(seen).partition(".")[0] == "attn" for seen in s.layer.inside)]

    def sizes(self) -> tuple[Fact, ...]:
        """Layers, width, vocabulary."""
        layers = len({role[0] for name in self.roles.values() if (role := re.match(LAYER, name)) and name != "layers"})
        recurrent = [m for n in self.recurrent() if isinstance(m := self.model.get_submodule(n), nn.RNNBase)]
        layers = layers or sum(module.num_layers for module in recurrent)
        facts = [Fact("layers", str(layers))] if layers else []
        for name in self.named("embed")[:1]:
            weight = getattr(self.model.get_submodule(name), "weight", None)
            if weight is not None and weight.dim() == 2:
                facts += [Fact("width", str(weight.shape[1])), Fact("vocabulary", str(weight.shape[0]))]
        return tuple(facts)

    def recurrent(self) -> list[str]:
        """Names of the recurrent modules that stand in no layer."""
        return [name for name, role in self.roles.items() if re.fullmatch(r"mixer(\.\d+)?", role)]

    def embedding(self) -> tuple[Fact, ...] | None:
        """What happens to the embeddings before the first layer, beside positions."""
        first = self.layers or [seen for seen in self.flow.calls if seen.name in self.recurrent()]
        made, facts = first[0].given if first else None, []
        norms = {
            seen.gave: seen for seen in self.flow.calls if "norm" in type(seen.call.module).__name__.lower() and seen.given is not None
        }
        while made is not None and made.op != "embedding":
            before = tuple(dict.fromkeys(made.from_ids))
            if made in norms:
                facts.append(Fact("norm", norm_kind(norms[made])))
                made = norms[made].given
                continue
            if len(before) != 1:
                return None
            others = [other for other in made.given if not other.of & IDS]
            if made.op in TIMES and all(math.prod(other.shape) == 1 and not other.of & LEARNED for other in others):
                facts.append(Fact("scale", factor(made, before[0])))
            elif made.op in ("mm", "addmm", "bmm"):
                facts.append(Fact("linear", f"{before[0].shape[-1]}→{made.shape[-1]}"))
            made = before[0]
        return None if made is None else tuple(fact for fact in facts[::-1] if fact.detail != "1") or (Fact("plain"),)

    def positions(self) -> tuple[Fact, ...] | None:
        """Where the order of the tokens comes in."""
        said: list[tuple[Seen | None, tuple[str, str]]] = []
        turned: Counter = Counter()
        for made in self.flow.made:
            if (fact := position(made, self.flow.tokens)) is not None:
                layer = next((layer for layer in self.layers if layer.first <= made.index < layer.last), None)
                said.append((layer, fact))
                turned[layer] += math.prod(made.shape) * (1 + bool(made.of & COMPLEX)) if fact[0] == "rope" else 0
        rope = any(fact[0] == "rope" for _, fact in said)
        said = [(layer, fact) for layer, fact in said if not (rope and fact[0] == "factor")]  # the halves of a rotation
        said = [(layer, (fact[0], self.share(layer, turned[layer])) if fact[0] == "rope" else fact) for layer, fact in said]
        attended = {fact[0] for layer, fact in said if layer is not None}  # another stack's beside the decoder's says nothing new
        outside = tuple(Fact(*fact) for fact in dict.fromkeys(fact for layer, fact in said if layer is None) if fact[0] not in attended)
        inside = self.by_layer([(layer, fact) for layer, fact in said if layer is not None], self.mixing() or None)
        order = (Fact("order"),) if any(map(self.keeps_state, self.roles.values())) else ()
        none = (Fact("none"),) if any(map(self.scores, self.sums)) else None
        return outside + inside + order or none

    def keeps_state(self, role: str) -> bool:
        """Whether what has this role reads the tokens in order, as a recurrence or convolution does."""
        in_order = re.fullmatch(r"(layers\d*\.\d+\.)?mixer(\.\d+)?", role)
        return bool(in_order) or (bool(re.fullmatch(r"layers\.\d+\.attn", role)) and recurrent(self.config, role))

    def share(self, layer: Seen | None, turned: int) -> str:
        """How many numbers of a head are turned, such as "8/32"; "" for all, or where that cannot be told."""
        own = next((s for s in self.sums if s.layer is layer), None)
        scores = self.scores(own) if own else None
        name = next((seen.name for seen in layer.inside if own.inner(seen) == "attn"), None) if own else None
        if scores is None or name is None or not (width := query_width(scores)):
            return ""
        heads = heads_of(scores)
        kept = kv_heads(name, self.roles, self.model, heads, attention_widths(name, self.roles, self.model)[1])
        numbers = turned / (self.flow.tokens * (heads + kept)) if kept else width
        return f"{int(numbers)}/{width}" if numbers < width and numbers == int(numbers) else ""

    def norm(self) -> tuple[Fact, ...] | None:
        """Where the norms of a layer stand."""
        if not self.layers and self.recurrent():
            norms = any("norm" in type(seen.call.module).__name__.lower() for seen in self.flow.calls)
            return None if norms else (Fact("none"),)
        values = []
        for layer in self.sums:
            places = {sub.what: (sub.place, sub.norm) for sub in layer.found}
            if not layer.whole or not places:
                return None
            if on_input := next((sub.on_input for sub in layer.found if sub.on_input), ""):
                places = {sub.what: ("stream", on_input) for sub in layer.found}
            if len(set(places.values())) == 1:
                values.append((layer.layer, next(iter(places.values()))))
            else:
                values += [(layer.layer, (f"{what}_{place}", norm)) for what, (place, norm) in places.items()]
        return self.by_layer(values) or None

    def residual(self) -> tuple[Fact, ...] | None:
        """Whether attention and feed-forward run one after the other."""
        if not self.layers and (alone := self.recurrent()):
            inside = {made for seen in self.flow.calls if seen.name in alone for made in seen.made}
            added = any(made.op in ADD and len(set(made.from_ids)) == 2 for made in self.flow.made if made not in inside)
            return None if added else (Fact("none"),)
        values = []
        for layer in self.sums:
            if not layer.whole or not layer.found or len({sub.added for sub in layer.found}) > 1:  # some added, some not: no word for that
                return None
            values.append((layer.layer, layer.order()))
        return self.by_layer(values) or None

    def attention(self) -> tuple[Fact, ...] | None:
        """What mixes the tokens: heads, window, soft cap; or a recurrence."""
        facts = [Fact("recurrent", in_short(self.model.get_submodule(name))) for name in self.recurrent()]
        kind = "mixer" if any(map(self.heads, self.sums)) else "recurrent"  # beside attention, or instead of it
        mixers = [(s.layer, (kind, in_short(seen.call.module))) for s in self.sums for seen in s.layer.inside if s.inner(seen) == "mixer"]
        heads = [(s.layer, fact) for s in self.sums for fact in self.heads(s)]
        facts += [*self.by_layer(mixers), *self.by_layer(heads, self.mixing())]
        if (size := window(self.config)) and heads:
            types = getattr(self.config, "layer_types", None) or []
            sliding = [i for i, kind in enumerate(types) if "sliding" in kind]
            facts.append(Fact("window", str(size), spans(sliding) if len(sliding) < len(types) else ""))
        return tuple(facts) or None

    def scores(self, layer: LayerSum) -> Made | None:
        """The softmax of a layer's attention."""
        whole = [seen for seen in layer.layer.inside if layer.inner(seen) == "attn"]
        bare = not whole and any(role.startswith(f"{layer.role}.attn.") for role in self.roles.values())  # it stands in the layer itself
        inside = (made for seen in ([layer.layer] if bare else whole) for made in seen.made)
        return next((made for made in inside if is_scores(made, self.flow.tokens)), None)

    def heads(self, layer: LayerSum) -> list[tuple[str, str]]:
        """The facts of one layer's attention."""
        name = next((seen.name for seen in layer.layer.inside if layer.inner(seen) == "attn"), None)
        scores = self.scores(layer)
        if scores is None:
            return []
        alone = {of[1] for role in self.roles.values() if (of := re.match(rf"{re.escape(layer.role)}\.attn\.head\.(\d+)\.", role))}
        if alone:  # each a module of its own
            return [("heads", f"{len(alone)} × {scores.given[0].shape[-1] if 'scaled_dot_product' in scores.op else query_width(scores)}")]
        number = heads_of(scores)
        if name is None:
            return [("heads", f"{number} × {query_width(scores)}")]
        of_values = attention_widths(name, self.roles, self.model)[1]
        facts = [("heads", f"{number} × {of_values // number}" if of_values and of_values % number == 0 else str(number))]
        if parts_of(name, self.roles, self.model, "kv_a"):
            facts.append(("latent", ""))
        elif (kept := kv_heads(name, self.roles, self.model, number, of_values)) not in (None, number):
            facts.append(("kv_heads", str(kept)))
        if scores.from_ids and (cap := soft_cap(scores.from_ids[0])) is not None:
            facts.append(("cap", cap))
        return facts

    def feed_forward(self) -> tuple[Fact, ...] | None:
        """Activation, width, experts."""
        values = []
        for layer in self.sums:
            calls = [seen for seen in layer.layer.inside if layer.group(seen) == "mlp"]
            calls = [seen for seen in calls if not any(layer.inner(s).startswith("norm") for s in seen.inside)]
            if not calls:
                continue
            made = self.flow.made[min(seen.first for seen in calls) : max(seen.last for seen in calls)]
            kind, name = activation(made)
            named = [type(seen.call.module).__name__ for seen in calls if layer.inner(seen).endswith("act")]
            values.append((layer.layer, (kind, name) if name or not named else ("plain", named[0])))
            width = next((seen.given.shape[-1] for seen in calls if layer.inner(seen).endswith("down") and seen.given is not None), None)
            values += [(layer.layer, ("width", str(width)))] if width else []
            values += [(layer.layer, ("experts", chosen))] if (chosen := self.experts(layer.role)) else []
        return self.by_layer(values) if values else (Fact("none"),) if self.recurrent() else None

    def experts(self, layer: str) -> str:
        """How many experts a layer has, and how many of them are chosen for a token: "4/2"."""
        for name in self.named(f"{layer}.mlp.experts"):
            module = self.model.get_submodule(name)
            stacked = [p.shape[0] for p in module.parameters() if p.dim() == 3]
            number = len(module) if isinstance(module, nn.ModuleList) else max(stacked, default=0)
            chosen = first_of(self.config, "num_experts_per_tok", "top_k_experts", "moe_k", "moe_topk", "moe_top_k", "n_chosen")
            return f"{number}/{chosen}" if chosen and number else str(number or "")
        return ""

    def bias(self) -> tuple[Fact, ...]:
        """Which linear maps of the layers add a bias."""
        modules = {role: self.model.get_submodule(name) for name, role in self.roles.items() if not name.startswith("(")}
        modules = {role: wrapped_layer(module) or module for role, module in modules.items()}
        linear = {role: m for role, m in modules.items() if isinstance(m, nn.RNNBase) or (LAYER.match(role) and is_linear(m))}
        named = {role.rpartition(".")[2] for role, module in linear.items() if module.bias is not None and module.bias is not False}
        named |= {"qkv" for m in modules.values() if isinstance(m, nn.MultiheadAttention) and m.in_proj_bias is not None}
        order = ("q", "k", "v", "qkv", "o", "router", "gate", "up", "gate_up", "fc", "down")
        named = [part for part in order if part in named] + sorted(named - set(order))
        return (Fact("bias", ", ".join(named)),) if named else (Fact("none"),) if linear else ()

    def head(self) -> tuple[Fact, ...] | None:
        """What follows the backbone: its matrix, whose weights those are, scales and caps."""
        names = self.named("head")
        below = tuple(f"{name}." for name in names)
        calls = [seen for seen in self.flow.calls if seen.name in names or seen.name.startswith(below)]
        calls = [
            seen for seen in calls if not list(seen.call.module.children()) and not isinstance(seen.call.module, (nn.Dropout, nn.Identity))
        ]
        linear = [(seen, seen.call.module) for seen in calls if is_linear(seen.call.module)]
        if not linear:
            return None
        seen, module = linear[-1]
        embedding = [self.model.get_submodule(name) for name in self.named("embed")]
        tied = any(module.weight is getattr(other, "weight", None) for other in embedding)
        before = [norm_kind(other) for other in calls[: calls.index(seen)]]
        facts = [Fact("through", " → ".join(before))] if before else []
        facts += [Fact("tied" if tied else "own", f"{seen.given.shape[-1]}→{seen.gave.shape[-1]}")]
        facts += [Fact("bias")] if module.bias is not None else []
        return (*facts, *after_head(self.flow.logits, seen.gave))


def position(made: Made, tokens: int) -> tuple[str, str] | None:
    """How a position comes in with one operation, (kind, detail) of a ``Fact``; None where none does."""
    before = made.from_ids
    places = [other for other in made.given if other.of & POSITION and not other.of & IDS]
    if made.op in ADD and len(set(before)) == 2 and all(map(is_turned, before)):
        return "rope", ""
    if not before or not places:
        return None
    table = places[0]
    if made.op in GATHER:  # what the ids say of each distance
        return ("relative", "") if len(made.shape) >= 3 and made.shape[-1] == made.shape[-2] >= tokens else None
    if made.op in ADD or "attention" in made.op:
        if "attention" in made.op or made.shape[-1] == made.shape[-2] >= tokens:  # in the scores
            return ("learned_bias" if table.of & LEARNED else "alibi"), ""
        if (rows := source(table)) and rows[0] < tokens:  # kinds of tokens, not places
            return None
        return ("learned" if table.of & LEARNED else "sinusoids" if table.of & WAVE else "table"), "×".join(map(str, source(table)))
    if made.op in PRODUCT:
        return "relative", ""
    if made.op in TIMES and len(made.shape) >= 3:
        return ("rope" if table.of & COMPLEX else "factor"), ""
    return None


def is_turned(made: Made) -> bool:
    """Whether something of the ids was multiplied with something of the positions alone: half of a rotation."""
    return made.op == "mul" and bool(made.from_ids) and any(other.of & POSITION and not other.of & IDS for other in made.given)


def source(made: Made) -> tuple[int, ...]:
    """The shape of the table that something was taken from; () where it was computed."""
    waiting = [made]
    while waiting:
        made = waiting.pop(0)
        if made.op == "" and len(made.shape) == 2 and made.of & (LEARNED | TABLE):
            return made.shape
        waiting += [other for other in made.given if other.of & (LEARNED | TABLE)]
    return ()


def is_scores(made: Made, tokens: int) -> bool:
    """Whether this is the softmax over all tokens, or the one operation that contains it. Some add a place for no token."""
    if "scaled_dot_product" in made.op:
        return True
    return "softmax" in made.op and len(made.shape) >= 3 and made.shape[-2] == tokens and made.shape[-1] in (tokens, tokens + 1)


def heads_of(scores: Made) -> int:
    """The number of heads, each with scores of its own."""
    return scores.given[0].shape[1] if "scaled_dot_product" in scores.op else math.prod(scores.shape[:-2])


def query_width(scores: Made) -> int | None:
    """Numbers of a query."""
    while "scaled_dot_product" not in scores.op and scores.op not in (*PRODUCT, "baddbmm"):
        if not scores.from_ids:
            return None
        scores = scores.from_ids[0]
    return scores.from_ids[0].shape[-1]


def kv_heads(name: str, roles: dict[str, str], model: nn.Module, heads: int, of_values: int) -> int | None:
    """The number of heads of keys and values; None where the widths do not tell it."""
    width = {part: sum(outputs(model.get_submodule(n)) for n in parts_of(name, roles, model, part)) for part in ("q", "k", "qkv")}
    if width["qkv"] and of_values and of_values % heads == 0:
        return (width["qkv"] - of_values) // (2 * of_values // heads)
    return width["k"] * heads // width["q"] if width["k"] and width["q"] else None


def soft_cap(made: Made) -> str | None:
    """c where numbers went through c·tanh(x/c) on the way to ``made``, after the last product of matrices."""
    while made.op != "tanh":
        if made.op in (*PRODUCT, "baddbmm", "") or len(made.from_ids) != 1:
            return None
        made = made.from_ids[0]
    before = made.from_ids[0]
    return factor(before, before.from_ids[0]).removeprefix("1/") if before.op in TIMES else "1"


def activation(made: Sequence[Made]) -> tuple[str, str]:
    """What a feed-forward does between its matrices: ("gated" or "plain", the activation), ("?", "") where that is not seen.

    Gated is a product of the activation with something else of the same shape that did not go through it.
    """
    seen = [one for one in made if one.of & IDS]
    ops = {one.op for one in seen}
    name = next((n for one in seen if (n := activation_name(one))), "")
    if not name and "sigmoid" in ops:  # x·sigmoid(x) is SiLU
        own = [one for one in seen if one.op == "mul" and any(o.op == "sigmoid" for o in one.given) and not gates(one)]
        name = "SiLU" if own else "sigmoid"
    name = name or ("GELU (tanh)" if "tanh" in ops else "GELU" if "erf" in ops else "")
    if name == "ReLU" and any(one.op in ("pow", "square") for one in seen):
        name = "ReLU²"
    return ("?", "") if not name else ("gated" if any(map(gates, seen)) else "plain", name)


def activation_name(made: Made) -> str:
    """The activation that an operation is; "" for others."""
    if made.op == "gelu":
        return "GELU (tanh)" if "tanh" in made.words else "GELU"
    return ACTIVATIONS.get(made.op, "")


def gates(made: Made) -> bool:
    """Whether this is a product of two different things of one shape, one of which went through an activation."""
    pair = made.from_ids
    if made.op != "mul" or len(set(pair)) != 2 or pair[0].shape != pair[1].shape:
        return False
    origins, bent = zip(*map(origin, pair), strict=True)
    return not origins[0] & origins[1] and any(bent)


def origin(made: Made) -> tuple[set[Made], bool]:
    """What something was before functions of each number alone, and whether one of them is an activation."""
    found, bent, waiting = set(), False, [made]
    while waiting:
        one = waiting.pop()
        if one.op in CUT or not one.from_ids:
            found.add(one)
        else:
            bent |= one.op in BENDS
            waiting += one.from_ids
    return found, bent


def factor(made: Made, before: Made) -> str:
    """What numbers were multiplied with, "√D" for that of their width, "1/8" for a division; "?" where the number is not there."""
    numbers = list(made.constants)
    for other in made.given:
        while not other.of & IDS and not other.constants and other.given:  # a cast, of a number that was there before the pass
            other = other.given[0]
        numbers += other.constants if not other.of & IDS else ()
    if not numbers:
        return "?"
    value = numbers[-1]
    size = "√D" if math.isclose(value, math.sqrt(before.shape[-1]), rel_tol=1e-2) else f"{value:.5g}"
    return f"1/{size}" if made.op == "div" and size != "1" else size


def after_head(made: Made, head: Made) -> tuple[Fact, ...]:
    """Scales and a soft cap between the head's matrix and the logits."""
    facts: list[Fact] = []
    while made is not head:
        before = made.from_ids
        if len(before) != 1:
            return (Fact("?"),)
        if made.op == "tanh":
            cap = soft_cap(made)
            facts = [fact for fact in facts if fact.kind != "scale" or fact.detail != cap] + [Fact("cap", cap)]
            made = before[0]  # the division is its own
        elif made.op in TIMES:
            facts.append(Fact("scale", factor(made, before[0])))
        made = made.from_ids[0]
    return tuple(fact for fact in facts[::-1] if fact.detail != "1")


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map, transformers' ``Conv1D`` too."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def in_short(module: nn.Module) -> str:
    """A recurrent module with its sizes: GRU 32→48 × 2."""
    if not isinstance(module, nn.RNNBase):
        return type(module).__name__
    both = " ↔" if module.bidirectional else ""
    return f"{type(module).__name__} {module.input_size}→{module.hidden_size} × {module.num_layers}{both}"
