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
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from ..batches import join_processes
from ..models.adapter import ADAPTERS, BUILDERS
from ..models.checkpoints import replacing, save_pretrained
from ..models.moe import MixtureOfExperts, update_biases
from .losses import IGNORED, inputs_and_targets, losses, validation_loss
from .report import METRICS, PICTURE, append_line, draw, flush, read_lines
from .tokenizer import character_tokenizer

__all__ = ["IGNORED", "MODELS", "Progress", "Recipe", "build_model", "inputs_and_targets", "train", "validation_loss"]

MODELS = ("expert", "qwen2", *(name for name in BUILDERS if name != "expert"))
# What only some models have: left out, their builders' defaults.
OF_SOME = ("n_kv_heads", "n_experts", "n_chosen", "n_shared_experts", "gate", "kv_lora_rank", "q_lora_rank", "mtp_depth")
STATE = "training_state.pt"
RECIPE = "recipe.json"
PRECISIONS = ("no", "bf16", "fp16")
# Settings of the losses, and the builder's argument that a model must have for them to mean something.
OF_LOSSES = dict(w_importance="n_experts", w_load="n_experts", bias_speed="n_experts", w_mtp="mtp_depth")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result of a training run, apart from the corpus itself.

    Sizes as in ``ExpertModel``, and those of ``OF_SOME`` as in the variants' builders (``inspector.models.variants``).
    ``batch_size`` is that of all processes together. ``w_importance`` and ``w_load`` weigh the losses that balance experts
    (0.01 by default; 0 with the balanced gate, whose bias moves by ``bias_speed`` a step, 0.001 by default), ``w_mtp`` that
    of the predictions further ahead (λ, 0.3 by default). ``mixed_precision``: "no", "bf16" or "fp16".
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
    w_importance: float | None = None
    w_load: float | None = None
    w_mtp: float | None = None
    bias_speed: float | None = None
    mixed_precision: str = "no"

    def __post_init__(self):
        if self.model not in MODELS:
            raise ValueError(f"model {self.model!r}: choose one of {', '.join(MODELS)}")
        taken = signature(BUILDERS[self.model]).parameters if self.model in BUILDERS else ("n_kv_heads",)
        for name, needed in dict(zip(OF_SOME, OF_SOME, strict=True), **OF_LOSSES).items():
            if getattr(self, name) is not None and needed not in taken:
                raise ValueError(f"{name}={getattr(self, name)}: model {self.model} has no such setting: leave it out")
        for name, gate in (("w_load", "noisy"), ("bias_speed", "balanced")):
            if getattr(self, name) is not None and (self.gate or "noisy") != gate:
                raise ValueError(f"{name}={getattr(self, name)}: it is for the {gate} gate alone: leave it out or set gate={gate}")
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(f"mixed_precision={self.mixed_precision!r}: choose one of {', '.join(PRECISIONS)}")
        for name in ("d_model", "n_layers", "n_heads", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a positive number")
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}: choose a number of heads that divides it"
            )
        if self.model == "qwen2" and self.d_model // self.n_heads % 2:
            raise ValueError(f"d_model={self.d_model} and n_heads={self.n_heads} make heads of odd width: RoPE turns pairs, make it even")
        least_of = dict(warmup=0, seed=0, weight_decay=0, d_ff=1, max_seq_len=2) | dict.fromkeys(OF_LOSSES, 0)
        for name, least in least_of.items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: give a number from {least} up")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: give a number from 0 up to, not including, 1")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: give a positive number")

    def loss_weights(self) -> dict[str, float]:
        """What ``losses`` takes, with the defaults filled in."""
        balance = 0.0 if self.gate == "balanced" else 1e-2
        defaults = dict(w_importance=balance, w_load=balance, w_mtp=0.3)
        return {name: default if getattr(self, name) is None else getattr(self, name) for name, default in defaults.items()}


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

    At the start, every ``evaluate_every`` steps, and when interrupted by Ctrl-C, the state goes to ``out``/training_state.pt, from
    where ``resume`` goes on; a finished run of the same recipe is left as it is. Every step adds a line to
    ``out``/metrics.jsonl, of which report.png is drawn at the end. With ``gradient_checkpointing`` activations are computed
    twice instead of kept: less memory, more time, the same result.

    Of several processes every one calls this and yields the same losses; the first one alone writes.

    Raises:
        ValueError: ``out`` holds something and ``resume`` is off, there is no state to resume or it is of another
            recipe, a line is longer than ``max_seq_len``, or the device or the number of processes does not fit the recipe.
        KeyboardInterrupt: after Ctrl-C, once the state is saved.
    """
    out = Path(out)
    if evaluate_every < 1:
        raise ValueError(f"evaluate_every={evaluate_every}: give a whole number from 1 up")
    if resume and is_finished(out, recipe):
        return iter(())
    data = fingerprint(lines, validation)
    state = read_state(out, recipe, data, resume)
    return updates(recipe, lines, validation, out, state, data, evaluate_every, gradient_checkpointing)


def new_accelerator(recipe: Recipe) -> Accelerator:
    """What knows the device, the precision and the other processes, which it meets here.

    Raises:
        ValueError: the device cannot compute in this precision, or there are more processes than lines in a batch.
    """
    join_processes("auto", torch.get_num_threads())
    AcceleratorState._reset_state()  # else the first run's precision would be that of all runs of this process
    # An expert that no token of a step went to has no gradient, and must not be waited for.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    some_unused = recipe.model in BUILDERS and {"n_experts", "mtp_depth"} & signature(BUILDERS[recipe.model]).parameters.keys()
    accelerator = Accelerator(mixed_precision=recipe.mixed_precision, kwargs_handlers=[unused] if some_unused else None)
    if recipe.mixed_precision != "no" and not accelerator.native_amp:  # accelerate would leave fp16 out on the CPU, silently
        raise ValueError(f"mixed_precision={recipe.mixed_precision!r} is not for the device {accelerator.device.type}: take bf16, or no")
    if recipe.batch_size < accelerator.num_processes:
        raise ValueError(
            f"batch_size={recipe.batch_size} leaves some of the {accelerator.num_processes} processes without a line: "
            "raise it or start fewer"
        )
    return accelerator


def updates(
    recipe: Recipe,
    lines: Sequence[str],
    validation: Sequence[str],
    out: Path,
    state: dict | None,
    data: str,
    evaluate_every: int,
    gradient_checkpointing: bool,
) -> Iterator[Progress]:
    """The updates themselves, from ``state`` on; ``data`` is the corpus' fingerprint. The rest as in ``train``."""
    accelerator = new_accelerator(recipe)
    tokenizer = character_tokenizer(lines)
    rows, validation_rows = encode(tokenizer, lines), encode(tokenizer, validation)
    model = build_model(recipe, tokenizer, fitting_length(recipe, [*rows, *validation_rows], [*lines, *validation]))
    if gradient_checkpointing:
        checkpoint_activations(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.99))
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    history, first = [], 0
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        history, first = state["losses"], state["step"]
    accelerator.wait_for_everyone()  # all have looked at ``out`` before one of them writes there
    if accelerator.is_main_process and (out / METRICS).exists():  # steps after the state are done again
        with replacing(out / METRICS) as new:
            new.write_text("".join(read_lines(out, first)), encoding="utf8")

    def save_state(step: int) -> None:
        if accelerator.is_main_process:
            flush(out)
            with replacing(out / STATE) as new:
                torch.save(
                    dict(
                        model=model.state_dict(),
                        optimizer=optimizer.state_dict(),
                        scaler=None if accelerator.scaler is None else accelerator.scaler.state_dict(),
                        step=step,
                        losses=history,
                        recipe=asdict(recipe),
                        fingerprint=data,
                    ),
                    new,
                )
        accelerator.wait_for_everyone()

    def validate() -> float | None:
        processes = dict(rank=accelerator.process_index, n_processes=accelerator.num_processes, total=accelerator.reduce)
        return validation_loss(model, validation_rows, tokenizer.pad_token_id, **processes) if validation_rows else None

    if not state:
        save_state(0)  # before there is any metric: what is in the folder can always be resumed
    wrapped.train()
    started = time.perf_counter()
    with catching_interrupt(alone=accelerator.num_processes == 1) as interrupted:
        for step in range(first, recipe.steps):
            began = time.perf_counter()
            batch = [rows[i] for i in batch_indices(step, len(rows), recipe.batch_size, recipe.seed)]
            update = train_step(accelerator, wrapped, optimizer, recipe, batch, tokenizer.pad_token_id, step)
            speed = sum(len(row) - 1 for row in batch) / (time.perf_counter() - began)
            done = step + 1
            line = dict(step=done, **given(update), learning_rate=learning_rate_at(step, recipe), tokens_per_second=speed)
            measured = done % evaluate_every == 0 or done == recipe.steps
            if measured:
                history.append(dict(step=done, train=update.loss, validation=validate()))
                line["validation_loss"] = history[-1]["validation"]
            if accelerator.is_main_process:
                append_line(out, line)
            if measured:
                save_state(done)
            left = (time.perf_counter() - started) / (done - first) * (recipe.steps - done)
            held_out = history[-1]["validation"] if history else None
            yield Progress(step=done, steps=recipe.steps, validation_loss=held_out, seconds_left=left, **asdict(update))
            if anywhere(accelerator, interrupted):
                save_state(done)
                raise KeyboardInterrupt
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
    whole = accelerator.unwrap_model(model)
    output = model(input_ids=inputs_BT, **(dict(output_mtp=True) if hasattr(whole, "mtp") else {}))
    parts = losses(output, targets_BT, numbers.__getitem__, **recipe.loss_weights(), total=lambda x: summed(accelerator, x))
    optimizer.zero_grad()
    accelerator.backward(parts.total(n_processes))
    accelerator.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    counts = [accelerator.reduce(counts_E) for counts_E in parts.counts]
    if counts:  # a depth that looks further ahead than all lines of the batch are long has counted nothing
        counts += [torch.zeros_like(counts[0])] * (len(mixtures(whole)) - len(counts))
        update_biases(whole, counts, **({} if recipe.bias_speed is None else dict(speed=recipe.bias_speed)))
    return Update(
        loss=accelerator.reduce(parts.main.detach()).item(),
        mtp_loss=None if parts.mtp is None else accelerator.reduce(parts.mtp.detach()).item(),
        balance_loss=None if parts.balance is None else parts.balance.item(),
        router_load=router_load(whole, counts) if counts else None,
    )


