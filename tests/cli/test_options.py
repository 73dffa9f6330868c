"""The options of the verbs: one table of settings, groups that are named once, the number of threads, a word before anything slow."""

import importlib.util
import json
import os
import pty
import re
import select
import shlex
import subprocess
import sys
import time
from dataclasses import fields
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from transformers import GenerationConfig

import inspector
from inspector.cli import app, grouping, main, options, threads
from inspector.cli.options import ModelOptions, Output, SamplingOptions
from inspector.cli.threads import settle_threads, usual_threads
from inspector.loop.beam_search import OF_DRAWS
from inspector.loop.sampling import FILTERS
from inspector.records.generation import SETTINGS, Sampling

ROOT = Path(__file__).parents[2]
COMMANDS = typer.main.get_command(app).commands
VERBS = {name: command for name, command in COMMANDS.items() if name != "bench"} | {
    f"bench {name}": command for name, command in COMMANDS["bench"].commands.items()
}
ON = dict(  # of every setting that has a filter a value that acts
    temperature=0.5,
    top_k=3,
    top_p=0.9,
    repetition_penalty=1.2,
    min_p=0.1,
    typical_p=0.9,
    no_repeat_ngram_size=2,
    bad_words_ids=((5,),),
    forced_bos_token_id=0,
    forced_eos_token_id=(2,),
    suppress_tokens=(1,),
    begin_suppress_tokens=(1,),
    min_length=3,
    min_new_tokens=3,
)


@pytest.fixture
def one_thread():
    """torch's number of threads is 1 again afterwards, as in all tests."""
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (["run", "names-qwen2", "Крас"], []),
        (["run", "a folder/model", "it's «x» $HOME `ls` \\ \n"], ["--top-k", "5", "--bad-words", "ов", "--bad-words", "a b", "--raw"]),
        (["run", "m", "-x --seed 4"], ["--greedy", "--device", "cpu", "--threads", "2", "--system", "be 'kind'"]),
        (["verify", "m", ""], ["--force-eos", "3", "--kv-cache", "--checkpoint-settings", "--trust-remote-code", "--max-new-tokens", "3"]),
    ],
)
def test_a_shown_command_is_read_back_as_it_was_given(words, arguments):
    """By a shell, and by the verb itself."""

    def read(line: list[str]) -> dict:
        return VERBS[line[0]].make_context(line[0], line[1:]).params

    given = read([words[0], *arguments, "--", *words[1:]])
    groups = [
        group(**{own.name: given[own.name] for own in fields(group)})
        for group in (SamplingOptions, options.LoopOptions, options.PromptOptions, ModelOptions)
    ]
    shown = options.command_arguments(*words, options=groups)
    assert read(shlex.split(shown)) == given
    by_shell = subprocess.run(["sh", "-c", f"printf '%s\\0' {shown}"], capture_output=True, text=True, check=True).stdout
    assert by_shell.split("\0")[:-1] == shlex.split(shown)


@pytest.mark.parametrize("given", [{}, dict(temperature=1.5), dict(greedy=True), dict(checkpoint_settings=True), dict(seed=4, top_k=3)])
def test_the_options_that_choose_again_as_the_lesson_did(given):
    m = SimpleNamespace(checkpoint_settings=lambda: dict(top_p=0.7), ships=lambda name: True, vocab_size=65)
    asked, defaults = SamplingOptions(**given), dict(temperature=0.8, top_p=0.9)
    sampling, origins = asked.settings(m, defaults)
    again, _ = asked.again(sampling, defaults).settings(m)
    assert {name: getattr(again, name) for name in SETTINGS if again.is_on(name)} == {
        name: getattr(sampling, name) for name in SETTINGS if sampling.is_on(name)
    }
    chosen = {name for name, origin in origins.items() if origin == "lesson"}
    left = set(defaults) - ({"temperature"} & set(given) or set()) - ({"temperature"} if given.get("greedy") else set())
    assert chosen == (set() if given.get("checkpoint_settings") else left)


def options_of(verb: str) -> set[str]:
    return {name for parameter in VERBS[verb].params for name in parameter.opts}


def lesson_options() -> set[str]:
    spec = importlib.util.spec_from_file_location("inference", ROOT / "inference.py")
    lesson = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lesson)
    return {"--" + name.replace("_", "-") for name in signature(lesson.main).parameters}


