"""The training loop: a model and lines of text in, a checkpoint folder out.

Every random choice derives from the recipe's seed and the step's number, so a run that was killed and resumed gives the
same weights, bit for bit, as one that was not (same machine, same number of threads and processes).

Several processes (``accelerate launch``) each take a share of every batch, and give what one gives with the whole batch, up
to rounding; but each draws its own dropout and its own noise of the gates, so that this holds without these.

Shape letters: B batch, T tokens, E experts.
"""

import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..files import filling, locked, write_whole
from ..loop.batches import join_processes
from ..models.checkpoints import save_pretrained
from ..models.moe import MixtureOfExperts, update_biases
from ..parts.errors import InvariantError, whole
from ..process import ENDING
from .building import build_model
from .folder import LAST, METRICS, OWN, PICTURE, RECIPE, check_out, is_finished
from .losses import IGNORED, inputs_and_targets, losses, validation_loss
from .recipe import MODELS, Recipe, taken_by
from .report import append_line, as_lines, draw, flush, read_rows
from .state import check_finite, check_fits, read_state, save_state
from .tokenizer import character_tokenizer

__all__ = ["IGNORED", "MODELS", "Progress", "Recipe", "build_model", "inputs_and_targets", "train", "validation_loss"]


@dataclass(frozen=True)
class Update:
    """What a step gave, over the whole batch.

    Args:
        loss: the next token's cross-entropy before the update, nats per character; no other part is in it.
        balance_loss: what balances the experts, times its weights; None without experts.
        mtp_loss: the mean cross-entropy of the predictions further ahead, without λ; None without any.
        router_load: name of each mixture of experts → the share of its choices that went to each expert.
    """

    loss: float
    balance_loss: float | None = None
    mtp_loss: float | None = None
    router_load: dict[str, list[float]] | None = None


@dataclass(frozen=True)
class Progress:
    """Where a run stands: the step just done and what it gave, the last validation loss (nats per character), seconds left.

    ``balance_loss``, ``mtp_loss`` and ``router_load`` as in ``Update``.
    """

    step: int
    steps: int
    loss: float
    validation_loss: float | None
    seconds_left: float
    balance_loss: float | None = None
    mtp_loss: float | None = None
    router_load: dict[str, list[float]] | None = None


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
    place, end = step * batch_size, (step + 1) * batch_size
    indices = []
    while place < end:
        epoch, within = divmod(place, n_items)
        indices += epoch_order(epoch, n_items, seed)[within : within + end - place].tolist()
        place = step * batch_size + len(indices)
    return indices


@lru_cache(maxsize=1)  # steps go through the epochs in turn; the order of a million lines takes 0.1 s to draw
def epoch_order(epoch: int, n_items: int, seed: int) -> Tensor:
    """The order of all items in an epoch."""
    return torch.randperm(n_items, generator=torch.Generator().manual_seed(seed + 7919 * epoch))


def train(
    recipe: Recipe,
    lines: Sequence[str],
    validation: Sequence[str],
    out: Path,
    resume: bool = False,
    evaluate_every: int = 250,
    gradient_checkpointing: bool = False,
) -> Iterator[Progress]:
    """Trains, yielding after every step, and leaves a checkpoint folder at ``out``: weights, tokenizer, recipe and losses.

    At the start, every ``evaluate_every`` steps, and when a signal asks to end, the state goes to ``out``/training_state.pt, from
    where ``resume`` goes on; a finished run of the same recipe is left as it is. No other process writes to ``out`` meanwhile.
    Every step adds a line to ``out``/metrics.jsonl, of which report.png is drawn at the end. With ``gradient_checkpointing``
    activations are computed twice instead of kept: less memory, more time, the same result.

    Of several processes every one calls this and yields the same losses; the first one alone writes.

    Raises:
        ValueError: ``out`` holds something and ``resume`` is off, there is no state to resume or it is of another
            recipe or not whole, a line is longer than ``max_seq_len``, the device or the number of processes does not fit the
            recipe, another process has ``out``, or a file there was not written here and is where the result must come.
        OSError: there is no room, or the like; the last state that was saved is still there.
        InvariantError: a loss or a weight is not finite; nothing of that step is saved.
        KeyboardInterrupt: after Ctrl-C, once the state is saved; after SIGTERM and SIGHUP ``SystemExit``.
    """
    out, data = Path(out), fingerprint(lines, validation)
    whole("evaluate_every", evaluate_every, 1)
    check_out(out, resume)
    if resume and is_finished(out, recipe):
        return iter(())
    if resume:  # what is wrong with it shows up now; what counts is what lies there once no other process can write there
        read_state(out, recipe, data)
    return run(recipe, lines, validation, out, resume, data, evaluate_every, gradient_checkpointing)


