"""What shapes and order tell of a model whose names tell little: which weights make queries, which open a feed-forward, where norms stand.

One pass over a few tokens is recorded (``Flow``), and read from what is sure: scores of every token with every token are
attention, what makes their two sides are queries and keys, and what is left between two sums works on each token alone. Weights
are found by their use in an operation, whether their module was called or not. Shape letters: T tokens, D hidden, F feed-forward.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary, WeakValueDictionary, proxy

import torch
from torch import Tensor, nn

from .dataflow import IDS, LEARNED, POSITION, Flow, Made, Seen, is_mask, of_library
from .quantised import QuantisedLinear
from .residuals import ADD, norm_kind

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "linear", "convolution", "linear_dynamic", "linear_dynamic_fp16", "linear_quantised"}
NORMS = {"native_layer_norm", "native_batch_norm", "_fused_rms_norm", "native_group_norm"}
GATHER = {"gather", "index", "index_select", "take_along_dim", "scatter", "index_put", "index_add", "scatter_add", "topk"}
BENDS = {"silu", "relu", "mish", "hardswish", "elu", "leaky_relu", "gelu", "tanh", "sigmoid", "erf", "softplus", "hardtanh", "clamp_min"}
MIXES = {"cumsum", "cumprod", "roll", "flip", "stack", "constant_pad_nd", "convolution", "_fft_r2c", "_fft_c2c"}  # tokens with each other
VIEWS = {"view", "_unsafe_view", "reshape", "expand", "unsqueeze", "clone", "t", "transpose", "permute", "alias", "detach", "slice"}
CHOICE = {"topk", "argmax", "sort", "max"}
PARTS = ("attn", "cross", "mlp", "mixer")
FEW = 12  # operations between two weights, at most, where views and casts alone stand
WEIGHT = re.compile(r"(in_proj_)?(weight|bias)(_.+)?")


@dataclass(eq=False)
class Use:
    """A weight of the model in an operation of the pass.

    Args:
        owner: name of the module that holds the weight.
        shape: of the weight.
        x: what it met; None for what was there before the pass.
        made: what came of it.
        running: its module ran meanwhile.
    """

    owner: str
    shape: tuple[int, ...]
    x: Made | None
    made: Made
    running: bool

    @property
    def index(self) -> int:
        """Its place in the order of the pass."""
        return self.made.index

    @property
    def numbers(self) -> int:
        """Numbers that it multiplies in the whole pass."""
        of_one = self.x.shape[-1] if self.made.op != "convolution" else self.shape[1]
        return size(self.made.shape) * of_one


@dataclass(eq=False)
class Core:
    """Scores of every token with every token, and what they gather."""

    q: Made
    k: Made
    v: Made
    gave: Made


@dataclass(eq=False)
class Part:
    """An attention or a feed-forward: its weights, each with what it does there.

    Args:
        kind: "attn", "cross" for one of other things, "mlp", "mixer" for what mixes tokens in another way, "router", or "lone".
        roles: name of a module → what it is in the part, such as "q" or "head.0.q".
        first, last: the operations between which it ran.
        reads: what its first weights met.
        gave: what its last one made.
        queries, values, kept: numbers of a token's queries and gathered values, and of what a cache keeps, in this run.
    """

    kind: str
    roles: dict[str, str]
    first: int
    last: int
    reads: list[Made]
    gave: Made
    queries: int = 0
    values: int = 0
    kept: int = 0


@dataclass(eq=False)
class Layer:
    """Parts that follow each other, in a module of their own or in none (``name`` is None)."""

    name: str | None
    parts: list[Part] = field(default_factory=list)


def size(shape: Iterable[int]) -> int:
    """The product of sizes."""
    product = 1
    for one in shape:
        product *= one
    return product


def own_weights(module: nn.Module) -> dict[str, Tensor]:
    """Name → weight that a module itself holds: parameters, and buffers that stand where those do, such as those of a frozen copy."""
    saved = ((name, one) for name, one in module.named_buffers(recurse=False) if name not in module._non_persistent_buffers_set)
    frozen = {name: one for name, one in saved if one.is_floating_point() and WEIGHT.fullmatch(name) and not is_mask(one)}
    return dict(module.named_parameters(recurse=False)) | frozen | packed(module)


def packed(module: nn.Module) -> dict[str, Tensor]:
    """Weights that a quantised module, of torch or ours, holds in a form of its own; {} for others. Of ours the shape alone."""
    if isinstance(module, QuantisedLinear):
        return {"weight": torch.empty(module.out_features, module.in_features, dtype=torch.int8, device="meta")}
    if not type(module).__module__.startswith("torch.ao.nn.quantized"):
        return {}
    given = {name: own() for name in ("weight", "bias", "get_weight", "get_bias") if callable(own := getattr(module, name, None))}
    flat = {name: one for name, value in given.items() for name, one in (value if isinstance(value, dict) else {name: value}).items()}
    return {name: tensor for name, tensor in flat.items() if isinstance(tensor, Tensor)}


class Shapes:
    """What one pass tells of a model's modules.

    Args:
        flow: the pass.
        uses: of weights in products, in order.
        layers: parts by layer, in order; those that stand in no container have no name.
        stacks: containers of layers → names of the layers in them.
        attention: every run of an attention, one that runs again each time.
        unseen: names of modules whose weights are used while they do not run, or that run without being called.
    """

    def __init__(self, model: nn.Module):
        self.modules = dict(model.named_modules())
        self.flow = Flow(model)
        self.calls: dict[str, list[Seen]] = defaultdict(list)
        for seen in self.flow.calls:
            self.calls[seen.name].append(seen)
        self.owners: dict[Made, list[str]] = defaultdict(list)
        for name, module in self.modules.items():
            for weight in own_weights(module).values():
                if (made := self.flow.recorder.known.get(weight)) is not None:
                    self.owners[made].append(name)
        self.consumers: dict[Made, list[Made]] = defaultdict(list)
        for made in self.flow.made:
            for given in set(made.from_ids):
                self.consumers[given].append(made)
        self.uses = sorted(self.products(), key=lambda use: use.index)
        self.by_made = {use.made: use for use in self.uses}
        self.lookups = list(self.tables())
        self.cores = list(self.attentions())
        self.by_core = {core.gave: core for core in self.cores}
        self.norms = list(self.normed())
        self.unseen = self.past_calls()
        attention = list(self.attention_parts())
        self.attention = attention
        self.parts = sorted([*attention, *self.other_parts(attention)], key=lambda part: part.first)
        self.stacks = self.containers()
        self.layers = self.in_layers()
        self.let_go()

    def let_go(self) -> None:
        """What is kept of a pass keeps no model alive."""
        self.modules = WeakValueDictionary(self.modules)
        for seen in self.flow.calls:
            seen.call.module, seen.call.output = proxy(seen.call.module), None

    # weights and their uses

    def root(self, made: Made) -> list[Made]:
        """The weights that something was made of without the ids, through views, casts and sums."""
        found, waiting, seen = [], [(made, 0)], set()
        while waiting:
            one, steps = waiting.pop()
            if one in seen or one.of & IDS or steps > FEW:
                continue
            seen.add(one)
            if one in self.owners:
                found.append(one)
            waiting += [(other, steps + 1) for other in one.given]
        return found

    def owner(self, weight: Made, index: int) -> tuple[str, bool]:
        """Of a weight's modules the one that runs at an operation, and that it does; else one that is never called, or the first."""
        names = self.owners[weight]
        running = [name for name in names if not name or any(seen.first <= index < seen.last for seen in self.calls.get(name, ()))]
        if running:
            return running[-1], True
        around = [n for n in names if ".parametrizations." in n]  # torch.nn.utils.parametrizations: the weight is made by a module inside
        if around:
            return around[0].partition(".parametrizations.")[0], True
        return next((name for name in names if name not in self.calls), names[0]), False

    def products(self) -> Iterator[Use]:
        """Products of what comes from the ids with a weight."""
        for made in self.flow.made:
            if made.op not in PRODUCTS or not made.from_ids:
                continue
            x = made.from_ids[-1 if made.op in ("addmm", "baddbmm") else 0]
            if made.op.startswith(("linear_dynamic", "linear_quantised")):  # its weights are in no tensor
                inner = [seen for seen in self.flow.calls if seen.first <= made.index < seen.last and packed(seen.call.module)]
                if inner:
                    yield Use(inner[-1].name, (made.shape[-1], x.shape[-1]), x, made, True)
                continue
            operands = made.given[-2:] if made.op in ("addmm", "baddbmm") else made.given[:2]
            weights = [one for other in operands if not other.of & IDS for one in self.root(other) if len(one.shape) > 1]
            if weights and len([one for one in operands if one.of & IDS]) == 1:
                if made.op == "convolution" and size(weights[0].shape[2:]) > 1:  # it mixes tokens
                    continue
                owner, running = self.owner(weights[0], made.index)
                yield Use(owner, weights[0].shape, x, made, running)

    def tables(self) -> Iterator[Use]:
        """Rows that are looked up by the ids, or by places."""
        for made in self.flow.made:
            if made.op == "embedding" and (weights := self.root(made.given[0])):
                owner, running = self.owner(weights[0], made.index)
                yield Use(owner, weights[0].shape, made.given[1], made, running)

    def past_calls(self) -> set[str]:
        """Names of the modules that run without being called, and of those whose weights are used while they do not run."""
        used = [use for use in (*self.uses, *self.lookups, *self.norms) if not use.running]
        return {use.owner for use in used if use.owner not in self.calls} | self.flow.past_call

    def normed(self) -> Iterator[Use]:
        """Norms, whatever they are called: modules without others in them that take a mean from numbers, and functions with a weight."""
        known = set()
        for name, calls in self.calls.items():
            module = self.modules[name]
            leaf = not any(own_weights(child) for child in module.children())
            for seen in calls:
                plain = leaf and seen.given is not None and seen.gave is not None and not any(made in self.by_made for made in seen.made)
                if plain and ("norm" in type(module).__name__.lower() or norm_kind(seen) in ("LayerNorm", "RMSNorm")):
                    known |= set(seen.made)
                    shape = next((tuple(weight.shape) for weight in own_weights(module).values()), ())
                    yield Use(name, shape, seen.given, seen.gave, True)
        for made in self.flow.made:
            if made.op in NORMS and made not in known and made.from_ids:
                for weight in (one for other in made.given[1:] for one in self.root(other)):
                    owner, running = self.owner(weight, made.index)
                    yield Use(owner, weight.shape, made.from_ids[0], made, running)
                    break

    # attention

    def attentions(self) -> Iterator[Core]:
        """Where each token looks at all."""
        tokens = self.flow.tokens
        for made in self.flow.made:
            if (
                "scaled_dot_product" in made.op
                and "backward" not in made.op
                and len(made.from_ids) >= 3
                and len(made.shape) == len(made.given[0].shape)
            ):  # beside it stands the sum of each row
                yield Core(*made.given[:3], made)
            elif "softmax" in made.op and len(made.shape) >= 2 and made.shape[-2:] in ((tokens, tokens), (tokens, tokens + 1)):
                sides = self.sides(made)
                gathered = self.gathered(made)
                if sides is not None and gathered is not None:
                    yield Core(*sides, *gathered)

    def sides(self, scores: Made) -> tuple[Made, Made] | None:
        """Queries and keys of scores."""
        waiting, seen = [scores], set()
        while waiting:
            one = waiting.pop(0)
            if one in seen:
                continue
            seen.add(one)
            pair = one.from_ids[-2:]
            if one.op in PRODUCTS and len(pair) == 2 and one not in self.by_made:
                return pair
            if one.op not in PRODUCTS:
                waiting += one.from_ids
        return None

    def gathered(self, scores: Made) -> tuple[Made, Made] | None:
        """The values that scores weigh, and their sum."""
        own, waiting = {scores}, [scores]
        while waiting:
            for made in self.consumers[waiting.pop(0)]:
                others = [other for other in made.from_ids if other not in own]
                if made.op in PRODUCTS and made not in self.by_made and others:
                    return others[-1], made
                if made not in own and made.op not in PRODUCTS and len(own) < 10 * FEW:
                    own.add(made)
                    waiting.append(made)
        return None

    def back(self, made: Made | None, sums: bool = False, first: int = -1) -> tuple[list[Use], list[Core], set[Made]]:
        """The uses and cores that something comes from directly, and all between; over sums of two things with ``sums`` alone."""
        uses, cores, seen, waiting = [], [], set(), [made] if made is not None else []
        while waiting:
            one = waiting.pop()
            if one in seen or one.index < first:
                continue
            seen.add(one)
            if one in self.by_made:
                uses.append(self.by_made[one])
            elif one in self.by_core:
                cores.append(self.by_core[one])
            elif sums or one.op not in ADD or len(set(one.from_ids)) < 2:
                waiting += one.from_ids[:1] if one.op in GATHER and one.given[0].of & IDS else one.from_ids
        return sorted(uses, key=lambda use: use.index), cores, seen

    def attention_parts(self) -> Iterator[Part]:
        """The attentions, heads of one output together."""
        groups: dict[object, list[Core]] = defaultdict(list)
        out: dict[Core, Use] = {}
        for use in self.uses:
            for core in self.back(use.x)[1]:
                if core not in out and not self.bends(use):  # behind an output stands a sum
                    out[core] = use
        for core in self.cores:
            groups[out.get(core) or self.side_by_side(core)].append(core)
        taken: set[Use] = set(out.values())
        for key, cores in groups.items():
            yield self.attention(cores, key if isinstance(key, Use) else None, taken)

    def side_by_side(self, core: Core) -> object:
        """What heads without an output of their own have in common: the list that they stand in; else the core alone."""
        owners = [use.owner for use in self.back(core.q, sums=True)[0]]
        for owner in owners:
            parent = owner
            while "." in parent:
                parent = parent.rpartition(".")[0]
                beside = [one.from_ids[0] for one in self.back(core.q, True)[2] if one in self.by_made]
                if isinstance(self.modules.get(parent), nn.ModuleList) and beside and len(self.readers(parent, beside[0])) > 1:
                    return parent, min(self.views(beside[0]), key=lambda made: made.index)
        return core

    def readers(self, stack: str, made: Made) -> set[str]:
        """The members of a list that read the same."""
        same = self.views(made)
        return {
            use.owner[len(stack) + 1 :].partition(".")[0]
            for use in self.uses
            if use.owner.startswith(f"{stack}.") and self.views(use.x) & same
        }

    def views(self, made: Made | None) -> set[Made]:
        """Something and what it is a view of."""
        found = set()
        while made is not None and made not in found:
            found.add(made)
            made = made.from_ids[0] if made.op in VIEWS and made.from_ids else None
        return found

    def attention(self, cores: list[Core], o: Use | None, taken: set[Use]) -> Part:
        """One attention: what makes its queries, keys and values; ``taken`` are uses that have a place already."""
        roles: dict[str, str] = {}
        sides = [[[u for u in self.back(one, sums=True)[0] if u not in taken] for one in (core.q, core.k, core.v)] for core in cores]
        own = {frozenset(use.owner for side in of_core for use in side) for of_core in sides}
        heads = len(cores) > 1 and len(own) == len(cores)
        mine: dict[Use, str] = {}  # use → which of q, k, v it makes
        for number, (core, of_core) in enumerate(zip(cores, sides, strict=True)):
            start = f"head.{number}." if heads else ""
            for use in dict.fromkeys(use for side in of_core for use in side):
                mine[use] = places = "".join(letter for letter, side in zip("qkv", of_core, strict=True) if use in side)
                below = self.latent(use)
                if below is not None and places in ("q", "k", "v", "kv"):
                    of = "q" if places == "q" else "kv"
                    roles.setdefault(below.owner, f"{start}{of}_a")
                    mine.setdefault(below, "")
                    ways = self.back(use.x)[2]
                    roles |= {n.owner: f"{start}{of}_a_norm" for n in self.norms if n.made in ways and below in self.back(n.x)[0]}
                    places = f"{of}_b" if places in ("q", "kv") else places
                roles.setdefault(use.owner, f"{start}{places}")
            for norm in self.norms:
                roles |= {name: role for name, role in self.norm_inside(norm, core, start).items() if name not in roles}
        last = max((core.gave for core in cores), key=lambda made: made.index)
        if o is not None:
            roles.setdefault(o.owner, "o")
            between = self.back(o.x)[2]
            gathered = {core.gave for core in cores}
            roles |= {n.owner: "norm" for n in self.norms if n.made in between and gathered & self.back(n.x)[2] and n.owner not in roles}
            last = o.made
        taken |= set(mine)
        first = min([use.index for use in mine] + [core.gave.index for core in cores])
        queries = sum(size(core.q.shape) for core in cores)
        entries = [[self.latent(use) or use for use in mine if letter in mine[use]] for letter in "qk"]
        read = [set().union(*(self.views(use.x) for use in side), set()) for side in entries]
        return Part(
            "cross" if all(read) and not read[0] & read[1] else "attn",  # queries of one thing, keys of another
            roles,
            first=first,
            last=last.index,
            reads=[use.x for use in entries[0] or mine] or [core.q for core in cores],
            gave=last,
            queries=queries // self.flow.tokens,
            values=sum(size(core.gave.shape) for core in cores) // self.flow.tokens,
            kept=self.kept(mine, queries) // self.flow.tokens,
        )

    def bends(self, use: Use) -> bool:
        """Whether what a use made goes into an activation next, as in a feed-forward."""
        ahead = [use.made]
        for _ in range(FEW):
            ahead = [one for made in ahead for one in self.consumers[made]]
            if any(one.op in BENDS for one in ahead):
                return True
            ahead = [one for one in ahead if one.op in VIEWS]
        return False

    def latent(self, use: Use) -> Use | None:
        """The use that makes what this one reads, where both stand side by side in one module: keys and values from a latent."""
        before, _, between = self.back(use.x)
        near = [u for u in before if u.owner.rpartition(".")[0] == use.owner.rpartition(".")[0] and u.owner != use.owner]
        return near[0] if len(near) == 1 and len(before) == 1 and not any(made.op in BENDS for made in between) else None

    def kept(self, mine: dict[Use, str], queries: int) -> int:
        """Numbers that a cache of keys and values keeps in the pass: the latents where they are made of such."""
        total = 0
        for use, places in mine.items():
            made = size(use.made.shape)
            if "k" in places or "v" in places:
                below = self.latent(use)
                total += made - queries if "q" in places else 0 if below is not None else made
            elif not places and any("k" in mine[other] or "v" in mine[other] for other in mine if self.latent(other) is use):
                total += made
        return total

    def norm_inside(self, norm: Use, core: Core, start: str) -> dict[str, str]:
        """The role of a norm between what makes queries or keys and the scores."""
        for letter, side in (("q", core.q), ("k", core.k)):
            if norm.made in self.back(side, sums=True)[2] and self.back(norm.x)[0] and norm.x is not None:
                own = self.back(norm.x, sums=False)[0]
                if own and own[0].owner.rpartition(".")[0] == norm.owner.rpartition(".")[0]:
                    return {norm.owner: f"{start}{letter}_norm"}
        return {}

    # what works on each token alone

    def other_parts(self, attention: list[Part]) -> list[Part]:
        """Chains of weights outside of attention and of the head: feed-forwards, experts, and what mixes tokens in other ways."""
        taken = {owner for part in attention for owner in part.roles}
        recurrent = tuple(name for name, module in self.modules.items() if isinstance(module, (nn.RNNBase, nn.RNNCellBase)))
        head = set(self.back(self.flow.logits)[0])
        left = [use for use in self.uses if use.owner not in (*taken, *recurrent) and use not in head]
        chains = [self.chain(uses) for uses in self.joined(left)]
        return self.with_experts(chains)

    def joined(self, uses: list[Use]) -> list[list[Use]]:
        """Uses that lead into each other without a sum in between."""
        known, group = set(uses), {use: [use] for use in uses}
        for use in uses:
            for before in self.back(use.x)[0]:
                if before in known and group[before] is not group[use]:
                    merged = group[before] + group[use]
                    for one in merged:
                        group[one] = merged
        return [sorted(uses, key=lambda use: use.index) for uses in {id(one): one for one in group.values()}.values()]

    def chain(self, uses: list[Use]) -> Part:
        """One chain as a part: which of its weights opens it, gates it, and closes it."""
        before = {use: [one for one in self.back(use.x)[0] if one in uses] for use in uses}
        between = set().union(*(self.back(use.x)[2] for use in uses if before[use]), set())
        mixes = any(made.op in MIXES or (made.op in PRODUCTS and len(made.from_ids) > 1) for made in between - set(self.by_made))
        opens, closes = [use for use in uses if not before[use]], uses[-1]
        roles: dict[str, str] = {}
        if mixes:
            kind = "mixer"
        elif len(uses) == 1:
            kind = "router" if self.chooses(closes) else "mlp" if self.bends(closes) else "lone"
            roles[closes.owner] = "router" if kind == "router" else "up"
        else:
            kind = "mlp"
            halves = len(opens) == 1 and 2 * closes.x.shape[-1] == opens[0].made.shape[-1] and before[closes] == opens
            gate = next((use for use in opens if self.bent(closes.x, use.made)), opens[0]) if len(opens) == 2 else None
            names = {use.owner: "gate_up" if halves else "gate" if use is gate else "up" for use in opens}
            roles = names | {closes.owner: "down"} if closes.owner not in names else {}
            norms = [norm for norm in self.norms if norm.made in between and norm.owner not in roles]
            roles |= {norm.owner: "norm" for norm in norms if set(self.back(norm.x)[0]) & set(uses)}
        roles |= {use.owner: "" for use in uses if use.owner not in roles}
        return Part(kind, roles, uses[0].index, closes.index, [use.x for use in opens], closes.made)

    def chooses(self, use: Use) -> bool:
        """Whether what a use made is what experts are chosen by: probabilities of them, of which the largest are taken."""
        ahead, seen = [(use.made, 0)], set()
        while ahead:
            made, steps = ahead.pop(0)
            if made in seen or steps > FEW or (made in self.by_made and made is not use.made):
                continue
            seen.add(made)
            if made.op in CHOICE or ("softmax" in made.op and made.shape[-1] == use.made.shape[-1] and made is not use.made):
                return True
            ahead += [(one, steps + 1) for one in self.consumers[made]]
        return False

    def bent(self, after: Made, before: Made) -> bool:
        """Whether something went through an activation on some way to what came after it."""
        waiting, seen = [(after, False)], set()
        while waiting:
            one, through = waiting.pop()
            if one is before:
                if through:
                    return True
                continue
            if (one, through) not in seen and one.index > before.index:
                seen.add((one, through))
                waiting += [(other, through or one.op in BENDS) for other in one.from_ids]
        return False

    def with_experts(self, chains: list[Part]) -> list[Part]:
        """The chains, those of one mixture of experts as one part."""
        routers = [chain for chain in chains if chain.kind == "router"]
        found, gone = [], set()
        for name, module in self.modules.items():
            inside = [
                chain for chain in chains if isinstance(module, nn.ModuleList) and id(chain) not in gone and within(chain, f"{name}.")
            ]
            parent = name.rpartition(".")[0]
            own = [router for router in routers if parent and within(router, f"{parent}.") and id(router) not in gone]
            if (
                not inside
                or not own
                or any(within(router, f"{name}.") for router in own)
                or any(isinstance(self.modules[f"{name}.{key}"], nn.ModuleList) for key in module._modules)
            ):
                continue
            shared = [c for c in chains if within(c, f"{parent}.") and c not in inside and c.kind in ("mlp", "lone") and id(c) not in gone]
            members = {owner[len(name) + 1 :].partition(".")[0] for chain in inside for owner in chain.roles}
            if len(own) < len(self.calls.get(parent, own)) and len(members) < 1:
                continue
            roles = {name: "experts"} | {owner: "router" for router in own for owner in router.roles}
            twin = {owner[len(name) + 1 :].partition(".")[2]: role for chain in inside for owner, role in chain.roles.items()}
            for key in module._modules:
                roles[f"{name}.{key}"] = f"experts.{key}"
                roles |= {f"{name}.{key}.{path}": f"experts.{key}.{role}" for path, role in twin.items() if path and role}
            roles |= {owner: f"shared.{role}" for chain in shared for owner, role in chain.roles.items() if role}
            both = [*inside, *own, *shared]
            gone |= set(map(id, both))
            found.append(self.of_several(both, roles))
        for chain in chains:  # experts as stacked tensors of one module
            stacked = id(chain) not in gone and any(len(self.largest(owner)) == 3 for owner in chain.roles)
            near = [
                r for r in routers if id(r) not in gone and stacked and common(r.roles) and beside(common(r.roles), common(chain.roles))
            ]
            if near:
                roles = dict.fromkeys(chain.roles, "experts") | {owner: "router" for router in near[:1] for owner in router.roles}
                gone |= {id(chain), id(near[0])}
                found.append(self.of_several([chain, near[0]], roles))
        return found + [chain for chain in chains if id(chain) not in gone]

    def largest(self, owner: str) -> tuple[int, ...]:
        """The shape of a module's weight with the most dimensions."""
        return max((tuple(weight.shape) for weight in own_weights(self.modules[owner]).values()), key=len, default=())

    def of_several(self, chains: list[Part], roles: dict[str, str]) -> Part:
        """Chains as one feed-forward."""
        last = max(chains, key=lambda chain: chain.last)
        reads = [made for chain in chains for made in chain.reads]
        return Part("mlp", roles, min(chain.first for chain in chains), last.last, reads, last.gave)

    # layers

    def containers(self) -> dict[str, list[str]]:
        """Containers of layers → names of the layers in them, in order; outermost ones."""
        found: dict[str, list[str]] = {}
        for name, module in self.modules.items():
            for key, members in self.candidates(name, module):
                if any(f"{name}.".startswith(f"{one}.") for names in found.values() for one in names):
                    continue
                if members := self.as_layers(members, isinstance(module, nn.ModuleList)):
                    found[key] = members
        return found

    def candidates(self, name: str, module: nn.Module) -> Iterator[tuple[str, list[str]]]:
        """What in a module may be a row of layers: all members of a container, or attributes of one class with a number each."""
        start = f"{name}." if name else ""
        children = {key: child for key, child in module._modules.items() if child is not None}
        if isinstance(module, (nn.ModuleList, nn.Sequential, nn.ModuleDict)):
            yield name, [f"{start}{key}" for key in children]
            return
        rows: dict[tuple[str, type], list[str]] = defaultdict(list)
        for key, child in children.items():
            if numbered := re.fullmatch(r"(.*?)\d+", key):
                rows[numbered[1], type(child)].append(f"{start}{key}")
        yield from ((f"{start}{base}*", members) for (base, _), members in rows.items() if len(members) > 1)

    def as_layers(self, members: list[str], listed: bool) -> list[str]:
        """Those of a row that are layers; [] where it is none, as heads or experts side by side, or parts of one layer."""
        parts = [part for part in self.parts if part.kind in PARTS]
        if any(len({m for m in members for owner in part.roles if within_name(owner, m)}) > 1 for part in parts):
            return []
        holding = [m for m in members if any(within(part, m) for part in parts) or self.is_block(m)]
        kinds = {type(self.modules[m]) for m in holding}
        rows = (nn.ModuleList, nn.ModuleDict)
        several = any(sum(type(self.modules[m]) is kind for m in holding) > 1 for kind in kinds)
        if listed and holding and all(self.modules[m]._modules or own_weights(self.modules[m]) for m in holding):
            return [m for m in members if type(self.modules[m]) in kinds or self.modules[m]._modules]
        if several and not all(issubclass(kind, rows) for kind in kinds):
            return [m for m in holding if type(self.modules[m]) in kinds]
        if len(holding) == 1 and not isinstance(self.modules[holding[0]], (*rows, nn.Sequential)):
            inside = [part.kind for part in parts if within(part, holding[0])]
            return holding if sorted(set(inside)) == ["attn", "mlp"] and inside.count("attn") == 1 else []
        return []

    def is_block(self, name: str) -> bool:
        """Whether a module without an attention or feed-forward is one that mixes tokens, as a recurrence."""
        return any(isinstance(module, (nn.RNNBase, nn.RNNCellBase)) for module in self.modules[name].modules()) and bool(
            self.modules[name]._modules
        )

    def in_layers(self) -> list[Layer]:
        """All layers: those of each container in its order; pieces of layers that follow each other in time, as one."""
        layers, loose = [], [part for part in self.parts if part.kind in PARTS]
        kinds = {stack: [{part.kind for part in loose if within(part, name)} for name in names] for stack, names in self.stacks.items()}
        single = {stack for stack, sets in kinds.items() if all(len(one) <= 1 for one in sets) and any(sets)}
        pieces = {stack for stack in single if not any(name in self.calls for name in self.stacks[stack])}
        if len({next(iter(one)) for stack in single for one in kinds[stack] if one}) > 1 and len(single) > 1:
            pieces |= single
        for stack, names in self.stacks.items():
            if stack not in pieces:
                for name in names:
                    own = [part for part in loose if within(part, name)]
                    layers.append(Layer(name, first_runs(own)))
                    loose = [part for part in loose if part not in own]
        self.stacks = {stack: names for stack, names in self.stacks.items() if stack not in pieces}
        following: list[Layer] = []
        for part in first_runs(loose):
            if not following or (part.kind == "attn" and any(one.kind == "attn" for one in following[-1].parts)):
                following.append(Layer(None))
            following[-1].parts.append(part)
        if any(part.kind == "attn" for layer in following for part in layer.parts):
            layers += following
        for layer in layers:
            if layer.name is None:
                layer.name = self.around(layer)
        return layers

    def around(self, layer: Layer) -> str | None:
        """The module that holds the parts of a layer and no others; None where none does."""
        name = common([owner for part in layer.parts for owner in part.roles])
        others = [part for part in self.parts if part.kind in PARTS and not any(same(part, own) for own in layer.parts)]
        if not name or any(within(part, name) for part in others) or any(within_name(use.owner, name) for use in self.lookups):
            return None
        if len(layer.parts) == 1 or isinstance(self.modules[name], (nn.ModuleList, nn.ModuleDict)):
            return None
        return name

    def placed(self, layer: Layer) -> dict[str, str]:
        """Name of a module → role in the layer: its parts, what is in them, and norms by place."""
        found: dict[str, str] = {}
        for part in layer.parts:
            if part.kind == "lone":
                continue
            if (name := self.component(part, layer)) is not None:
                found.setdefault(name, part.kind)
            found |= {owner: f"{part.kind}.{role}" for owner, role in part.roles.items() if role and owner not in found}
        for norm, role in self.norm_places(layer, found):
            if norm.owner not in found and role not in found.values():
                found[norm.owner] = role
        return found

    def component(self, part: Part, layer: Layer) -> str | None:
        """The module that is a part: the outermost one with its weights and no others; None where they stand in the layer itself."""
        name = common(part.roles)
        if name is None or name == layer.name or not name:
            return None
        if isinstance(self.modules[name], nn.ModuleList):
            return None
        inside = set(part.roles)
        while "." in name:
            parent = name.rpartition(".")[0]
            others = [n for n, m in self.modules.items() if within_name(n, parent) and own_weights(m) and n not in inside and n != parent]
            others = [n for n in others if not any(within_name(n, owner) for owner in inside)]
            if parent == layer.name or others or isinstance(self.modules[parent], (nn.ModuleList, nn.ModuleDict)):
                break
            name = parent
        return name

    def norm_places(self, layer: Layer, found: dict[str, str]) -> Iterator[tuple[Use, str]]:
        """The norms of a layer, each with its place: before attention or feed-forward, on what they give, or on the sum behind."""
        named = [other.name for other in self.layers if other.name is not None]
        mine = [norm for norm in self.norms if norm.owner not in found]
        if layer.name is not None:
            mine = [norm for norm in mine if within_name(norm.owner, layer.name)]
        else:  # those of other rows are told by what they stand before, or else behind
            mine = [norm for norm in mine if not any(within_name(norm.owner, name) for name in named)]
            loose = [other for other in self.layers if other.name is None]
            before = {norm.owner: [other for other in loose if self.opens(norm, other)] for norm in mine}
            if any(before[norm.owner] == [loose[0]] and self.opens(norm, loose[0], "attn") for norm in mine):
                mine = [norm for norm in mine if before[norm.owner] and before[norm.owner][0] is layer]
            else:
                mine = [norm for norm in mine if next((other for other in loose if self.behind(norm, other)), layer) is layer]
        opens, gives = defaultdict(set), defaultdict(set)
        for part in layer.parts:
            kind = "attn" if part.kind == "mixer" else part.kind
            opens[kind] |= set().union(*(self.back(made)[2] for made in part.reads))
            gives[kind].add(part.gave)
        behind = {norm: self.back(norm.x)[2] for norm in mine}
        pre = {norm.owner for norm in mine if norm.made in opens["attn"]}
        last = {norm.owner for norm in mine if gives["mlp"] & (behind[norm] | self.summed(norm.x))} - pre
        for norm in mine:
            given = {kind for kind, made in gives.items() if made & behind[norm]}
            summed = {kind for kind, made in gives.items() if made & self.summed(norm.x)} | given
            before = [kind for kind in ("cross", "mlp") if norm.made in opens[kind]]
            after = next((kind for kind in ("mlp", "cross", "attn") if kind in summed), None)
            if norm.owner in pre:
                yield norm, "norm_attn"
            elif before and not given and (pre or not last - {norm.owner}):
                yield norm, f"norm_{before[0]}"
            elif after is not None:
                there = any(norm.made not in opens[after] and other.made in opens[after] for other in mine) if pre else False
                yield norm, f"norm_{after}_post" if there else f"norm_{after}"
            elif before:
                yield norm, f"norm_{before[0]}"

    def opens(self, norm: Use, layer: Layer, kind: str = "") -> bool:
        """Whether a layer's parts, or those of a kind, read what a norm made."""
        parts = [part for part in layer.parts if not kind or part.kind == kind]
        return any(norm.made in self.back(made)[2] for part in parts for made in part.reads)

    def behind(self, norm: Use, layer: Layer) -> bool:
        """Whether a norm reads what one of a layer's parts gave, or the sum behind it."""
        way = self.back(norm.x)[2] | self.summed(norm.x)
        return any(part.gave in way for part in layer.parts)

    def summed(self, made: Made | None) -> set[Made]:
        """The terms of the sum that something is, and what they come from without another."""
        found: set[Made] = set()
        for one in self.back(made)[2]:
            if one.op in ADD and len(set(one.from_ids)) > 1:
                for term in one.from_ids:
                    found |= self.back(term)[2]
        return found


