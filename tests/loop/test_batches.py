"""Many prompts: each as if it were alone, whatever stands beside it in the batch and however many processes share the work."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from inspector.cli import main
from inspector.cli.options import read_prompts
from inspector.compare.verifying import by_generate
from inspector.loading.loaded import attach
from inspector.loading.texts import Texts
from inspector.loop import batches as batches_module
from inspector.loop.batches import Processes, run_prompts
from inspector.loop.decoding import Row, next_logits, next_logits_of_rows, run, side_by_side
from inspector.loop.sampling import new_generator
from inspector.parts.splitting import Split
from inspector.parts.watching import close
from inspector.records.as_json import from_json
from inspector.records.generation import Run, Sampling

PROMPTS = ["аба", "в", "где", "жзиклмн", "", "прст", "ба"]
SAMPLED = Sampling(temperature=0.9, top_k=20, top_p=0.95, repetition_penalty=1.1, seed=5)


def untimed(record):
    """A run without the seconds of its steps."""
    return replace(record, steps=tuple(replace(step, seconds=0, recording_seconds=0) for step in record.steps))


def encoded(m, prompts=PROMPTS):
    return [m.encode(prompt) for prompt in prompts]


@pytest.mark.parametrize("kind", ["expert", "qwen2"])
def test_rows_of_any_length_have_the_logits_that_they_have_alone(tiny, kind):
    m = tiny(kind)
    rows = [torch.tensor(ids) for ids in encoded(m)]
    alone = torch.stack([next_logits(m.split, row[None]) for row in rows])
    # Padding changes the shapes of the products, and with them the order of additions: rounding, no more.
    torch.testing.assert_close(next_logits_of_rows(m.split, rows), alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(next_logits_of_rows(replace(m.split, last_alone=False), rows), alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(next_logits_of_rows(m.split, rows[:1]), alone[:1])


def test_rows_of_a_model_that_reads_both_ways_run_one_by_one(tiny):
    """A backbone in which padding would be seen: every position gets the sum over all."""
    m = tiny("qwen2")
    both_ways = replace(m.split, backbone=lambda ids: m.split.backbone(ids).cumsum(1).flip(1), causal=False)
    rows = [torch.tensor(ids) for ids in encoded(m)]
    alone = torch.stack([next_logits(both_ways, row[None]) for row in rows])
    assert torch.equal(next_logits_of_rows(both_ways, rows), alone)
    assert not torch.allclose(next_logits_of_rows(replace(both_ways, causal=True), rows), alone, atol=1e-2)


ROPE = {
    "plain": dict(rope_type="default", rope_theta=1e4),
    "longrope": dict(
        rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 4, long_factor=[4.0] * 4, original_max_position_embeddings=16
    ),
    "dynamic": dict(rope_type="dynamic", rope_theta=1e4, factor=4.0),
}


def model_with(rope: str):
    """A new tiny model of transformers that reads 64 tokens: Phi-3 with LongRoPE over 16 original positions, else a Llama."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    sizes |= dict(vocab_size=50, initializer_range=0.5, pad_token_id=0, bos_token_id=None, eos_token_id=None)
    if rope == "longrope":
        config = Phi3Config(**sizes, max_position_embeddings=64, original_max_position_embeddings=16, rope_parameters=ROPE[rope])
        return attach(Phi3ForCausalLM(config))
    config = LlamaConfig(**sizes, max_position_embeddings=16 if rope == "dynamic" else 64, rope_parameters=ROPE[rope])
    return replace(attach(LlamaForCausalLM(config)), context_length=64)


def prompts_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(1, 50, (length,), generator=generator).tolist() for length in lengths]


def shapes_read(m) -> list[tuple]:
    """A list that grows with the shape of every input of the backbone."""
    shapes = []
    m.model.get_submodule(m.split.backbone_name).register_forward_pre_hook(
        lambda module, args, options: shapes.append(tuple((args[0] if args else options["input_ids"]).shape)), with_kwargs=True
    )
    return shapes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rope", "lengths"),
    [("longrope", (8, 30)), ("longrope", (30, 8, 9)), ("longrope", (8, 15)), ("dynamic", (8, 30)), ("dynamic", (40, 20, 30))],
)
def test_rows_of_a_model_that_looks_at_the_padded_length_run_one_by_one(rope, lengths, dtype):
    """Bit for bit as in a model that has read nothing else: what a longer row leaves behind in it does not count either."""

    def new():
        m = model_with(rope)
        return replace(m, model=m.model.to(dtype))

    prompts, greedy = prompts_of(*lengths), Sampling(temperature=0)
    alone = [run(new(), ids, replace(greedy, seed=i), 6) for i, ids in enumerate(prompts)]
    for batch_size in (len(prompts), 8):
        assert list(map(untimed, run_prompts(new(), prompts, greedy, 6, batch_size))) == list(map(untimed, alone))
    m = new()
    rows = [torch.tensor(ids) for ids in prompts]
    alone = torch.stack([next_logits(new().split, row[None]) for row in rows])
    apart = float((next_logits_of_rows(m.split, rows) - alone).abs().max() / alone.abs().max())
    assert apart > 0.03 or lengths == (8, 15)  # these part later, when the longer one has crossed the length


