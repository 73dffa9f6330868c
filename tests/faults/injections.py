"""Texts that act where they are shown: in prompts, names, tokens, corpora, errors; on a terminal, in pictures, in JSON and Markdown."""

import html.parser
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

from .streams import strict
from .trials import QUICK, ROOT, Outcome, Trial, acting, forked, went

PAYLOADS = {
    "colour": "\x1b[31mX\x1b[0m",
    "clear": "\x1b[2J\x1b[H",
    "link": "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "title": "\x1b]0;evil\x07",
    "bell": "a\x07b",
    "return": "true\rfalse",
    "backspace": "abc\x08\x08\x08xyz",
    "C1": "\x9b31mX",
    "delete": "a\x7fb",
    "bidi": "\u202egnp.exe\u202c",
    "isolate": "\u2066abc\u2069",
    "invisible": "a\u200bb\ufeffc",
    "separator": "a\u2028b\u2029c",
    "markup": "[bold red]X[/bold red]",
    "closing": "[/]",
    "markup link": "[link=http://evil.example]X[/link]",
    "script": "<script>alert(1)</script>",
    "closing tag": "</text></svg><img src=x onerror=alert(1)>",
    "entity": "&lt;b&gt; ]]> <!--",
    "quotes": '" onload="alert(1)\' |`a`|',
}
SGR = re.compile(
    r"\x1b\[(?:[0-9;]*[mKAGJ]|\?25[hl])|\r"
)  # what a library for terminals writes itself: colours, the cursor, lines that move
TOKENIZED = "hostile"  # the folder of the model whose tokens are the payloads
VERBS = {
    "run": ["run", "names-qwen2", "HERE", "--max-new-tokens", "1"],
    "run --explain": ["run", "names-qwen2", "HERE", "--max-new-tokens", "1", "--explain", "--bad-words", "а"],
    "verify": ["verify", "names-qwen2", "HERE", "--max-new-tokens", "1"],
    "trace": ["trace", "names-qwen2", "HERE"],
    "trace --lens": ["trace", "names-qwen2", "HERE", "--lens"],
    "contributions": ["contributions", "names-qwen2", "HERE"],
    "intervene": ["intervene", "names-qwen2", "HERE", "--ablate", "layers.0.mlp"],
    "intervene --from": ["intervene", "names-qwen2", "Крас", "--patch", "layers.0.mlp", "--from", "HERE"],
    "diverge": ["diverge", "names-qwen2", "names-qwen2", "HERE", "--max-new-tokens", "1"],
    "a model": ["tree", "HERE"],
    "a model of run": ["run", "./HERE", "Крас"],
    "an option": ["run", "names-qwen2", "Крас", "--bad-words", "HERE", "--max-new-tokens", "1"],
    "a role": ["intervene", "names-qwen2", "Крас", "--ablate", "HERE"],
    "step": ["step", "names-qwen2", "HERE", "--save-svg", "s.svg", "--keys", "space i"],
    "keys of step": ["step", "names-qwen2", "Крас", "--save-svg", "s.svg", "--keys", "f HERE enter"],
    "a model of step": ["step", "./HERE", "Крас", "--save-svg", "s.svg"],
    "a run to be replayed": ["run", "--replay", "HERE"],
    "a page": ["report", "names-qwen2", "Крас", "--out", "no/HERE.html"],
    "a path": ["run", "names-qwen2", "Крас", "--max-new-tokens", "1", "--json", "no/HERE"],
    "a verb": ["HERE"],
    "a corpus that is not there": ["train", "--corpus", "HERE", "--out", "new"],
}
ON_TERMINAL = ("run", "trace", "intervene", "a model")


def trials(common: Path, random: Random) -> Iterator[Trial]:
    """See above."""
    for place, argv in VERBS.items():
        for name, payload in PAYLOADS.items():
            if place in ("run", "a model", "trace") or random.random() < 0.4:
                yield f"{name} as {place}", shown([word.replace("HERE", payload) for word in argv], payload)
            if place in ON_TERMINAL and name in ("colour", "clear", "link", "title", "return", "C1", "bidi", "markup"):
                yield f"{name} as {place} on a terminal", shown([word.replace("HERE", payload) for word in argv], payload, terminal=True)
    for verb in ("run", "verify", "trace", "trace --lens", "contributions", "diverge", "step"):
        yield f"tokens of a tokenizer in {verb}", tokens(verb)
        yield f"tokens of a tokenizer in {verb} on a terminal", tokens(verb, terminal=True)
    for name, payload in PAYLOADS.items():
        if "\r" not in payload:
            yield f"{name} in JSON", in_json(payload)
        yield f"{name} in a file of prompts", prompts(payload)
        yield f"{name} in a corpus", corpus(payload)
        yield f"{name} in a config.json", config(payload)
        yield f"{name} as the name of a folder", named(payload)
        yield f"{name} in the file of a run", in_run(payload)
    for name in ("colour", "link", "markup", "script", "closing tag", "entity", "quotes"):
        for kind in ("svg", "html"):
            yield f"{name} in a picture .{kind}", picture(PAYLOADS[name], kind)
    yield "tokens of a tokenizer on a page", page_of_tokens
    yield "names of types in Markdown", markdown


