"""Bad inputs to every verb and option, and to the Python interface: one line that names the value, exit code 2, nothing changed."""

import json
import os
import random
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .streams import strict
from .trials import QUICK, Outcome, Trial, forked, refused, snapshot, unchanged, went

# Each verb with what makes it right and quick; a bad value takes the place of one of these words, or is added.
VERBS = {
    "tree": ["tree", "names-qwen2"],
    "run": ["run", "names-qwen2", "Крас", "--max-new-tokens", "2"],
    "verify": ["verify", "names-qwen2", "Крас", "--max-new-tokens", "2"],
    "coverage": ["coverage", "llama"],
    "trace": ["trace", "names-qwen2", "Крас"],
    "contributions": ["contributions", "names-qwen2", "Крас"],
    "intervene": ["intervene", "names-qwen2", "Крас", "--ablate", "layers.0.mlp"],
    "cache": ["cache", "names-qwen2", "Крас", "--max-new-tokens", "2"],
    "diverge": ["diverge", "names-qwen2", "names-qwen2", "Крас", "--max-new-tokens", "1"],
    "mutate": ["mutate", "names-qwen2", "rope-base"],
    "train": ["train", "--corpus", "items.txt", "--out", "new", *QUICK],
    "bench gender": ["bench", "gender", "--pairs", "1", "--samples", "1"],
    "bench limits": ["bench", "limits"],
    "bench loop": ["bench", "loop", "--rounds", "1"],
    "bench trace": ["bench", "trace", "--rounds", "1"],
    "bench agreement": ["bench", "agreement", "--samples", "1"],
    "bench names": shlex.split("bench names --corpus items.txt --models gpt --steps 2 --d-model 32 --n-layers 1 --parameters 60000"),
    "bench mtp": ["bench", "mtp", "gpt-mtp", "--samples", "1", "--rounds", "1", "--max-new-tokens", "2"],
    "report": ["report", "names-qwen2", "Крас", "--max-new-tokens", "2", "--out", "p.html"],
    "step": ["step", "names-qwen2", "Крас", "--max-new-tokens", "2", "--save-svg", "s.svg"],
}
LONG = "ab" * 5000
BAD_OF_TYPE = {  # of every option of that type, in every verb
    "int": ["many"],
    "float": ["nan"],
}
BAD = {  # option → values, in every verb that has it
    "lang": ["de", "", LONG, "\x1b[31m"],
    "json": ["no/such/folder/x.json", "folder", "readonly.json", LONG, "n" * 252 + ".json/x"],
    "device": ["cpu:x", "tpu", "", "cuda:99", LONG],
    "dtype": ["float3", "", "float65"],
    "threads": ["0", "-1", "2147483648", "9" * 400],
    "max-memory": ["cpu", "cpu=many", "cpu=" + "9" * 400 + "GB", "cpu=1GB,cpu=2GB", "0=-1GB", "cpu=1e400GB"],
    "device-map": ["everywhere", "", "{}"],
    "seed": ["-99999999999999999999", "99999999999999999999999"],
    "temperature": ["-1", "inf", "-inf", "1e400"],
    "top-p": ["2", "-0.5", "inf"],
    "top-k": ["-3"],
    "min-p": ["7", "-1"],
    "repetition-penalty": ["0", "-1", "inf"],
    "max-new-tokens": ["0", "-5"],
    "bad-words": [""],
    "prompts": ["no-such.txt", "folder", "empty.txt", "latin.txt", "zero.txt", LONG, "pipe/none", "/dev/null"],
    "batch-size": ["0", "-1"],
    "context": ["0", "-1"],
    "depth": ["0", "-2"],
    "diff": ["no/such", "", LONG],
    "require": ["perfect", "", LONG],
    "markdown": ["no/such/folder/x.md", "folder", "readonly.json"],
    "png": ["no/such/folder/x.png", "folder", "x.jpg"],
    "role": ["layers.99.attn", "nothing", ""],
    "head": ["99.99", "x", "-1.0", "3", ""],
    "token": ["", "QQQQ", "99999999"],
    "top": ["0", "-1"],
    "ablate": ["layers.99.mlp", "nothing", "", "[bold]", "\x1b[31m", LONG],
    "ablate-with": ["noise", ""],
    "scale": ["layers.0.mlp", "=1", "layers.0.mlp=hot", "layers.0.mlp=nan", "layers.0.mlp=inf", "x=1"],
    "position": ["999", "-999", "9" * 40],
    "dtype-a": ["float3"],
    "dtype-b": [""],
    "quantise": ["int5", "", LONG],
    "quantise-b": ["int5"],
    "tensors": ["full", "readonly.json", LONG],
    "corpus": ["no-such.txt", "folder", "empty.txt", "latin.txt", "zero-only.txt", LONG, ""],
    "validation": ["no-such.txt", "folder", "empty.txt", "latin.txt", LONG],
    "model": ["llama9", "", "[bold]", "\x1b[31m", LONG],
    "models": ["llama9", "", ","],
    "d-model": ["0", "-1", "1000000000", "33", "9" * 30],
    "n-layers": ["0", "-1", "1000000000", "9" * 30],
    "n-heads": ["0", "-1", "3", "9" * 30],
    "d-ff": ["0", "-1", "1" + "0" * 15],
    "max-seq-len": ["0", "1", "-1", "3", "1" + "0" * 15],
    "dropout": ["1", "-0.1", "inf"],
    "steps": ["0", "-1"],
    "learning-rate": ["0", "-1", "inf"],
    "warmup": ["-1"],
    "weight-decay": ["-1", "inf"],
    "clip": ["0", "-1", "inf"],
    "mixed-precision": ["fp8", ""],
    "evaluate-every": ["0", "-1"],
    "samples": ["0", "-1"],
    "pairs": ["0", "-1"],
    "rounds": ["0", "-1"],
    "tokens": ["0", "-1"],
    "parameters": ["0", "-1", "10", "9" * 30],
    "record": ["-1", "9" * 30],
    "step": ["0", "-1", "3", "9" * 30],
    "branches": ["-1", "11", "9" * 30],
    "size": ["5x5", "", "80", "9999x24", LONG],
    "save-svg": ["no/such/folder/x.svg", "x.png", "folder", "readonly.svg", ""],
    "save-png": ["no/such/folder/x.png", "x.svg"],
    "out": ["items.txt", "items.txt/x", "full", "", LONG, "n" * 256],
}
NEEDS = {("trace", "head"): "--attention", ("trace", "position"): "--lens", ("trace", "token"): "--lens", ("trace", "top"): "--lens"}
# Of models that have the setting alone: --model gives it.
OF_MODELS = [
    ("gpt-moe", "--n-experts", "0"),
    ("gpt-moe", "--n-experts", "-1"),
    ("gpt-moe", "--n-experts", "90000000000000000000"),
    ("gpt-moe", "--n-chosen", "0"),
    ("gpt-moe", "--n-chosen", "9"),
    ("gpt-moe", "--n-shared-experts", "-1"),
    ("gpt-moe", "--gate", "wide"),
    ("gpt-moe", "--w-load", "nan"),
    ("gpt-moe", "--w-importance", "inf"),
    ("gpt-moe", "--w-importance", "-1"),
    ("gpt-moe", "--bias-speed", "0.1"),
    ("gpt-mla", "--kv-lora-rank", "0"),
    ("gpt-mla", "--kv-lora-rank", "-4"),
    ("gpt-mla", "--q-lora-rank", "-1"),
    ("gpt-mtp", "--mtp-depth", "0"),
    ("gpt-mtp", "--mtp-depth", "-1"),
    ("gpt-mtp", "--mtp-depth", "90000000000000"),
    ("gpt-mtp", "--w-mtp", "nan"),
    ("qwen2", "--n-kv-heads", "0"),
    ("qwen2", "--n-kv-heads", "-1"),
    ("qwen2", "--n-kv-heads", "3"),
    ("expert", "--n-experts", "4"),
    ("expert", "--n-kv-heads", "2"),
]
NAMES = [  # of models, where a verb takes one
    "", " ", ".", "..", "~nouser", "~nouser/x", "no/such/folder", "a/b/c", "items.txt", "folder", "none.py:f", "made.py:none",
    "made.py:text", "made.py:raises", "made.py:ends", "broken.py:f", "[bold]x[/bold]", "\x1b[31mred\x1b[0m", "a\nb", "\u202eabc", LONG,
    "n" * 253, "/dev/null", "/dev/zero", "pipe", "link", "names-qwen3", "-", "https://example.com/x", "C:\\models", "имена",
]  # fmt: skip
VERBS_OF_MODELS = ("tree", "run", "verify", "trace", "contributions", "intervene", "cache", "diverge", "mutate", "bench loop")
WHOLE = [  # command lines that are wrong as a whole → what the line must name
    ("", None),
    ("runn names-qwen2", "runn"),
    ("bench", None),
    ("bench nothing", "nothing"),
    ("run", "MODEL"),
    ("diverge names-qwen2 names-qwen2", "PROMPT"),
    ("run names-qwen2 Крас more", "more"),
    ("run names-qwen2 Крас --nothing 3", "--nothing"),
    ("run names-qwen2 Крас --temperature", "--temperature"),
    ("run names-qwen2 Крас --greedy --temperature 0.5", "--greedy"),
    ("run names-qwen2 Крас --prompts items.txt", "--prompts"),
    ("run names-qwen2 --prompts items.txt --json items.txt", "items.txt"),
    ("run names-qwen2 --prompts items.txt --json ./folder/../items.txt", "items.txt"),
    ("run names-qwen2 --prompts items.txt --json items-link", "items-link"),
    ("run names-qwen2 Крас --system Hello", "--system"),
    ("verify names-qwen2 Крас --system Hello", "--system"),
    (f"run names-qwen2 {'Крас' * 40}", "64"),
    ("intervene names-qwen2 Крас", "--ablate"),
    ("intervene names-qwen2 Крас --patch layers.0.mlp", "--patch"),
    ("intervene names-qwen2 Крас --from Иван", "--from"),
    ("trace names-qwen2 Крас --lens --attention", "--lens"),
    ("trace names-qwen2 Крас --head 1.0", "--head"),
    ("trace names-qwen2 Крас --tensors same --json same", "same"),
    ("trace names-qwen2 Крас --experts", "expert"),
    ("trace names-qwen2 Крас --latents", "latent"),
    ("coverage nothing", "nothing"),
    ("coverage llama --markdown same --json same", "same"),
    ("mutate names-qwen2 nothing", "nothing"),
    ("bench mtp names-qwen2", "names-qwen2"),
    ("train --corpus items.txt", "--out"),
    ("train --corpus items.txt --out folder --resume", "folder"),
    ("train --corpus items.txt --out new --validation items.txt --max-seq-len 2", "max_seq_len"),
    ("train --corpus items.txt --out readonly.json", "readonly.json"),
    ("report names-qwen2", None),
    ("report names-qwen2 Крас --out folder.html", "folder.html"),
    ("report names-qwen2 Крас --out no/such/p.html", "no/such/p.html"),
    ("report names-qwen2 Крас --out -", "-"),
    ("report names-qwen2 Крас --out p.html --json p.html", "p.html"),
    ("report names-qwen2 Крас --run items.txt", "items.txt"),
    ("report --run items.txt", "items.txt"),
    ("report --run folder", "folder"),
    ("report --run /dev/zero", "/dev/zero"),
    ("run --replay no-such.json", "no-such.json"),
    ("run --replay items.txt", "items.txt"),
    ("run --replay /dev/zero", "/dev/zero"),
    ("run names-qwen2 --replay items.txt --seed 3", "--seed"),
    ("step names-qwen2 Крас", "terminal"),
    ("step names-qwen2 Крас --keys space", "--keys"),
    ("step names-qwen2 Крас --save-svg s.svg --save-png s.svg", "s.svg"),
    ("step names-qwen2 Крас --save-svg s.svg --keys q", "--keys"),
]
RUNS = {  # what is wrong with the file of a run → what makes it so, or that and the codes that report and replay may have
    "an id that is no whole number": "run['steps'][0]['token']['id'] = 1.5",
    "a negative id": "run['prompt'][0]['id'] = -1",
    "an id that no number of a browser's is": "run['steps'][0]['candidates'][0]['token']['id'] = 2**60",
    "an id twice": "run['steps'][0]['distribution']['ids'][1] = run['steps'][0]['distribution']['ids'][0]",
    "lists of different lengths": "run['steps'][0]['distribution']['logits'].pop()",
    "logits that are not sorted": "run['steps'][0]['distribution']['logits'].reverse()",
    "a logit of NaN": "run['steps'][1]['distribution']['logits'][0] = 'nan'",
    "a text for a number": "run['steps'][0]['entropy'] = 'high'",
    "a number for a text": "run['text'] = 3",
    "null for a step": "run['steps'][0] = None",
    "steps out of order": "run['steps'].reverse()",
    "no candidates' field": "del run['steps'][0]['candidates']",
    "a sampling that cannot be": "run['sampling']['top_p'] = 7",
    "too few parts": "run['parts'] = ['prompt']",
    "too many steps": (
        "bare = dict(candidates=[], distribution=None, runner_up=None); run['max_new_tokens'] = 10001; "
        "run['steps'] = [run['steps'][0] | bare | dict(index=i) for i in range(10001)]",
        (2,),
        (1, 2),
    ),
    "a number of 400 digits": "run['steps'][0]['entropy'] = 10**400",
    "two thousand candidates": (
        "c = run['steps'][0]['candidates']; c += [c[0] | dict(token=dict(id=9999 + i, text='x')) for i in range(2000)]",
        (2,),
        (1, 2),
    ),
    "halves of characters": ("run['text'] = run['model'] = run['prompt'][0]['text'] = chr(0xd800)", (0,), (2,)),
    "infinite times": ("run['steps'][0]['seconds'] = 'inf'", (0,), (0,)),
    "a model of somebody's": ("run['model'] = 'ran.py:made'", (0,), (2,)),
    "a model of the hub": ("run['model'] = 'some/body'", (0,), (2,)),
    "a model by a path": ("run['model'] = '../elsewhere/names'", (0,), (2,)),
}
PYTHON = [  # snippets after `m` and `ids` → what the line must name
    ("inspector.load('')", None),
    ("inspector.load('no/such')", "no/such"),
    ("inspector.load(3)", "3"),
    ("inspector.load(None)", "None"),
    ("inspector.load('names-qwen2', dtype='float3')", "float3"),
    ("inspector.load('names-qwen2', device='cpu:x')", "cpu:x"),
    ("inspector.load('names-qwen2', max_memory={'cpu': -1})", "-1"),
    ("inspector.split(3)", "3"),
    ("inspector.split(None)", "None"),
    ("inspector.Sampling(temperature='hot')", "hot"),
    ("inspector.Sampling(temperature=float('nan'))", "nan"),
    ("inspector.Sampling(top_p=7)", "7"),
    ("inspector.Sampling(top_k=-2)", "-2"),
    ("inspector.Sampling(seed='x')", "x"),
    ("inspector.run(m, [], max_new_tokens=1)", None),
    ("inspector.run(m, [99999], max_new_tokens=1)", "99999"),
    ("inspector.run(m, [-1], max_new_tokens=1)", "-1"),
    ("inspector.run(m, [1.5], max_new_tokens=1)", "float"),
    ("inspector.run(m, ids, max_new_tokens=0)", "0"),
    ("inspector.run(m, ids, max_new_tokens='x')", "x"),
    ("inspector.run(m, ids, 'greedy')", "greedy"),
    ("inspector.run(None, ids)", "None"),
    ("inspector.verify(m, ['a'])", "a"),
    ("inspector.trace(m, [])", None),
    ("inspector.trace(m, ids, tensors='items.txt')", "items.txt"),
    ("inspector.lens(m, [99999])", "99999"),
    ("inspector.attention(m, ids, [(99, 0)])", "99"),
    ("inspector.contributions(m, ids, 99999)", "99999"),
    ("inspector.ablate(m, 'nothing')", "nothing"),
    ("inspector.scale(m, 'layers.0.mlp', float('nan'))", "nan"),
    ("inspector.patch(m, 'layers.99.mlp', ids)", "layers.99.mlp"),
    ("inspector.experts(m, ids)", None),
    ("inspector.latents(m, ids)", None),
    ("inspector.speculate(m, ids)", None),
    ("inspector.tree('x')", None),
    ("from inspector.models import ExpertModel; ExpertModel(vocab_size=0)", "0"),
    ("from inspector.models import ExpertModel; ExpertModel(65, d_model=10, n_heads=3)", "3"),
    ("from inspector.models import ExpertModel; ExpertModel(65, n_layers=-1)", "-1"),
    ("from inspector.models.checkpoints import load_checkpoint; load_checkpoint('no-such')", "no-such"),
    ("from inspector.models.checkpoints import load_checkpoint; load_checkpoint('items.txt')", "items.txt"),
    ("from inspector.models.checkpoints import load_checkpoint; load_checkpoint('folder')", "folder"),
    ("from inspector.training.recipe import Recipe; Recipe(learning_rate=float('inf'))", "inf"),
    ("from inspector.training.recipe import Recipe; Recipe(clip=float('nan'))", "nan"),
    ("from inspector.training.recipe import Recipe; Recipe(d_model=0)", "0"),
    ("from inspector.training.recipe import Recipe; Recipe(model='gpt-moe', n_shared_experts=-1)", "-1"),
]
JSON_FILES = [  # contents of files that a resumed training reads
    b"", b"{", b"[]", b"null", b"3", b'"x"', b"{}", b'{"recipe": 3}', b'{"recipe": {"d_model": "x"}}', b'{"recipe": {"nothing": 1}}',
    b'{"recipe": null}', b"\xff\xfe", b"\x00" * 50, b"[" * 100000, b'{"step": NaN}\n', b'{"step": 1e999}\n',
    b'{"step": -1}\n', b'{"step": "x"}\n',
]  # fmt: skip


