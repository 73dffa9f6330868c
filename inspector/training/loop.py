"""The training loop: a model and lines of text in, a checkpoint folder out.

Every random choice derives from the recipe's seed and the step's number, so a run that was killed and resumed gives the
same weights, bit for bit, as one that was not (same machine, same number of threads).

Shape letters: B batch, T tokens, V vocabulary.
"""

import hashlib
import json
import math
import pickle
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from ..models.adapter import ADAPTERS, BUILDERS
from ..models.checkpoints import replacing, save_pretrained
from ..splitting import evaluating
from .tokenizer import character_tokenizer

MODELS = ("expert", "qwen2", *(name for name in BUILDERS if name != "expert"))
# What only some models have: left out, their builders' defaults.
OF_SOME = ("n_kv_heads", "n_experts", "n_chosen", "n_shared_experts", "gate", "kv_lora_rank", "q_lora_rank", "mtp_depth")
STATE = "training_state.pt"
RECIPE = "recipe.json"
IGNORED = -100  # a target that counts in no loss: padding


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result of a training run, apart from the corpus itself.

    Sizes as in ``ExpertModel``, and those of ``OF_SOME`` as in the variants' builders (``inspector.models.variants``).
    """

    model: str = "expert"
    corpus: str = "names"
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    d_ff: int | None = None
    max_seq_len: int | None = None
    dropout: float = 0.1
    steps: int = 1500
    batch_size: int = 128
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    n_kv_heads: int | None = None
    n_experts: int | None = None
    n_chosen: int | None = None
    n_shared_experts: int | None = None
    gate: str | None = None
    kv_lora_rank: int | None = None
    q_lora_rank: int | None = None
    mtp_depth: int | None = None

    def __post_init__(self):
        if self.model not in MODELS:
            raise ValueError(f"model {self.model!r}: choose one of {', '.join(MODELS)}")
        taken = signature(BUILDERS[self.model]).parameters if self.model in BUILDERS else ("n_kv_heads",)
        for name in OF_SOME:
            if getattr(self, name) is not None and name not in taken:
                raise ValueError(f"{name}={getattr(self, name)}: model {self.model} has no such setting: leave it out")
        for name in ("d_model", "n_layers", "n_heads", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a positive number")
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}: choose a number of heads that divides it"
            )
        if self.model == "qwen2" and self.d_model // self.n_heads % 2:
            raise ValueError(f"d_model={self.d_model} and n_heads={self.n_heads} make heads of odd width: RoPE turns pairs, make it even")
        for name, least in (("warmup", 0), ("seed", 0), ("weight_decay", 0), ("d_ff", 1), ("max_seq_len", 2)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: give a number from {least} up")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: give a number from 0 up to, not including, 1")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: give a positive number")


@dataclass(frozen=True)
class Progress:
    """Where a run stands: the step just done, its loss, the last validation loss (nats per character), seconds left."""

    step: int
    steps: int
    loss: float
    validation_loss: float | None
    seconds_left: float


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, max_seq_len: int) -> PreTrainedModel:
    """A fresh model for ``recipe``; both kinds have transformers' interface. The weights derive from the seed."""
    torch.manual_seed(recipe.seed)
    ids = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    if recipe.model in BUILDERS:
        model = native_model(recipe, len(tokenizer), max_seq_len)
        model.generation_config = GenerationConfig(**ids, use_cache=False)
        return model
    # Two heads share a key and a value, and SwiGLU has three matrices where GELU has two: 8/3 of the width costs the same.
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.d_model,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_kv_heads or max(1, recipe.n_heads // 2),
        intermediate_size=recipe.d_ff or 8 * recipe.d_model // 3,
        max_position_embeddings=max_seq_len,
        attention_dropout=recipe.dropout,
        initializer_range=0.05,  # transformers' 0.02 is meant for widths of a thousand
        tie_word_embeddings=True,
        **ids,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(**ids)
    add_dropout(model, recipe.dropout)
    return model


def native_model(recipe: Recipe, vocab_size: int, max_seq_len: int) -> PreTrainedModel:
    """A fresh native model with transformers' interface."""
    sizes = {name: getattr(recipe, name) for name in ("d_model", "n_layers", "n_heads", "d_ff", "dropout")}
    sizes |= {name: value for name in OF_SOME if (value := getattr(recipe, name)) is not None}
    with torch.device("meta"):  # the arguments with the builder's defaults filled in, so that config.json says them
        arguments = BUILDERS[recipe.model](vocab_size=vocab_size, max_seq_len=max_seq_len, **sizes).config
    adapter = ADAPTERS[recipe.model]
    return adapter(adapter.config_class(**arguments, architectures=[adapter.__name__]))


def add_dropout(model: Qwen2ForCausalLM, dropout: float) -> None:
    """Drops out where ``ExpertModel`` does: after the embedding and after each sublayer. Qwen2 itself drops attention weights only.

    A hook does it and not a module, so that the checkpoint stays a plain Qwen2.
    """

    def drop(module: torch.nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        return F.dropout(output, dropout, module.training)

    for name, module in model.named_modules():
        if name.endswith(("embed_tokens", "o_proj", "down_proj")):
            module.register_forward_hook(drop)


def encode(tokenizer: PreTrainedTokenizerFast, lines: Sequence[str]) -> list[list[int]]:
    """Each line as ids from the begin to the end symbol."""
    return [[*ids, tokenizer.eos_token_id] for ids in tokenizer(list(lines)).input_ids] if lines else []


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """The rate of step 0, 1, …: a straight line up over ``warmup`` steps, then half a cosine down to a tenth of the peak."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


def batch_indices(step: int, n_items: int, batch_size: int, seed: int) -> list[int]:
    """The items of a step: a window of the endless row of epochs, each a new order of all items drawn from the seed."""
    order = {}
    indices = []
    for place in range(step * batch_size, (step + 1) * batch_size):
        epoch, within = divmod(place, n_items)
        if epoch not in order:
            order[epoch] = torch.randperm(n_items, generator=torch.Generator().manual_seed(seed + 7919 * epoch)).tolist()
        indices.append(order[epoch][within])
    return indices


def inputs_and_targets(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Token rows (begin … end) → inputs [B, T] and targets [B, T], each token's target the one after it.

    Padding stands on the right, where causality hides it from the real tokens, and its targets are ignored.
    """
    inputs = [torch.tensor(row[:-1]) for row in rows]
    targets = [torch.tensor(row[1:]) for row in rows]
    return (
        torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True, padding_value=pad_token_id),
        torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=IGNORED),
    )


