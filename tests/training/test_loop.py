"""The training loop: what it computes, and that a killed run resumes bit for bit."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from inspect import signature
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from transformers import AutoModelForCausalLM

from inspector.cli import main
from inspector.compare.verifying import verify
from inspector.files import MANIFEST
from inspector.loading.loading import load
from inspector.models.variants import GATES, VARIANTS
from inspector.training.folder import METRICS, OWN, RESULT, STATE
from inspector.training.loop import (
    IGNORED,
    MODELS,
    Recipe,
    batch_indices,
    build_model,
    epoch_order,
    inputs_and_targets,
    learning_rate_at,
    train,
    validation_loss,
)
from inspector.training.tokenizer import character_tokenizer

LINES = ["анна", "инна", "нина", "нинина", "ана", "инан", "аннина", "на"]
HELD_OUT = ["нан", "иннан"]
TINY = Recipe(corpus="test", d_model=16, n_layers=1, n_heads=2, steps=12, batch_size=3, warmup=3, dropout=0.2, seed=5)
KINDS = pytest.mark.parametrize("kind", ["expert", "qwen2"])


def finish(out, recipe=TINY, **options):
    return list(train(recipe, LINES, HELD_OUT, out, **({"evaluate_every": 5} | options)))


def timeless(out):
    """The metrics of a run, without what depends on the machine's mood."""
    rows = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    assert all(row.pop("tokens_per_second") > 0 for row in rows)
    return rows


def weights(out):
    return load_file(out / "model.safetensors")


@KINDS
def test_killed_and_resumed_gives_bitwise_the_weights_of_an_uninterrupted_run(tmp_path, kind):
    recipe = replace(TINY, model=kind)
    finish(tmp_path / "whole", recipe)
    for progress in train(recipe, LINES, HELD_OUT, tmp_path / "cut", evaluate_every=5):
        if progress.step == 8:  # three steps after the state of step 5 was saved: as a kill would leave it
            break
    torch.manual_seed(99)  # whatever ran in between must not matter
    resumed = finish(tmp_path / "cut", recipe, resume=True)
    assert [p.step for p in resumed] == list(range(6, 13))
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)
    assert (tmp_path / "whole/recipe.json").read_text() == (tmp_path / "cut/recipe.json").read_text()
    assert timeless(tmp_path / "whole") == timeless(tmp_path / "cut")
    assert [row["step"] for row in timeless(tmp_path / "cut")] == list(range(1, 13))


def test_a_real_kill_and_a_real_resume(tmp_path, monkeypatch):
    """The same through the command, with SIGKILL between two validations: every step stands in the metrics once."""
    (tmp_path / "lines.txt").write_text("\n".join(LINES))
    command = [sys.executable, "-m", "inspector", "train", "--corpus", str(tmp_path / "lines.txt"), "--d-model", "16", "--n-layers", "1"]
    command += ["--n-heads", "2", "--steps", "150", "--batch-size", "3", "--warmup", "3", "--evaluate-every", "60"]
    command += ["--model", "gpt-moe"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--out", tmp_path / "cut"], env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    metrics = tmp_path / "cut" / METRICS
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) > 65) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert torch.load(tmp_path / "cut" / STATE, weights_only=True)["step"] == 60 < len(metrics.read_text().splitlines()) < 120
    assert not (tmp_path / "cut/model.safetensors").exists()
    metrics.write_text(metrics.read_text() + '{"step": 99, "lo')  # as a kill in the middle of a line leaves it
    for name, more in (("cut", ["--resume"]), ("whole", [])):
        monkeypatch.setattr(sys, "argv", ["inspector", *command[3:], "--out", str(tmp_path / name), *more])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    whole, cut = (timeless(tmp_path / name) for name in ("whole", "cut"))
    assert [row["step"] for row in cut] == list(range(1, 151)) and cut == whole


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_the_step_saves_the_state_and_can_be_resumed(tmp_path):
    steps = []
    with pytest.raises(KeyboardInterrupt):
        for progress in train(TINY, LINES, HELD_OUT, tmp_path / "out", evaluate_every=100):
            steps.append(progress.step)
            if progress.step == 4:
                os.kill(os.getpid(), signal.SIGINT)
    assert steps == [1, 2, 3, 4]
    assert torch.load(tmp_path / "out" / STATE, weights_only=True)["step"] == 4
    assert finish(tmp_path / "out", resume=True)[0].step == 5
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_seed_gives_other_weights(tmp_path):
    finish(tmp_path / "a")
    finish(tmp_path / "b", replace(TINY, seed=6))
    assert not torch.equal(weights(tmp_path / "a")["lm_head.weight"], weights(tmp_path / "b")["lm_head.weight"])


