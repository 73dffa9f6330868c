"""Which architecture learns names best with the same parameters and steps, and by how much does it beat counting?

Every model goes through the project's one training loop and is then loaded from its folder: what is measured is what lies there.
"""

import json
import os
import random
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from ..files import check_folder, is_empty, locked, read_json, settle, write_whole
from ..loading.loading import load
from ..parts.costs import BITS, costs, kv_numbers_per_token
from ..parts.roles import roles
from ..parts.structure import Running
from ..training.corpus import build, read_lines
from ..training.folder import STATE, is_finished
from ..training.loop import Progress, Recipe, build_model, encode, fingerprint, fitting_length, train, validation_loss
from ..training.tokenizer import character_tokenizer
from .ngrams import NGrams

MODELS = ("expert", "qwen2", "gpt", "gpt-moe", "gpt-mla", "gpt-mtp")
CLOSE = 0.05  # by how much the models' numbers of parameters may differ from the one that was asked for
CLOCKS = "names.json"


@dataclass(frozen=True)
class Parts:
    """What is trained on and what is held out.

    Args:
        name: of the corpus: "names" or the file's.
        train, validation: one item each.
        split: how they came apart: "own" of the embedded corpus, "file", or "drawn".
        held_out: the name of the file of the split "file".
        dropped: items left out before the split because they had come already.
    """

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    split: str
    held_out: str | None = None
    dropped: int = 0

    def unseen(self) -> list[str]:
        """The held-out items that training never saw: a model that has learned others by heart gains nothing here."""
        known = set(map(composed, self.train))
        return [item for item in self.validation if composed(item) not in known]