def inert(outcome: Outcome, payload: str, terminal: bool = False) -> None:
    """Nothing of what was given acts: no character that does so, and markup as it was written."""
    went(outcome, 0, 1, 2)
    for text in (outcome.text, outcome.err.decode("utf8", "backslashreplace")):
        bare = SGR.sub("", text) if terminal else text
        outcome.must(not acting(bare), f"characters act: {sorted(set(acting(bare)))}")
        outcome.must(not acting(payload) or payload not in text, "the text must not come out raw")
    if payload.startswith("[") and outcome.code == 2:
        outcome.must(payload[:6] in outcome.text + outcome.err.decode(), "markup must come out as it was written")


def shown(argv: Sequence[str], payload: str, terminal: bool = False) -> Callable[[Path], None]:
    """A trial: a command line with a text in it."""

    def trial(folder: Path) -> None:
        inert(forked(argv, folder, terminal=terminal), payload, terminal)

    return trial


HOSTILE = """
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
words = ["<end>", "word", *PAYLOADS.values()]
torch.manual_seed(0)
sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(words), max_position_embeddings=32, eos_token_id=0, **sizes))
model.save_pretrained("hostile")
tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<end>"))
PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained("hostile")
"""


def tokens(verb: str, terminal: bool = False) -> Callable[[Path], None]:
    """A trial: a model whose tokens are the payloads, which it gives as candidates."""

    def trial(folder: Path) -> None:
        made = forked([], folder, f"PAYLOADS = {PAYLOADS!r}\n{HOSTILE}")
        made.must(made.code == 0, "the trial itself could not make its model")
        argv = [{"names-qwen2": f"./{TOKENIZED}", "HERE": "word"}.get(word, word) for word in VERBS[verb]]
        outcome = forked([word if word != "1" else "8" for word in argv], folder, terminal=terminal)
        went(outcome, 0, 1)
        inert(outcome, "\x1b[31mX", terminal)
        if verb == "step":
            inert_svg(outcome, folder / "s.svg")

    return trial


def in_json(payload: str) -> Callable[[Path], None]:
    """A trial: the JSON of a run is JSON, and gives the text back as it was."""

    def trial(folder: Path) -> None:
        outcome = forked(["run", "names-expert", payload, "--max-new-tokens", "1", "--json", "-"], folder)
        went(outcome, 0, 2)
        if outcome.code == 0:
            strict(outcome.out.decode("utf8"))
            outcome.must("\x1b" not in outcome.text and "\x07" not in outcome.text, "JSON escapes what acts")

    return trial


def prompts(payload: str) -> Callable[[Path], None]:
    """A trial: a line of ``--prompts``."""

    def trial(folder: Path) -> None:
        (folder / "prompts.txt").write_text(f"Анна\n{payload}\n", encoding="utf8")
        inert(forked("run names-expert --prompts prompts.txt --max-new-tokens 1", folder), payload)

    return trial


def corpus(payload: str) -> Callable[[Path], None]:
    """A trial: a line of a corpus, which is trained on, shown by the model, and named where it is too long."""

    def trial(folder: Path) -> None:
        (folder / "items.txt").write_text(f"{payload} Анна\n" * 8, encoding="utf8")
        line = ["train", "--corpus", "items.txt", "--out", "new", *QUICK]
        inert(forked([*line, "--max-seq-len", "3"], folder), payload)
        outcome = forked(line, folder)
        inert(outcome, payload)
        if outcome.code == 0:
            inert(forked("run ./new А --max-new-tokens 8 --raw", folder), payload)

    return trial


def config(payload: str) -> Callable[[Path], None]:
    """A trial: a text in a checkpoint's configuration comes out in a message, or a tree."""

    def trial(folder: Path) -> None:
        made = json.loads((ROOT / "inspector/assets/names-qwen2/config.json").read_text())
        for key in ("model_type", "hidden_act", "architectures"):
            (folder / key).mkdir()
            value = [payload] if key == "architectures" else payload
            (folder / key / "config.json").write_text(json.dumps(made | {key: value}))
            inert(forked(["tree", f"./{key}"], folder), payload)

    return trial


def named(payload: str) -> Callable[[Path], None]:
    """A trial: a folder with such a name holds a model, and a weight has such a name."""

    def trial(folder: Path) -> None:
        if "/" in payload:
            return

        shutil.copytree(ROOT / "inspector/assets/names-expert", folder / payload)
        inert(forked(["tree", f"./{payload}"], folder), payload)
        inert(forked(["run", f"./{payload}", "Анна", "--max-new-tokens", "1"], folder), payload)
        code = f"""
from safetensors.torch import load_file, save_file
p = './' + {payload!r} + '/model.safetensors'
weights = load_file(p)
weights[{payload!r}] = weights.pop(next(iter(weights))).clone()
save_file(weights, p, dict(format="pt"))
"""
        forked([], folder, code)
        inert(forked(["run", f"./{payload}", "Анна", "--max-new-tokens", "1"], folder), payload)

    return trial