def within_name(owner: str, name: str) -> bool:
    """Whether a module is another, or stands in it."""
    return not name or owner == name or owner.startswith(f"{name}.")


def within(part: Part, name: str) -> bool:
    """Whether all weights of a part are in a module; with a dot at the end of its name, in its members."""
    return all(owner.startswith(name) if name.endswith(".") else within_name(owner, name) for owner in part.roles)


def same(a: Part, b: Part) -> bool:
    """Whether two parts are two runs of one."""
    return set(a.roles) == set(b.roles)


def first_runs(parts: list[Part]) -> list[Part]:
    """Parts without those that run again."""
    found: list[Part] = []
    for part in parts:
        known = next((one for one in found if same(one, part)), None)
        if known is None:
            found.append(part)
    return found


def common(names: Iterable[str]) -> str | None:
    """The innermost module that holds all of these; "" for the whole model, None for no names."""
    names = list(names)
    if not names:
        return None
    split = [name.split(".") for name in names]
    shared = []
    for steps in zip(*split, strict=False):
        if len(set(steps)) > 1:
            break
        shared.append(steps[0])
    return ".".join(shared)


def beside(a: str, b: str) -> bool:
    """Whether two modules stand in one, or one in the other."""
    return a.rpartition(".")[0] == b.rpartition(".")[0] or within_name(a, b) or within_name(b, a)