def trials(common: Path, random: random.Random) -> Iterator[Trial]:
    """See above."""
    for name, argv, value in lines():
        yield name, bad_command(argv, value)
    for code, value in PYTHON:
        setup = "import inspector; m = inspector.load('names-qwen2'); ids = m.encode('Крас'); "
        yield f"Python: {code}", bad_python(setup + code, value)
    for file in ("recipe.json", "metrics.jsonl", "training_state.pt"):
        for i, content in enumerate(JSON_FILES):
            yield f"{file} of a training is {content[:20]!r} ({i})", bad_training(file, content)
    for state in STATES:
        yield f"the state of a training with {state}", bad_state(state)
    for options in NOT_FINITE:
        yield f"train {options}, which does not stay finite", not_finite(shlex.split(options))
    yield "a deleted current folder", deleted_folder
    for what, wrong in RUNS.items():
        yield f"the file of a run with {what}", bad_run(*((wrong,) if isinstance(wrong, str) else wrong))


def lines() -> Iterator[tuple[str, Sequence[str], str | None]]:
    """A name, a command line, and the bad value in it."""
    seen = set()
    for verb, options in options_of_verbs().items():
        for option, kind in options.items():
            values = [*BAD_OF_TYPE.get(kind, []), *BAD.get(option, [])]
            for value in values if verb in ("run", "train") or option not in seen else values[:1]:
                words = [*VERBS[verb], *([NEEDS[verb, option]] if (verb, option) in NEEDS else [])]
                yield f"{verb} --{option} {value[:30]!r}", with_option(words, option, value), value or "''"
            seen.add(option)
    for verb in VERBS_OF_MODELS:
        for name in NAMES if verb in ("tree", "run") else NAMES[::6]:
            words = list(VERBS[verb])
            place = len(verb.split())
            words[place : place + 1] = ["--", name] if name.startswith("-") else [name]
            if verb == "bench loop":
                words = ["bench", "loop", "--rounds", "1", "--", name]
            yield f"{verb} {name[:30]!r}", words, name.strip() or None
    for model, option, value in OF_MODELS:
        yield f"train --model {model} {option} {value[:30]}", [*VERBS["train"], "--model", model, option, value], value
    for line, value in WHOLE:
        yield f"inspector {line[:60]}", shlex.split(line) or ["--nothing"], value


