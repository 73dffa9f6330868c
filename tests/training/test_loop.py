"""The training loop: what it computes, and that a killed run resumes bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from inspector.loading import load
from inspector.training.loop import (
    IGNORED,
    STATE,
    Recipe,
    batch_indices,
    build_model,
    inputs_and_targets,
    learning_rate_at,
    train,
    validation_loss,
)
from inspector.training.tokenizer import character_tokenizer
from inspector.verifying import verify

LINES = ["анна", "инна", "нина", "нинина", "ана", "инан", "аннина", "на"]
HELD_OUT = ["нан", "иннан"]
TINY = Recipe(corpus="test", d_model=16, n_layers=1, n_heads=2, steps=12, batch_size=3, warmup=3, dropout=0.2, seed=5)
KINDS = pytest.mark.parametrize("kind", ["expert", "qwen2"])


def finish(out, recipe=TINY, **options):
    return list(train(recipe, LINES, HELD_OUT, out, **({"evaluate_every": 5} | options)))


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


def test_a_real_kill_and_a_real_resume(tmp_path):
    """The same through the command, with SIGKILL."""
    (tmp_path / "lines.txt").write_text("\n".join(LINES))
    command = [sys.executable, "-m", "inspector", "train", "--corpus", str(tmp_path / "lines.txt"), "--d-model", "16", "--n-layers", "1"]
    command += ["--n-heads", "2", "--steps", "400", "--batch-size", "3", "--warmup", "3", "--evaluate-every", "20"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--out", tmp_path / "cut"], env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "cut" / STATE).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "cut" / STATE).exists() and not (tmp_path / "cut/model.safetensors").exists()
    for name, more in (("cut", ["--resume"]), ("whole", [])):
        subprocess.run([*command, "--out", tmp_path / name, *more], env=environment, check=True, capture_output=True)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


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
    ],
)
def test_impossible_recipes_are_errors(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        finish(tmp_path / "out", replace(TINY, **changes))
    assert not (tmp_path / "out").exists()


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
