"""How far a model reads, which ids it takes, and how many heads it has: by the names that people use, else by what its forward looks into.

Shape letters: B batch, T tokens, D hidden, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import PretrainedConfig

from .kinds import of_transformers

CONTEXT = (
    *("max_position_embeddings", "n_positions", "max_positions", "block_size", "context_length", "context_size", "context_len"),
    *("context_window", "n_ctx", "ctx_len", "ctx_length", "ctx_size", "max_seq_len", "max_seq_length", "max_seqlen"),
    *("max_sequence_length", "max_context", "max_context_length", "max_context_len"),
)
# Which other things are called too: a sliding window, the length of training's rows. They count where no table of positions tells more.
CONTEXT_OR_ELSE = (
    *("max_len", "maxlen", "max_length", "seq_len", "seq_length", "seqlen", "sequence_length", "window_size", "window", "max_tokens"),
)
HEADS = (
    *("num_attention_heads", "n_heads", "n_head", "num_heads", "nhead", "nheads", "heads", "num_attn_heads", "n_attn_heads"),
    "attention_heads",
)
VOCABULARY = (
    *("vocab_size", "n_vocab", "vocabulary_size", "vocab_len", "n_tokens", "ntoken", "ntokens", "num_tokens", "num_embeddings", "vocab"),
)
HOLDERS = (
    *("config", "cfg", "args", "params", "hparams", "conf", "configuration", "model_args", "model_config", "settings", "opt", "options"),
)
INNER = ("text_config", "model", "transformer", "gpt", "decoder")  # parts of a configuration that are configurations
MOST = 10**9  # no model reads more; some libraries write 10^30 for "no limit"


def context_length(model: nn.Module) -> int | None:
    """The most tokens that a model reads; None where nothing limits it, or nothing says so.

    A model of transformers, or of ours, says it in its configuration. For others the names of ``CONTEXT`` are looked for, as an
    attribute, in what is called config, args and the like, or in inner modules that agree; a table of positions with fewer rows
    contradicts them.
    """
    config = getattr(model, "config", None)
    if is_known(model):
        length = config.get("max_seq_len") if isinstance(config, dict) else getattr(config, "max_position_embeddings", None)
        return length if length and length > 0 else None  # XLNet says -1 for no limit
    said, or_else = stated(model, CONTEXT), stated(model, CONTEXT_OR_ELSE, inside=False)
    rows = measured(model).positions
    kept = or_else == stated(model, CONTEXT_OR_ELSE, inside=False) and (or_else or 0) > LENGTHS[0]  # else it is the last pass's length
    if said is None and rows is None and kept:
        said = or_else
    return min((length for length in (said, rows) if length is not None), default=None)


def vocabulary(model: nn.Module) -> int | None:
    """How many token ids a model takes: the rows of what it looks ids up in, else what it says, else as many as it has logits."""
    if of_transformers(model):
        with suppress(AttributeError, NotImplementedError, TypeError):
            if (weight := getattr(model.get_input_embeddings(), "weight", None)) is not None and weight.dim() == 2:
                return weight.shape[0]
    found = Measured() if is_known(model) else measured(model)
    return found.ids or stated(model, VOCABULARY) or found.logits


def head_number(model: nn.Module, attention: nn.Module | None = None) -> int | None:
    """The number of attention heads by the attention's own attributes, else by the model's; None where neither says it."""
    return (stated(attention, HEADS, inside=False) if attention is not None else None) or stated(model, HEADS)


def is_known(model: nn.Module) -> bool:
    """Whether a model's class is transformers' own or ours, whose configurations are complete."""
    return type(model).__module__.partition(".")[0] in ("transformers", __name__.partition(".")[0])


def stated(model: nn.Module, names: Sequence[str], inside: bool = True) -> int | None:
    """The number that a model states under one of the names, else that in which the outermost of its ``inside`` modules agree."""
    if (own := said_by(model, names)) is not None or not inside:
        return own
    by_depth: dict[int, set[int]] = {}
    for name, module in model.named_modules():
        if name and (value := said_by(module, names)) is not None:
            by_depth.setdefault(name.count("."), set()).add(value)
    values = by_depth[min(by_depth)] if by_depth else set()
    return values.pop() if len(values) == 1 else None


def said_by(module: nn.Module, names: Sequence[str]) -> int | None:
    """The first whole number that a module, or a configuration of whatever kind in it, gives under one of the names, in their order."""
    places = [module, *configurations(module)]
    values = (value_of(place, name) for name in names for place in places)
    return next((int(value) for value in values if is_sensible(value)), None)


def configurations(module: nn.Module) -> Iterator[object]:
    """What a module holds under the names of ``HOLDERS``, and the configurations in it: dicts, dataclasses, namespaces, objects."""
    for name in HOLDERS:
        held = value_of(module, name)
        if held is None or isinstance(held, nn.Module | Tensor | str | int | float):
            continue
        if isinstance(held, PretrainedConfig):
            with suppress(Exception):  # a configuration of whoever's may not build its parts
                held = held.get_text_config(decoder=True)
        yield held
        inner = (value_of(held, name) for name in INNER)
        yield from (part for part in inner if part is not None and not isinstance(part, nn.Module | Tensor | str | int | float))


def value_of(holder: object, name: str) -> object:
    """What an object or a dict holds under a name; None where it does not, or raises."""
    with suppress(Exception):  # properties of a user's class, configurations that refuse unknown names
        return holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)
    return None


def is_sensible(value: object) -> bool:
    """Whether a value can be a size: a whole number from 1 up."""
    return isinstance(value, Integral) and not isinstance(value, bool) and 1 <= value <= MOST


@dataclass(frozen=True)
class Measured:
    """What short passes show: rows for positions, rows for ids, and the width of the logits; None where there is nothing of the kind."""

    positions: int | None = None
    ids: int | None = None
    logits: int | None = None


LENGTHS = (3, 2, 1)  # of the passes, the first two that the model takes: what is looked into at both is a table, and no constant


def measured(model: nn.Module) -> Measured:
    """``passes_over`` a model, made once as long as its tensors have the shapes that they had: loading asks for it many times."""
    from .outputs import FORMS  # which asks here how long a probe may be

    sequence_first = model in FORMS and FORMS[model].sequence_first
    asked = [sequence_first, *(tensor.shape for tensor in (*model.parameters(), *model.buffers()))]
    known = MEASURES.get(model)
    if known is None or known[0] != asked:
        known = MEASURES[model] = asked, passes_over(model, sequence_first)
    return known[1]


MEASURES = WeakIdKeyDictionary()  # model → how it reads ids, the shapes of its tensors, and what was measured


def passes_over(model: nn.Module, sequence_first: bool = False) -> Measured:
    """How many rows the tables have that the forward looks into with places and with ids, seen in two passes over at most three tokens.

    ``sequence_first``: it is known to read ids [T, B]. A table that grows when it is asked for more is no limit. Nothing is
    measured without numbers, on the meta device.
    """
    from .embeddings import input_device
    from .splitting import evaluating  # which asks here how long a probe may be

    device = input_device(model)
    if device.type == "meta":
        return Measured()

    def attempt(length: int, ids: Sequence[int] = (1, 0, 1, 0)) -> Lookups | None:
        ids_1T = torch.tensor([ids[:length]], device=device)  # never 0, 1, 2, which are places
        lookups = Lookups(model, ids_1T)
        try:
            with lookups:
                output = model(ids_1T.T.contiguous() if sequence_first else ids_1T)
        except Exception:  # a module of the user's can raise anything, above all where its context is shorter
            return None
        given = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        wide = (one for one in (given, *tree_leaves(output)) if isinstance(one, Tensor) and one.dim() > 1)
        lookups.width = next((one.shape[-1] for one in wide), None)
        return lookups

    with evaluating(model), torch.no_grad():
        passes = [found for length in LENGTHS if (found := attempt(length)) is not None][:2]
        if not passes:  # of a vocabulary of one token
            passes = [found for length in LENGTHS if (found := attempt(length, (0, 0, 0, 0))) is not None][:2]
        if not passes:
            return Measured()
        common = set.intersection(*(set(found.tables) for found in passes))
        rows = min((passes[0].tables[table] for table in common), default=None)
        if rows is not None and rows <= LENGTHS[0] and attempt(rows + 1) is not None:
            rows = None
    return Measured(rows, passes[0].rows, passes[0].width)


class Lookups(TorchFunctionMode):
    """While it is active, notes what is looked up with the places 0 … T-1 or sliced to T, and what with the ids themselves.

    Args:
        model: whose parameters, buffers and plain tensors are tables.
        ids_1T: that are fed.
    """

    def __init__(self, model: nn.Module, ids_1T: Tensor):
        super().__init__()
        plain = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
        self.own = {key for tensor in (*model.parameters(), *model.buffers(), *plain) if (key := storage(tensor)) is not None}
        self.ids_1T, self.length = ids_1T, ids_1T.shape[1]
        self.tables: dict[tuple, int] = {}  # where it is looked into → how many tokens it serves
        self.rows: int | None = None
        self.width: int | None = None

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name == "embedding":
            index, table = sorted([*args, *kwargs.values()][:2], key=lambda tensor: tensor.is_floating_point() or tensor.is_complex())
            self.looked_up(table, 0, index)
        elif name == "index_select" and len(args) == 3 and storage(args[0]) in self.own:
            self.looked_up(args[0], args[1], args[2])
        elif name == "narrow" and len(args) == 4 and storage(args[0]) in self.own:
            self.sliced(args[0], args[1] % args[0].dim(), args[2], args[3])
        elif name == "__getitem__" and storage(args[0]) in self.own:
            self.indexed(*args)
        return function(*args, **kwargs)

    def indexed(self, table: Tensor, key: object) -> None:
        """``table[key]``: each slice and each tensor of indices at its dimension."""
        keys = list(key) if isinstance(key, tuple) else [key]
        taken = sum(0 if one is None or one is Ellipsis else one.dim() if is_mask(one) else 1 for one in keys)
        dim = 0
        for one in keys:
            if one is Ellipsis:
                dim += table.dim() - taken
            elif isinstance(one, slice):
                if one != slice(None):
                    start, stop, step = one.indices(table.shape[dim])
                    if isinstance(one.stop, Integral) and one.stop - start == self.length and one.stop > table.shape[dim]:
                        raise IndexError("fewer rows than places")  # torch gives those there are, and a single one fits any length
                    self.sliced(table, dim, start if (one.start or 0) >= 0 else 0, len(range(start, stop, step)))
                dim += 1
            elif isinstance(one, Tensor) and not is_mask(one):
                self.looked_up(table, dim, one)
                dim += 1
            elif one is not None:
                dim += one.dim() if is_mask(one) else 1

    def sliced(self, table: Tensor, dim: int, start: int, length: int) -> None:
        """A piece of a table along a dimension, as long as what is read."""
        if length == self.length:
            self.note(table, dim, int(start))

    def looked_up(self, table: Tensor, dim: int, index: Tensor) -> None:
        """Rows of a table by their numbers. Raises as torch does on the CPU: an accelerator would break off for good."""
        if index.is_floating_point() or not index.numel():
            return
        if int(index.max()) >= table.shape[dim]:
            raise IndexError("index out of range in self")
        if (index.shape[-1:] == self.ids_1T.shape[-1:] or index.shape[:1] == self.ids_1T.shape[-1:]) and index.numel() == self.length:
            if torch.equal(index.flatten(), self.ids_1T.flatten().to(index)):
                self.rows = self.rows or table.shape[dim]
            elif torch.equal(index.flatten() - index.flatten()[0], torch.arange(self.length).to(index)):
                self.note(table, dim, int(index.flatten()[0]))

    def note(self, table: Tensor, dim: int, start: int) -> None:
        """A table that serves positions, from its row ``start`` on."""
        where = (storage(table) if storage(table) in self.own else None, dim, tuple(table.shape))
        self.tables[where] = min(self.tables.get(where, MOST), table.shape[dim] - start)


def is_mask(key: object) -> bool:
    """Whether an index chooses by truth values, one for each element."""
    return isinstance(key, bool) or (isinstance(key, Tensor) and key.dtype in (torch.bool, torch.uint8))


def storage(tensor: object) -> int | None:
    """What tells whether two tensors are views of the same numbers; None for what has none, such as a sparse tensor."""
    try:
        return tensor.untyped_storage()._cdata
    except (AttributeError, RuntimeError, NotImplementedError):
        return None