def parts(corpus: str = "names", validation: Path | None = None, seed: int = 0) -> Parts:
    """The embedded corpus with its own split, or a file with another held out, as they are, or one file, of which a tenth is held out.

    Raises:
        ValueError: a file cannot be read or holds too few items to hold some out.
    """
    train = build().train if corpus == "names" else read_lines(corpus)
    name = Path(corpus).name
    if validation is not None:
        return Parts(name, tuple(train), tuple(read_lines(validation)), "file", validation.name)
    if corpus == "names":
        return Parts(name, train, build().validation, "own")
    unique = list({composed(item): item for item in train}.values())
    if len(unique) < 2:
        raise ValueError(f"{corpus}: holds one item, none can be held out: give more, or a file of --validation")
    random.Random(seed).shuffle(unique)
    size = max(1, len(unique) // 10)
    return Parts(name, tuple(unique[size:]), tuple(unique[:size]), "drawn", dropped=len(train) - len(unique))


def composed(item: str) -> str:
    """An item as the tokenizer reads it."""
    return unicodedata.normalize("NFC", item)


def equal_recipes(models: Sequence[str], parameters: int, data: Parts, **settings) -> dict[str, Recipe]:
    """Model → its recipe: the same settings for all, and the ``d_ff`` that brings its parameters nearest to ``parameters``.

    Raises:
        ValueError: settings that cannot be, or sizes with which a model does not come within 5 %.
    """
    tokenizer = character_tokenizer(data.train)
    lines = [*data.train, *data.validation]
    rows = encode(tokenizer, lines)
    recipes = {}
    for model in models:
        recipe = Recipe(model=model, corpus=data.name, **settings)
        recipes[model] = sized(recipe, tokenizer, fitting_length(recipe, rows, lines), parameters)
    return recipes


def sized(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, max_seq_len: int, parameters: int) -> Recipe:
    """The recipe with the ``d_ff`` that brings its number of parameters, which grows with it, nearest to ``parameters``."""

    @cache
    def count(d_ff: int) -> int:
        with torch.device("meta"):
            model = build_model(replace(recipe, d_ff=d_ff), tokenizer, max_seq_len)
        return sum(p.numel() for p in model.parameters())

    if parameters > 10**12:  # more than any width that a recipe takes
        raise ValueError(f"parameters={parameters:.3g}: give a number up to {10**12:,}")
    low, high = 0, 1
    while count(high) < parameters:
        low, high = high, 2 * high
    while high - low > 1:  # count(low) < parameters <= count(high), and 0 stands for less than any
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < parameters else (low, middle)
    d_ff = min((d for d in (low, high) if d), key=lambda d: abs(count(d) - parameters))
    if abs(count(d_ff) - parameters) > CLOSE * parameters:
        raise ValueError(
            f"parameters={parameters:,}: {recipe.model} with d_model={recipe.d_model} and n_layers={recipe.n_layers} comes no nearer "
            f"than {count(d_ff):,}, with d_ff={d_ff}: change the number, d_model or n_layers"
        )
    return replace(recipe, d_ff=d_ff)


def measure(
    data: Parts, recipes: dict[str, Recipe], out: Path, told: Callable[[str, Progress | None], None] = lambda model, progress: None
) -> dict:
    """Counts n-grams, trains the models that are not finished in ``out``, and measures what lies there.

    Args:
        data: both parts.
        recipes: model → recipe, as ``equal_recipes`` gives them.
        out: holds a checkpoint folder for each model, and how long each took. A run that was cut off goes on from there.
        told: is called with a model's name and None when its turn comes, and with its progress after every step.

    Returns:
        ``models`` and ``ngrams``, a row each, the losses in nats per character over all characters of all held-out items,
        end symbol included; ``loss_unseen`` is over those that training never saw. The best n-gram's order, and what the
        corpus holds.

    Raises:
        ValueError: ``out`` holds something else, or another process is writing to it.
        InvariantError: a model's loss or weights are not finite any more.
        KeyboardInterrupt: after Ctrl-C, and ``SystemExit`` after another signal; the state of the model in training is saved.
    """
    out = Path(out)
    with locked(out):
        clocks = Clocks(out, fingerprint(data.train, data.validation))
        # Called for all before the first one runs: train() looks at the folder at once, and what is wrong there shows up now.
        runs = {model: begin(recipe, data, out / model) for model, recipe in recipes.items()}
        tokenizer = character_tokenizer(data.train)
        rows = encode(tokenizer, data.train)
        held_out, unseen = (encode(tokenizer, items) for items in (data.validation, data.unseen()))
        told("n-grams", None)
        counted = ngram_rows(tokenizer, rows, held_out, unseen)
        tokens = sum(len(row) - 1 for row in rows) / len(rows)
        trained = []
        for model, recipe in recipes.items():
            told(model, None)
            for progress in clocks.timed(model, runs.pop(model)):
                told(model, progress)
            figures = clocks.figures(model, recipe, tokens)
            trained.append(dict(model=model, **examine(out / model, held_out, unseen), d_ff=recipe.d_ff, **figures))
    common = {name: value for name, value in asdict(next(iter(recipes.values()))).items() if name not in ("model", "d_ff", "corpus")}
    return dict(
        corpus=data.name,
        split=data.split,
        held_out=data.held_out,
        dropped=data.dropped,
        train=len(data.train),
        validation=len(data.validation),
        unseen=len(unseen),
        characters=sum(len(row) - 1 for row in held_out),
        unknown=list(chain(*held_out)).count(tokenizer.unk_token_id),
        recipe=common,
        models=trained,
        ngrams=counted,
        best_order=min(counted, key=lambda row: row["loss"])["order"],
    )


def begin(recipe: Recipe, data: Parts, folder: Path) -> Iterator[Progress]:
    """The training of one model, from where it stopped; nothing where ``folder`` holds its result.

    Raises:
        ValueError: ``folder`` holds something else.
    """
    check_folder(folder)
    settle(folder)
    begun = (folder / STATE).is_file() or is_finished(folder, recipe)
    if not begun and not is_empty(folder):
        raise ValueError(f"{folder} holds something else than a result of this recipe: give another --out, or the options of that run")
    return train(recipe, data.train, data.validation, folder, resume=begun)


def ngram_rows(tokenizer: PreTrainedTokenizerFast, rows, held_out, unseen) -> list[dict]:
    """A row for each order. All tokens but padding and the begin symbol can be predicted.

    The unknown symbol, which a character that training does not have becomes for every model, is one of them.
    """
    ngrams = NGrams(rows, symbols=len(tokenizer) - 2)
    losses = on_both(ngrams.losses, held_out, unseen, [None] * ngrams.order)
    return [
        dict(order=order, loss=loss, loss_unseen=on_unseen, counts=counts)
        for order, (loss, on_unseen, counts) in enumerate(zip(*losses, ngrams.stored(), strict=True), 1)
    ]


def on_both(loss: Callable, held_out, unseen, none) -> tuple:
    """A loss over all held-out rows and over those that training never saw, computed once where these are all; ``none`` without any."""
    over_all = loss(held_out)
    return over_all, over_all if len(unseen) == len(held_out) else loss(unseen) if unseen else none


def examine(folder: Path, held_out, unseen) -> dict:
    """The losses of the weights in a folder, and what their model costs."""
    m = load(str(folder.resolve()))
    padding = m.tokenizer.pad_token_id
    loss, loss_unseen = on_both(lambda rows: validation_loss(m.model, rows, padding), held_out, unseen, None)
    found = roles(m.model, m.split.backbone_name, m.split.head_names)
    runs = Running(m.model).counts
    told = costs(m.model, found, runs, context=1)[0]
    # Not told.cache_bytes, which is empty where a module has no role: one that predicts further ahead keeps nothing in a plain run.
    kept = kv_numbers_per_token(m.model, found, runs)
    return dict(
        loss=loss,
        loss_unseen=loss_unseen,
        parameters=told.parameters,
        active_parameters=told.active_parameters,
        cache_bytes_per_token=None if kept is None else kept * BITS["float32"] // 8,
    )


def is_clock(kept: object) -> bool:
    """Whether this is what is kept of a model's time: others may have put anything in its place."""
    names = {"steps", "seconds", "bare_steps", "bare_seconds"}
    return isinstance(kept, dict) and kept.keys() == names and all(type(n) in (int, float) and 0 <= n < 1e300 for n in kept.values())


class Clocks:
    """How long the training of each model in a folder took, over all calls that it took.

    Raises:
        ValueError: the folder is of another corpus, or the file of the clocks is damaged.
    """

    def __init__(self, out: Path, corpus: str):
        self.path = out / CLOCKS
        self.spent: dict[str, dict[str, float]] = {}
        self.corpus = corpus
        if os.path.lexists(self.path):
            kept = read_json(self.path)
            self.spent = kept.get("spent")
            if not isinstance(self.spent, dict) or not all(map(is_clock, self.spent.values())):
                raise ValueError(f"{self.path}: damaged: remove it, and minutes will be missing, or give another --out")
            if kept.get("corpus") != corpus:
                raise ValueError(f"{out} holds models of another corpus or split: give another --out, or the options of that run")

    def save(self) -> None:
        """Writes them down."""
        write_whole(self.path, json.dumps(dict(corpus=self.corpus, spent=self.spent), allow_nan=False) + "\n")

    def timed(self, model: str, progress: Iterator[Progress]) -> Iterator[Progress]:
        """Passes progress on and notes its time: of all steps, and of those in which nothing was built, validated or saved."""
        spent = self.spent.setdefault(model, dict(steps=0, seconds=0.0, bare_steps=0, bare_seconds=0.0))
        held_out, first = None, True
        started = time.perf_counter()
        try:
            for done in progress:
                seconds = time.perf_counter() - started
                bare = not first and done.validation_loss == held_out and done.step < done.steps
                held_out, first = done.validation_loss, False
                for name, value in (("steps", 1), ("seconds", seconds)):
                    spent[name] += value
                    spent[f"bare_{name}"] += value * bare
                if not bare:
                    self.save()
                yield done
                started = time.perf_counter()
        finally:
            self.save()

    def figures(self, model: str, recipe: Recipe, tokens_per_item: float) -> dict[str, float | None]:
        """Tokens of training a second, and minutes for all steps at their mean pace; None where it is not known, of a copied folder."""
        spent = self.spent[model]
        tokens = recipe.batch_size * tokens_per_item * spent["bare_steps"]
        return dict(
            tokens_per_second=tokens / spent["bare_seconds"] if spent["bare_steps"] else None,
            minutes=spent["seconds"] / spent["steps"] * recipe.steps / 60 if spent["steps"] else None,
        )