def run(recipe: Recipe, lines, validation, out: Path, resume: bool, data: str, evaluate_every: int, checkpointing: bool):
    """The run itself, with ``out`` for itself; ``data`` is the corpus' fingerprint. The rest as in ``train``."""
    accelerator = new_accelerator(recipe)
    with alone_in(out, accelerator):
        check_out(out, resume)
        if resume and is_finished(out, recipe):
            return
        state = read_state(out, recipe, data) if resume else None
        yield from updates(accelerator, recipe, lines, validation, out, state, data, evaluate_every, checkpointing)


def new_accelerator(recipe: Recipe) -> Accelerator:
    """What knows the device, the precision and the other processes, which it meets here.

    Raises:
        ValueError: the device cannot compute in this precision, or there are more processes than lines in a batch.
    """
    join_processes("auto", torch.get_num_threads())
    AcceleratorState._reset_state()  # else the first run's precision would be that of all runs of this process
    # A depth that looks further ahead than all lines of a batch are long does not run, has no gradient, and must not be waited for.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    handlers = [unused] if "mtp_depth" in taken_by(recipe.model) else None
    accelerator = Accelerator(mixed_precision=recipe.mixed_precision, kwargs_handlers=handlers)
    if recipe.mixed_precision != "no" and not accelerator.native_amp:  # accelerate would leave fp16 out on the CPU, silently
        raise ValueError(f"mixed_precision={recipe.mixed_precision!r} is not for the device {accelerator.device.type}: take bf16, or no")
    if recipe.batch_size < accelerator.num_processes:
        raise ValueError(
            f"batch_size={recipe.batch_size} leaves some of the {accelerator.num_processes} processes without a line: "
            "raise it or start fewer"
        )
    return accelerator


def updates(
    accelerator: Accelerator,
    recipe: Recipe,
    lines: Sequence[str],
    validation: Sequence[str],
    out: Path,
    state: dict | None,
    data: str,
    evaluate_every: int,
    gradient_checkpointing: bool,
) -> Iterator[Progress]:
    """The updates themselves, from ``state`` on, and the result. The rest as in ``run``."""
    tokenizer = character_tokenizer(lines)
    rows, validation_rows = encode(tokenizer, lines), encode(tokenizer, validation)
    model = build_model(recipe, tokenizer, fitting_length(recipe, [*rows, *validation_rows], [*lines, *validation]))
    if gradient_checkpointing:
        checkpoint_activations(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.99))
    history, first, rows_before = [], 0, []
    if state:
        check_fits(state, model, optimizer, accelerator.scaler, out)
        rows_before = read_rows(out, state["step"])
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        history, first = state["losses"], state["step"]
    accelerator.wait_for_everyone()  # all have looked at ``out`` before one of them writes there
    if accelerator.is_main_process and (out / METRICS).exists():  # steps after the state are done again
        write_whole(out / METRICS, as_lines(rows_before))

    def save(step: int) -> None:
        check_finite(model, optimizer, step, remedy(recipe, out))
        if accelerator.is_main_process:
            flush(out)
            state = dict(
                model=model.state_dict(),
                optimizer=optimizer.state_dict(),
                scaler=None if accelerator.scaler is None else accelerator.scaler.state_dict(),
                step=step,
                losses=history,
                recipe=asdict(recipe),
                fingerprint=data,
            )
            save_state(out, state)
        accelerator.wait_for_everyone()

    def validate() -> float | None:
        processes = dict(rank=accelerator.process_index, n_processes=accelerator.num_processes, total=accelerator.reduce)
        return validation_loss(model, validation_rows, tokenizer.pad_token_id, **processes) if validation_rows else None

    if not state:
        save(0)  # before there is any metric: what is in the folder can always be resumed
    wrapped.train()
    started = time.perf_counter()
    with catching_signals(alone=accelerator.num_processes == 1) as came:
        for step in range(first, recipe.steps):
            began = time.perf_counter()
            batch = [rows[i] for i in batch_indices(step, len(rows), recipe.batch_size, recipe.seed)]
            update = train_step(accelerator, wrapped, optimizer, recipe, batch, tokenizer.pad_token_id, step)
            speed = sum(len(row) - 1 for row in batch) / (time.perf_counter() - began)
            done = step + 1
            check_losses(update, done, recipe, out)
            line = dict(step=done, **given(update), learning_rate=learning_rate_at(step, recipe), tokens_per_second=speed)
            measured = done % evaluate_every == 0 or done == recipe.steps
            if measured:
                held_out = validate()
                check_loss("the loss on what is held out", held_out, done, recipe, out)
                history.append(dict(step=done, train=update.loss, validation=held_out))
                line["validation_loss"] = held_out
            if accelerator.is_main_process:
                append_line(out, line)
            if measured:
                save(done)
            left = (time.perf_counter() - started) / (done - first) * (recipe.steps - done)
            held_out = history[-1]["validation"] if history else None
            yield Progress(step=done, steps=recipe.steps, validation_loss=held_out, seconds_left=left, **asdict(update))
            if number := anywhere(accelerator, came):
                save(done)
                leave(number)
    if came and accelerator.num_processes == 1:  # since the last step, whose state is saved
        leave(came[0])
    if accelerator.is_main_process:
        save_result(model, tokenizer, recipe, history, (lines, validation), out)
    accelerator.wait_for_everyone()