def options_of_verbs() -> dict[str, dict[str, str]]:
    """Verb → its options by name, each with its type, as the app itself has them."""
    import typer

    from inspector.cli import app

    root = typer.main.get_command(app)
    found = {}
    for verb in VERBS:
        command = root
        for word in verb.split():
            command = command.commands[word]
        found[verb] = {
            opt.removeprefix("--"): parameter.bare_type.__name__
            for parameter in command.params
            for opt in parameter.opts
            if opt.startswith("--") and opt != "--help" and not getattr(parameter, "is_flag", False)
        }
    return found


def with_option(words: Sequence[str], option: str, value: str) -> list[str]:
    """A command line in which an option has another value."""
    words = list(words)
    if f"--{option}" in words:
        words[words.index(f"--{option}") + 1] = value
        return words
    return [*words, f"--{option}={value}"]


def furnish(folder: Path) -> None:
    """What the bad values name."""
    (folder / "items.txt").write_text("Анна\nИван\nМария\nОльга\nПётр\n" * 4, encoding="utf8")
    (folder / "empty.txt").write_text(" \n\n")
    (folder / "latin.txt").write_bytes("Крас".encode("cp1251"))
    (folder / "zero.txt").write_bytes(b"a\0b\n")
    (folder / "zero-only.txt").write_bytes(b"\n\n\n")
    (folder / "readonly.json").write_text("{}")
    (folder / "readonly.json").chmod(0o444)
    (folder / "folder").mkdir()
    (folder / "folder.html").mkdir()
    (folder / "readonly.svg").write_text("<svg/>")
    (folder / "readonly.svg").chmod(0o444)
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("mine")
    (folder / "items-link").symlink_to("items.txt")
    (folder / "link").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    (folder / "broken.py").write_text("def f(:\n")
    (folder / "made.py").write_text(
        "import sys\n\n\ndef text():\n    return 'x'\n\n\ndef raises():\n    raise KeyError('\\x1b[31m[bold]')\n"
        "\n\ndef ends():\n    sys.exit(3)\n"
        "\n\ndef good():\n    from inspector.models import ExpertModel\n\n    return ExpertModel(65)\n"
    )