@KINDS
def test_the_result_loads_splits_and_is_bitwise(tmp_path, kind):
    finish(tmp_path / "out", replace(TINY, model=kind))
    m = load(str(tmp_path / "out"))
    assert m.stop_ids == (m.tokenizer.eos_token_id,)
    assert m.tokenizer.decode(m.encode("анна"), skip_special_tokens=True) == "анна"
    assert verify(m, m.encode("ан")).level == "bitwise"
    assert not (tmp_path / "out" / STATE).exists()
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "out")).__name__ == type(m.model).__name__


def test_recipe_and_losses_lie_beside_the_weights(tmp_path):
    progress = finish(tmp_path / "out")
    report = json.loads((tmp_path / "out/recipe.json").read_text())
    assert Recipe(**report["recipe"]) == TINY
    assert [row["step"] for row in report["losses"]] == [5, 10, 12]
    assert report["losses"][-1]["validation"] == progress[-1].validation_loss
    assert report["items"] == {"train": 8, "validation": 2}


@KINDS
def test_it_learns(tmp_path, kind):
    losses = [p.loss for p in finish(tmp_path / "out", replace(TINY, model=kind, steps=120, learning_rate=5e-3, dropout=0.0))]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_validation_loss_is_the_mean_over_all_characters_and_not_over_batches():
    """The reference: each row alone through transformers' own loss, weighted by its number of targets."""
    tokenizer = character_tokenizer(LINES)
    model = build_model(TINY, tokenizer, 64)
    rows = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(LINES).input_ids]
    model.eval()
    total = count = 0
    for row in rows:
        ids = torch.tensor([row])
        total += model(input_ids=ids, labels=ids).loss.item() * (len(row) - 1)
        count += len(row) - 1
    model.train()
    assert validation_loss(model, rows, tokenizer.pad_token_id, batch_size=3) == pytest.approx(total / count, rel=1e-6)
    assert model.training


def test_targets_are_the_next_tokens_and_padding_counts_in_no_loss():
    inputs, targets = inputs_and_targets([[1, 7, 8, 2], [1, 9, 2]], pad_token_id=0)
    assert inputs.tolist() == [[1, 7, 8], [1, 9, 0]]
    assert targets.tolist() == [[7, 8, 2], [9, 2, IGNORED]]


def test_padding_changes_no_loss():
    tokenizer = character_tokenizer(LINES)
    model = build_model(TINY, tokenizer, 64).eval()
    short, long = ([*tokenizer(text).input_ids, tokenizer.eos_token_id] for text in ("ан", "анинина"))
    inputs, targets = inputs_and_targets([short, long], tokenizer.pad_token_id)
    together = F.cross_entropy(model(input_ids=inputs).logits[0], targets[0], ignore_index=IGNORED, reduction="sum")
    alone, target = inputs_and_targets([short], tokenizer.pad_token_id)
    torch.testing.assert_close(together, F.cross_entropy(model(input_ids=alone).logits[0], target[0], reduction="sum"))


def test_every_epoch_holds_every_item_once_and_epochs_differ():
    seen = [i for step in range(8) for i in batch_indices(step, n_items=12, batch_size=3, seed=1)]
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    assert seen[:12] != seen[12:]
    across = batch_indices(1, n_items=4, batch_size=3, seed=1)  # the end of one epoch and the beginning of the next
    assert len(across) == 3