class Tags(html.parser.HTMLParser):
    """Collects the tags of a page and their attributes."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes = set(), set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def inert_svg(outcome: Outcome, path: Path) -> None:
    """A picture is well formed, and nothing in it runs or leads out of it."""
    elements = list(ElementTree.fromstring(path.read_text(encoding="utf8")).iter())
    found = {element.tag.rpartition("}")[2] for element in elements}
    attributes = {name.rpartition("}")[2]: value for element in elements for name, value in element.attrib.items()}
    acts = found & {"script", "img", "image", "a", "iframe", "foreignObject", "object", "use"}
    outcome.must(not acts and not any(name.startswith("on") or name == "href" for name in attributes), f"nothing may run in it: {acts}")
    style = "".join(element.text or "" for element in elements if element.tag.endswith("style"))
    outcome.must("http" not in style and "@import" not in style, "nothing in it may be fetched")
    letters = "".join(element.text or "" for element in elements if element.tag.endswith("text"))
    outcome.must(not acting(letters), "no character in it may act")


def inert_page(outcome: Outcome, path: Path) -> None:
    """A page is what its template is: a script of its own, a policy that lets no other run and nothing be fetched, and data."""
    text = path.read_text(encoding="utf8")
    parser = Tags()
    parser.feed(text)
    outcome.must(parser.tags == {"html", "head", "meta", "title", "style", "body", "noscript", "p", "div", "script"}, str(parser.tags))
    outcome.must(parser.attributes <= {"lang", "charset", "http-equiv", "content", "name", "id", "type"}, str(parser.attributes))
    data = re.findall(r'<script type="application/octet-stream" id="[a-z0-9-]+">([A-Za-z0-9+/=]*)</script>', text)
    outcome.must(len(data) >= 1 and text.count("<script") == len(data) + 1, "what is not the page's own is in base64")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    outcome.must(
        policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy, "its policy lets nothing else run"
    )
    outcome.must(not acting(re.search(r"<title>(.*)</title>", text, re.S)[1]), "no character of its title may act")


def in_run(payload: str) -> Callable[[Path], None]:
    """A trial: a file of a run whose texts are all this one: its page, and what is said of its replay."""

    def trial(folder: Path) -> None:
        went(forked("run names-qwen2 Крас --seed 3 --max-new-tokens 1 --record 9 --json run.json", folder))
        run = json.loads((folder / "run.json").read_text())
        run |= dict(text=payload, device=payload, model_type=payload, origins=dict.fromkeys(run["origins"], payload))
        run["notices"] = [dict(kind=payload, english=payload, russian=payload, names=[payload])]
        for token in (*run["prompt"], run["steps"][0]["token"], *(c["token"] for c in run["steps"][0]["candidates"])):
            token["text"] = payload
        for file, model in (("run.json", "names-qwen2"), ("other.json", payload)):
            (folder / file).write_text(json.dumps(run | dict(model=model)))
            inert(forked(["run", "--replay", file], folder), payload)
        outcome = forked("report --run other.json --out p.html", folder)
        inert(outcome, payload)
        went(outcome)
        inert_page(outcome, folder / "p.html")

    return trial


def page_of_tokens(folder: Path) -> None:
    """The page of a model whose tokens are the payloads."""
    went(forked([], folder, f"PAYLOADS = {PAYLOADS!r}\n{HOSTILE}"))
    outcome = forked(f"report ./{TOKENIZED} word --max-new-tokens 2 --out p.html", folder)
    went(outcome)
    inert(outcome, "\x1b[31mX")
    inert_page(outcome, folder / "p.html")


def picture(payload: str, kind: str) -> Callable[[Path], None]:
    """A trial: the lesson's picture is a picture: well formed, without anything that runs."""

    def lesson(folder: Path) -> Outcome:
        code = f"import runpy; runpy.run_path({str(ROOT / 'inference.py')!r}, run_name='__main__')"
        line = ["inference.py", "--model", "names-qwen2", "--max-new-tokens", "1", f"--prompt={payload}", f"--save-screen=p.{kind}"]
        return forked([], folder, f"import sys; sys.argv = {line!r}; {code}", seconds=120)

    def trial(folder: Path) -> None:
        outcome = lesson(folder)
        inert(outcome, payload)
        went(outcome)
        if kind == "svg":
            return inert_svg(outcome, folder / "p.svg")
        parser = Tags()
        parser.feed((folder / "p.html").read_text(encoding="utf8"))
        found, attributes = parser.tags, parser.attributes
        outcome.must(not found & {"script", "img", "a", "iframe", "foreignObject", "object"}, f"nothing may run in it: {sorted(found)}")
        outcome.must(not any(name.startswith("on") for name in attributes), "nothing may run in it")

    return trial


def markdown(folder: Path) -> None:
    """The table of types holds no character that acts."""
    outcome = forked(["coverage", "llama", "--markdown", "t.md"], folder)
    went(outcome)
    outcome.must(not acting((folder / "t.md").read_text(encoding="utf8")), "no character may act")