def bad_command(argv: Sequence[str], value: str | None) -> Callable[[Path], None]:
    """A trial: a command line that must be refused."""

    def trial(folder: Path) -> None:
        furnish(folder)
        before = snapshot(folder)
        outcome = forked(argv, folder)
        check(outcome, folder, before, value)

    return trial


def bad_python(code: str, value: str | None) -> Callable[[Path], None]:
    """A trial: Python that must raise ValueError, or what is one, with one line."""

    def trial(folder: Path) -> None:
        furnish(folder)
        before = snapshot(folder)
        check(forked([], folder, code), folder, before, value)

    return trial


def check(outcome: Outcome, folder: Path, before: dict, value: str | None) -> None:
    """It is refused, and nothing is changed."""
    refused(outcome, *([] if value is None else [value]))
    unchanged(outcome, folder, before)


BEGUN = "--corpus items.txt --out begun"


def begin_training(folder: Path, step: int = 2) -> None:
    """Leaves a training with its state after so many steps in the folder ``begun``."""
    code = f"""
import itertools
from inspector.cli import options
from inspector.training.loop import train
from inspector.training.corpus import read_lines
from inspector.training.recipe import Recipe
lines = read_lines("items.txt")
recipe = Recipe(corpus="items.txt", d_model=16, n_layers=1, n_heads=2, batch_size=4, steps=4)
from pathlib import Path
going = train(recipe, lines, [], Path("begun"), evaluate_every={step})
for _ in itertools.islice(going, {step}):
    pass
going.close()
"""
    outcome = forked([], folder, code)
    outcome.must(outcome.code == 0, "the trial itself could not begin a training")