def nats(model: torch.nn.Module, inputs_BT: Tensor, targets_BT: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats per real target, its mean or its sum."""
    logits_BTV = model(input_ids=inputs_BT).logits
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=IGNORED, reduction=reduction)


@torch.no_grad()
def validation_loss(model: torch.nn.Module, rows: Sequence[Sequence[int]], pad_token_id: int, batch_size: int = 256) -> float:
    """Nats per character over all characters of all rows, end symbol included: long rows weigh more than short ones."""
    device = next(model.parameters()).device
    total = 0.0
    with evaluating(model):
        for start in range(0, len(rows), batch_size):
            inputs_BT, targets_BT = inputs_and_targets(rows[start : start + batch_size], pad_token_id)
            total += nats(model, inputs_BT.to(device), targets_BT.to(device), reduction="sum").item()
    return total / sum(len(row) - 1 for row in rows)


def train(
    recipe: Recipe,
    lines: Sequence[str],
    validation: Sequence[str],
    out: Path,
    resume: bool = False,
    evaluate_every: int = 250,
) -> Iterator[Progress]:
    """Trains, yielding after every step, and leaves a checkpoint folder at ``out``: weights, tokenizer, recipe and losses.

    Every ``evaluate_every`` steps, and when interrupted by Ctrl-C, the state goes to ``out``/training_state.pt, from
    where ``resume`` goes on; a finished run of the same recipe is left as it is.

    Raises:
        ValueError: ``out`` holds something and ``resume`` is off, there is no state to resume or it is of another
            recipe, or a line is longer than ``max_seq_len``.
        KeyboardInterrupt: after Ctrl-C, once the state is saved.
    """
    out = Path(out)
    if evaluate_every < 1:
        raise ValueError(f"evaluate_every={evaluate_every}: give a whole number from 1 up")
    if resume and is_finished(out, recipe):
        return iter(())
    data = fingerprint(lines, validation)
    return updates(recipe, lines, validation, out, read_state(out, recipe, data, resume), data, evaluate_every)


def updates(recipe: Recipe, lines, validation, out: Path, state: dict | None, data: str, evaluate_every: int) -> Iterator[Progress]:
    """The updates themselves, from ``state`` on; ``data`` is the corpus' fingerprint. The rest as in ``train``."""
    accelerator = Accelerator()
    tokenizer = character_tokenizer(lines)
    rows, validation_rows = encode(tokenizer, lines), encode(tokenizer, validation)
    model = build_model(recipe, tokenizer, fitting_length(recipe, [*rows, *validation_rows], [*lines, *validation]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.99))
    model, optimizer = accelerator.prepare(model, optimizer)
    losses, first = [], 0
    if state:
        accelerator.unwrap_model(model).load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        losses, first = state["losses"], state["step"]

    def save_state(step: int) -> None:
        with replacing(out / STATE) as new:
            torch.save(
                dict(
                    model=accelerator.unwrap_model(model).state_dict(),
                    optimizer=optimizer.state_dict(),
                    step=step,
                    losses=losses,
                    recipe=asdict(recipe),
                    fingerprint=data,
                ),
                new,
            )

    model.train()
    started = time.perf_counter()
    with catching_interrupt() as interrupted:
        for step in range(first, recipe.steps):
            loss = train_step(accelerator, model, optimizer, recipe, rows, tokenizer.pad_token_id, step)
            done = step + 1
            if done % evaluate_every == 0 or done == recipe.steps:
                held_out = validation_loss(model, validation_rows, tokenizer.pad_token_id) if validation_rows else None
                losses.append(dict(step=done, train=loss, validation=held_out))
                save_state(done)
            left = (time.perf_counter() - started) / (done - first) * (recipe.steps - done)
            yield Progress(done, recipe.steps, loss, losses[-1]["validation"] if losses else None, left)
            if interrupted:
                save_state(done)
                raise KeyboardInterrupt
    save_result(accelerator.unwrap_model(model), tokenizer, recipe, losses, (lines, validation), out)


def train_step(accelerator, model, optimizer, recipe: Recipe, rows, pad_token_id: int, step: int) -> float:
    """One update on the batch of ``step``; its loss before the update, in nats per character."""
    indices = batch_indices(step, len(rows), recipe.batch_size, recipe.seed)
    inputs_BT, targets_BT = inputs_and_targets([rows[i] for i in indices], pad_token_id)
    torch.manual_seed(recipe.seed * 1_000_003 + step)  # dropout's draws must not depend on what ran before this step
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(step, recipe)
    loss = nats(model, inputs_BT.to(accelerator.device), targets_BT.to(accelerator.device))
    optimizer.zero_grad()
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    return loss.item()


def fitting_length(recipe: Recipe, rows: Sequence[Sequence[int]], lines: Sequence[str]) -> int:
    """The recipe's ``max_seq_len``, or by default what the longest row needs, at least 64.

    Raises:
        ValueError: a row does not fit the recipe's length.
    """
    longest = max(range(len(rows)), key=lambda i: len(rows[i]))
    needed = len(rows[longest])
    if recipe.max_seq_len is not None and needed > recipe.max_seq_len:
        raise ValueError(
            f"the line {lines[longest][:40]!r}… needs {needed} tokens, more than max_seq_len={recipe.max_seq_len}: raise it or cut the line"
        )
    return recipe.max_seq_len or max(64, needed)


def fingerprint(*parts: Sequence[str]) -> str:
    """A digest of the corpus, held-out part included, so that a run is not resumed on another one."""
    return hashlib.sha256(json.dumps([list(part) for part in parts]).encode()).hexdigest()


def is_finished(out: Path, recipe: Recipe) -> bool:
    """Whether ``out`` holds the result of this very recipe: to resume it there is nothing left to do."""
    report = out / RECIPE
    return report.is_file() and Recipe(**json.loads(report.read_text(encoding="utf8"))["recipe"]) == recipe


def read_state(out: Path, recipe: Recipe, data: str, resume: bool) -> dict | None:
    """The saved state to go on from, or None for a fresh run.

    Raises:
        ValueError: see ``train``.
    """
    path = out / STATE
    if not resume:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"{out} exists and is not an empty folder: give another --out, or --resume to go on with what is there")
        return None
    if not path.is_file():
        raise ValueError(f"{path}: there is nothing to resume: leave --resume out to begin a run")
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        saved = state["recipe"]
    except (OSError, EOFError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: not a whole training state: begin the run anew in another folder") from error
    if changed := [f"{k}={saved.get(k)!r}, now {v!r}" for k, v in asdict(recipe).items() if saved.get(k) != v]:
        raise ValueError(f"{path} is of another recipe ({'; '.join(changed)}): resume with the same options")
    if state["fingerprint"] != data:
        raise ValueError(f"{path} was trained on another corpus: resume with the same one")
    return state


def save_result(model, tokenizer, recipe: Recipe, losses: list[dict], parts: tuple[Sequence[str], Sequence[str]], out: Path) -> None:
    """Writes the finished checkpoint folder in place of the one with the training state."""
    lines, validation = parts
    with replacing(out) as new:
        save_pretrained(model, new)
        tokenizer.save_pretrained(new)
        report = dict(
            recipe=asdict(recipe),
            items=dict(train=len(lines), validation=len(validation)),
            parameters=model.num_parameters(),
            unit="nats per character, end symbol included",
            losses=losses,
        )
        (new / RECIPE).write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf8")


@contextmanager
def catching_interrupt():
    """Yields a list that is empty until Ctrl-C is pressed, so that a step is never cut in half; a second Ctrl-C kills."""
    presses: list[int] = []

    def note(*_) -> None:
        presses.append(1)
        signal.signal(signal.SIGINT, before)

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread: nobody presses Ctrl-C there
        yield presses
        return
    try:
        yield presses
    finally:
        signal.signal(signal.SIGINT, before)