def test_every_setting_with_an_option_has_it_where_tokens_are_chosen():
    named = {own.name: own.metadata["entry"] for own in fields(Sampling)}
    wanted = {"--" + (entry.option or name).replace("_", "-") for name, entry in named.items() if entry.help}
    assert len(wanted) == 11 and {"--top-k", "--bad-words", "--force-eos", "--seed"} <= wanted
    for verb in ("run", "verify", "bench mtp"):
        assert wanted | {"--greedy", "--max-new-tokens", "--checkpoint-settings"} <= options_of(verb), verb
    assert wanted <= lesson_options()


def test_every_verb_that_computes_has_threads_and_says_so_in_json_and_language():
    assert all("--threads" in options_of(verb) for verb in VERBS if verb != "tree") and "--threads" in lesson_options()
    assert all("--json" in options_of(verb) for verb in VERBS if verb not in ("train", "export"))
    assert len(VERBS) == 30


def test_the_flags_are_arguments_of_sampling_by_name():
    asked = SamplingOptions(top_k=3, bad_words=["а"], force_eos=2, force_bos=0, seed=4, typical_p=0.5)
    expected = dict(top_k=3, typical_p=0.5, bad_words_ids=["а"], forced_bos_token_id=0, forced_eos_token_id=(2,))
    assert asked.flags == expected and list(signature(SamplingOptions).parameters)[-3:-1] == ["seed", "max_new_tokens"]
    assert SamplingOptions(greedy=True).flags == dict(temperature=0.0)
    with pytest.raises(ValueError, match="top_k=0"):
        SamplingOptions(top_k=0)


def test_a_setting_is_on_where_its_value_acts():
    assert set(ON) == set(FILTERS) and not any(Sampling().is_on(name) for name in FILTERS)
    for name, value in ON.items():
        assert Sampling(**{name: value}).is_on(name), name
        assert Sampling(temperature=0, **{name: value} if name != "temperature" else {}).is_on(name) is not SETTINGS[name].draws, name
        for off in SETTINGS[name].off:
            if off is not None and (name, off) != ("top_k", 0):  # which Sampling refuses
                assert not Sampling(**{name: off}).is_on(name), name
    assert not Sampling(min_length=3, min_new_tokens=2).is_on("min_length")


def test_the_settings_of_draws_are_those_whose_warpers_transformers_builds_for_draws_alone(tiny):
    built = {}
    for do_sample in (False, True):
        model = tiny("qwen2").model
        config = GenerationConfig(
            do_sample=do_sample, temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, typical_p=0.9, repetition_penalty=1.2
        )
        built[do_sample] = {type(own).__name__ for own in model._get_logits_processor(config, input_ids_seq_length=3, device="cpu")}
    assert len(built[True] - built[False]) == len(OF_DRAWS) == 5 and "seed" not in OF_DRAWS


def test_what_the_checkpoint_and_generate_say_of_a_setting_is_known_to_transformers():
    names = vars(GenerationConfig())
    assert set(SETTINGS) - {"seed"} <= set(names)
    filled = {name: value for name, value in GenerationConfig()._get_default_generation_params().items() if name in SETTINGS}
    for name, value in filled.items():
        assert value in SETTINGS[name].off or value == SETTINGS[name].filled_in, name


@pytest.mark.parametrize(("asked", "parameters", "expected"), [(None, 9_999_999, 1), (None, 10_000_000, 4), (3, 5, 3), (2, 10**9, 2)])
def test_threads_fit_the_model_unless_they_are_asked_for(one_thread, monkeypatch, asked, parameters, expected):
    monkeypatch.setattr(threads, "usual_threads", lambda: 4)
    settle_threads(asked, parameters)
    assert torch.get_num_threads() == expected


def test_the_largest_of_several_models_decides(one_thread, monkeypatch):
    monkeypatch.setattr(threads, "usual_threads", lambda: 4)
    small, large = torch.nn.Linear(3, 3), torch.nn.Linear(4000, 3000, device="meta")
    ModelOptions().settle(large, small)
    assert torch.get_num_threads() == 4
    ModelOptions().settle(small)
    assert torch.get_num_threads() == 1
    with pytest.raises(ValueError, match="--threads 0"):
        ModelOptions(threads=0)