def bad_training(file: str, content: bytes) -> Callable[[Path], None]:
    """A trial: ``--resume`` where a file has other contents. Of metrics what can be read without harm may be gone on with."""

    def trial(folder: Path) -> None:
        furnish(folder)
        begin_training(folder)
        (folder / "begun" / file).write_bytes(content)
        before = snapshot(folder)
        outcome = forked(["train", *shlex.split(BEGUN), *QUICK, "--resume"], folder)
        if file == "metrics.jsonl" and outcome.code == 0:
            numbers = [json.loads(line)["step"] for line in (folder / "begun" / file).read_text().splitlines()]
            outcome.must(numbers == list(range(numbers[0], 5)) and numbers[-1] == 4, f"metrics must have a line a step, not {numbers}")
        elif file == "recipe.json" and outcome.code == 0:
            outcome.must((folder / "begun" / "model.safetensors").exists(), "a training that is done must leave its weights")
        else:
            refused(outcome, file, "begun")
            unchanged(outcome, folder, before)

    return trial


STATES = {  # what is wrong with it → what makes it so
    "step -1": "state['step'] = -1",
    "step 10**12": "state['step'] = 10**12",
    "step 2.5": "state['step'] = 2.5",
    "step 'x'": "state['step'] = 'x'",
    "no step": "del state['step']",
    "no model": "del state['model']",
    "no optimizer": "del state['optimizer']",
    "an optimizer of another": "state['optimizer'] = {'state': {}, 'param_groups': []}",
    "a model that is a list": "state['model'] = [1]",
    "NaN weights": "next(iter(state['model'].values())).fill_(float('nan'))",
    "infinite moments": "next(iter(state['optimizer']['state'].values()))['exp_avg'].fill_(float('inf'))",
    "weights of another shape": "k = next(iter(state['model'])); state['model'][k] = torch.zeros(3)",
    "losses that are no list": "state['losses'] = 3",
    "losses that are no rows": "state['losses'] = [3]",
    "a recipe that is a list": "state['recipe'] = []",
    "a recipe of words": "state['recipe']['d_model'] = 'wide'",
    "another fingerprint": "state['fingerprint'] = 'x'",
    "a fingerprint of None": "state['fingerprint'] = None",
    "a list": "state = [state]",
    "None": "state = None",
}


