"""The one way to watch a forward pass, or to change it: hooks on chosen parts of a model, gone when the block ends.

Hooks can change bits by themselves (torch's own encoder layers leave their fast path for them): the model is the pass without
any, and ``apart`` says how far a watched one is from it. Shape letters: B batch, T tokens, D hidden, V vocabulary.
"""

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from itertools import accumulate
from typing import ClassVar, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..models import Routing
from .errors import InvariantError

PAST_CALL: WeakSet[nn.Module] = WeakSet()  # modules that their model runs as ``module.forward(…)``, which no hook sees by itself
HIDDEN: list[list["Watch"]] = []  # of every ``unwatched`` that is going on, which watches are shown nothing


@dataclass(eq=False)
class Call:
    """One call of a watched part.

    Args:
        role: what the part is called: its role, or its name in the model where roles are not known yet.
        module: the part; None where it is no single module.
        args, options: what it was given, without a name and with one.
        number: 1 for the first call of the part.
        index: its place in the order in which calls began.
        depth: how many watched calls it began in.
        output: what it gave; None before that, and where it broke off.
        around: the names of the watched calls it began in, the outermost first.
    """

    role: str
    module: nn.Module | None
    args: tuple
    options: dict
    number: int
    index: int
    depth: int
    output: object = None
    around: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The role; of a second call "layers.0.attn#2"."""
        return self.role if self.number == 1 else f"{self.role}#{self.number}"

    @property
    def given(self) -> tuple:
        """All that it was given, first what has no name."""
        return (*self.args, *self.options.values())


class Clock:
    """Moments on a device. They are read together when all is done, so that nobody waits for an accelerator in between."""

    def __init__(self, device: torch.device):
        self.device = device

    def now(self) -> "float | torch.Event":
        """This moment: of the CPU, or of the work that was handed to an accelerator so far."""
        if self.device.type == "cpu":
            return time.perf_counter()
        event = torch.Event(device=self.device, enable_timing=True)
        event.record()
        return event

    def resumed(self, paused, worked: bool):
        """The end of a pause: that of an accelerator to which nothing was handed meanwhile is over when it begins."""
        return self.now() if worked or self.device.type == "cpu" else paused

    def seconds(self, pairs: Iterable[tuple]) -> list[float]:
        """The time from one moment to the other of each pair; waits for the device once."""
        if self.device.type == "cpu":
            return [end - begin for begin, end in pairs]
        torch.accelerator.synchronize()
        return [begin.elapsed_time(end) / 1000 for begin, end in pairs]


class Watch:
    """While it is active, ``before`` and ``after`` are shown every call of the parts, as it begins and when it has ended.

    ``before`` may return (args, options), which the part is given instead of its own, and ``after`` an output, which takes the
    place of its own; None leaves things as they are. Watches nest: one that begins later sees what earlier ones have put in.
    The forward pass is the caller's: by hand, inside ``generate()``, with caches or without.

    Args:
        parts: role → module. Several roles may name one module.
        before, after: left out, nothing is done there.
        clock: measures every call, from its beginning to its end, without what ``before`` and ``after`` do meanwhile.
    """

    active: ClassVar[list["Watch"]] = []  # those that have begun and not ended
    blind: ClassVar[bool] = False  # what runs now is no call of the model's that anybody asked for
    busy: ClassVar[bool] = False  # what runs now is ``before`` or ``after``, and no part of the model

    def __init__(
        self,
        parts: Mapping[str, nn.Module],
        before: Callable[[Call], tuple[tuple, dict] | None] | None = None,
        after: Callable[[Call], object] | None = None,
        clock: Clock | None = None,
    ):
        self.parts, self.before, self.after, self.clock = parts, before, after, clock
        self.calls = Counter()  # role → how often it was called
        self.begun = 0
        self.running: list[Call] = []
        self.spans: dict[str, list] = {}  # name of a call → when it began and ended, and how many pauses there were before
        self.pauses: list[tuple] = []
        self.hooks = ExitStack()

    def __enter__(self) -> "Watch":
        with ExitStack() as hooks:  # where a part takes none, those that are there already go
            for role, module in self.parts.items():
                begin = lambda module, args, options, role=role: self.begin(role, module, args, options)  # noqa: E731
                hooks.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
                end = lambda module, args, output, role=role: self.end(role, output)  # noqa: E731
                hooks.callback(module.register_forward_hook(end, always_call=True).remove)
            for module in PAST_CALL.intersection(self.parts.values()):
                hooks.enter_context(called(module, module))
            self.hooks = hooks.pop_all()
        Watch.active.append(self)
        self.note("", self.now())
        return self

    def __exit__(self, *error) -> None:
        self.note("", self.now())
        Watch.active.remove(self)
        self.hooks.close()
        self.running.clear()  # what Ctrl-C has broken off

    @classmethod
    @contextmanager
    def aside(cls) -> Iterator[None]:
        """Meanwhile no watch sees a call: of a pass that only leads to a place, as where hidden states enter a head."""
        before, cls.blind = cls.blind, True
        try:
            yield
        finally:
            cls.blind = before

    @classmethod
    @contextmanager
    def broken_off(cls) -> Iterator[None]:
        """Calls that begin meanwhile and have no end, since the pass is stopped on purpose, are forgotten afterwards by every watch."""
        begun = [(watch, len(watch.running)) for watch in cls.active]
        try:
            yield
        finally:
            for watch, running in begun:
                del watch.running[running:]

    def call(self, role: str, function: Callable, *args):
        """``function(*args)`` as a call of a part that is no single module, such as a head with its caps."""
        args, options = self.begin(role, None, args, {}) or (args, {})
        output = function(*args, **options)
        new = self.end(role, output)
        return output if new is None else new

    def begin(self, role: str, module: nn.Module | None, args: tuple, options: dict) -> tuple[tuple, dict] | None:
        """What happens before a call."""
        if Watch.blind or any(self is watch for hidden in HIDDEN for watch in hidden):
            return None
        paused = self.now()
        self.calls[role] += 1
        around = tuple(outer.name for outer in self.running)
        call = Call(role, module, args, options, self.calls[role], self.begun, len(around), around=around)
        self.begun += 1
        self.running.append(call)
        new = self.shown(self.before, call)
        if new is not None:
            call.args, call.options = new
        self.note(call.name, self.resume(paused, self.before is not None))
        return new

    def end(self, role: str, output: object) -> object:
        """What happens after the last call of a part. One that broke off has no output, and is not shown."""
        paused = self.now()
        # of several roles of a module the first ends first; one that began aside is not known
        call = next((call for call in reversed(self.running) if call.role == role), None) if not Watch.blind else None
        if call is None:
            return None
        self.running.remove(call)
        if output is None:
            return None
        call.output = output
        self.note(call.name, paused)
        new = self.shown(self.after, call)
        self.resume(paused, self.after is not None)
        return new

    def shown(self, to: Callable | None, call: Call) -> object:
        """What ``before`` or ``after`` returns for a call, if there is one."""
        if to is None:
            return None
        outer, Watch.busy = Watch.busy, True
        try:
            return to(call)
        finally:
            Watch.busy = outer

    def now(self):
        """This moment, if there is a clock."""
        return self.clock and self.clock.now()

    def note(self, name: str, moment) -> None:
        """Keeps the moment at which a call began or ended, if there is a clock."""
        if self.clock:
            self.spans.setdefault(name, []).extend((moment, len(self.pauses)))

    def resume(self, paused, worked: bool):
        """Ends a pause, in which something was done if it ``worked``; the moment of that."""
        if self.clock is None:
            return None
        resumed = self.clock.resumed(paused, worked)
        self.pauses.append((paused, resumed))
        return resumed

    def seconds(self) -> dict[str, float]:
        """Name of each call that gave something → how long it took, with everything inside it; "" for the whole block."""
        paused = [0.0, *accumulate(self.clock.seconds(self.pauses))]
        spans = {name: span for name, span in self.spans.items() if len(span) == 4}
        whole = self.clock.seconds([(began, ended) for began, _, ended, _ in spans.values()])
        return {
            name: seconds - (paused[last] - paused[first])
            for (name, (_, first, _, last)), seconds in zip(spans.items(), whole, strict=True)
        }


@contextmanager
def called(module: nn.Module, instead: Callable) -> Iterator[None]:
    """While it is active, ``module.forward(…)`` by its name is ``instead(…)``; what runs because the module is called stays its own.

    With the module itself as ``instead`` what is hooked to it sees every run.
    """
    own, before, expected = module.forward, module.__dict__.get("forward"), []

    @wraps(own)
    def forward(*args, **options):
        if expected:
            expected.clear()
            return own(*args, **options)
        return instead(*args, **options)

    # the last thing before a call is its own forward; where another hook stops it, the next run is not taken for it
    announce = module.register_forward_pre_hook(lambda *_: expected.append(None))
    forget = module.register_forward_hook(lambda *_: expected.clear(), always_call=True)
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        announce.remove(), forget.remove()
        module.__dict__.pop("forward")
        if before is not None:  # where accelerate moves weights in and out
            module.__dict__["forward"] = before


def find_past_call(model: nn.Module, run: Callable[[], object]) -> None:
    """Finds which modules a model runs as ``module.forward(…)``, for all watches to come: ``run`` is a pass of it.

    Models without code of the user's are left alone: none of theirs does so. A model that does not run says so where it is asked to.
    """
    if not written_by_the_user(model):
        return
    with ExitStack() as hooks, torch.no_grad(), suppress(Exception):
        for module in submodules(model).values():
            if not isinstance(module, torch.jit.ScriptModule):  # whose forward is no function of Python's
                hooks.enter_context(called(module, noting(module)))
        run()


def written_by_the_user(model: nn.Module) -> bool:
    """Whether a model has modules of other classes than those of torch, of transformers and of this package."""
    known = ("torch.", "transformers.", f"{__name__.partition('.')[0]}.")
    return not all(type(module).__module__.startswith(known) for module in model.modules())


def noting(module: nn.Module) -> Callable:
    """The module's own forward, by which it is noted."""
    own = module.forward

    def forward(*args, **options):
        PAST_CALL.add(module)
        return own(*args, **options)

    return forward