def train_step(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    batch: Sequence[Sequence[int]],
    pad_token_id: int,
    step: int,
) -> Update:
    """One update on ``batch``, of which each process takes its share; what it gave, the same in every process."""
    inputs_BT, targets_BT = inputs_and_targets(batch, pad_token_id)
    numbers = [int((targets_BT[:, k:] != IGNORED).sum()) for k in range(targets_BT.shape[1])]
    rank, n_processes = accelerator.process_index, accelerator.num_processes
    inputs_BT, targets_BT = (part[rank::n_processes].to(accelerator.device) for part in (inputs_BT, targets_BT))
    # Dropout's draws must not depend on what ran before this step, and differ between the processes.
    torch.manual_seed(recipe.seed * 1_000_003 + step + (rank << 40))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(step, recipe)
    own = accelerator.unwrap_model(model)
    output = model(input_ids=inputs_BT, **(dict(output_mtp=True) if hasattr(own, "mtp") else {}))
    parts = losses(output, targets_BT, numbers.__getitem__, **recipe.loss_weights(), total=lambda x: summed(accelerator, x))
    optimizer.zero_grad()
    accelerator.backward(parts.total(n_processes))
    accelerator.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    counts = [accelerator.reduce(counts_E) for counts_E in parts.counts]
    if counts:  # a depth that looks further ahead than all lines of the batch are long has counted nothing
        counts += [torch.zeros_like(counts[0])] * (len(mixtures(own)) - len(counts))
        update_biases(own, counts, **({} if recipe.bias_speed is None else dict(speed=recipe.bias_speed)))
    return Update(
        loss=accelerator.reduce(parts.main.detach()).item(),
        mtp_loss=None if parts.mtp is None else accelerator.reduce(parts.mtp.detach()).item(),
        balance_loss=None if parts.balance is None else parts.balance.item(),
        router_load=router_load(own, counts) if counts else None,
    )


def check_losses(update: Update, step: int, recipe: Recipe, out: Path) -> None:
    """Raises ``InvariantError`` where a part of a step's loss is not finite: what trains on from there is no model any more."""
    check_loss("the loss", update.loss, step, recipe, out)
    check_loss("the loss of the predictions further ahead", update.mtp_loss, step, recipe, out)
    check_loss("the loss that balances experts", update.balance_loss, step, recipe, out)


def check_loss(name: str, value: float | None, step: int, recipe: Recipe, out: Path) -> None:
    """Raises ``InvariantError`` where a loss is not finite; None is none."""
    if value is not None and not math.isfinite(value):
        raise InvariantError(f"step {step}: {name} is {value}: {remedy(recipe, out)}")