def test_steps_take_the_items_of_the_endless_row_of_epochs():
    """Item by item, each epoch's order drawn anew: batches within an epoch, across two, and of several."""
    for n_items, batch_size in [(12, 3), (4, 3), (3, 8), (1, 2), (5, 5)]:
        row = []
        for epoch in range(6 * batch_size // n_items + 1):
            row += torch.randperm(n_items, generator=torch.Generator().manual_seed(2 + 7919 * epoch)).tolist()
        for step in (0, 1, 2, 5, 3):  # a resumed run begins anywhere
            assert batch_indices(step, n_items, batch_size, seed=2) == row[step * batch_size : (step + 1) * batch_size]


def test_the_order_of_an_epoch_is_drawn_once_and_after_a_resumption_once_more(tmp_path, monkeypatch):
    drawn = []

    def randperm(n_items, **options):
        if n_items == len(LINES):
            drawn.append(options["generator"].initial_seed())
        return own(n_items, **options)

    own = torch.randperm
    monkeypatch.setattr(torch, "randperm", randperm)
    epoch_order.cache_clear()
    finish(tmp_path / "whole")  # 12 steps of 3 of 8 lines: four epochs and a half
    assert drawn == [TINY.seed + 7919 * epoch for epoch in range(5)]
    for progress in train(TINY, LINES, HELD_OUT, tmp_path / "cut", evaluate_every=5):
        if progress.step == 7:
            break
    epoch_order.cache_clear()  # as in a new process
    drawn.clear()
    finish(tmp_path / "cut", resume=True)  # from step 5, in the second epoch
    assert drawn == [TINY.seed + 7919 * epoch for epoch in range(1, 5)]
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole) and timeless(tmp_path / "cut") == timeless(tmp_path / "whole")


def test_the_learning_rate_warms_up_and_falls_as_a_cosine():
    recipe = Recipe(steps=110, warmup=10, learning_rate=1.0)
    rates = [learning_rate_at(step, recipe) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0 and rates[60] == pytest.approx(0.55) and 0.1 < rates[-1] < 0.101
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model="gpt5"), "model 'gpt5'"),
        (dict(n_heads=3), "not a multiple"),
        (dict(dropout=1.0), "dropout=1.0"),
        (dict(steps=0), "steps=0"),
        (dict(learning_rate=0.0), "learning_rate=0.0"),
        (dict(max_seq_len=4), "max_seq_len=4"),
        (dict(warmup=-1), "warmup=-1"),
        (dict(seed=-5), "seed=-5"),
        (dict(d_ff=0), "d_ff=0"),
        (dict(weight_decay=-0.1), "weight_decay=-0.1"),
        (dict(model="qwen2", d_model=6), "odd width"),
        (dict(mixed_precision="fp8"), "mixed_precision='fp8'"),
        (dict(w_load=0.1), "w_load=0.1: model expert has no such setting"),
        (dict(model="gpt", w_mtp=0.1), "w_mtp=0.1: model gpt has no such setting"),
        (dict(model="gpt-moe", w_importance=-1.0), "w_importance=-1.0"),
        *[
            (dict(model=model, **{name: value}), f"^{name}={value}: give a number from")
            for model, name, least in (
                ("qwen2", "n_kv_heads", 1),
                ("gpt", "n_kv_heads", 1),
                ("gpt-moe", "n_experts", 1),
                ("gpt-moe", "n_chosen", 1),
                ("gpt-moe", "n_shared_experts", 0),
                ("gpt-mla", "kv_lora_rank", 1),
                ("gpt-mla", "q_lora_rank", 1),
                ("gpt-mtp", "mtp_depth", 1),
            )
            for value in (least - 1, -7)
        ],
        (dict(model="qwen2", n_kv_heads=3), "n_heads=2 is not a multiple of n_kv_heads=3"),
        (dict(model="gpt-mtp", n_kv_heads=4), "n_heads=2 is not a multiple of n_kv_heads=4"),
        (dict(model="gpt-moe", d_model=6), "odd width"),
        (dict(model="gpt-moe", n_chosen=5), "n_chosen=5: there are n_experts=4"),
        (dict(model="gpt-moe", n_experts=1), "n_chosen=2: there are n_experts=1"),
        (dict(model="gpt-moe", gate="wide"), "gate='wide': choose one of noisy, balanced"),
        (dict(model="gpt-moe", gate="balanced", n_chosen=1), "n_chosen=1"),
        (dict(model="gpt-moe", bias_speed=0.1), "balanced gate alone"),
        (dict(model="gpt-moe", gate="balanced", w_load=0.1), "noisy gate alone"),
    ],
)
def test_impossible_recipes_are_errors(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        finish(tmp_path / "out", replace(TINY, **changes))
    assert not (tmp_path / "out").exists()


def test_a_recipe_has_the_gates_and_numbers_of_experts_of_the_builder():
    tokenizer, told = character_tokenizer(LINES), signature(VARIANTS["gpt-moe"]).parameters
    for gate, n_experts, n_chosen in itertools.product([*GATES, None], (None, 1, 2, 3), (None, 1, 2, 3)):
        asked = {"n_experts": n_experts, "n_chosen": n_chosen, "gate": gate}
        full = {name: told[name].default if value is None else value for name, value in asked.items()}
        try:
            recipe = replace(TINY, model="gpt-moe", **asked)
        except ValueError:
            with pytest.raises(ValueError):
                VARIANTS["gpt-moe"](vocab_size=9, d_model=16, n_heads=2, n_layers=1, **full)
        else:
            build_model(recipe, tokenizer, 16)


@pytest.mark.parametrize("name", RESULT)
@pytest.mark.parametrize("kind", ["a file", "a folder", "a link"])
def test_what_is_where_the_result_must_come_is_told_before_a_step_is_made(tmp_path, name, kind):
    next(train(TINY, LINES, HELD_OUT, tmp_path / "cut", evaluate_every=1))
    place = tmp_path / "cut" / name
    if kind != "a folder" and name in OWN:
        return
    place.unlink(missing_ok=True)
    {"a file": Path.touch, "a folder": Path.mkdir, "a link": lambda path: path.symlink_to("nowhere")}[kind](place)
    before = {path: path.read_bytes() for path in (tmp_path / "cut").iterdir() if path.is_file()}
    with pytest.raises(ValueError, match=f"{re.escape(str(place))} was not written by inspector: move it away"):
        train(TINY, LINES, HELD_OUT, tmp_path / "cut", resume=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "cut").iterdir() if path.is_file()}