class Used(TorchFunctionMode):
    """While it is active, it keeps which tensors functions are given, by id()."""

    def __init__(self):
        super().__init__()
        self.ids: set[int] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.ids.update(id(value) for value in tree_leaves((args, kwargs or {})) if isinstance(value, Tensor))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def unnamed(model: nn.Module, parts: Mapping[str, nn.Module], run: Callable[[], object]) -> tuple[str, ...]:
    """Names of the modules whose weights a pass uses while none of the ``parts`` that run holds them; "" is the model itself.

    What such a module does is in the model's numbers, and no view of its parts shows it. ``run`` is a pass of the model, which is
    made where there can be any: in a model of the user's, or where some weights stand outside of all parts.
    """
    inside = {inner for part in parts.values() for inner in part.modules()}
    own = {name: [*module._parameters.values()] for name, module in model.named_modules() if any(True for _ in module.parameters(False))}
    if not written_by_the_user(model) and all(model.get_submodule(name) in inside for name in own):
        return ()
    with Watch(parts) as watch, Used() as used:
        run()
    inside = {inner for role in watch.calls for inner in parts[role].modules()}
    shared = {id(weight) for module in inside for weight in module._parameters.values()}  # of an embedding and a head, say
    return tuple(
        name
        for name, weights in own.items()
        if model.get_submodule(name) not in inside and any(id(w) in used.ids and id(w) not in shared for w in weights)
    )


