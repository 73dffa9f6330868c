"""A model whose backbone is no module of its own: its own forward, stopped where the head begins, and taken up again there.

The head is the shortest tail of the forward through which all that the ids say flows, and which widens hidden states to the
vocabulary. One pass is watched for it: every function of torch, and the modules in which it ran. Shape letters: B batch, T tokens,
D hidden, V vocabulary.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .embeddings import input_device
from .errors import InvariantError
from .heads import PROJECTIONS
from .outputs import Form, asked, form_of, probe, raw
from .watching import Call, Watch, submodules, substituted, tensors

FORM_OF_OTHERS = ("_like", "new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided")  # of which numbers do not matter


@dataclass(frozen=True)
class Place:
    """Where hidden states enter the head in a model's forward.

    Args:
        module: a call of it is given them; or, for a function, the module whose call ended last before; None at the beginning.
        number: of that call, from 1.
        function: for a function of torch, its number after that call ended, from 1; 0 where the call itself is given them.
        argument: their number among the tensors given.
        sequence_first: they are [T, B, D].
        others: modules that are given them as well, later.
    """

    module: nn.Module | None
    number: int
    function: int
    argument: int
    sequence_first: bool = False
    others: tuple[nn.Module, ...] = ()


@dataclass(frozen=True)
class Tail:
    """The head of a model without a backbone module: where it begins, and which modules and how many widths it has.

    Args:
        place: where it begins; None where an embedding gives the logits, and nothing is left to do.
        names: of the outermost modules that run in it, in order.
        modules: all that run in it.
        whole: the module that is given the hidden states, and may be the whole head.
    """

    place: Place | None
    names: tuple[str, ...] = ()
    modules: tuple[nn.Module, ...] = ()
    whole: nn.Module | None = None


@dataclass(eq=False)
class Made:
    """A tensor that depends on the ids, as it was made.

    Args:
        tensor: kept, so that no other gets its id().
        index: its place in the order of all that was made.
        name: of the function that made it; "" where a module made it out of sight.
        given: of what it was made.
        projects: by weights to another width: a linear map, or more numbers than there were.
        calls: the module calls that ran then, outermost first.
        anchor: the last call that had ended, with how many functions of torch ran since.
        arguments: of all tensors that the function was given, in order; None for what does not depend on the ids.
    """

    tensor: Tensor
    index: int
    name: str = ""
    given: tuple["Made", ...] = ()
    projects: bool = False
    calls: tuple[Call, ...] = ()
    anchor: tuple[nn.Module | None, int, int] = (None, 0, 0)
    arguments: tuple["Made | None", ...] = ()
    shape: tuple[int, ...] = field(init=False)

    def __post_init__(self):
        self.shape = tuple(self.tensor.shape)


class Trace(TorchFunctionMode):
    """While it is active: what is made of ids, by which function, in which module."""

    def __init__(self, model: nn.Module, ids: Tensor):
        super().__init__()
        self.made: dict[int, Made] = {}  # id() of a tensor → how it came to hold what it holds now
        self.memory: dict[tuple, Made] = {}  # where it lies, and in which shape → likewise
        self.all: list[Made] = []
        self.running: list[Call] = []
        self.given: dict[Call, tuple[Made | None, ...]] = {}
        self.started: dict[Call, int] = {}  # call → how much was made before it
        self.ended: Counter[nn.Module] = Counter()
        self.anchor: tuple[nn.Module | None, int] = (None, 0)
        self.functions = 0
        self.watch = Watch(submodules(model), self.begin, self.end)
        self.note(ids)

    def __enter__(self) -> "Trace":
        self.watch.__enter__()
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self.watch.__exit__(*error)

    def note(self, tensor: Tensor, name: str = "", given: tuple = (), projects: bool = False, arguments: tuple = ()) -> None:
        """Keeps how a tensor was made."""
        made = Made(tensor, len(self.all), name, given, projects, tuple(self.running), (*self.anchor, self.functions), arguments)
        self.made[id(tensor)] = self.memory[where(tensor)] = made
        self.all.append(made)

    def of(self, tensor: Tensor) -> Made | None:
        """How a tensor was made, if it depends on the ids; one that went through out of sight is known by its memory."""
        return self.made.get(id(tensor)) or self.memory.get(where(tensor))

    def embedded(self) -> int:
        """The width of the first numbers that were made of the ids."""
        return next((made.shape[-1] for made in self.all if made.tensor.is_floating_point() and made.shape), 0)

    def begin(self, call: Call) -> None:
        """A module is called."""
        self.running.append(call)
        self.started[call] = len(self.all)
        self.given[call] = tuple(map(self.of, tensors(call.given)))

    def end(self, call: Call) -> None:
        """A call has ended. What it gives, and nobody saw made, it made of what it was given."""
        given = tuple(filter(None, self.given[call]))
        for tensor in tensors(call.output) if given else ():
            if self.of(tensor) is None:
                projects = not any(one.shape == tuple(tensor.shape) for one in given) or "Linear" in type(call.module).__name__
                self.note(tensor, "", given, projects, self.given[call])
        self.running.remove(call)
        self.ended[call.module] += 1
        self.anchor, self.functions = (call.module, self.ended[call.module]), 0

    def __torch_function__(self, function, types, args=(), options=None):
        """Runs a function of torch, and notes what it makes of what depends on the ids."""
        options = options or {}
        if Watch.busy:
            return function(*args, **options)
        self.functions += 1
        name, given = getattr(function, "__name__", "").strip("_"), tuple(tensors((args, options)))
        of_given = tuple(map(self.of, given))
        flowing = tuple(filter(None, of_given))
        weights = [tensor for tensor, made in zip(given, of_given, strict=True) if made is None and tensor.dim() > 1]
        result = function(*args, **options)
        if flowing and not name.endswith(FORM_OF_OTHERS):
            most = max(made.tensor.numel() for made in flowing)
            for tensor in tensors(args[0] if name == "setitem" else result):
                projects = (bool(weights) and (name in PROJECTIONS or tensor.numel() > most)) or name.startswith(
                    "linear_"
                )  # of packed weights
                self.note(tensor, name, flowing, projects, of_given)
        return result


def where(tensor: Tensor) -> tuple:
    """Where a tensor lies, and in which form; one without memory lies nowhere but in itself."""
    try:
        pointer = tensor.data_ptr()
    except RuntimeError:  # of a subclass, or not there yet
        pointer = 0
    return pointer or id(tensor), tuple(tensor.shape), tensor.dtype


def tail_of(model: nn.Module) -> Tail | None:
    """Where the head of a model begins in its own forward; None where that is not seen."""
    form, ids_BT = form_of(model), probe(model)
    with Trace(model, ids_BT) as trace:
        logits = raw(model, ids_BT, form)[1]
    last, root = trace.of(logits), trace.all[0]
    if last is None:
        return None
    entries = entering(last, trace.embedded())
    rows, length = ids_BT.shape
    for made in reversed(trace.all):
        if len(made.shape) != 3 or made.shape[:2] not in ((rows, length), (length, rows)) or not made.tensor.is_floating_point():
            continue
        made_of = reached(last, made)
        if id(root) not in made_of and all(id(made) in reached(entry, None) for entry in entries):
            after = sorted((one for one in made_of.values() if one is not made), key=lambda one: one.index)
            return tail_from(trace, made, after, made.shape[:2] == (length, rows))
    return None


def entering(last: Made, width: int) -> list[Made]:
    """What enters the projections that come last before the logits, of models whose embeddings have a width.

    One that keeps the vocabulary's width is only such a projection where the embeddings have that width, too. Where there is none,
    an embedding gives the logits, and its output is what enters.
    """
    found, ahead, seen = [], [last], set()
    while ahead:
        made = ahead.pop()
        if id(made) in seen:
            continue
        seen.add(id(made))
        numbers = [one for one in made.given if one.tensor.is_floating_point()]
        keeps = any(one.shape == made.shape for one in numbers) and width != last.shape[-1]
        if not numbers:
            found.append(made)
        elif made.projects and not keeps:
            found += numbers
        else:
            ahead += numbers
    return found


def reached(last: Made, end: Made | None) -> dict[int, Made]:
    """All that a tensor was made of, itself with it, back to ``end`` and not beyond; by id()."""
    found, ahead = {}, [last]
    while ahead:
        made = ahead.pop()
        if id(made) not in found:
            found[id(made)] = made
            ahead += () if made is end else made.given
    return found


def tail_from(trace: Trace, made: Made, after: list[Made], sequence_first: bool) -> Tail:
    """The tail that begins with a tensor; ``after`` is all that was made of it on the way to the logits, in order."""
    if not after:
        return Tail(None)
    first = next(one for one in after if made in one.given)
    inner = [[call for call in one.calls if trace.started[call] > made.index] for one in after]
    modules = dict.fromkeys(call.module for calls in inner for call in calls)
    names = tuple(dict.fromkeys(calls[0].role for calls in inner if calls))
    call = next((call for call in first.calls if made in trace.given[call]), None)
    others = dict.fromkeys(other.module for other, given in trace.given.items() if made in given and other is not call)
    if call is not None:
        place = Place(call.module, call.number, 0, trace.given[call].index(made), sequence_first, tuple(others))
        return Tail(place, names, tuple(modules), call.module)
    return Tail(Place(*first.anchor, first.arguments.index(made), sequence_first, tuple(others)), names, tuple(modules))


class Stopped(BaseException):
    """Ends a forward pass where the head begins; code of the user's catches ``Exception``."""

    def __init__(self, hidden: Tensor):
        self.hidden = hidden