@KINDS
def test_the_files_of_a_result_are_those_that_are_looked_for_before(tmp_path, kind):
    finish(tmp_path / "out", replace(TINY, model=kind))
    assert set(json.loads((tmp_path / "out" / MANIFEST).read_text())["files"]) == set(RESULT)


def test_a_run_killed_before_its_first_validation_resumes_from_the_beginning(tmp_path):
    finish(tmp_path / "whole")
    next(train(TINY, LINES, HELD_OUT, tmp_path / "cut", evaluate_every=5))
    assert [p.step for p in finish(tmp_path / "cut", resume=True)] == list(range(1, 13))
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["expert", "qwen2", "gpt", "gpt-mla"])
def test_a_model_without_experts_and_further_predictions_trains_as_a_plain_loop_bit_for_bit(tmp_path, kind):
    """The loop as one would write it: one loss, PyTorch's own mean over the real targets, no accelerate."""
    recipe = replace(TINY, model=kind)
    progress = finish(tmp_path / "out", recipe)
    tokenizer = character_tokenizer(LINES)
    model = build_model(recipe, tokenizer, 64).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=recipe.weight_decay, betas=(0.9, 0.99))
    rows = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(LINES).input_ids]
    for step in range(recipe.steps):
        inputs, targets = inputs_and_targets([rows[i] for i in batch_indices(step, 8, 3, recipe.seed)], tokenizer.pad_token_id)
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, recipe)
        loss = F.cross_entropy(model(input_ids=inputs).logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        assert loss.item() == progress[step].loss
    state = model.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in weights(tmp_path / "out").items())
    assert progress[-1].balance_loss is progress[-1].mtp_loss is progress[-1].router_load is None


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_gradient_checkpointing_changes_no_bit_of_the_weights(tmp_path, kind, precision):
    """Activations of each block are computed again, with the same draws of dropout and of the gates' noise."""
    recipe = replace(TINY, model=kind, n_layers=2, mixed_precision=precision, steps=4)
    kept = finish(tmp_path / "kept", recipe)
    again = finish(tmp_path / "again", recipe, gradient_checkpointing=True)
    assert [p.loss for p in kept] == [p.loss for p in again]
    kept, again = weights(tmp_path / "kept"), weights(tmp_path / "again")
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    assert (tmp_path / "kept/config.json").read_text() == (tmp_path / "again/config.json").read_text()


