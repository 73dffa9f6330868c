"""The ``inspector`` command as a user meets it: exit codes, one line for a mistake, JSON that comes back."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from html import unescape

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from inspector.cli import main
from inspector.loading import loading
from inspector.loading.finding import ASSETS
from inspector.loading.loading import load
from inspector.loop.settings import explained
from inspector.parts.errors import InvariantError
from inspector.records.as_json import from_json
from inspector.records.comparison import Divergence, Planted, Verdict
from inspector.records.effects import Contributions, Effect, Intervention
from inspector.records.generation import Run, Sampling
from inspector.records.inside import Attention, Lens, Trace
from inspector.records.structure import Costs, ModuleNode
from inspector.render.pictures import CELL, EDGE, line_height


@pytest.fixture
def inspector(monkeypatch, capfd):
    """Runs the command in this process; gives its standard output, or the one line of a refusal."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")

    def call(*arguments, code=0) -> str:
        monkeypatch.setattr(sys, "argv", ["inspector", *arguments])
        with pytest.raises(SystemExit) as exit:
            main()
        output, error = capfd.readouterr()
        assert exit.value.code == code, error
        if code == 2:
            assert output == "" and error.count("\n") == 1
            return error
        return output

    return call


def process(*arguments, **env):
    """Runs the command in a process of its own."""
    command = [sys.executable, "-m", "inspector", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"} | env)


def test_help_and_mistakes_answer_without_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    assert "verify" in process("--help", PYTHONPATH=str(tmp_path)).stdout
    assert "--top-p" in process("run", "--help", PYTHONPATH=str(tmp_path)).stdout
    refused = process("run", "names-expert", "x", "--top-p", "2", PYTHONPATH=str(tmp_path))
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)