def weights_of(model: nn.Module) -> list[Tensor]:
    """All weights of a model, a shared one once: its parameters, and what else stands for such (``own_weights``)."""
    return list({id(weight): weight for module in model.modules() for weight in own_weights(module).values()}.values())


def around_layers(shapes: Shapes, text: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """Name of a module → role, of those before the first layer and after the last: ``text`` tells which can be."""
    inside = {owner for layer in shapes.layers for part in layer.parts for owner in part.roles}
    starts = [part.first for layer in shapes.layers for part in layer.parts if part.kind != "lone"]
    if not starts:
        starts = [seen.first for seen in shapes.flow.calls if isinstance(seen.call.module, (nn.RNNBase, nn.RNNCellBase))]
    first = min(starts, default=len(shapes.flow.made))
    ends = [part.last for part in shapes.parts if inside & set(part.roles)]
    ends += [seen.last for seen in shapes.flow.calls if isinstance(seen.call.module, (nn.RNNBase, nn.RNNCellBase))]
    last = max(ends, default=-1)
    for use in shapes.lookups:
        if text(use.owner) and use.index < first and use.x is not None:
            if use.x.of & IDS and not use.x.of & POSITION:
                yield use.owner, "embed"
            elif use.x.of & POSITION:
                yield use.owner, "embed_pos"
    for made in shapes.flow.made[: max(0, first)]:
        if made.op in ADD and len(made.from_ids) == 1:
            for weight in (one for other in made.given if other.of & LEARNED and not other.of & IDS for one in shapes.root(other)):
                owner = shapes.owner(weight, made.index)[0]
                if text(owner) and len(weight.shape) > 1 and owner not in {use.owner for use in (*shapes.lookups, *shapes.uses)}:
                    yield owner, "embed_pos"
    head = set(shapes.back(shapes.flow.logits)[0])
    for use in shapes.uses:
        if text(use.owner) and use in head and use.owner not in {one.owner for one in shapes.lookups}:
            yield use.owner, "head"
        elif text(use.owner) and use.index < first and not use.x.of & POSITION:
            yield use.owner, "embed_proj"
    after = [norm for norm in shapes.norms if text(norm.owner) and norm.made.index > last >= 0]
    tail = [use for use in shapes.uses if use.index > last]  # a head may be several maps
    ways = set().union(*(shapes.back(use.x)[2] for use in (*head, *tail)), shapes.back(shapes.flow.logits)[2])
    for norm in [norm for norm in after if norm.made in ways][-1:]:
        yield norm.owner, "final_norm"
    for norm in shapes.norms:
        if text(norm.owner) and norm.made.index < first:
            yield norm.owner, "embed_norm"


KNOWN: WeakKeyDictionary = WeakKeyDictionary()  # model → what it was made of, and its ``Shapes`` (None where the pass broke off)


def shapes_of(model: nn.Module) -> Shapes | None:
    """What a pass tells of a model's modules; None for models whose names tell all, and where the pass breaks off.

    A pass is made where the model has other modules than when it was last asked.
    """
    if of_library(model):
        return None
    made_of = tuple((name, id(module)) for name, module in model.named_modules())
    if model not in KNOWN or KNOWN[model][0] != made_of:
        KNOWN[model] = made_of, None  # while it is looked at
        try:
            KNOWN[model] = made_of, Shapes(model)
        except Exception:  # whatever the code of a foreign model raises
            pass
    return KNOWN[model][1]