class Passage(TorchFunctionMode):
    """One forward pass in which hidden states are met at a place.

    Args:
        place: where.
        meet: is given them there; it raises, or returns what takes their place from there on.
    """

    def __init__(self, place: Place, meet: Callable[[Tensor], Tensor]):
        super().__init__()
        self.place, self.meet = place, meet
        self.calls = self.functions = 0
        self.new: dict[int, Tensor] = {}
        self.old: Tensor | None = None  # kept, so that no other tensor gets its id()
        self.entered = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """The pass runs inside of this. Nothing of it is left afterwards."""
        module, own = self.place.module, None
        hooks = [other.register_forward_pre_hook(self.given, prepend=True, with_kwargs=True) for other in self.place.others]
        if module is None:
            self.enter()
        elif not self.place.function:
            hooks.append(module.register_forward_pre_hook(self.called, prepend=True, with_kwargs=True))
        else:  # no hook, for which torch's own layers leave their fast path
            own = vars(module).get("forward")
            module.forward = self.counted(module.forward)
        try:
            yield
        finally:
            if self.entered:
                self.__exit__(None, None, None)
            for hook in hooks:
                hook.remove()
            if self.place.function and module is not None:
                del module.forward
                if own is not None:
                    module.forward = own
        if self.old is None:
            raise InvariantError("this forward pass did not come by the place where the head begins")

    def enter(self) -> None:
        """From here on functions of torch are seen."""
        self.entered = True
        self.__enter__()

    def called(self, module: nn.Module, args: tuple, options: dict) -> tuple[tuple, dict] | None:
        """The module that is given the hidden states is called."""
        self.calls += 1
        if self.calls != self.place.number:
            return None
        self.met(tuple(tensors((*args, *options.values()))))
        self.enter()
        return substituted(args, self.new), substituted(options, self.new)

    def given(self, module: nn.Module, args: tuple, options: dict) -> tuple[tuple, dict] | None:
        """A module that is given them as well is called."""
        return (substituted(args, self.new), substituted(options, self.new)) if self.new else None

    def counted(self, run: Callable) -> Callable:
        """The forward of the module whose call ends last before: after that functions are counted."""

        def forward(*args, **options):
            output = run(*args, **options)
            self.calls += 1
            if self.calls == self.place.number:
                self.enter()
            return output

        return forward

    def met(self, given: tuple[Tensor, ...]) -> None:
        """Here they are, among the tensors given."""
        self.old = given[self.place.argument]
        self.new = {id(self.old): self.meet(self.old)}

    def __torch_function__(self, function, types, args=(), options=None):
        """Runs a function of torch, with other hidden states from the place on."""
        options = options or {}
        if not Watch.busy and self.old is None:
            self.functions += 1
            if self.functions == self.place.function:
                self.met(tuple(tensors((args, options))))
        if self.new:
            args, options = substituted(args, self.new), substituted(options, self.new)
        return function(*args, **options)