@contextmanager
def unwatched() -> Iterator[None]:
    """While it is active, watches that were there before are shown no call that begins: of passes that later ones look at alone."""
    HIDDEN.append([*Watch.active])
    try:
        yield
    finally:
        HIDDEN.pop()


class Pass(NamedTuple):
    """What a forward pass by hand gave.

    Args:
        hidden_1TD: final hidden states.
        logits_BTV: [1, T, V], or [1, 1, V] of the last token alone.
        seconds: name of each watched call → its time, "" for the whole pass; empty without a clock.
    """

    hidden_1TD: Tensor
    logits_BTV: Tensor
    seconds: dict[str, float]


@torch.no_grad()
def by_hand(split, ids_1T: Tensor, parts: Mapping[str, nn.Module] | None = None, before=None, after=None, clock=None) -> Pass:
    """One forward pass over a prompt through a model's two parts, its ``Split``, as in a step of the loop; the rest as in ``Watch``.

    "head" among the parts stands for the head of the split as a whole, with its caps and scales.
    """
    parts = parts or {}
    with Watch({role: module for role, module in parts.items() if role != "head"}, before, after, clock) as watch:
        hidden_1TD = split.backbone(ids_1T)
        fed = hidden_1TD[:, -1:] if split.last_alone else hidden_1TD
        logits_BTV = watch.call("head", split.head, fed) if "head" in parts else split.head(fed)
    # copies: a model may write what it gives into the same memory in every pass, as graphs that an accelerator replays do
    return Pass(hidden_1TD.clone(), logits_BTV.clone(), watch.seconds() if clock else {})