def test_the_library_leaves_torchs_threads_alone(one_thread):
    code = "import torch; torch.set_num_threads(2); import inspector; inspector.load('names-expert'); assert torch.get_num_threads() == 2"
    subprocess.run([sys.executable, "-c", code], check=True)
    torch.set_num_threads(2)
    inspector.load("names-qwen2")
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "names-qwen2", "К", "--max-new-tokens", "2"),
        ("verify", "names-qwen2", "К", "--max-new-tokens", "2"),
        ("trace", "names-qwen2", "К"),
        ("contributions", "names-qwen2", "К"),
        ("intervene", "names-qwen2", "К", "--ablate", "embed"),
        ("diverge", "names-qwen2", "names-qwen2", "К"),
        ("mutate", "names-qwen2", "transposed"),
        ("cache", "names-qwen2", "К", "--max-new-tokens", "2"),
        ("coverage", "gpt2"),
        ("bench", "agreement", "--samples", "1"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_the_header_says_the_threads(one_thread, monkeypatch, capsys, arguments):
    usual_threads()
    for more, said in (((), "1 thread"), (("--threads", "3"), "3 threads")):
        monkeypatch.setenv("LC_ALL", "C.UTF-8")
        monkeypatch.setattr(sys, "argv", ["inspector", *arguments, *more])
        with pytest.raises(SystemExit) as exit:
            main()
        shown = capsys.readouterr().out
        assert exit.value.code == 0 and re.search(rf"\b{said}\b", shown), shown


def test_the_header_speaks_russian(one_thread, monkeypatch, capsys):
    for number, said in ((1, "1 поток"), (2, "2 потока"), (5, "5 потоков"), (21, "21 поток"), (11, "11 потоков")):
        monkeypatch.setattr(options, "threads_now", lambda number=number: number)
        Output(language="ru").header("м")
        assert capsys.readouterr().out == f"м · {said}\n"


def test_a_verdict_is_bitwise_with_any_number_of_threads(one_thread, monkeypatch, capsys):
    for number in (1, 2):
        monkeypatch.setattr(sys, "argv", ["inspector", "verify", "names-qwen2", "Крас", "--threads", str(number), "--json", "-"])
        with pytest.raises(SystemExit) as exit:
            main()
        assert exit.value.code == 0 and torch.get_num_threads() == number
        assert json.loads(capsys.readouterr().out)["level"] == "bitwise"


def test_groups_become_options_and_come_back_as_groups():
    taken = []

    @grouping.grouped(without=["dtype"], device="cpu", name="x")
    def verb(name: str, *, how: ModelOptions, out: Output) -> None:
        taken.append(SimpleNamespace(name=name, how=how, out=out))

    parameters = signature(verb).parameters
    assert list(parameters) == [
        "name",
        "device",
        "trust_remote_code",
        "native",
        "fast",
        "threads",
        "quantise",
        "attn_implementation",
        "json_path",
        "save_svg",
        "save_png",
        "language",
    ]
    assert (parameters["name"].default, parameters["device"].default) == ("x", "cpu")
    verb(name="y", device="cuda", trust_remote_code=True, threads=2, json_path=None, language="ru")
    assert (
        taken[0].how == ModelOptions("cuda", trust_remote_code=True, threads=2) and taken[0].out.t("a", "б") == "б" and taken[0].name == "y"
    )
    verb()  # what a caller leaves out has the verb's own default, as on the command line
    assert (taken[1].name, taken[1].how, taken[1].out) == ("x", ModelOptions("cpu"), Output())


@pytest.mark.parametrize(
    "command",
    [
        *(
            ["-m", "inspector", *verb]
            for verb in (("tree", "names-qwen2"), ("trace", "names-qwen2", "К"), ("mutate",), ("coverage", "gpt2"))
        ),
        *(["-m", "inspector", *verb] for verb in (("diverge", "names-qwen2", "names-expert", "К"), ("train", "--out", "x"))),
        *(["-m", "inspector", "bench", name] for name in ("gender", "names", "loop")),
        [str(ROOT / "inference.py")],
    ],
    ids=lambda command: " ".join(command[2:4]) or "inference.py",
)
def test_something_is_on_the_terminal_before_torch_is_imported(tmp_path, command):
    """torch is replaced by something that never comes: what is shown is shown before it."""
    (tmp_path / "torch.py").write_text("import time; time.sleep(60)")
    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "TERM": "xterm", "COLUMNS": "100", "LC_ALL": "C.UTF-8"}
    running = subprocess.Popen([sys.executable, *command], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=tmp_path)
    os.close(theirs)
    try:
        shown, end = "", time.monotonic() + 20
        while "loading torch" not in shown and time.monotonic() < end and select.select([ours], [], [], end - time.monotonic())[0]:
            shown += os.read(ours, 65536).decode(errors="replace")
        assert "loading torch" in shown
    finally:
        running.kill()
        running.wait()
        os.close(ours)