@pytest.mark.parametrize(
    ("rope", "lengths", "batches"),
    [("plain", (8, 30), 1), ("longrope", (20, 30), 1), ("longrope", (3, 8), 1), ("dynamic", (3, 8), 1), ("plain", (8, 30, 9, 20), 2)],
)
def test_asking_costs_two_passes_of_the_batch_two_of_each_row_and_some_of_one(rope, lengths, batches):
    m = model_with(rope)
    shapes = shapes_read(m)
    run_prompts(m, prompts_of(*lengths), Sampling(temperature=0), 6, batch_size=2)
    short, long = min(lengths), max(lengths)
    asked = shapes[: -6 * batches]
    assert [shape for shape in asked if shape[0] > 1] == [(2, long), (2, long + 5)]  # the last new token is not read
    of_rows = [(1, short), (1, short + 5), (1, long), (1, long + 5)]
    assert set(of_rows) < set(asked) and len(asked) <= 1 + 2 + len(of_rows) + batches_module.LENGTHS
    assert shapes[-6 * batches :] == [(2, max(lengths[j : j + 2]) + i) for j in range(0, len(lengths), 2) for i in range(6)]


def test_many_rows_are_asked_at_sizes_that_double_and_a_last_batch_of_fewer_by_itself():
    m = model_with("plain")
    shapes = shapes_read(m)
    run_prompts(m, prompts_of(1, *[30] * 10), Sampling(temperature=0), 20, batch_size=9)
    sizes = [shape for shape in shapes if shape[0] > 1]
    assert sizes == [(2, 30), (4, 30), (8, 30), (9, 30), (9, 49), *((9, 30 + i) for i in range(20)), (2, 30), (2, 49), *sizes[-20:]]
    assert shapes.count((1, 30)) == shapes.count((1, 49)) == 8 + 2 and shapes.count((1, 20)) == 1


@pytest.mark.parametrize(("least", "most"), [(1, 1), (3, 3), (1, 12), (8, 35), (1, 2000), (900, 5000)])
def test_lengths_between_two_leave_no_gap_of_a_large_share(least, most):
    found = batches_module.between(least, most)
    assert found[0] == least and found[-1] == most and len(found) <= batches_module.LENGTHS
    factor = (most / least) ** (1 / (batches_module.LENGTHS - 1))
    assert all(b <= a * factor + 1 for a, b in pairwise(found))


def test_a_batch_of_one_row_is_not_asked():
    m = model_with("longrope")
    shapes = shapes_read(m)
    run_prompts(m, prompts_of(8, 30), Sampling(temperature=0), 6, batch_size=1)
    run_prompts(m, prompts_of(30), Sampling(temperature=0), 6)
    assert len(shapes) == 3 * 6


def test_batches_are_asked_one_by_one_only_where_all_prompts_together_would_part():
    m = model_with("longrope")
    shapes = shapes_read(m)
    run_prompts(m, prompts_of(8, 9, 30, 31), Sampling(temperature=0), 4, batch_size=2)
    asked, steps = lambda longest: [longest, longest + 3], lambda longest: [longest + i for i in range(4)]
    in_both_precisions = [*asked(31), *asked(31)]
    assert [length for rows, length in shapes if rows == 2] == [*in_both_precisions, *asked(9), *steps(9), *asked(31), *steps(31)]


def test_rows_that_other_rows_change_run_one_by_one(tiny):
    """Padding is not all that a batch brings: here every number is less the mean over the rows."""
    m = tiny("qwen2")
    backbone = m.split.backbone
    mixing = replace(m, split=replace(m.split, backbone=lambda ids: backbone(ids) - backbone(ids).mean((0, 1), keepdim=True) / 2))
    prompts = [m.encode("аба"), m.encode("где")]
    alone = [run(mixing, ids, Sampling(temperature=0, seed=i), 5) for i, ids in enumerate(prompts)]
    assert list(map(untimed, run_prompts(mixing, prompts, Sampling(temperature=0), 5))) == list(map(untimed, alone))