def test_torch_is_imported_without_garbage_collection_which_goes_on_afterwards():
    code = """
import gc
from inspector.cli.waiting import importing
with importing():
    assert not gc.isenabled()
    import torch
assert gc.isenabled() and gc.get_freeze_count() > 10_000
gc.unfreeze()
with importing():  # torch is there already: nothing that a caller holds is frozen
    assert gc.isenabled()
assert gc.get_freeze_count() == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nonsense"], "nonsense"),
        (["run"], "MODEL"),
        (["run", "names-expert", "x", "--temperature", "warm"], "warm"),
        (["run", "names-expert", "x", "--temperature", "-1"], "temperature=-1.0"),
        (["run", "names-expert", "x", "--temperature", "nan"], "temperature=nan"),
        (["run", "names-expert", "x", "--top-p", "0"], "top_p=0.0"),
        (["run", "names-expert", "x", "--top-k", "0"], "top_k=0"),
        (["run", "names-expert", "x", "--seed", "-3"], "seed=-3"),
        (["run", "names-expert", "x", "--min-p", "1.5"], "min_p=1.5"),
        (["verify", "names-expert", "x", "--typical-p", "0"], "typical_p=0.0"),
        (["run", "names-expert", "x", "--no-repeat-ngram-size", "-1"], "no_repeat_ngram_size=-1"),
        (["run", "names-expert", "x", "--force-bos", "-1"], "forced_bos_token_id=-1"),
        (["run", "names-expert", "x", "--force-eos", "-1"], "forced_eos_token_id=(-1,)"),
        (["run", "names-expert", "К", "--force-bos", "65"], "forced_bos_token_id: there is no token 65: give ids from 0 to 64"),
        (["verify", "names-expert", "К", "--force-eos", "99"], "forced_eos_token_id: there is no token 99"),
        (["run", "names-expert", "x", "--bad-words", ""], "--bad-words ''"),
        (["run", "names-expert", "К", "--bad-words", "ов", "--bad-words", "q\x1b"], "no token for 'q\\x1b'"),
        (["verify", "names-expert", "К", "--bad-words", "</s>"], "stop token"),
        (["run", "names-expert", "x", "--greedy", "--temperature", "0.5"], "contradict"),
        (["run", "names-expert", "x", "--max-new-tokens", "0"], "max_new_tokens=0"),
        (["run", "names-expert", "К" * 100], "at most 64"),
        (["run", "names-expert", "x", "--system", "y"], "no chat template"),
        (["run", "names-expert", "x", "--device", "tpu"], "tpu"),
        (["run", "names-expert", "x", "--dtype", "int3"], "int3"),
        (["run", "names-expert", "x", "--quantise", "int5"], "--quantise 'int5': choose one of int8, int4, int8-dynamic"),
        (["diverge", "names-qwen2", "names-qwen2", "x", "--quantise-b", "int5"], "--quantise-b 'int5'"),
        (["bench", "precision", "--rounds", "0"], "--rounds 0"),
        (["run", "names-expert", "x", "--lang", "de"], "'de'"),
        (["run", "names-expert", "x", "--json", "/no/such/folder/x.json"], "/no/such/folder/x.json"),
        (["run", "./nothing", "x"], "./nothing"),
        (["run", "[bold]\x1b[31m", "x"], "[bold]\\x1b[31m"),
        (["verify", "names-expert", "x", "--require", "perfect"], "perfect"),
        (["train", "--out", "/tmp/never", "--model", "gpt9"], "gpt9"),
        (["train", "--out", "/tmp/never", "--corpus", "/no/such/file"], "/no/such/file"),
        (
            ["bench", "nothing"],
            "choose gender, loop, limits, expert, presets, trace, sampler, precision, agreement",
        ),
        (["nothing"], "cache, diverge, mutate, train, export, report, step or bench"),
        (["bench", "loop", "--rounds", "0"], "--rounds 0"),
        (["bench", "agreement", "--samples", "0"], "--samples 0"),
        (["train", "--out", "/tmp/never", "--evaluate-every", "0"], "--evaluate-every 0"),
        (["trace", "names-expert", "К", "--role", "layers.*.nose"], "role 'layers.*.nose' fits nothing in names-expert; it has embed"),
        (["trace", "names-expert", "К", "--lens", "--attention"], "two views"),
        (["trace", "names-expert", "К", "--lens", "--role", "head"], "--role has no part in --lens"),
        (["trace", "names-expert", "К", "--attention", "--tensors", "x"], "--tensors has no part in --attention"),
        (["trace", "names-expert", "К", "--position", "1"], "--position has no part in the statistics"),
        (["trace", "names-expert", "К", "--head", "1.1"], "give --attention"),
        (["trace", "names-expert", "К", "--attention", "--head", "1"], "give LAYER.HEAD"),
        (["trace", "names-expert", "К", "--attention", "--head", "9.0"], "its layers are 0–3, each with the heads 0 to "),
        (["trace", "names-expert", "К", "--lens", "--position", "2"], "position 2: the prompt has 2 tokens"),
        (["trace", "names-expert", "К" * 100], "at most 64"),
        (["trace", "names-expert", "К", "--tensors", str(ASSETS)], "is not empty"),
        (["bench", "trace", "--rounds", "0"], "--rounds 0"),
        (["bench", "sampler", "--vocabulary", "0"], "--vocabulary 0"),
        (["bench", "sampler", "--rounds", "0"], "--rounds 0"),
        (["bench", "sampler", "--step-ms", "0"], "--step-ms 0.0: give a positive number of milliseconds"),
        (["bench", "sampler", "--step-ms", "nan"], "--step-ms nan: give a positive number of milliseconds"),
        (["bench", "sampler", "names-qwen2", "--vocabulary", "9"], "names-qwen2 has a vocabulary of its own"),
        (["tree", ""], "MODEL ''"),
        (["tree", "names-qwen2", "--depth", "0"], "--depth 0"),
        (["tree", "names-qwen2", "--context", "0"], "--context 0"),
        (["tree", "names-qwen2", "--dtype", "int3"], "int3"),
        (["tree", "names-qwen2", "--diff", "no/such/model"], "no/such/model"),
        (["run", "nowhere.py:make", "x"], "no such file: nowhere.py"),
        (["diverge", "names-qwen2", "names-expert"], "PROMPT"),
        (["diverge", "names-qwen2", "names-expert", "x", "--dtype-b", "int3"], "int3"),
        (["diverge", "names-qwen2", "names-expert", "x", "--max-new-tokens", "0"], "max_new_tokens=0"),
        (["diverge", "names-qwen2", "names-expert", "К" * 100], "at most 64"),
        (["diverge", "names-qwen2", "no/such\x1bmodel", "x"], "no/such\\x1bmodel"),
        (["mutate", "names-qwen2", "rope"], "no mutation 'rope'"),
        (["coverage", "lama"], "did you mean llama,"),
        (["coverage", "nosuchtype"], "'nosuchtype' is no model_type of AutoModelForCausalLM in transformers"),
        (["run", "names-expert", "x", "--prompts", "y.txt"], "contradict"),
        (["run", "names-expert", "--prompts", "/no/such/file"], "/no/such/file"),
        (["run", "names-expert", "--prompts", "/"], "is a folder"),
        (["run", "names-expert", "--prompts", "y.txt", "--batch-size", "0"], "--batch-size 0"),
        (["run", "names-expert", "--prompts", "y.txt", "--threads", "0"], "--threads 0"),
        (["run", "names-expert", "x", "--max-memory", "lots"], "'lots'"),
        (["contributions", "names-qwen2", "x", "--top", "0"], "--top 0"),
        (["contributions", "names-qwen2", "К", "--token", "Кра"], "makes 3 tokens of it"),
        (["contributions", "names-qwen2", "К", "--token", "[b]\x1b"], "token '[b]\\x1b': names-qwen2 has no such token"),
        (["contributions", "names-qwen2", "К", "--token", "65"], "from 0 to 64"),
        (["contributions", "names-expert", "К"], "is post-norm"),
        (["contributions", "names-qwen2", "К" * 100], "at most 64"),
        (["intervene", "names-qwen2", "К"], "nothing to change: give --ablate, --scale or --patch"),
        (
            ["intervene", "names-qwen2", "К", "--ablate", "layers.9.mlp"],
            "it has embed, final_norm, head; layers.0 to layers.3, with attn, mlp",
        ),
        (["intervene", "names-qwen2", "К", "--ablate", "embed", "--ablate-with", "noise"], "--ablate-with 'noise'"),
        (["intervene", "names-qwen2", "К", "--scale", "layers.0.mlp"], "ROLE=FACTOR"),
        (["intervene", "names-qwen2", "К", "--scale", "=2"], "ROLE=FACTOR"),
        (["intervene", "names-qwen2", "К", "--scale", "embed=nan"], "finite"),
        (["intervene", "names-qwen2", "К", "--patch", "embed"], "give --from PROMPT"),
        (["intervene", "names-qwen2", "К", "--from", "Л"], "give --patch ROLE"),
        (["intervene", "names-qwen2", "К", "--ablate", "embed", "--position", "5"], "no position 5"),
        (["intervene", "names-qwen2", "Кр", "--patch", "embed", "--from", "Л", "--position", "0"], "of different lengths"),
        (["intervene", "names-qwen2", "К", "--patch", "embed", "--from", "К" * 100], "at most 64"),
        (["bench", "gender", "--pairs", "0"], "--pairs 0"),
        (["run", "names-expert", "x", "--max-memory", "77=1GB"], "77"),
        (["verify", "names-expert", "x", "--device-map", "everywhere"], "'everywhere'"),
        (["verify", "names-expert", "x", "--device-map", "auto", "--device", "cpu"], "contradict"),
    ],
)
def test_a_wrong_request_is_one_line_that_names_it_and_exit_code_2(inspector, arguments, part):
    assert part in inspector(*arguments, code=2)


def test_tree_shows_and_writes_the_tree(inspector, tmp_path):
    output = inspector("tree", "names-qwen2", "--json", str(tmp_path / "tree.json"))
    for part in ("Qwen2DecoderLayer", "◀ BACKBONE", "◀ LM_HEAD", "RoPE", "tied", "730,880 parameters"):
        assert part in output
    written = json.loads((tmp_path / "tree.json").read_text())
    node, costs = from_json(ModuleNode, written["tree"]), from_json(Costs, written["costs"])
    assert node.parameters == costs.parameters == 730_880 and node.flops == costs.flops and costs.context == 64
    assert written["sums"] == dict(embedding=8_320, attention=197_632, feed_forward=523_776, norms=1_152)
    assert written["traits"]["positions"] == [dict(kind="rope", detail="", layers="")]
    assert "attention 197.6k (27 %)" in output and "RoPE turns q and k" in output


def test_tree_is_cut_and_its_sums_stay(inspector):
    text = inspector("tree", "names-qwen2", "--depth", "2")
    assert "4 × Qwen2DecoderLayer" in text and "q_proj" not in text and "730,880 parameters" in text
    whole, cut = (json.loads(inspector("tree", "names-qwen2", *more, "--json", "-"))["tree"] for more in ([], ["--depth", "1"]))
    assert cut["parameters"] == whole["parameters"] and all(child["children"] == [] for child in cut["children"])


def test_tree_names_roles_and_flops_at_a_context(inspector):
    text = inspector("tree", "names-qwen2", "--context", "64")
    for role in ("embed", "· attn.q", "· mlp.gate", "· norm_mlp", "final_norm", "head"):
        assert role in text
    assert "at 64 tokens" in text
    short = json.loads(inspector("tree", "names-qwen2", "--context", "1", "--json", "-"))["costs"]
    assert short["attention_flops"] * 64 == json.loads(inspector("tree", "names-qwen2", "--json", "-"))["costs"]["attention_flops"]


def test_trees_are_aligned_by_role(inspector):
    written = json.loads(inspector("tree", "names-qwen2", "--diff", "names-expert", "--json", "-"))
    rows = {row["role"]: row for row in written["roles"]}
    assert rows["attn.q"] == dict(role="attn.q", a="4 × Linear 128→128 +bias", b="4 × Linear 128→128 +bias", equal=True)
    assert rows["mlp.gate"]["b"] == "" and not rows["mlp.gate"]["equal"]
    assert rows["head"]["a"] == "Linear 128→65, tied" and rows["head"]["b"] == "Linear 128→65"
    text = inspector("tree", "names-qwen2", "--diff", "names-expert")
    assert "=   attn.q" in text and "≠   mlp.gate" in text and "roles differ" in text
    traits = {row["trait"]: row for row in written["traits"]}
    assert not traits["positions"]["equal"] and traits["residual"]["equal"]
    for part in ("RoPE turns q and k", "sinusoids 64×128, added to the", "(pre-norm)", "(post-norm)", "heads: 4 × 32", "SiLU(gate) × up"):
        assert part in text
    same = inspector("tree", "names-qwen2", "--diff", "names-qwen2")
    assert "0 of" in same and "≠" not in same


def test_a_recurrence_of_the_users_own_stands_beside_attention(inspector, tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch, inspector\nfrom torch import nn\n"
        "class Own(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.emb, self.rnn, self.out = nn.Embedding(30, 8), nn.GRU(8, 12, num_layers=2, batch_first=True), nn.Linear(12, 30)\n"
        "    def hidden(self, ids):\n        return self.rnn(self.emb(ids))[0]\n"
        "    def forward(self, ids):\n        return self.out(self.hidden(ids))\n"
        "def own():\n"
        "    torch.manual_seed(0)\n    m = Own()\n"
        "    return inspector.attach(m, split=inspector.split(m, backbone=m.hidden, head=lambda h: m.out(h)))\n"
    )
    own = f"{tmp_path / 'own.py'}:own"
    written = json.loads(inspector("tree", own, "--diff", "names-qwen2", "--json", "-"))
    rows = {row["role"]: (row["a"], row["b"]) for row in written["roles"]}
    assert rows["embed"] == ("Embedding 30×8", "Embedding 65×128") and rows["head"] == ("Linear 12→30 +bias", "Linear 128→65, tied")
    assert rows["mixer"] == ("GRU 8→12 × 2 +bias", "4 × Attention") and rows["layers"] == ("2", "4")
    gates = 3 * 12 * (8 + 12 + 2) + 3 * 12 * (12 + 12 + 2)  # three gates, two layers
    assert written["sums"][0] == dict(embedding=240, recurrence=gates, head=390)
    text = inspector("tree", own, "--diff", "names-qwen2")
    assert "recurrence" in text and "none, but GRU 8→12 × 2" in " ".join(text.split())
    assert "mixer" in inspector("trace", own, "1 2 3")


def test_coverage_of_a_type_shows_and_writes_its_row(inspector, tmp_path):
    text = inspector("coverage", "granite", "xlnet", "--markdown", str(tmp_path / "page.md"), "--json", str(tmp_path / "rows.json"))
    assert "granite" in text and "1 refused" in text
    assert "| granite | Linear(32→96) → ÷ 1.7 | proved | bitwise | bitwise |" in (tmp_path / "page.md").read_text(encoding="utf8")
    assert [row["split"] for row in json.loads((tmp_path / "rows.json").read_text())["rows"]] == ["proved", "refused"]


def test_run_writes_a_run_that_comes_back_and_says_where_settings_are_from(inspector):
    text = inspector("run", "names-qwen2", "Крас", "--top-p", "0.9", "--seed", "3", "--max-new-tokens", "4", "--json", "-")
    run = from_json(Run, json.loads(text))
    assert len(run.steps) <= 4 and [token.text for token in run.prompt] == ["<s>", *"Крас"]
    assert run.origins == {field.name: "flag" if field.name in ("top_p", "seed") else "default" for field in fields(Sampling)}
    again = inspector("run", "names-qwen2", "Крас", "--top-p", "0.9", "--seed", "3", "--max-new-tokens", "4")
    assert f"Крас|{run.text}" in again and "top-p 0.9 (flag)" in again


FILTERS = [
    "--min-p",
    "0.01",
    "--typical-p",
    "0.95",
    "--no-repeat-ngram-size",
    "2",
    "--bad-words",
    "ов",
    "--bad-words",
    "а",
    "--force-eos",
    "2",
]


def test_every_filter_has_a_flag_that_reaches_the_run_and_the_verdict(inspector):
    run = from_json(Run, json.loads(inspector("run", "names-qwen2", "", *FILTERS, "--force-bos", "14", "--json", "-")))
    assert run.sampling == Sampling(
        seed=0,
        min_p=0.01,
        typical_p=0.95,
        no_repeat_ngram_size=2,
        bad_words_ids=((47, 35), (33,)),
        forced_bos_token_id=14,
        forced_eos_token_id=(2,),
    )
    assert {name for name, origin in run.origins.items() if origin == "flag"} == {
        *("min_p", "typical_p", "no_repeat_ngram_size", "bad_words_ids", "forced_bos_token_id", "forced_eos_token_id")
    }
    assert run.steps[0].token.id == 14 and run.steps[0].kept["forced_bos_token_id"] == 1
    assert "а" not in run.text and "ов" not in run.text
    for more in ([], ["--greedy"], ["--max-new-tokens", "3", "--force-bos", "14"]):
        assert inspector("verify", "names-qwen2", "", *FILTERS, *more).startswith("bitwise")
    assert "bad words [47 35] [33] (flag)" in inspector("run", "names-qwen2", "К", *FILTERS).replace("\n", " ")


def test_settings_that_leave_no_token_are_one_line(tmp_path, monkeypatch, capfd):
    shutil.copytree(ASSETS / "names-qwen2", tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(dict(suppress_tokens=list(range(65)))))
    for verb in ("run", "verify"):
        arguments = [verb, str(tmp_path / "model"), "К", "--checkpoint-settings", "--no-repeat-ngram-size", "2"]
        monkeypatch.setattr(sys, "argv", ["inspector", *arguments])
        with pytest.raises(SystemExit) as exit:
            main()
        error = capfd.readouterr().err
        assert exit.value.code == 2 and error.count("\n") == 1
        assert "no_repeat_ngram_size, suppress_tokens together leave no token" in error


def test_explain_lists_what_runs_and_what_generate_would_do(inspector, tmp_path):
    shutil.copytree(ASSETS / "names-qwen2", tmp_path / "model")
    config = dict(eos_token_id=[2, 3], do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.1, max_new_tokens=7)
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(config))
    output = inspector("run", str(tmp_path / "model"), "Крас", "--explain", "--top-k", "5", "--max-new-tokens", "1", "--lang", "en")
    rows = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line.strip()}
    assert rows["top_k"] == ["5", "flag", "yes", "20", "checkpoint"]
    assert rows["repetition_penalty"] == ["1", "default", "off", "1.1", "checkpoint"]
    assert rows["max_new_tokens"] == ["1", "flag", "yes", "7", "checkpoint"]
    assert rows["eos_token_id"] == ["2", "3", "checkpoint", "yes", "2", "3", "checkpoint"]
    assert rows["num_beams"] == ["1", "library"]
    for line in (
        "repetition_penalty: the checkpoint ships 1.1; not taken: --checkpoint-settings takes it",
        "top_k: the checkpoint ships 20; the flag says 5",
        "max_new_tokens: the checkpoint ships 7; --max-new-tokens decides here",
    ):
        assert line in output.splitlines()
    taken = inspector("run", str(tmp_path / "model"), "Крас", "--explain", "--checkpoint-settings", "--lang", "ru", "--max-new-tokens", "1")
    assert "не взято" not in taken and "чекпойнт" in taken
    quiet = inspector("run", str(tmp_path / "model"), "К", "--explain", "--checkpoint-settings", "--json", "-")
    assert from_json(Run, json.loads(quiet)).origins["top_k"] == "checkpoint"


def test_explain_writes_the_settings_of_each_run(inspector, tmp_path):
    asked = ("--explain", "--greedy", "--max-new-tokens", "2", "--bad-words", "ов", "--json", "-", "--lang", "en")
    written = json.loads(inspector("run", "names-qwen2", "Крас", *asked))
    run, rows = from_json(Run, written), {row["name"]: row for row in written["settings"]}
    m = load("names-qwen2")
    origins = run.origins | {"max_new_tokens": "flag"}
    assert run.settings == tuple(explained(m, len(run.prompt), run.sampling, 2, origins))
    assert rows["max_new_tokens"] == dict(
        name="max_new_tokens", here=2, origin="flag", applied="yes", alone=None, alone_origin=None, idle=False, notes=[]
    )
    assert rows["bad_words_ids"]["here"] == [list(ids) for ids in m.bad_words_ids(["ов"])] and rows["temperature"]["origin"] == "flag"
    assert rows["num_beams"]["applied"] == "no" and rows["num_beams"]["alone"] == 1
    plain = json.loads(inspector("run", "names-qwen2", "Крас", *(word for word in asked if word != "--explain")))
    assert plain.pop("settings") == [] and set(written) == {*plain, "settings"}
    file = tmp_path / "prompts.txt"
    file.write_text("Крас\nМаринин\n", encoding="utf8")
    runs = [from_json(Run, made) for made in json.loads(inspector("run", "names-qwen2", "--prompts", str(file), *asked))]
    assert runs[0].settings == run.settings and {s.here for r in runs for s in r.settings if s.name == "max_length"} == {7, 10}


def test_origins_tell_what_the_checkpoint_says_from_what_transformers_fills_in(inspector, tmp_path):
    shutil.copytree(ASSETS / "names-qwen2", tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(dict(do_sample=True, min_p=0.1)))
    text = inspector("run", str(tmp_path / "model"), "К", "--checkpoint-settings", "--temperature", "0.9", "--json", "-")
    run = from_json(Run, json.loads(text))
    assert (run.sampling.top_k, run.origins["top_k"]) == (50, "library")
    assert (run.sampling.min_p, run.origins["min_p"], run.origins["temperature"]) == (0.1, "checkpoint", "flag")


def test_verify_answers_with_its_exit_code(inspector, tmp_path):
    assert inspector("verify", "names-expert", "Крас", "--greedy").startswith("bitwise")
    verdict = from_json(Verdict, json.loads(inspector("verify", "names-qwen2", "Крас", "--seed", "1", "--json", "-")))
    assert verdict.level == "bitwise" and verdict.sampling.seed == 1


def test_many_prompts_are_shown_as_data_and_written_in_their_order(inspector, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffКрас\r\n\r\n[bold]И\x1b[31m\r\n".encode())
    output = inspector("run", "names-qwen2", "--prompts", str(file), "--seed", "3", "--json", str(tmp_path / "runs.json"))
    runs = [from_json(Run, made) for made in json.loads((tmp_path / "runs.json").read_text())]
    assert ["".join(token.text for token in made.prompt if not token.special) for made in runs] == ["Крас", "И"]
    assert f"Крас|{runs[0].text}" in output and f"[bold]И\\x1b[31m|{runs[1].text}" in output and "\x1b" not in output
    assert "not in the vocabulary" in output and "«[»" in output
    assert [made.sampling.seed for made in runs] == [3, 4] and runs[0].origins["seed"] == "flag"
    single = inspector("run", "names-qwen2", "Крас", "--seed", "3", "--json", "-")
    assert runs[0].text == from_json(Run, json.loads(single)).text


def test_a_prompt_that_is_too_long_is_named_by_its_line(inspector, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("Крас\n\n" + "К" * 100 + "\nМар\n", encoding="utf8")
    assert "prompts.txt, line 3: the prompt holds 101 tokens" in inspector("run", "names-expert", "--prompts", str(file), code=2)


def test_trace_shows_every_view_and_writes_it(inspector, tmp_path):
    output = inspector("trace", "names-qwen2", "Крас", "--json", str(tmp_path / "trace.json"), "--tensors", str(tmp_path / "out"))
    assert "layers.3" in output and "bits of the unwatched one" in output and "outputs saved in" in output
    trace = from_json(Trace, json.loads((tmp_path / "trace.json").read_text()))
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert {row.role: list(row.output.shape) for row in trace.components} == {role: entry["shape"] for role, entry in index.items()}
    two = inspector("trace", "names-expert", "Крас", "--role", "layers.0.attn.*", "--role", "head", "--json", "-")
    assert [row["role"] for row in json.loads(two)["components"]] == [*(f"layers.0.attn.{part}" for part in "qkvo"), "head"]
    lens = from_json(Lens, json.loads(inspector("trace", "names-expert", "Крас", "--lens", "--position", "1", "--json", "-")))
    assert lens.position == 1 and len(lens.rows) == 4 and "layers.3" in inspector("trace", "names-expert", "Крас", "--lens")
    heads = ("--attention", "--head", "3.1", "--head", "0.2")
    attention = from_json(Attention, json.loads(inspector("trace", "names-expert", "Крас", *heads, "--json", "-")))
    assert [(one.layer, one.head) for one in attention.maps] == [(3, 1), (0, 2)]
    assert "слой 3, голова 1" in inspector("trace", "names-qwen2", "Крас", *heads, "--lang", "ru")


def test_trace_finds_a_nan_in_a_checkpoint_that_the_other_verbs_refuse(inspector, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(ASSETS / "names-qwen2", folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "inspector trace MODEL PROMPT shows where" in inspector("run", str(folder), "К", code=2)
    output = inspector("trace", str(folder), "К", code=1)
    assert "layers.2.mlp.up (model.layers.2.mlp.up_proj) is the first" in output and "its input was finite" in output
    found = from_json(Trace, json.loads(inspector("trace", str(folder), "К", "--json", "-", code=1))).not_finite
    assert (found.role, found.position, found.weights) == ("layers.2.mlp.up", 0, ("weight",))
    for view in ("--lens", "--attention"):
        assert inspector("trace", str(folder), "К", view, code=1) == ""
        assert inspector("trace", str(folder), "К", view, "--json", "-", code=1) == ""


def test_every_verb_takes_a_model_that_is_spread(inspector):
    spread = ("--max-memory", "cpu=1MB")
    assert inspector("verify", "names-qwen2", "Крас", *spread).startswith("bitwise")
    run = inspector("run", "names-qwen2", "Крас", "--device-map", "auto", *spread, "--json", "-")
    assert len(json.loads(run)["steps"]) > 1
    for view in ("--lens", "--attention", "--role=**"):
        spread_out = json.loads(inspector("trace", "names-qwen2", "Крас", *spread, view, "--json", "-"))
        usual = json.loads(inspector("trace", "names-qwen2", "Крас", view, "--json", "-"))
        for kind in ("rows", "layers"):
            assert spread_out.get(kind) == usual.get(kind)
        if "components" in usual:
            assert [row["output"] for row in spread_out["components"]] == [row["output"] for row in usual["components"]]


def test_verify_exits_with_1_when_the_verdict_does_not_hold(inspector, monkeypatch):
    """A head that is wrong in the hand-made run alone."""
    attach = loading.attach

    def wrong(*arguments, **options):
        m = attach(*arguments, **options)
        head = m.split.head
        return replace(m, split=replace(m.split, head=lambda h: head(h) * 1.001))

    monkeypatch.setattr(loading, "attach", wrong)
    for require, code in ((["--require", "tokens"], 0), (["--require", "rounding"], 1), ([], 1)):
        assert inspector("verify", "names-expert", "Крас", "--greedy", *require, code=code).startswith("tokens")


def test_what_a_prompt_holds_is_shown_and_not_obeyed(inspector):
    output = inspector("run", "names-expert", "[bold]К\x1b[31m\n", "--max-new-tokens", "1")
    assert "\x1b" not in output and "[bold]К\\x1b[31m\\n" in output
    assert "not in the vocabulary" in output and "«[»" in output


def test_a_reader_that_leaves_early_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "inspector", "run", "names-expert", "Крас"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0


def test_the_command_alone_shows_its_help(inspector):
    assert "verify" in inspector()


def test_train_writes_a_checkpoint_that_runs(inspector, tmp_path):
    (tmp_path / "items.txt").write_text("альфа\nбета\nгамма\nдельта\n")
    (tmp_path / "held.txt").write_text("бетта\n")
    sizes = ["--d-model", "16", "--n-layers", "1", "--n-heads", "2", "--steps", "30", "--batch-size", "4"]
    paths = ["--corpus", str(tmp_path / "items.txt"), "--validation", str(tmp_path / "held.txt"), "--out", str(tmp_path / "out")]
    output = inspector("train", "--model", "qwen2", *paths, *sizes)
    assert "4 lines to train on, 1 held out" in output and "step 30" in output
    assert inspector("verify", str(tmp_path / "out"), "бе").startswith("bitwise")
    assert (
        "not an empty folder"
        in subprocess.run([sys.executable, "-m", "inspector", "train", *paths, *sizes], capture_output=True, text=True).stderr
    )


@pytest.mark.slow
def test_bench_loop_prints_a_table_or_a_line_of_json(inspector):
    table = " ".join(inspector("bench", "loop", "names-qwen2", "--rounds", "1").split())
    assert "recording" in table and "hand_to_generate is the median of the rounds' ratios" in table and "{" not in table
    rows = json.loads(inspector("bench", "loop", "names-qwen2", "--rounds", "1", "--json", "-"))["rows"]
    assert [row["context"] for row in rows] == [32]
    assert all(row["hand_ms"] > 0 and row["limit_ms"] > 0 for row in rows)


def test_bench_sampler_tells_the_part_of_a_step(inspector):
    table = " ".join(inspector("bench", "sampler", "--vocabulary", "500", "--rounds", "1").split())
    assert "Both sides chose the same tokens" in table and "step" not in table
    result = json.loads(inspector("bench", "sampler", "names-qwen2", "--rounds", "1", "--json", "-"))
    assert (result["model"], result["vocabulary"], len(result["rows"])) == ("names-qwen2", 65, 6)
    assert all(row["percent"] == 100 * row["beyond_random_ms"] / result["step_ms"] for row in result["rows"])
    assert json.loads(inspector("bench", "sampler", "names-qwen2", "--rounds", "1", "--step-ms", "70", "--json", "-"))["step_ms"] == 70


def test_bench_loop_at_a_length_tells_all_ways_and_refuses_what_the_model_does_not_read(inspector):
    result = json.loads(inspector("bench", "loop", "names-qwen2", "--rounds", "1", "--tokens", "8", "--json", "-"))
    assert [row["context"] for row in result["rows"]] == [8]
    ways = ["cached", "generate_cached", "native", "native_cached", "fast", "fast_cached"]
    assert [row["way"] for row in result["ways"]] == ways
    refused = inspector("bench", "loop", "names-qwen2", "--tokens", "61", code=2)
    assert "--tokens 61: names-qwen2 reads at most 64, of which a measurement adds four" in refused


@pytest.mark.slow
@pytest.mark.parametrize("model", ["names-expert", "names-qwen2"])
def test_embedded_models_have_learned_to_agree(inspector, model):
    result = json.loads(inspector("bench", "agreement", model, "--json", "-"))
    assert result["samples"] == 1000
    assert result["unjudged_percent"] <= 20
    assert result["agreement_percent"] >= 95


def test_contributions_show_a_sum_that_comes_out_and_write_it(inspector):
    shown = inspector("contributions", "names-qwen2", "Анна Красновск", "--heads", "--top", "3")
    assert "the other 18" in shown and shown.count("✓") == 3 and "«а» − «и»" in shown
    record = from_json(
        Contributions, json.loads(inspector("contributions", "names-qwen2", "Анна Красновск", "--json", "-", "--token", "и"))
    )
    assert record.token.text == "и" and record.rival.text == "а" and record.logit < record.rival_logit
    assert [term.role for term in record.terms][:3] == ["embed", "layers.0.attn", "layers.0.mlp"]


def test_contributions_take_a_token_by_its_number(inspector):
    assert "«</s>» − " in inspector("contributions", "names-qwen2", "Крас", "--token", "2")
    assert "«</s>» − " in inspector("contributions", "names-qwen2", "Крас", "--token", "</s>")


def test_intervene_shows_before_and_after_and_writes_it(inspector):
    arguments = ("--patch", "layers.3.attn", "--from", "Иван Красновск", "--position", "-1")
    shown = inspector("intervene", "names-qwen2", "Анна Красновск", *arguments, "--lang", "ru")
    assert "вероятнее всего: «а» → «и»" in shown and "layers.3.attn из «Иван Красновск», в позиции -1" in shown
    data = json.loads(
        inspector("intervene", "names-qwen2", "Анна Красновск", *arguments, "--ablate", "layers.0.attn.head.*", "--json", "-")
    )
    record = from_json(Effect, data)
    assert record.interventions == (
        Intervention("ablate", "layers.0.attn.head.*", "zero", -1),
        Intervention("patch", "layers.3.attn", "Иван Красновск", -1),
    )
    assert record.roles == {**{f"layers.0.attn.head.{h}": 1 for h in range(4)}, "layers.3.attn": 1}


def test_intervene_says_when_only_the_last_positions_can_be_patched(inspector):
    assert "only their last positions" in inspector("intervene", "names-expert", "Анна Крас", "--patch", "layers.1", "--from", "Пётр Красн")
    assert "layers.1 1\n" in inspector("intervene", "names-expert", "Анна Крас", "--patch", "layers.1", "--from", "Пётр Красн")


PORT = """
import inspector