class Begun:
    """The backbone of a model that has no module for it: the model's own forward, stopped where the head begins."""

    def __init__(self, model: nn.Module, place: Place):
        self.model, self.place = model, place

    def __call__(self, ids_BT: Tensor) -> Tensor:
        """Token ids [B, T] → hidden states [B, T, D]."""
        passage = Passage(self.place, self.stop)
        try:
            with Watch.broken_off(), passage.watched():
                asked(self.model, ids_BT, form_of(self.model))
        except Stopped as stopped:
            hidden = stopped.hidden
        return hidden.transpose(0, 1) if self.place.sequence_first else hidden

    @staticmethod
    def stop(hidden: Tensor) -> Tensor:
        """Ends the pass."""
        raise Stopped(hidden)


class TakenUp:
    """The head of such a model: its own forward on ids that do not matter, in which given hidden states enter the head.

    Args:
        model, place: the model, and where its head begins.
        last_after: the model computes the logits of all positions, and gives those of the last one alone: their bits are those of
            a head that is given all positions.
    """

    def __init__(self, model: nn.Module, place: Place, last_after: bool = False):
        self.model, self.place, self.last_after = model, place, last_after

    def __call__(self, hidden_BTD: Tensor) -> Tensor:
        """Hidden states [B, T, D] → logits [B, T, V]."""
        logits_BTV = self.each(hidden_BTD)
        if not self.last_after or hidden_BTD.shape[1] == 1:
            return logits_BTV
        return torch.cat([logits_BTV[:, :-1], self.run(hidden_BTD, form_of(self.model))], dim=1)

    def each(self, hidden_BTD: Tensor) -> Tensor:
        """The logits of every position; where the model gives the last one's alone, each by itself."""
        form = form_of(self.model)
        # where the model gives the logits of the last position alone, every position is the last of a row
        given = hidden_BTD.flatten(0, 1)[:, None] if form.layout == "BV" else hidden_BTD
        logits = self.run(given, form)
        return logits.reshape(*hidden_BTD.shape[:2], logits.shape[-1])

    def run(self, given: Tensor, form: Form) -> Tensor:
        """What the model's own forward makes of given hidden states."""
        ids_BT = torch.zeros(given.shape[:2], dtype=torch.long, device=input_device(self.model))
        blind = Watch.blind

        def meet(own: Tensor) -> Tensor:
            Watch.blind = blind  # what follows is the head, and seen
            return given.transpose(0, 1) if self.place.sequence_first else given

        with Watch.aside(), Passage(self.place, meet).watched():
            return asked(self.model, ids_BT, form)