def changed_by(what: str, x_BTD):
    """What a model that looks at the shape of its batch may make of its hidden states."""
    rows, length = x_BTD.shape[:2]
    late_T = (torch.arange(length) >= 6)[:, None]
    acts = {
        "later positions by the length": 0.05 * length * late_T,
        "later positions by the length, once long": 0.05 * (length >= 14) * late_T,
        "two rows or more": 0.2 * (rows >= 2),
        "three rows or more": 0.2 * (rows >= 3),
        "two rows, of three": 0.2 * (rows == 2),
        "lengths 10 and 11": 0.2 * (length in (10, 11)),
        "odd lengths": 0.2 * (length % 2),
        "every fourth length": 0.2 * (length % 4 == 1),
        "the last row": 0.2 * (torch.arange(rows) == rows - 1)[:, None, None],
        "any row but the first": 0.2 * (torch.arange(rows) > 0)[:, None, None],
        "the other rows' last token": 0.2 * (x_BTD[:, -1:].sum(0) - x_BTD[:, -1:]),
    }
    return x_BTD * (1 + acts[what])


@pytest.mark.parametrize("lengths", [(2, 9, 20), (20, 2, 9), (9, 2), (5, 12, 1, 12)])
@pytest.mark.parametrize(
    "what",
    [
        *("later positions by the length", "later positions by the length, once long", "two rows or more", "three rows or more"),
        *("two rows, of three", "lengths 10 and 11", "odd lengths", "every fourth length", "the last row"),
        *("any row but the first", "the other rows' last token"),
    ],
)
@pytest.mark.parametrize("new_tokens", [3, 4])
def test_whatever_of_its_batch_a_model_looks_at_its_rows_run_one_by_one(what, lengths, new_tokens):
    m = model_with("plain")
    m.model.model.norm.register_forward_hook(lambda module, args, output: changed_by(what, output))
    prompts, greedy = prompts_of(*lengths), Sampling(temperature=0)
    made = run_prompts(m, prompts, greedy, new_tokens)
    for i, (ids, one) in enumerate(zip(prompts, made, strict=True)):
        alone = run(m, ids, replace(greedy, seed=i), new_tokens)
        logits, logits_alone = ([c.logit for step in record.steps for c in step.candidates] for record in (one, alone))
        # Some run together here, where nothing that they look at comes up: those round.
        torch.testing.assert_close(torch.tensor(logits), torch.tensor(logits_alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lengths", [(1, 12, 30), (1, 20), (20, 1), (1, 1, 40)])
@pytest.mark.parametrize("rope", ["longrope", "dynamic"])
@pytest.mark.parametrize("token", [None, 5])
def test_a_prompt_of_one_token_which_sees_no_angle_is_asked_where_it_has_more(rope, lengths, token):
    """Alone in front of the model, a token attends to itself whatever its angle; likewise the same token over and over."""
    prompts = [ids if token is None else [token] * len(ids) for ids in prompts_of(*lengths)]
    greedy = Sampling(temperature=0)
    alone = [run(model_with(rope), ids, replace(greedy, seed=i), 20) for i, ids in enumerate(prompts)]
    m = model_with(rope)
    run(m, prompts_of(44)[0], greedy, 20)  # what an earlier run has left in the model is no matter either
    assert list(map(untimed, run_prompts(m, prompts, greedy, 20))) == list(map(untimed, alone))


def test_large_rounding_is_told_from_a_difference_in_float64(tiny, monkeypatch):
    """What a pass is apart in float32 by the order of its additions alone, it is not in float64."""
    m, asked = tiny("qwen2"), []
    cast = batches_module.in_dtype
    monkeypatch.setattr(batches_module, "in_dtype", lambda *args, **options: asked.append(args[1]) or cast(*args, **options))
    monkeypatch.setattr(batches_module, "close", lambda a, b: a.dtype == torch.float64 and close(a, b))
    monkeypatch.setattr(batches_module, "alike", lambda a, b: False)
    before = {name: weight.clone() for name, weight in m.model.state_dict().items()}
    rows = [torch.tensor(ids) for ids in encoded(m)]
    assert batches_module.as_alone(m, rows, 6) and asked == [torch.float64]
    assert all(torch.equal(before[name], weight) for name, weight in m.model.state_dict().items())
    monkeypatch.setattr(batches_module, "in_dtype", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no float64 here")))
    assert not batches_module.as_alone(m, rows, 6)  # what cannot be told goes the safe way


def test_a_model_that_does_not_read_as_much_as_was_asked_for_still_runs_until_it_stops(tiny):
    """It does not say how much it reads, and its stop token comes before that."""
    m = tiny("qwen2")
    backbone = m.split.backbone

    def short(ids_BT):
        if ids_BT.shape[1] > 16:
            raise IndexError("index out of range in self")
        return backbone(ids_BT)

    m = replace(m, context_length=None, split=replace(m.split, backbone=short))
    prompts, sampling = [m.encode("аба"), m.encode("в")], Sampling(seed=1)
    alone = [run(m, ids, replace(sampling, seed=1 + i), 5) for i, ids in enumerate(prompts)]
    m = replace(m, stop_ids=tuple({made.steps[-1].token.id for made in alone}))
    made = run_prompts(m, prompts, sampling, 200)
    assert {one.stop_reason for one in made} == {"eos"}
    assert [one.text for one in made] == [run(m, ids, replace(sampling, seed=1 + i), 200).text for i, ids in enumerate(prompts)]


@pytest.mark.slow
def test_rows_of_any_length_have_the_logits_that_they_have_alone_in_every_type_of_model():
    from inspector.bench.tiny import tiny_model, types
    from inspector.parts.splitting import split

    checked = 0
    for kind in types():
        try:
            parts = split(tiny_model(kind))
        except Exception:  # what cannot be built or split is no matter of batches
            continue
        generator = torch.Generator().manual_seed(1)
        rows = [torch.randint(3, 90, (length,), generator=generator) for length in (3, 13, 7, 7)]
        alone = torch.stack([next_logits(parts, row[None]) for row in rows])
        difference = float((next_logits_of_rows(parts, rows) - alone).abs().max())
        assert difference <= 1e-4 * float(alone.abs().max()), f"{kind}: {difference}"
        checked += 1
    assert checked > 150


@pytest.mark.parametrize("kind", ["expert", "qwen2"])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_greedy_tokens_are_those_of_generate_prompt_by_prompt(tiny, kind, batch_size):
    m = tiny(kind)
    greedy = Sampling(temperature=0)
    runs = run_prompts(m, encoded(m), greedy, 6, batch_size)
    for ids, made in zip(encoded(m), runs, strict=True):
        reference = by_generate(m, torch.tensor([ids]), greedy, len(made.steps))
        assert tuple(step.token.id for step in made.steps) == reference.tokens
        assert [token.id for token in made.prompt] == ids


def test_a_batch_of_one_is_the_single_run_bit_for_bit_with_the_next_seed_for_each_prompt(tiny):
    m = tiny("qwen2")
    alone = [run(m, ids, replace(SAMPLED, seed=5 + i), 8) for i, ids in enumerate(encoded(m))]
    assert list(map(untimed, run_prompts(m, encoded(m), SAMPLED, 8, batch_size=1))) == list(map(untimed, alone))
    together = run_prompts(m, encoded(m), SAMPLED, 8, batch_size=4)
    assert [made.text for made in together] == [made.text for made in alone]
    assert [made.sampling.seed for made in together] == [5, 6, 7, 8, 9, 10, 11]


def test_rows_end_one_by_one_and_leave_the_others_alone(tiny):
    """A context that fills up after as many steps as a prompt leaves room for, and a stop token that some rows draw."""
    m = tiny("qwen2", context=10)
    alone = [run(m, ids, replace(SAMPLED, seed=5 + i), 20) for i, ids in enumerate(encoded(m))]
    assert len({len(made.steps) for made in alone}) > 2 and {made.stop_reason for made in alone} == {"context_full"}
    assert [made.text for made in run_prompts(m, encoded(m), SAMPLED, 20)] == [made.text for made in alone]
    stopping = replace(m, stop_ids=(alone[0].steps[1].token.id,))
    ended = run_prompts(stopping, encoded(m), SAMPLED, 20)
    assert (len(ended[0].steps), ended[0].stop_reason) == (2, "eos")
    assert [made.text for made in ended] == [run(stopping, ids, replace(SAMPLED, seed=5 + i), 20).text for i, ids in enumerate(encoded(m))]


def test_each_row_draws_from_its_own_generator(tiny):
    """The same prompt four times: the same seed gives the same tokens, wherever the row stands."""
    m = tiny("qwen2")
    ids = torch.tensor(m.encode("аба"))
    seeds = [3, 4, 3, 4]
    rows = [Row(ids, SAMPLED, 6, (), None, m.texts, new_generator(seed, ids.device), 0) for seed in seeds]
    tokens = [[], [], [], []]
    for i, step, _ in side_by_side(m.split, rows):
        tokens[i].append(step.token.id)
    assert tokens[0] == tokens[2] != tokens[1] == tokens[3] and len(tokens[0]) == 6


def test_a_row_that_breaks_does_so_in_its_turn():
    """The numbers of a batch are fetched together: rows before the broken one still give their steps, and it is named as alone."""
    ids, steps = torch.tensor([3]), []
    rows = [Row(ids, replace(SAMPLED, temperature=t), 3, (), None, Texts(), new_generator(0, ids.device), 5) for t in (1.0, 1e-39, 1.0)]
    with pytest.raises(ValueError, match=r"temperature=1e-39 .* make the largest logit"):
        for i, step, _ in side_by_side(Split(lambda ids_BT: torch.ones(*ids_BT.shape, 9), lambda hidden: hidden), rows):
            steps.append((i, step.index))
    assert steps == [(0, 0)]


class Recorder(Processes):
    """A process that gathers what an earlier round of all processes left."""

    def gather(self, own):
        assert not set(left) & set(own), "a prompt that two processes ran"
        left.update(own)
        return {i: left.get(i, []) for i in range(len(PROMPTS))}


left = {}


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_what_a_prompt_gives_does_not_depend_on_the_number_of_processes(tiny, count):
    m = tiny("qwen2")
    expected = list(map(untimed, run_prompts(m, encoded(m), SAMPLED, 6, batch_size=2)))
    left.clear()
    for rank in range(count):
        runs = run_prompts(m, encoded(m), SAMPLED, 6, batch_size=2, processes=Recorder(rank, count))
    assert list(map(untimed, runs)) == expected


def test_ctrl_c_keeps_the_steps_that_there_are(tiny):
    m = tiny("qwen2")

    def stop(prompt, step):
        if (prompt, step.index) == (2, 1):
            raise KeyboardInterrupt

    runs = run_prompts(m, encoded(m), SAMPLED, 6, batch_size=2, on_step=stop)
    assert [len(made.steps) for made in runs] == [6, 6, 2, 1, 0, 0, 0]
    assert [made.stop_reason for made in runs] == ["max_new_tokens"] * 2 + ["interrupted"] * 5


def test_wrong_requests_are_refused(tiny):
    m = tiny("qwen2", context=6)
    with pytest.raises(ValueError, match="batch_size=0"):
        run_prompts(m, encoded(m), SAMPLED, batch_size=0)
    with pytest.raises(ValueError, match="at most 6"):
        run_prompts(m, encoded(m), SAMPLED)


def test_a_file_of_prompts_is_read_line_by_line(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffКрас\r\n\r\n [bold]a \r\n\t\nb\x1b[31m\u2028c\\n".encode())
    assert read_prompts(file) == [(1, "Крас"), (3, " [bold]a "), (5, "b\x1b[31m\u2028c\\n")]
    for content, part in ((b"", "no prompts"), (b"\n \n", "no prompts"), (b"\xff\xfe\x00", "not UTF-8"), (b"a\0b", "zero byte")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=part) as error:
            read_prompts(file)
        assert str(file) in str(error.value)


@pytest.fixture
def launch(tmp_path):
    """A function: the code that two processes of ``accelerate launch`` run, its arguments → the finished launcher."""

    def call(code: str, *arguments: str):
        script = tmp_path / "script.py"
        script.write_text(code)
        launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
        environment = dict(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", PYTHONPATH=os.pathsep.join(sys.path), OMP_NUM_THREADS="2")
        command = [sys.executable, "-m", *launcher, str(script), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=400)

    return call


def planted(error: str) -> str:
    """Code after which the second process fails in every batch."""
    return f"""
import os
import inspector.loop.batches as batches
if os.environ["RANK"] == "1":
    def broken(*arguments):
        raise {error}("planted")
    batches.side_by_side = broken
"""


def test_two_processes_give_what_one_gives_and_tell_each_other_what_is_wrong(launch, tmp_path, monkeypatch):
    """An odd number of prompts, fewer batches than processes, and a ValueError in one: three runs of one launch, which meets once."""
    code = f"""
import os, sys
from functools import cache
import inspector.loop.batches as batches
from inspector.cli import main

batches.join_processes = cache(batches.join_processes)
folder, *options = sys.argv[1:]
for name in ("five", "one", "wrong"):
    if name == "wrong":
        exec({planted("ValueError")!r})
    sys.argv = ["inspector", "run", *options, "--prompts", f"{{folder}}/{{name}}.txt", "--json", f"{{folder}}/{{name}}.json"]
    try:
        main()
    except SystemExit as ended:
        os.write(1, f"{{name}} ends with {{ended.code}}\\n".encode())  # in one piece: two processes write here
"""
    lines = ["Крас", "Мар", "И", "Алексан", "Пет"]
    for name, count in (("five", 5), ("one", 1), ("wrong", 5)):
        (tmp_path / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines[:count]), encoding="utf8")
    options = ["names-qwen2", "--batch-size", "2", "--temperature", "0.9", "--seed", "3"]
    done = launch(code, str(tmp_path), *options)
    assert done.returncode == 0, done.stderr
    for name, count in (("five", 5), ("one", 1)):
        assert done.stdout.count(f"{name} ends with 0") == 2, done.stderr
        arguments = ["run", *options, "--prompts", str(tmp_path / f"{name}.txt"), "--json", str(tmp_path / "alone.json")]
        monkeypatch.setattr(sys, "argv", ["inspector", *arguments])
        with pytest.raises(SystemExit):  # with one thread, unlike the launch: what the environment says about threads must not matter
            main()
        made, alone = (
            [untimed(from_json(Run, made)) for made in json.loads((tmp_path / f"{of}.json").read_text())] for of in (name, "alone")
        )
        assert made == alone
        assert ["".join(token.text for token in one.prompt[1:]) for one in made] == lines[:count]
    assert done.stdout.count("Крас|") == 2  # of the two runs that went well, once
    assert done.stdout.count("wrong ends with 2") == 2 and done.stderr.count("inspector: planted") == 1, done.stderr
    assert not (tmp_path / "wrong.json").exists() and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_fault_of_the_program_in_one_process_ends_them_all_at_once(launch, tmp_path):
    (tmp_path / "prompts.txt").write_text("Крас\nМар\nПет\n", encoding="utf8")
    code = f"{planted('RuntimeError')}\nfrom inspector.cli import main\nmain()\n"
    done = launch(code, "run", "names-qwen2", "--prompts", str(tmp_path / "prompts.txt"), "--batch-size", "1")
    assert done.returncode != 0 and "Крас|" not in done.stdout
    assert "inspector: planted" not in done.stderr and "RuntimeError: planted" in done.stderr


def test_no_process_group_is_left_to_race_with_the_end_of_the_interpreter(launch):
    """Its threads would: some of the processes then end in signal 6."""
    code = """
import atexit, torch
from pathlib import Path

def native():  # the names of its threads, where the system tells them; Linux cuts names at 15 characters
    names = [comm.read_text().strip() for comm in Path("/proc/self/task").glob("*/comm")]
    return sorted({name for name in names if name.startswith(("gloo", "pt_gloo", "pt_tcpstore"))})

atexit.register(lambda: print(f"left: {torch.distributed.is_initialized()} {native()}"))
from inspector.loop.batches import join_processes
print(join_processes("cpu", 1).gather({0: "met"}), f"running: {len(native())}")
"""
    done = launch(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("met") == done.stdout.count("left: False []") == 2
    assert sys.platform != "linux" or "running: 0" not in done.stdout  # else the names above are not those of this torch


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_during_a_run_of_many_prompts_writes_what_there_is(tmp_path):
    (tmp_path / "prompts.txt").write_text("Крас\n" * 200, encoding="utf8")
    arguments = ["--prompts", str(tmp_path / "prompts.txt"), "--json", "-", "--batch-size", "1"]
    code = """
import os, signal, sys
import inspector.loop.decoding as decoding
take, calls = decoding.Row.take, []
def stop(self, *arguments):
    calls.append(1)
    if len(calls) == 30:
        os.kill(os.getpid(), signal.SIGINT)
    return take(self, *arguments)
decoding.Row.take = stop
from inspector.cli import main
main()
"""
    command = [sys.executable, "-c", code, "run", "names-qwen2", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=60)
    assert done.returncode == 0, done.stderr
    runs = [from_json(Run, made) for made in json.loads(done.stdout)]
    assert len(runs) == 200 and sum(len(made.steps) for made in runs) in (29, 30)
    assert runs[0].stop_reason == "eos" and runs[-1].stop_reason == "interrupted"
