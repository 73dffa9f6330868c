"""Which number was made of which, in one forward pass: what a model does without a module, on the meta device too.

Shape letters: B batch, T tokens, D hidden.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from .heads import forward
from .limits import context_length
from .outputs import FORMS
from .splitting import evaluating, input_device, tie_again
from .watching import Call, Watch, first_numbers, first_tensor, states, submodules

IDS, POSITION, WAVE, LEARNED, TABLE = 1, 2, 4, 8, 16  # made of: the ids · places in the sequence · sines · parameters · buffers
COMPLEX = 32  # made of numbers of two parts
LENGTH = 7  # tokens of the pass: few, and no usual width of anything
WAVES = {"sin", "cos", "polar"}
SHAPE_ALONE = {"ones_like", "zeros_like", "empty_like", "full_like", "rand_like", "new_ones", "new_zeros", "new_full", "new_empty"}
MASKS = {"tril", "triu"}
BUILT_OF_WAVES = WeakIdKeyDictionary()  # buffers on the meta device; those with numbers show it by them
MASKED = -1e4  # numbers at least this low in a table of zeros hide, they do not place


@dataclass(eq=False)
class Made:
    """A tensor of the pass: the operation that gave it, what that was given, and what all of it is made of.

    Args:
        op: such as "add"; "" for what was there before the pass.
        given: what the operation was given, in order.
        shape: of the tensor.
        of: ``IDS``, ``POSITION``, … joined.
        constants: plain numbers that the operation was given, and tensors of one number where that is there.
        words: texts that it was given, such as "tanh" for a GELU that is computed so.
        index: its place in the order of the pass.
    """

    op: str
    given: tuple["Made", ...]
    shape: tuple[int, ...]
    of: int
    constants: tuple[float, ...] = ()
    words: tuple[str, ...] = ()
    index: int = 0

    @property
    def from_ids(self) -> tuple["Made", ...]:
        """What it was given that is made of the ids."""
        return tuple(made for made in self.given if made.of & IDS)


class Answers(TorchDispatchMode):
    """Answers 1 where code asks a meta tensor for its number: masks are whole, padding is there, and the pass goes on."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.ones((), dtype=args[0].dtype).item()
        return func(*args, **(kwargs or {}))