def refused(capfd, monkeypatch, *arguments) -> str:
    """What a request is refused with, on one line and before a model is read."""
    monkeypatch.setattr(sys, "argv", ["inspector", *map(str, arguments)])
    monkeypatch.setattr(ModelOptions, "load", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(SystemExit) as exit:
        main()
    output, error = capfd.readouterr()
    assert (exit.value.code, output, error.count("\n")) == (2, "", 1), error
    return error


def test_no_result_replaces_what_it_is_made_from(tmp_path, monkeypatch, capfd):
    """Whichever way the file is named: by another path, by a link, by a hard link, as the file of a function or in a model's folder."""
    monkeypatch.chdir(tmp_path)
    prompts, model = Path("prompts"), Path("model")
    prompts.write_text("К\n")
    Path("hard").hardlink_to(prompts)
    Path("soft").symlink_to(prompts)
    for path in (prompts, tmp_path / "prompts", "./x/../prompts", "hard", "soft"):
        Path("x").mkdir(exist_ok=True)
        error = refused(capfd, monkeypatch, "run", "names-expert", "--prompts", prompts, "--json", path)
        assert f"--json {Path(path)} would replace what --prompts prompts reads" in error
    model.mkdir()
    (model / "config.json").write_text("{}")
    for name in (model, tmp_path / "model"):
        assert f"what MODEL {name} reads" in refused(capfd, monkeypatch, "verify", name, "К", "--json", "model/config.json")
    Path("port.py").write_text("")
    assert "what B port.py:f reads" in refused(capfd, monkeypatch, "diverge", "names-expert", "port.py:f", "К", "--json", "port.py")
    embedded = grouping.EMBEDDED / "names-expert" / "config.json"
    assert "what --diff names-expert reads" in refused(
        capfd, monkeypatch, "tree", "names-qwen2", "--diff", "names-expert", "--json", embedded
    )
    assert "what --corpus prompts reads" in refused(capfd, monkeypatch, "bench", "names", "--corpus", prompts, "--json", "soft")
    assert prompts.read_text() == "К\n"


def test_two_results_have_two_files(tmp_path, monkeypatch, capfd):
    error = refused(capfd, monkeypatch, "coverage", "gpt2", "--json", tmp_path / "a", "--markdown", tmp_path / "b" / ".." / "a")
    assert "--markdown" in error and "--json" in error and "both write" in error
    (tmp_path / "new").mkdir()
    error = refused(capfd, monkeypatch, "trace", "names-expert", "К", "--tensors", tmp_path / "new", "--json", tmp_path / "new/index.json")
    assert "--tensors and --json both write" in error
    grouping.check_places(dict(json_path=Path("/dev/null"), markdown=Path("/dev/null")), signature_of("coverage"))
    grouping.check_places(dict(json_path=Path("-"), markdown=Path("-")), signature_of("coverage"))


def signature_of(verb: str):
    """The parameters of a verb."""
    [callback] = [own.callback for own in app.registered_commands if own.callback.__name__ == verb]
    return list(signature(callback).parameters.values())


def test_an_empty_path_is_refused_by_every_option_that_names_one(monkeypatch, capfd):
    """typer itself makes the current folder of it."""
    groups = {"": app, "bench": options_of_bench()}
    found = 0
    for group, own in ((group, own) for group, verbs in groups.items() for own in verbs.registered_commands):
        for parameter in signature(own.callback).parameters.values():
            name = grouping.spelled(parameter)
            if "Path" in str(parameter.annotation) or parameter.name in grouping.READ:
                known = parameter.name in (*grouping.WRITTEN, *grouping.READ)
                assert known, f"{name}: is it read or written?"
            if "Path" in str(parameter.annotation):
                found += 1
                words = [*filter(None, [group]), own.name or own.callback.__name__]
                assert f"'{name}': '' is no path" in refused(capfd, monkeypatch, *words, name, "")
    assert found > 20


def options_of_bench():
    """The verbs of ``bench``."""
    return next(group.typer_instance for group in app.registered_groups if group.name == "bench")


@pytest.mark.parametrize("value", [2**63, 2**64, 10**400, -(10**400)])
@pytest.mark.parametrize("option", ["--max-new-tokens", "--batch-size", "--seed", "--threads", "--top-k"])
def test_a_number_that_no_machine_has_is_one_line(monkeypatch, capfd, option, value):
    error = refused(capfd, monkeypatch, "run", "names-expert", "К", f"{option}={value}")
    assert f"{option} {str(value)[:50]}" in error and len(error) < 400


def test_more_threads_than_a_machine_starts_and_more_memory_than_it_has(monkeypatch, capfd):
    assert "--threads 2147483648" in refused(capfd, monkeypatch, "verify", "names-expert", "К", "--threads", 2**31)
    assert "--threads 2147483648" in refused(capfd, monkeypatch, "coverage", "gpt2", "--threads", 2**31)
    error = refused(capfd, monkeypatch, "verify", "names-expert", "К", "--max-memory", "cpu=" + "9" * 400)
    assert "than any machine has" in error and len(error) < 900
    assert "9999999999" in refused(capfd, monkeypatch, "verify", "names-expert", "К", "--max-memory", "9999999999=1GB")


@pytest.mark.parametrize("arguments", [["tree", "я" * 10_000], ["run", "names-expert", "К", "--prompts", "p" * 10_000], ["x" * 10_000]])
def test_a_long_value_is_shown_short_and_the_remedy_whole(monkeypatch, capfd, arguments):
    error = refused(capfd, monkeypatch, *arguments)
    assert len(error) < 1200 and arguments[-1] not in error
    assert error.rstrip().endswith(("names-qwen2", "give one", "or bench"))


@pytest.mark.parametrize(
    "words",
    [
        ["run", "names-qwen2", "-5"],
        ["run", "names-qwen2", "--greedy", "-кот и"],
        ["run", "names-qwen2", "--- is a rule"],
        ["verify", "names-qwen2", "--да"],
    ],
)
def test_a_prompt_that_begins_with_a_dash_gets_the_line_that_takes_it(words):
    done = subprocess.run([sys.executable, "-m", "inspector", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert f"put -- before a prompt that begins with a dash: python -m inspector {words[0]}" in " ".join(done.stderr.split())
    assert done.stderr.rstrip().endswith(f"-- {shlex.quote(words[-1])}")


@pytest.mark.parametrize("option", ["--gredy", "-x", "--gredy=1"])
def test_a_mistyped_option_is_not_taken_for_a_prompt(monkeypatch, capfd, option):
    error = refused(capfd, monkeypatch, "run", "names-qwen2", "К", option)
    assert "--help lists what there is" in error and "put -- before" not in error


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_picture_that_cannot_be_is_refused_before_anything_is_loaded(kind, tmp_path, monkeypatch, capfd):
    option, words = f"--save-{kind}", ("run", "names-expert", "К")
    assert f"{option} 'x.gif': give a name that ends in .{kind}" in refused(capfd, monkeypatch, *words, option, "x.gif")
    assert "give a file in a folder that exists" in refused(capfd, monkeypatch, *words, option, tmp_path / "no" / f"x.{kind}")
    (tmp_path / f"x.{kind}").mkdir()
    assert "it is a folder" in refused(capfd, monkeypatch, *words, option, tmp_path / f"x.{kind}")
    (tmp_path / f"y.{kind}").symlink_to("z.json")
    error = refused(capfd, monkeypatch, *words, option, tmp_path / f"y.{kind}", "--json", tmp_path / "z.json")
    assert "--json and " + option + " both write" in error
    assert {verb for verb, own in VERBS.items() if option not in str([one.opts for one in own.params])} == {"train", "export"}
