"""A model with everything that a run by hand needs: tokenizer, proved split, stop tokens, and how ids become text."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ..parts import splitting
from ..parts.errors import shown
from ..parts.heads import own_logits
from ..parts.limits import context_length, vocabulary
from ..parts.precision import dtype_of
from ..parts.roles import components, modules_by_role, roles
from ..parts.splitting import Split, input_device, probe_ids
from ..parts.structure import measured, shapes
from ..parts.watching import find_past_call
from ..parts.wrappers import language_model, unwrapped
from ..records.generation import OTHER_SETTINGS, SETTINGS, Ids, Origin, Sampling, Token, is_id
from ..records.notices import Notice
from ..records.report import Overview
from ..records.shown import Shown
from . import tokens
from .notices import own_notices, wrapper_notices
from .settings import as_numbers, shipped, spelled, stops
from .templates import TemplateError, encoded, remarks
from .texts import Texts, check_ids, check_letters, check_request, one_prompt
from .tokens import texts_of


@dataclass(frozen=True, repr=False)
class Loaded(Shown):
    """A model with everything a run by hand needs.

    Args:
        model: as transformers or the user built it, in evaluation mode.
        tokenizer: of the model; without one a prompt is token ids, such as "1 5 7".
        split: its backbone and head, proved.
        stop_ids: tokens that end a generation.
        context_length: the most tokens the model reads; None when its configuration does not say.
        texts: how ids become text.
        origin: where it is from.
        device: where it is; for a model spread over several places, where it wants its ids.
        vocab_size: the number of token ids that it reads: the rows of its embedding, whatever its configuration says.
        unused: names of weights in the checkpoint for which the model has no place.
        compiled: ids [B, T] → logits [B, T, V] of the compiled model that was given; None for one that was not compiled.
        cuda_graph: whether the loop with a cache captures its step (``loop.graphs``).
        notices: what to know of it before anything is concluded: from loading, then what its split and its settings say.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    split: Split
    stop_ids: tuple[int, ...]
    context_length: int | None
    texts: Texts
    origin: Origin
    device: torch.device
    vocab_size: int = sys.maxsize
    unused: tuple[str, ...] = ()
    compiled: Callable[[Tensor], Tensor] | None = None
    notices: tuple[Notice, ...] = ()
    cuda_graph: bool = False

    def encode(self, prompt: str, system: str | None = None, raw: bool = False) -> list[int]:
        """The ids that are fed for a prompt: through the chat template if the tokenizer has one and ``raw`` is off.

        Raises:
            ValueError: a text that is no UTF-8; a system message for a model without a chat template, or for a raw prompt; a chat
                template that gives no text, or does not use the system message; for a model without a tokenizer a prompt that is
                no token ids.
        """
        check_letters(prompt=prompt, system=system)
        chat = self.tokenizer is not None and self.tokenizer.chat_template is not None and not raw
        if system is not None and not chat:
            why = "--raw leaves the chat template out" if raw else f"{self.origin.name} has no chat template"
            raise ValueError(f"a system message has no place: {why}: leave --system out")
        if self.tokenizer is None:
            return self.numbers(prompt)
        if not chat:
            return self.tokenizer(prompt)["input_ids"]
        try:
            return encoded(self.tokenizer, prompt, system)
        except TemplateError as error:
            raise ValueError(f"the chat template of {self.origin.name} {error}") from error

    def remarks(self, prompt: str, system: str | None = None, raw: bool = False) -> tuple[Notice, ...]:
        """What to know of a prompt that ``encode`` takes: where what is fed is not what was given."""
        return () if self.tokenizer is None else tuple(remarks(self.tokenizer, prompt, system, raw))

    def overview(self, ids: Sequence[int] | None = None) -> Overview:
        """What it is made of and how it is split, with the shapes of a pass over ``ids``, by default over the split's probe."""
        closed = getattr(self.model, "opaque", None) is not None
        tree, costs, traits = (None, None, None) if closed else measured(self.model, self.split)
        parts = replace(self.split.shown_as(), shapes=shapes(self.split, probe_ids(self.model) if ids is None else self.prompt(ids)))
        return Overview(
            self.origin.name,
            self.origin.kind,
            str(self.dtype).removeprefix("torch."),
            str(self.device),
            tree,
            costs,
            traits,
            parts,
            self.notices,
        )

    def shown_as(self) -> Overview:
        """A notebook shows the overview."""
        return self.overview()

    def check_open(self) -> None:
        """Refuses a model that nothing can look into, such as a graph that another runtime computes. Raises ``ValueError``."""
        if (why := getattr(self.model, "opaque", None)) is not None:
            raise ValueError(f"{self.origin.name}: {why}")

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Role → module, lists of layers included (``parts.roles``)."""
        return modules_by_role(self.model, self.split.backbone_name, self.split.head_names)

    @property
    def components(self) -> dict[str, nn.Module]:
        """Role → module, for what a forward pass can call. Raises ``ValueError`` of a model that nothing can look into."""
        self.check_open()
        return components(self.model, self.split.backbone_name, self.split.head_names)

    @property
    def names(self) -> dict[str, str]:
        """Role → name of its module in the model; of several the first."""
        found: dict[str, str] = {}
        for name, role in roles(self.model, self.split.backbone_name, self.split.head_names).items():
            found.setdefault(role, name)
        return found

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, or of buffers where a model has nothing else."""
        return dtype_of(self.model)

    def prompt(self, ids: Sequence[int] | Tensor) -> Tensor:
        """A prompt as the model takes it, [1, T]: every entry point has it from here. ``ids`` are [T] or [1, T].

        Raises:
            ValueError: no tokens, or more than the model reads; several rows; no ids, or such as it does not have.
        """
        ids_T = one_prompt(ids)
        check_request(len(ids_T), 1, self.context_length)
        check_ids(ids_T, self.vocab_size, self.origin.name)
        return ids_T.to(torch.long)[None].to(self.device, copy=True)

    def tokens(self, ids: Sequence[int] | Tensor) -> tuple[Token, ...]:
        """The tokens of a prompt, or of any ids."""
        return tuple(self.texts.token(id) for id in torch.as_tensor(ids).flatten().tolist())

    @property
    def generation_config(self) -> GenerationConfig:
        """The settings that the checkpoint ships, also of a model inside a module of the user's; empty where there is none."""
        return shipped(self.model)

    def numbers(self, prompt: str) -> list[int]:
        """The ids that a prompt for a model without a tokenizer spells out."""
        words = prompt.replace(",", " ").split()
        if not all(word.isascii() and word.isdigit() for word in words):
            raise ValueError(f"{self.origin.name} has no tokenizer: the prompt {prompt[:40]!r} must be token ids, such as '1 5 7'")
        if wrong := next((word for word in words if int(word) >= self.vocab_size), None):
            raise ValueError(f"token id {wrong}: {self.origin.name} has the ids 0 to {self.vocab_size - 1}")
        return [int(word) for word in words]

    def unknown(self, prompt: str) -> list[str]:
        """The characters of a prompt that the tokenizer does not know, in order, each once.

        Raises:
            ValueError: the prompt is no UTF-8.
        """
        check_letters(prompt=prompt)
        return [] if self.tokenizer is None else tokens.unknown(self.tokenizer, prompt)

    def token_id(self, text: str) -> int:
        """The id of a token that is named by its text, as records show it, or else by its number.

        Raises:
            ValueError: it is neither.
        """
        if meant := self.ids_named(text):
            return meant[0]
        made = len(tokens.written(self.tokenizer, text)) if self.tokenizer is not None else 0
        why = f"{self.origin.name} makes {made} tokens of it" if made else f"{self.origin.name} has no such token"
        raise ValueError(f"token {text!r}: {why}: give the text of one token, or an id from 0 to {self.vocab_size - 1}")

    def ids_named(self, text: str) -> list[int]:
        """The ids that a text may mean, the one that it is taken for first: as it stands in running text, by itself, as a number."""
        check_letters(token=text)
        meant = [] if self.tokenizer is None else tokens.ids_named(self.tokenizer, text)
        if text.isascii() and text.isdigit() and int(text) < self.vocab_size:
            meant.append(int(text))
        return list(dict.fromkeys(meant))

    def bad_words_ids(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The sequences of token ids that words stand for, as they are written in running text (``tokens.sequences_of``).

        Vocabularies have one token for "cat" and another for " cat", or for "," by itself and behind a word. (transformers asks for
        a tokenizer with ``add_prefix_space=True``, which gives the second and forgets the first.)

        Raises:
            ValueError: a word that the tokenizer cannot write, or that ends a generation, which generate() does not ban.
        """
        if self.tokenizer is None:
            raise ValueError(f"{self.origin.name} has no tokenizer to tell the ids of bad words: leave them out")
        sequences = []
        for word in words:
            check_letters(**{"bad word": word})
            if missing := self.unknown(word):
                raise ValueError(f"bad word {word!r}: {self.origin.name} has no token for {''.join(missing)!r}: leave it out")
            ids = tokens.written(self.tokenizer, word)
            if not ids:
                raise ValueError(f"bad word {word!r}: the tokenizer of {self.origin.name} makes nothing of it: leave it out")
            if len(ids) == 1 and ids[0] in self.stop_ids:
                raise ValueError(f"bad word {word!r} is a stop token, which generate() does not take for a bad word: leave it out")
            stops = {(id,) for id in self.stop_ids}
            sequences += [ids for ids in tokens.sequences_of(self.tokenizer, word) if ids not in stops]
        return tuple(sequences)

    def ships(self, name: str) -> bool:
        """Whether the checkpoint itself says a setting of ``Sampling``. A greedy temperature stands for do_sample."""
        own = self.generation_config
        return getattr(own, "do_sample" if name == "temperature" and not own.do_sample else name) is not None

    def other_settings(self) -> dict:
        """The settings that the checkpoint ships with a value that acts in generate(), and that ``Sampling`` does not have."""
        own = {name: getattr(self.generation_config, name, None) for name in OTHER_SETTINGS}
        return {name: value for name, value in own.items() if OTHER_SETTINGS[name].acts(as_numbers(value))}

    @property
    def spelled(self) -> dict:
        """The settings that the checkpoint ships as texts and that are read as the numbers that they spell: name → number."""
        return spelled(self.generation_config)

    def places(self) -> dict[str, int]:
        """Where the weights lie: place ("cuda:0", "cpu", "disk") → bytes. A tied weight counts once."""
        spread = getattr(self.model, "hf_device_map", {"": self.device})
        tied = getattr(self.model, "all_tied_weights_keys", {})
        sizes = Counter()
        for name, weight in self.model.named_parameters():
            if not (weight.is_meta and name in tied):  # those on disk are tied in name only
                module = max((m for m in spread if not m or f"{name}.".startswith(f"{m}.")), key=len)
                where = spread[module]
                sizes[f"cuda:{where}" if isinstance(where, int) else str(where)] += weight.numel() * weight.element_size()
        return dict(sizes)

    def checkpoint_settings(self) -> dict:
        """The sampling settings that the checkpoint ships, as arguments of ``Sampling``.

        Raises:
            ValueError: it ships a setting that ``Sampling`` does not have, or a value that cannot be.
        """
        if language_model(self.model) is None:
            return {}
        own = self.generation_config
        if own.do_sample not in (None, True, False):
            raise ValueError(f"{self.origin.name} ships do_sample={own.do_sample!r:.60}, no true or false: leave --checkpoint-settings out")
        if others := self.other_settings():
            listed = ", ".join(f"{name}={value!s:.60}" for name, value in others.items())
            raise ValueError(f"{self.origin.name} also ships {listed}, which is not applied here: leave --checkpoint-settings out")
        settings = {} if own.do_sample else dict(temperature=0.0)
        for own_field in fields(Sampling):
            name, entry = own_field.name, SETTINGS[own_field.name]
            value = as_numbers(getattr(own, name, None))
            if entry.draws and not own.do_sample:
                continue
            if value is None:
                value = entry.filled_in
            elif own_field.type == Ids | None and is_id(value):
                value = (value,)
            if not entry.acts(value) and value not in entry.off:
                value = own_field.default  # transformers has more ways to say off
            if (name, value) == ("top_p", 0):
                value = 1e-9  # which keeps the best token alone, as 0 does in transformers
            if value not in (None, ()) and (name, value) != ("top_k", 0):  # which Sampling, unlike transformers, writes as None
                settings[name] = value
        try:
            Sampling(**settings)
        except ValueError as error:
            raise ValueError(f"{self.origin.name} ships {error}; or leave --checkpoint-settings out") from error
        return settings


def attach(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None = None,
    origin: Origin | None = None,
    split: Split | None = None,
    finite: bool = True,
) -> Loaded:
    """A ``Loaded`` around a model that is already there, so that it can be run, verified and shown.

    Args:
        model: of transformers, or any module that takes ids [B, T] and gives logits [B, T, V]. What stands around it is taken off
            (``parts.wrappers``), also a pipeline, or an object that holds a model and a tokenizer.
        tokenizer: left out, that which the object holds; where there is none, prompts are token ids.
        origin: left out, the class name says where it is from.
        split: where the model's own cannot be found: ``inspector.split(model, backbone=…, head=…)``.
        finite: refuse a model that gives NaN, as ``inspector.split`` does.

    Raises:
        ValueError: it is no module, such as a name or what is loaded already; it ships a stop token that is no token id; what
            stands around it cannot be taken off.
        SplitError: as ``inspector.split`` does.
    """
    given = unwrapped(model)
    if not isinstance(given.module, nn.Module):
        raise ValueError(f"{shown(model)} is no module that could be attached: give the model itself; inspector.load takes names")
    model, beside = given.module, given.tokenizer
    if tokenizer is None and isinstance(beside, PreTrainedTokenizerBase):
        tokenizer = beside
    origin = origin or Origin(type(model).__name__, "python")
    try:
        stop_ids = stops(model)
    except ValueError as error:
        raise ValueError(f"{origin.name}: {error}") from error
    loaded = Loaded(
        model=model.eval(),
        tokenizer=tokenizer,
        split=split or splitting.split(model, finite=finite),
        stop_ids=stop_ids,
        context_length=context_length(model),
        texts=Texts() if tokenizer is None else texts_of(tokenizer),
        origin=origin,
        device=input_device(model),
        vocab_size=vocabulary(model) or sys.maxsize,
        compiled=given.compiled,
    )
    find_past_call(model, lambda: own_logits(model, probe_ids(model)))
    return replace(loaded, notices=(*wrapper_notices(given.wrappers), *own_notices(loaded)))


def check_loaded(m: object) -> None:
    """Refuses what is no ``Loaded``, such as a model by itself. Raises ``ValueError``."""
    if not isinstance(m, Loaded):
        name = getattr(m, "__name__", type(m).__name__)
        raise ValueError(f"{name} is no loaded model: give what inspector.load or inspector.attach returns")