def alike(a, b: Tensor) -> bool:
    """Bit for bit equal, where an infinity equals itself and nothing else, and NaN on both sides (float16, amplified) counts as equal."""
    if not isinstance(a, Tensor) or (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def apart(name: str, plain: Tensor, watched: Tensor, again: Callable[[], Tensor]) -> float:
    """How far hooks alone, which change nothing, take the model ``name`` from its own pass, which is the plain one; nearly always 0.

    Raises:
        InvariantError: by more than rounding, or the model does not repeat itself: ``again`` runs it once more without hooks.
    """
    if alike(plain, watched):
        return 0.0
    if not alike(plain, again()):
        raise InvariantError(f"two passes of {name} over the same prompt did not give the same bits: it does not repeat itself")
    difference = largest_difference(plain, watched)
    if not close(plain, watched):
        raise InvariantError(f"{name} computes something else when it is watched: numbers differ by up to {difference:.3g}")
    return difference


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors differ by no more than rounding could make of their largest finite number.

    Infinities, as of tokens that are masked, must be the same ones. NaN is close to nothing.
    """
    if a.shape != b.shape:
        return False
    share = 1e-5 if a.dtype in (torch.float32, torch.float64) else 4 * torch.finfo(a.dtype).eps
    return largest_difference(a, b) <= share * float(a.nan_to_num(0, 0, 0).abs().max()) if a.numel() else True


def largest_difference(a: Tensor, b: Tensor) -> float:
    """max |a − b|, where entries that are equal (infinite ones too) differ by 0 and a NaN by infinity."""
    gap = torch.where(a == b, 0.0, (a.double() - b.double()).abs())
    return float(gap.nan_to_num(nan=torch.inf, posinf=torch.inf).max())


def submodules(model: nn.Module) -> dict[str, nn.Module]:
    """Name → module, of all that a model is made of."""
    return {name: module for name, module in model.named_modules() if module is not model}


def first_tensor(values: object) -> Tensor | None:
    """The tensor that a part works on, or makes: of all that it was given, or gave, the first that holds numbers.

    Where none does, it is the first of another kind, as an embedding's ids; of a native gate's choice its weights by expert,
    which tell the choice too. None where there is no tensor.
    """
    first = None
    for tensor in tensors(values):
        if tensor.is_floating_point():
            return tensor
        first = tensor if first is None else first
    return first


def first_numbers(values: object) -> Tensor | None:
    """``first_tensor``, if it holds numbers; else None."""
    found = first_tensor(values)
    return found if found is not None and found.is_floating_point() else None


def tensors(values: object) -> Iterable[Tensor]:
    """The tensors in what a part was given or gave, in order, however deep."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Routing):
        yield values.gates
    elif isinstance(values, (tuple, list, dict)):
        for value in values.values() if isinstance(values, dict) else values:
            yield from tensors(value)


def states(call: Call) -> list[Tensor]:
    """What a part works on among its arguments: the first tensor of numbers, and others of its shape, such as a residual.

    For an embedding it is the ids.
    """
    given = [value for value in call.given if isinstance(value, Tensor)]
    numbers = [tensor for tensor in given if tensor.is_floating_point()]
    return [tensor for tensor in numbers if tensor.shape == numbers[0].shape] if numbers else given[:1]


def copied(values: object) -> object:
    """What a part was given or gave, with copies of the tensors in it: a model may go on writing into its own."""
    return substituted(values, {id(tensor): tensor.clone() for tensor in tensors(values)})


def substituted(values: object, new: Mapping[int, Tensor]) -> object:
    """What a part was given or gave, with other tensors in it: ``new`` says by id() which takes the place of which."""
    if isinstance(values, Tensor):
        return new.get(id(values), values)
    if isinstance(values, dict):
        changed = copy.copy(values)  # of transformers' outputs, too
        for name, value in values.items():
            if (other := substituted(value, new)) is not value:
                changed[name] = other
        return changed
    if isinstance(values, (tuple, list)):
        parts = [substituted(value, new) for value in values]
        return type(values)(*parts) if hasattr(values, "_fields") else type(values)(parts)
    return values