def bad_state(what: str) -> Callable[[Path], None]:
    """A trial: ``--resume`` from a state that cannot be."""

    def trial(folder: Path) -> None:
        furnish(folder)
        begin_training(folder)
        code = f"import torch; p = 'begun/training_state.pt'; state = torch.load(p); {STATES[what]}; torch.save(state, p)"
        made = forked([], folder, code)
        made.must(made.code == 0, "the trial itself could not change the state")
        before = snapshot(folder)
        outcome = forked(["train", *shlex.split(BEGUN), *QUICK, "--resume"], folder)
        refused(outcome, "begun")
        unchanged(outcome, folder, before)

    return trial


def recorded(folder: Path) -> dict:
    """A run with all that can be recorded of it, which lies in the folder as run.json."""
    line = "run names-qwen2 Крас --temperature 0.8 --top-p 0.9 --seed 3 --max-new-tokens 2 --record 65 --json run.json"
    went(forked(line, folder))
    return json.loads((folder / "run.json").read_text())


def bad_run(change: str, report: Sequence[int] = (2,), replay: Sequence[int] = (2,)) -> Callable[[Path], None]:
    """A trial: a page of a run that no generation leaves, and its replay, end with these codes; what it names is not run."""

    def trial(folder: Path) -> None:
        run = recorded(folder)
        exec(change, dict(run=run))
        (folder / "run.json").write_text(json.dumps(run))
        (folder / "ran.py").write_text("open('ran', 'w')\n")
        for line, codes in (("report --run run.json --out p.html", report), ("run --replay run.json", replay)):
            outcome = forked(line, folder)
            went(outcome, *codes)
            if outcome.code == 2:
                refused(outcome, "run.json", "steps", "candidates")
            outcome.must(line.startswith("run") or (folder / "p.html").exists() == (outcome.code == 0), "there must be a page, or none")
            outcome.must(not (folder / "ran").exists(), "code that a file names must not run")

    return trial