def remedy(recipe: Recipe, out: Path) -> str:
    """What is left of a run whose numbers are not finite any more, and what to change."""
    return (
        f"training stopped, and the last state that was saved is in {out}: begin anew in another folder, "
        f"with a smaller learning_rate than {recipe.learning_rate:g}, a smaller clip than {recipe.clip:g}, or more warmup"
    )


def given(update: Update) -> dict:
    """What an update has, without what this model does not have."""
    return {name: value for name, value in asdict(update).items() if value is not None}


def summed(accelerator: Accelerator, x: Tensor) -> Tensor:
    """The sum over all processes, whose gradient flows into this process's part."""
    if accelerator.num_processes == 1:
        return x
    return x + (accelerator.reduce(x.detach().clone()) - x.detach())


def anywhere(accelerator: Accelerator, found: Sequence[int]) -> int:
    """The largest number that any process has found, 0 for none: all must leave at the same place, and know why."""
    largest = max(found, default=0)
    if accelerator.num_processes == 1:
        return largest
    return int(accelerator.gather(torch.tensor([largest], device=accelerator.device)).max().item())


@contextmanager
def alone_in(out: Path, accelerator: Accelerator) -> Iterator[None]:
    """The lock of ``out``, which the first process has for all. Raises ``ValueError``, in all of them, where it cannot be had."""
    with ExitStack() as held:
        refused = None
        try:
            if accelerator.is_main_process:
                held.enter_context(locked(out))
        except (ValueError, OSError) as error:
            refused = error
        if anywhere(accelerator, [1] if refused else []):
            raise refused or ValueError(f"{out}: the first process may not write there")
        yield


def mixtures(model: torch.nn.Module) -> list[str]:
    """The names of the mixtures of experts, in the order in which they run."""
    return [name.removeprefix("backbone.") for name, module in model.named_modules() if isinstance(module, MixtureOfExperts)]


def router_load(model: torch.nn.Module, counts: Sequence[Tensor]) -> dict[str, list[float]]:
    """Name of each mixture of experts → the share of its choices that went to each expert, from how often each was chosen."""
    return {name: (count_E / count_E.sum().clamp(min=1)).tolist() for name, count_E in zip(mixtures(model), counts, strict=True)}


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Gradient checkpointing as transformers does it, by the name that its version has."""
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


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


def save_result(model, tokenizer, recipe: Recipe, losses: list[dict], parts: tuple[Sequence[str], Sequence[str]], out: Path) -> None:
    """The finished checkpoint in place of the training state; files in ``out`` that were not written here stay as they are.

    Raises:
        ValueError: one of these is where a file of the checkpoint must come. The state is still there.
    """
    lines, validation = parts
    with filling(out, last=LAST, own=OWN) as new:
        save_pretrained(model, new)
        tokenizer.save_pretrained(new)
        report = dict(
            recipe=asdict(recipe),
            items=dict(train=len(lines), validation=len(validation)),
            parameters=model.num_parameters(),
            unit="nats per character, end symbol included",
            losses=losses,
        )
        rows = read_rows(out)
        (new / METRICS).write_text(as_lines(rows), encoding="utf8")
        draw(rows, new / PICTURE)
        (new / RECIPE).write_text(json.dumps(report, ensure_ascii=False, allow_nan=False, indent=1) + "\n", encoding="utf8")


@contextmanager
def catching_signals(alone: bool = True) -> Iterator[list[int]]:
    """Yields a list of the signals to end that have come, so that a step is never cut in half; a second one acts at once.

    Signals that are ignored stay so. Not ``alone``, none acts: the launcher passes presses on, and ends what does not end in time.
    """
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():  # other threads get none
        before = {number: signal.getsignal(number) for number in ENDING}
        before = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _) -> None:
        came.append(number)
        if alone:
            restore()

    try:
        for number in before:
            signal.signal(number, note)
        yield came
    finally:
        restore()


def leave(number: int) -> None:
    """Ends the run as a signal asks: Ctrl-C by ``KeyboardInterrupt``, another by ``SystemExit`` with the code that a shell gives it."""
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