def port(change):
    model = inspector.load("names-qwen2").model
    change(model.model.layers[1])
    return model

def right():
    return port(lambda layer: None)

def wrong():
    return port(lambda layer: layer.self_attn.v_proj.bias.data.mul_(0.5))
"""


def test_a_port_of_the_users_is_held_against_the_original(inspector, tmp_path):
    (tmp_path / "port.py").write_text(PORT)
    written = tmp_path / "d.json"
    same = inspector("diverge", "names-qwen2", f"{tmp_path}/port.py:right", "Крас", "--json", str(written))
    assert "No component of B introduces more than rounding" in same
    assert from_json(Divergence, json.loads(written.read_text())).place is None
    other = inspector("diverge", "names-qwen2", f"{tmp_path}/port.py:wrong", "Крас", "--json", str(written), code=1)
    assert "B begins to differ: layers.1.attn.v" in other
    d = from_json(Divergence, json.loads(written.read_text()))
    assert d.place.name == "layers.1.attn.v" and [token.text for token in d.tokens[1:]] == ["К", "р", "а", "с"]
    # the other way round the port has no tokenizer: the prompt is read by that of the original
    assert "both are fed the ids of B's" in inspector("diverge", f"{tmp_path}/port.py:right", "names-qwen2", "Крас")
    assert (
        json.loads(inspector("diverge", "names-qwen2", f"{tmp_path}/port.py:wrong", "Крас", "--json", "-", code=1))["place"]["before"]
        is None
    )


def test_a_changed_checkpoint_is_told_from_the_one_it_was(inspector, tmp_path):
    shutil.copytree(ASSETS / "names-expert", tmp_path / "changed")
    weights = load_file(tmp_path / "changed/model.safetensors")
    weights["backbone.layers.3.mlp.down_proj.weight"][5, 7] += 0.1
    save_file(weights, tmp_path / "changed/model.safetensors", metadata={"format": "pt"})
    assert "B begins to differ: layers.3.mlp.down" in inspector("diverge", "names-expert", str(tmp_path / "changed"), "Крас", code=1)


def test_planted_mistakes_are_a_table_and_json(inspector, tmp_path, monkeypatch):
    output = inspector("mutate", "names-expert", "transposed", "gate-up", "--json", str(tmp_path / "rows.json"), "--lang", "ru")
    assert "верно названо место 1 из 1" in output and "gate-up неприменима" in output
    rows = [from_json(Planted, row) for row in json.loads((tmp_path / "rows.json").read_text())]
    assert [(row.name, row.named) for row in rows] == [("transposed", "layers.2.attn.o"), ("gate-up", None)]
    assert "B begins to differ" not in output and "B begins to differ: head" in inspector("mutate", "names-qwen2", "tying")
    monkeypatch.setattr("inspector.records.comparison.ROUNDINGS", 1e12)  # a search that finds nothing
    assert "nothing" in inspector("mutate", "names-expert", "transposed", "mask", code=1)


VIEWS = {  # verb → what computes it
    "inspector.inside.lens.lens": ("trace", "names-qwen2", "К", "--lens"),
    "inspector.inside.attention.attention": ("trace", "names-qwen2", "К", "--attention"),
    "inspector.inside.tracing.trace": ("trace", "names-qwen2", "К"),
    "inspector.inside.interventions.effect": ("intervene", "names-qwen2", "К", "--ablate", "layers.0.mlp"),
    "inspector.compare.divergence.diverge": ("diverge", "names-qwen2", "names-qwen2", "К"),
    "inspector.compare.mutations.mutate": ("mutate", "names-qwen2", "mask"),
}


@pytest.mark.parametrize("function", VIEWS)
def test_a_view_that_does_not_hold_is_one_line_and_exit_code_1(function, monkeypatch, capfd):
    def fails(*_, **__):
        raise InvariantError("the numbers\x1b do not add up")

    monkeypatch.setattr(function, fails)
    monkeypatch.setattr(sys, "argv", ["inspector", *VIEWS[function], "--json", "-"])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 1
    assert capfd.readouterr() == ("", "inspector: the numbers\\x1b do not add up\n")


def test_an_intervention_that_leaves_something_behind_exits_with_1(monkeypatch, capfd):
    from inspector.inside import interventions

    own, calls = interventions.next_logits, []

    def drifts(split, ids_1T):
        calls.append(ids_1T)
        return own(split, ids_1T) + (len(calls) == 4)

    monkeypatch.setattr(interventions, "next_logits", drifts)
    monkeypatch.setattr(sys, "argv", ["inspector", "intervene", "names-qwen2", "К", "--ablate", "layers.0.mlp"])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 1 and "has left something behind" in capfd.readouterr().err


def test_an_expert_is_patched_by_token_or_the_request_is_refused(inspector):
    anna, role = ("intervene", "gpt-moe", "Анна Красновск", "--patch"), "layers.3.mlp.experts.1"
    assert f"positions changed, of 15: {role} 5\n" in inspector(*anna, role, "--from", "Иван Красновск")
    assert "no token of the prompt that is put in goes to" in inspector(*anna, role, "--from", "", code=2)
    assert "layers.0.mlp.experts.1 5\n" in inspector(*anna, "layers.0.mlp.experts.1", "--from", "Иван Красновск")


@pytest.mark.parametrize("model", ["names-qwen2", "gpt-mla"])
def test_a_run_and_a_verdict_with_a_cache_say_so(inspector, tmp_path, model):
    asked = [model, "Крас", "--seed", "3", "--max-new-tokens", "6"]
    without = json.loads(inspector("run", *asked, "--json", "-"))
    run = json.loads(inspector("run", *asked, "--kv-cache", "--explain", "--json", "-"))
    assert run["kv_cache"] and not without["kv_cache"] and run["text"] == without["text"]
    [row] = [row for row in run["settings"] if row["name"] == "use_cache"]
    assert (row["here"], row["origin"]) == (True, "flag")
    assert "; with a KV-cache" in inspector("run", *asked, "--kv-cache")
    assert "; with a KV-cache" not in inspector("run", *asked)
    assert "; с KV-cache" in inspector("run", *asked, "--kv-cache", "--lang", "ru")
    assert " · with a KV-cache · " in inspector("verify", *asked, "--kv-cache")
    verdict = json.loads(inspector("verify", *asked, "--kv-cache", "--json", "-"))
    assert verdict["kv_cache"] and verdict["level"] == "bitwise"
    (tmp_path / "prompts.txt").write_text("Крас\nИв\n", encoding="utf8")
    lines = ["run", model, "--prompts", str(tmp_path / "prompts.txt"), "--greedy", "--json", "-"]
    with_cache, anew = json.loads(inspector(*lines, "--kv-cache")), json.loads(inspector(*lines))
    assert [one["text"] for one in with_cache] == [one["text"] for one in anew] and with_cache[1]["kv_cache"]


def test_a_model_without_a_cache_is_refused_by_name(inspector, tmp_path):
    file = tmp_path / "sums.py"
    file.write_text(
        "import torch\n\nclass Sums(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.table, self.head = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9)\n\n"
        "    def forward(self, ids):\n        return self.head(self.table(ids).cumsum(1))\n\ndef sums():\n    return Sums()\n"
    )
    for verb in ("run", "verify"):
        refused = inspector(verb, f"{file}:sums", "1 5 7", "--greedy", "--kv-cache", code=2)
        assert "Sums is neither transformers' nor native" in refused and "leave --kv-cache" in refused


@pytest.mark.parametrize(
    "words",
    [
        ["tree", "names-qwen2"],
        ["tree", "names-qwen2", "--diff", "names-expert"],
        ["run", "names-qwen2", "Крас", "--max-new-tokens", "3"],
        ["trace", "names-expert", "Крас", "--lens"],
        ["trace", "names-qwen2", "Крас", "--attention", "--head", "3.2"],
        ["contributions", "names-qwen2", "Анна", "--heads", "--top", "3"],
        ["verify", "names-expert", "К", "--max-new-tokens", "1", "--require", "rounding"],
    ],
)
def test_pictures_hold_what_the_verb_shows(inspector, words, tmp_path):
    svg, png, other = tmp_path / "x.svg", tmp_path / "x.png", tmp_path / "y.png"
    shown = inspector(*words, "--save-svg", str(svg), "--save-png", str(png))
    lines: dict[float, str] = {}
    for found in re.finditer(r'<text class="\S+-r\d+" x="[\d.]+" y="([\d.]+)".*?>(.*?)</text>', svg.read_text(encoding="utf8")):
        lines[float(found[1])] = lines.get(float(found[1]), "") + unescape(found[2])
    without_spaces = ["".join(line.split()) for line in shown.splitlines()]
    assert ["".join(line.split()) for _, line in sorted(lines.items())] == [line for line in without_spaces if line]
    picture = Image.open(png)
    assert picture.size == (2 * EDGE + 100 * CELL, 2 * EDGE + len(without_spaces) * line_height(CELL))
    if words == ["tree", "names-qwen2"]:  # JSON on the standard output leaves the picture as it is
        json.loads(inspector(*words, "--json", "-", "--save-png", str(other)))
        assert Image.open(other).tobytes() == picture.tobytes()