class Recorder(Answers):
    """While it is active, every operation leaves a ``Made`` for each tensor that it gives.

    What is compared says where a number may be seen and no longer what it is: of masks and padding nothing is kept.
    """

    def __init__(self, numbers: Iterable[tuple[Tensor, float]] = ()):
        super().__init__()
        self.numbers = WeakIdKeyDictionary()  # of tensors that have none of their own
        for tensor, number in numbers:
            self.numbers[tensor] = number
        self.known = WeakIdKeyDictionary()
        self.writes: dict[int, list[Made]] = {}  # storage → what was written into it in place
        self.all: list[Made] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [value for value in tree_leaves((args, kwargs or {})) if isinstance(value, Tensor)]
        before = tuple(self.made(tensor) for tensor in given)
        output = super().__torch_dispatch__(func, types, args, kwargs)
        op = func.overloadpacket.__name__
        plain = tree_leaves((args, kwargs or {}))
        constants = tuple(float(v) for v in plain if isinstance(v, (int, float)) and not isinstance(v, bool))
        words = tuple(value for value in plain if isinstance(value, str))
        numbers = tuple(float(tensor) for tensor in given if tensor.dim() == 0 and tensor.is_floating_point() and not tensor.is_meta)
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                of = self.of(op.rstrip("_"), before, tensor)
                made = Made(op.rstrip("_"), before, tuple(tensor.shape), of, constants + numbers, words)
                self.keep(tensor, made)
                if op.endswith("_") and not op.endswith("__"):
                    self.writes.setdefault(tensor.untyped_storage()._cdata, []).append(made)
        return output

    def keep(self, tensor: Tensor, made: Made) -> None:
        """Remembers what a tensor was made of."""
        made.index = len(self.all)
        self.all.append(made)
        self.known[tensor] = made

    def made(self, tensor: Tensor) -> Made:
        """What a tensor was made of, with what was written into its memory afterwards."""
        if tensor not in self.known:
            waves = tensor in BUILT_OF_WAVES or is_waves(tensor)
            kind = LEARNED if isinstance(tensor, nn.Parameter) else TABLE | (WAVE if waves else 0)
            number = (self.numbers[tensor],) if tensor in self.numbers else ()
            self.keep(tensor, Made("", (), tuple(tensor.shape), 0 if is_mask(tensor) else kind, number))
        own = self.known[tensor]
        later = [write for write in self.writes.get(tensor.untyped_storage()._cdata, ()) if write.index > own.index] if self.writes else []
        if not later:
            return own
        of = own.of
        for write in later:
            of |= write.of
        joined = Made("written", (own, *later), own.shape, of)
        self.keep(tensor, joined)
        return joined

    def of(self, op: str, given: tuple[Made, ...], output: Tensor) -> int:
        """What an operation's output is made of."""
        if output.dtype is torch.bool or op in SHAPE_ALONE or op in MASKS:
            return 0
        if op == "arange":
            return POSITION
        of = 0
        for made in given:
            of |= made.of
        if op == "cumsum" and not of & IDS:
            return of | POSITION
        if op in WAVES:
            of |= WAVE
        if output.is_complex():
            of |= COMPLEX
        if op == "slice" and of and not of & IDS and self.is_cut(given[0].shape, tuple(output.shape)):
            square = output.is_meta and any(len(shape) > 1 and shape[-1] == shape[-2] for shape in (given[0].shape, output.shape))
            return (
                of if square and not of & LEARNED else of | POSITION
            )  # GPT's mask, whose numbers are not there; else a table's first rows
        return of

    @staticmethod
    def is_cut(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
        """Whether a slice left as many rows as there are tokens."""
        return any(a > b == LENGTH for a, b in zip(before, after, strict=True))


@contextmanager
def building() -> Iterator[list[nn.Module]]:
    """While it is active, a model is built on the meta device; put in the list, it is known afterwards which of its buffers are sines."""
    built: list[nn.Module] = []
    with Recorder() as recorder:
        yield built
    for model in built:
        for buffer in model.buffers():
            if recorder.made(buffer).of & WAVE:
                BUILT_OF_WAVES[buffer] = True


def numbers_of(model: nn.Module) -> Iterator[tuple[Tensor, float]]:
    """Buffers of one number that their module keeps as a plain one too (Gemma's ``scalar_embed_scale``): on meta the buffer has none."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.numel() == 1:
                plain = [value for key, value in vars(module).items() if name in key and isinstance(value, (int, float))]
                yield from ((buffer, value) for value in plain[:1])


def is_mask(tensor: Tensor) -> bool:
    """Whether a table that was there before says what may be seen: zeros, ones, and numbers too low to count."""
    if tensor.is_meta or tensor.dim() < 2 or tensor.is_complex() or isinstance(tensor, nn.Parameter):
        return False
    return bool(((tensor == 0) | (tensor == 1) | (tensor <= MASKED)).all())


def is_waves(tensor: Tensor) -> bool:
    """Whether every column of a table is a sine or cosine of the row's number: c[p+1] + c[p−1] = 2·cos(w)·c[p] for one w each."""
    if tensor.is_meta or not tensor.is_floating_point() or tensor.dim() < 2 or tensor.shape[-2] < 8:
        return False
    table = tensor.detach().flatten(0, -2)[: tensor.shape[-2]].double()[:64]
    if float(table.abs().max()) > 1 + 1e-6 or float(table.std()) < 1e-3:
        return False
    middle, around = table[1:-1], table[2:] + table[:-2]
    ratio = (middle * around).sum(0) / (middle * middle).sum(0).clamp(min=1e-12)
    return bool((around - ratio * middle).abs().max() < 1e-2) and bool((ratio.abs() <= 2 + 1e-3).all())


@contextmanager
def slow_path() -> Iterator[None]:
    """While it is active, torch's attention runs step by step."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def of_library(model: nn.Module) -> bool:
    """Whether a model's code is of transformers or of this package: their names are known, and nothing of theirs runs past its call."""
    return type(model).__module__.startswith(("transformers.", f"{__name__.partition('.')[0]}."))


@dataclass(eq=False)
class Seen:
    """One call of a module in the pass.

    Args:
        call: as ``Watch`` shows it; the module's name is its role.
        given: what it works on.
        beside: it was given something of that shape twice, such as the residual that it adds itself.
        entered: its own code runs.
        first, last: the operations between which it ran.
        gave: what came out.
        inside: calls that began while it ran.
        made: all that was made meanwhile.
    """

    call: Call
    given: Made | None
    first: int
    last: int = 0
    gave: Made | None = None
    inside: list["Seen"] = field(default_factory=list)
    made: list[Made] = field(default_factory=list)
    beside: bool = False
    entered: bool = False

    @property
    def name(self) -> str:
        """The module's name in the model."""
        return self.call.role


class Flow:
    """A forward pass over a few tokens of a model, and all that was made in it.

    Args:
        tokens: of the pass.
        calls: of all modules, in order.
        made: all tensors, in order.
        logits: what the pass gave.
        ids: what it was given.
        past_call: names of modules that ran as ``module.forward(…)``, which hooks do not see.

    Torch's own layers leave their fast path, in which one operation does it all. Random numbers are left as they are. Whatever
    the code of a model raises goes through.
    """

    def __init__(self, model: nn.Module):
        self.tokens = min(LENGTH, context_length(model) or LENGTH)
        self.calls: list[Seen] = []
        self.running: list[Seen] = []
        self.recorder = recorder = Recorder(numbers_of(model))
        self.past_call: set[str] = set()
        ids_1T = (torch.arange(self.tokens) % 2).to(input_device(model))[None]
        if model in FORMS and FORMS[model].sequence_first:
            ids_1T = ids_1T.T.contiguous()
        with ExitStack() as modes:
            modes.enter_context(torch.random.fork_rng(devices=[]))
            modes.enter_context(slow_path())
            if not of_library(model):
                modes.enter_context(self.past_calls(model))  # before the hooks, which may look for such runs themselves
            modes.enter_context(Watch(submodules(model), self.begin, self.end))
            modes.enter_context(evaluating(model))
            modes.enter_context(torch.no_grad())
            modes.enter_context(recorder)
            self.ids = Made("", (), tuple(ids_1T.shape), IDS)
            recorder.keep(ids_1T, self.ids)
            output = forward(model, ids_1T)
            self.logits = recorder.made(first_numbers(output if isinstance(output, (Tensor, tuple, list, dict)) else vars(output)))
        tie_again(model)
        self.made = recorder.all

    def begin(self, call: Call) -> None:
        """Before a call."""
        tensor = first_tensor(call.given)
        beside = len(states(call)) > 1
        seen = Seen(call, None if tensor is None else self.recorder.made(tensor), len(self.recorder.all), beside=beside)
        for outer in self.running:
            outer.inside.append(seen)
        self.calls.append(seen)
        self.running.append(seen)

    def end(self, call: Call) -> None:
        """After a call."""
        seen = next(seen for seen in reversed(self.running) if seen.call is call)
        self.running.remove(seen)
        tensor = first_numbers(call.output)
        seen.gave = None if tensor is None else self.recorder.made(tensor)
        seen.last = len(self.recorder.all)
        seen.made = self.recorder.all[seen.first : seen.last]
        call.args, call.options = (), {}  # shapes are kept, not tensors

    @contextmanager
    def past_calls(self, model: nn.Module) -> Iterator[None]:
        """While it is active, a module that runs as ``module.forward(…)`` leaves a ``Seen`` as one that is called does."""
        own = {}
        for name, module in submodules(model).items():
            if not isinstance(module, torch.jit.ScriptModule):  # whose forward is no function of Python's
                own[module] = module.__dict__.get("forward")
                module.__dict__["forward"] = self.seeing(name, module, module.forward)
        try:
            yield
        finally:
            for module, before in own.items():
                module.__dict__.pop("forward", None)
                if before is not None:
                    module.__dict__["forward"] = before

    def seeing(self, name: str, module: nn.Module, own):
        """A module's forward, by which a run that no hook has announced is shown."""

        @wraps(own)
        def forward(*args, **options):
            if self.running and self.running[-1].call.module is module and not self.running[-1].entered:
                self.running[-1].entered = True
                return own(*args, **options)
            self.past_call.add(name)
            call = Call(name, module, args, options, 1, len(self.calls), len(self.running))
            self.begin(call)
            self.running[-1].entered = True
            call.output = own(*args, **options)
            output = call.output
            self.end(call)
            return output

        return forward


def on_meta(model: nn.Module) -> bool:
    """Whether a model has shapes alone, without weights; one that accelerate keeps on disk has weights."""
    return not hasattr(model, "hf_device_map") and all(parameter.is_meta for parameter in model.parameters())