def test_gradient_checkpointing_computes_blocks_twice(tmp_path):
    calls = []
    handle = register_module_forward_pre_hook(lambda module, *_: calls.append(type(module).__name__))
    try:
        for again in (False, True):
            finish(tmp_path / str(again), replace(TINY, steps=1, n_layers=3), gradient_checkpointing=again)
            calls.append(again)
    finally:
        handle.remove()
    kept, again = calls[: calls.index(False)], calls[calls.index(False) + 1 :]
    assert again.count("Block") == kept.count("Block") + 3


@pytest.mark.parametrize("kind", ["expert", "gpt-moe-mla-mtp"])
def test_bf16_trains_in_bf16_with_weights_in_float32(tmp_path, kind):
    recipe = replace(TINY, model=kind, dropout=0.0, mixed_precision="bf16", steps=60, learning_rate=5e-3)
    kinds = set()
    handle = register_module_forward_hook(
        lambda module, inputs, output: kinds.add(output.dtype) if isinstance(module, torch.nn.Linear) else None
    )
    try:
        mixed = finish(tmp_path / "mixed", recipe, evaluate_every=60)
    finally:
        handle.remove()
    assert kinds == {torch.bfloat16}
    assert {weight.dtype for weight in weights(tmp_path / "mixed").values()} == {torch.float32}
    plain = finish(tmp_path / "plain", replace(recipe, mixed_precision="no"), evaluate_every=60)
    assert 0 < abs(plain[0].loss - mixed[0].loss) < 0.02  # the same weights, read with 8 bits
    assert mixed[-1].loss < 0.75 * mixed[0].loss
    assert load(str(tmp_path / "mixed")).dtype == torch.float32