NOT_FINITE = [  # settings that are finite, of trainings that do not stay so
    "--learning-rate 100 --clip 1e9",
    "--learning-rate 1e4 --clip 1e9 --model qwen2",
    "--learning-rate 1e9 --model gpt-moe-mla-mtp",
    "--learning-rate 1e8 --weight-decay 1000 --evaluate-every 7",
]


def not_finite(options: Sequence[str]) -> Callable[[Path], None]:
    """A trial: a training whose loss or weights become infinite: it stops there, and the last state that was finite is kept."""

    def trial(folder: Path) -> None:
        furnish(folder)
        argv = ["train", *shlex.split(BEGUN), *QUICK, "--steps", "100", "--warmup", "20", *options]
        outcome = forked(argv, folder)
        refused(outcome, "finite", "nan", "inf", code=1)
        rows = [strict(line) for line in (folder / "begun" / "metrics.jsonl").read_text().splitlines()]
        outcome.must(not (folder / "begun" / "config.json").exists(), "there may be no result")
        code = (
            "import torch; state = torch.load('begun/training_state.pt'); "
            "assert all(bool(weight.isfinite().all()) for weight in state['model'].values()); "
            f"assert state['step'] <= {len(rows)} < state['step'] + 8"
        )
        went(forked([], folder, code))
        refused(forked([*argv, "--resume"], folder), "finite", "nan", "inf", code=1)

    return trial


def deleted_folder(folder: Path) -> None:
    """A relative path in a current folder that is gone."""
    gone = folder / "gone"
    gone.mkdir()
    outcome = forked(VERBS["run"] + ["--json", "x.json"], gone, before=gone.rmdir)
    refused(outcome, "x.json", "current folder", "folder")