def given(update: Update) -> dict:
    """What an update has, without what this model does not have."""
    return {name: value for name, value in asdict(update).items() if value is not None}


def summed(accelerator: Accelerator, x: Tensor) -> Tensor:
    """The sum over all processes, whose gradient flows into this process's part."""
    if accelerator.num_processes == 1:
        return x
    return x + (accelerator.reduce(x.detach().clone()) - x.detach())


def anywhere(accelerator: Accelerator, found: Sequence) -> bool:
    """Whether any process has found something: all must leave the loop at the same step."""
    if accelerator.num_processes == 1:
        return bool(found)
    return bool(accelerator.reduce(torch.tensor(len(found), device=accelerator.device)).item())


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
        saved = asdict(Recipe(**state["recipe"]))  # one saved before a setting was there has its default
    except (OSError, EOFError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: not a whole training state: begin the run anew in another folder") from error
    if changed := [f"{k}={saved[k]!r}, now {v!r}" for k, v in asdict(recipe).items() if saved[k] != v]:
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
        metrics = read_lines(out)
        (new / METRICS).write_text("".join(metrics), encoding="utf8")
        draw([json.loads(line) for line in metrics], new / PICTURE)
        (new / RECIPE).write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf8")


@contextmanager
def catching_interrupt(alone: bool = True):
    """Yields a list that is empty until Ctrl-C is pressed, so that a step is never cut in half; a second Ctrl-C kills.

    Not ``alone``, it does not: the launcher passes presses on, and ends what does not end in time.
    """
    presses: list[int] = []

    def note(*_) -> None:
        presses.append(1)
        if alone:
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