def test_a_precision_that_the_device_does_not_have_is_refused(tmp_path):
    if torch.accelerator.is_available():
        pytest.skip("the device has it")
    with pytest.raises(ValueError, match="mixed_precision='fp16' is not for the device cpu"):
        finish(tmp_path / "out", replace(TINY, mixed_precision="fp16"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["gpt-moe", "gpt-mtp", "gpt-moe-mla-mtp"])
@pytest.mark.parametrize("changes", [dict(w_importance=1.0), dict(w_load=1.0), dict(w_mtp=1.0)])
def test_every_weight_of_a_loss_changes_the_weights_and_not_the_loss_that_is_told(tmp_path, kind, changes):
    needed = "mtp" if "w_mtp" in changes else "moe"
    if needed not in kind:
        pytest.skip("it has no such loss")
    recipe = replace(TINY, model=kind, steps=2)
    a, b = finish(tmp_path / "a", recipe), finish(tmp_path / "b", replace(recipe, **changes))
    assert a[0].loss == b[0].loss and a[0].mtp_loss == b[0].mtp_loss
    assert (a[0].balance_loss == b[0].balance_loss) == (needed == "mtp")
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_the_bias_of_the_balanced_gate_moves_against_the_load(tmp_path):
    """One step from zero: by the speed, down for experts that had more than the mean, up for the others."""
    progress = finish(tmp_path / "out", replace(TINY, model="gpt-moe", gate="balanced", steps=1, bias_speed=0.25))
    [load] = progress[0].router_load.values()
    bias = weights(tmp_path / "out")["backbone.layers.0.mlp.gate.e_score_correction_bias"]
    assert bias.tolist() == [0.25 * ((share < 0.25) - (share > 0.25)) for share in load]
    assert len(set(bias.tolist())) > 1 and progress[0].balance_loss == 0.0


def test_lines_too_short_for_a_depth_leave_its_experts_without_a_count(tmp_path):
    recipe = replace(TINY, model="gpt-moe-mla-mtp", gate="balanced", mtp_depth=3, steps=2)
    *_, last = train(recipe, ["а", "н", "и", "а"], [], tmp_path / "out", evaluate_every=5)
    assert list(last.router_load) == ["layers.0.mlp", "mtp.0.block.mlp", "mtp.1.block.mlp", "mtp.2.block.mlp"]
    assert sum(last.router_load["mtp.0.block.mlp"]) == pytest.approx(1) and set(last.router_load["mtp.2.block.mlp"]) == {0.0}


def test_nothing_that_exists_is_overwritten_or_mixed_up(tmp_path):
    finish(tmp_path / "out")
    before = weights(tmp_path / "out")
    with pytest.raises(ValueError, match="not an empty folder"):
        finish(tmp_path / "out")
    with pytest.raises(ValueError, match="nothing to resume"):
        finish(tmp_path / "new", resume=True)
    assert all(torch.equal(before[name], weight) for name, weight in weights(tmp_path / "out").items())
    next(train(TINY, LINES, HELD_OUT, tmp_path / "cut", evaluate_every=1))
    with pytest.raises(ValueError, match=r"another recipe.*dropout=0\.2, now 0\.0"):
        finish(tmp_path / "cut", replace(TINY, dropout=0.0), resume=True)
    with pytest.raises(ValueError, match="another corpus"):
        next(train(TINY, LINES[1:], HELD_OUT, tmp_path / "cut", resume=True))
    (tmp_path / "cut" / STATE).write_bytes((tmp_path / "cut" / STATE).read_bytes()[:200])
    with pytest.raises(ValueError, match="not a whole training state"):
        finish(tmp_path / "cut", resume=True)


def test_a_finished_run_is_left_as_it_is_when_resumed(tmp_path):
    finish(tmp_path / "out")
    before = (tmp_path / "out/model.safetensors").read_bytes()
    assert finish(tmp_path / "out", resume=True) == []
    assert (tmp_path / "out/model.safetensors").read_bytes() == before


def test_another_validation_file_is_another_corpus(tmp_path):
    next(train(TINY, LINES, HELD_OUT, tmp_path / "cut", evaluate_every=1))
    with pytest.raises(ValueError, match="another corpus"):
        next(train(TINY, LINES, ["аннина" * 30], tmp_path / "cut", resume=True))


@KINDS
@pytest.mark.parametrize("changes", [dict(clip=1e-4), dict(weight_decay=50.0), dict(dropout=0.0), dict(warmup=0)])
def test_every_part_of_the_recipe_changes_the_weights(tmp_path, kind, changes):
    recipe = replace(TINY, model=kind)
    finish(tmp_path / "a", recipe)
    finish(tmp_path / "b", replace(recipe, **changes))
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert any(not torch.equal(a[name], b[name]) for name in a)


@KINDS
def test_a_first_step_moves_no_weight_by_more_than_the_rate(tmp_path, kind):
    """AdamW's first step is rate · sign(gradient) where there is no decay: a check of warm-up and optimizer together."""
    recipe = replace(TINY, model=kind, steps=1, weight_decay=0.0, warmup=4, learning_rate=0.04)
    tokenizer = character_tokenizer(LINES)
    start = {name: weight.clone() for name, weight in build_model(recipe, tokenizer, 64).state_dict().items()}
    finish(tmp_path / "out", recipe)
    moved = max(float((start[name] - weight).abs().max()) for name, weight in weights(tmp_path / "out").items())
    assert moved == pytest.approx(0.01, rel=1e-2)


def test_qwen2_drops_out_after_the_embedding_and_each_sublayer_while_training_only():
    """With dropout 0.9 nearly all outputs of these modules are zero in training, and none in evaluation."""
    tokenizer = character_tokenizer(LINES)
    model = build_model(replace(TINY, model="qwen2", dropout=0.9), tokenizer, 64)
    zeros = {}
    for name, module in model.named_modules():
        if name.endswith(("embed_tokens", "o_proj", "down_proj")):
            module.register_forward_hook(lambda m, i, out, name=name: zeros.__setitem__(name, float((out == 0).float().mean())))
    ids = torch.tensor([tokenizer("аннинина").input_ids * 8])[:, :60]
    model.train()(input_ids=ids)
    assert len(zeros) == 3 and all(share > 0.8 for share in zeros.values())
    model.eval()(input_ids=ids)
    assert all(share < 0.1 for share in zeros.values())
