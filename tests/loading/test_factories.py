"""FILE.py:factory as people write it: files and packages beside it, classes, instances, data, and what goes wrong on which line."""

import copy
import pickle
import sys

import pytest
import torch

import inspector
from inspector.compare.mutations import mutate
from inspector.loading.factories import FACTORY
from inspector.loading.finding import LoadError
from inspector.loading.loading import load
from inspector.loading.outlining import outline
from inspector.parts.splitting import SplitError

GREEDY = inspector.Sampling(temperature=0)
BLOCKS = """
import torch
from torch import nn

def rotate(x):
    return x

class Attention(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x):
        q, k, v = (rotate(p(x)).unflatten(-1, (2, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).flatten(2))

class Block(nn.Module):
    class Settings:
        eps = 1e-5

    def __init__(self, d):
        super().__init__()
        self.input_layernorm, self.self_attn = nn.LayerNorm(d, eps=self.Settings.eps), Attention(d)
        self.post_attention_layernorm, self.mlp = nn.LayerNorm(d), nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))
"""
MODEL = """
{imports}
import torch
from dataclasses import dataclass
from torch import nn

@dataclass
class Settings:
    d: int = 8
    block_size: int = 12

class Backbone(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.embed_tokens = nn.Embedding(20, s.d)
        self.layers = nn.ModuleList(Block(s.d) for _ in range(2))
        self.norm = nn.LayerNorm(s.d)

    def forward(self, ids):
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

class Model(nn.Module):
    def __init__(self, config=Settings()):
        super().__init__()
        torch.manual_seed(0)
        self.config, self.model, self.lm_head = config, Backbone(config), nn.Linear(config.d, 20)

    def forward(self, ids):
        return self.lm_head(self.model(ids))

    @classmethod
    def tiny(cls):
        return cls(Settings(d=4))

class Needy(Model):
    def __init__(self, d_model, n_layers, dropout=0.1):
        super().__init__()

def make(config=None, *args, **options):
    return Model()

anonymous = lambda: Model()
instance = Model()

async def later():
    return Model()

if __name__ == "__main__":
    raise RuntimeError("the script runs")
"""


def folder(at, imports="from blocks import Block", blocks="blocks.py", model="model.py", source=MODEL):
    """A folder with a model's file and, beside it, that of its blocks; the path of the first."""
    at.mkdir(parents=True, exist_ok=True)
    (at / blocks).parent.mkdir(parents=True, exist_ok=True)
    (at / blocks).write_text(BLOCKS)
    (at / model).write_text(source.replace("{imports}", imports))
    return at / model


IMPORTS = {
    "by name": ("from blocks import Block", "blocks.py"),
    "as a module": ("import blocks\nBlock = blocks.Block", "blocks.py"),
    "relatively": ("from .blocks import Block", "blocks.py"),
    "from a package": ("from pkg.nn.blocks import Block", "pkg/nn/blocks.py"),
    "relatively from a package": ("from .pkg.blocks import Block", "pkg/blocks.py"),
    "by its path": ("import sys, os\nsys.path.append(os.path.dirname(__file__))\nfrom blocks import Block", "blocks.py"),
}


@pytest.mark.parametrize("way", IMPORTS)
@pytest.mark.parametrize("whole", (True, False), ids=("a package", "no __init__"))
def test_classes_beside_the_file_work_in_every_verb(tmp_path, way, whole):
    imports, blocks = IMPORTS[way]
    path = folder(tmp_path, imports, blocks)
    if whole and "/" in blocks:
        for parent in (tmp_path / blocks).parents[: blocks.count("/")]:
            (parent / "__init__.py").write_text("")
    before = set(sys.modules)
    m = load(f"{path}:make")
    assert m.context_length == 12 and not {"blocks", "pkg", "model"} & (set(sys.modules) - before)
    planted = list(mutate(m, names=["softmax-scale", "norm-eps", "transposed"]))
    assert all(one.divergence is not None for one in planted)  # KeyError once
    assert inspector.verify(m, [1, 2, 3], GREEDY, max_new_tokens=2).level == "bitwise"
    other = pickle.loads(pickle.dumps(m.model))
    for twin in (other, copy.deepcopy(m.model)):
        assert torch.equal(twin(torch.tensor([[1, 2]])), m.model(torch.tensor([[1, 2]])))


def test_two_versions_of_a_folder_do_not_mix(tmp_path):
    paths = [folder(tmp_path / version) for version in "ab"]
    changed = (tmp_path / "b" / "blocks.py").read_text().replace("return x\n\nclass A", "return 2 * x\n\nclass A")
    (tmp_path / "b" / "blocks.py").write_text(changed)
    a, b = (load(f"{path}:make") for path in paths)
    assert type(a.model.model.layers[0]) is not type(b.model.model.layers[0])
    homes = [sys.modules[type(m.model.model.layers[0]).__module__] for m in (a, b)]
    assert homes[0] is not homes[1] and homes[0].rotate(1) == 1 and homes[1].rotate(1) == 2
    assert pickle.loads(pickle.dumps(a.model)).model.layers[0].__class__ is type(a.model.model.layers[0])
    assert inspector.diverge(a, b, [1, 2, 3]) is not None
    (tmp_path / "a" / "blocks.py").write_text(changed)  # the same folder, edited
    again = load(f"{paths[0]}:make")
    assert sys.modules[type(again.model.model.layers[0]).__module__].rotate(1) == 2 and homes[0].rotate(1) == 1


@pytest.mark.parametrize("name", ("make", "anonymous", "instance", "Model", "Model.tiny"))
def test_what_stands_under_the_name(tmp_path, name):
    m = load(f"{folder(tmp_path)}:{name}")
    assert type(m.model).__name__ == "Model" and len(inspector.run(m, [1], GREEDY, max_new_tokens=2).steps) == 2


REFUSED = {
    "Needy": r"Needy\(\) needs d_model, n_layers, which nothing gives here: .* returns Needy\(d_model=…, n_layers=…\)",
    "later": "later is async: give an ordinary function",
    "absent": "model.py has no function 'absent': it has .*Model",
    "Model.absent": "has no function 'Model.absent'",
    "Settings": "returned Settings: return a module",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_model_is_refused(tmp_path, name):
    with pytest.raises(LoadError, match=REFUSED[name]) as error:
        load(f"{folder(tmp_path)}:{name}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("end", ("", ":", ":make()", "::make", ":make-it", ":my model", ":make:3", ":.make"))
def test_a_file_without_the_name_of_a_function(tmp_path, end):
    path = folder(tmp_path)
    for entry in (load, outline):
        with pytest.raises(LoadError, match=r"function: give .*model\.py:make for a function make in it"):
            entry(f"{path}{end}")


NAMES = ("my model.py", "v1.2.py", "модель.py", "torch.py", "json.py", "a-b.py", "model'.py")


@pytest.mark.parametrize("file", NAMES)
def test_files_of_any_name(tmp_path, file):
    path = folder(tmp_path / "a folder" / "папка", model=file)
    assert load(f"{path}:make").origin.name.endswith(f"{file}:make")
    assert sys.modules["torch"] is torch


def test_a_path_from_home_and_one_with_a_drive(tmp_path, monkeypatch):
    folder(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("~/model.py:make").vocab_size == 20
    assert FACTORY.match(r"C:\models\my port.py:make").groups() == (r"C:\models\my port.py", "make")


@pytest.mark.parametrize("data", ("open('words.txt').read()", "torch.load('state.pt', weights_only=True)"))
def test_data_beside_the_file(tmp_path, data, monkeypatch):
    source = MODEL.replace("def make(config=None, *args, **options):\n", f"def make():\n    print({data})\n")
    path = folder(tmp_path / "port", source=source)
    (path.parent / "words.txt").write_text("words")
    torch.save({"weight": torch.ones(2)}, path.parent / "state.pt")
    here = tmp_path / "elsewhere"
    here.mkdir()
    monkeypatch.chdir(here)
    assert load(f"{path}:make").vocab_size == 20
    assert here.samefile(".")
    (path.parent / "words.txt").unlink()
    (path.parent / "state.pt").unlink()
    with pytest.raises(LoadError, match=r"FileNotFoundError: .*\(.*model.py, line \d+\): correct the function"):
        load(f"{path}:make")


WRONG = {
    "a module that is not there": ("import nothing_of_this_name", "model.py", 2, "ModuleNotFoundError: No module named"),
    "a name that is not there": ("from blocks import Absent", "model.py", 2, "ImportError: cannot import name 'Absent'"),
    "an error beside it": ("from bad import x", "bad.py", 2, "ZeroDivisionError"),
    "a syntax error beside it": ("from broken import x", "broken.py", 3, "SyntaxError"),
    "a circle": ("from circle import x", "circle.py", 1, "ImportError: cannot import name 'x'"),
    "an endless recursion": ("from endless import x", "endless.py", 2, "RecursionError"),
    "the end of the process": ("import sys\nsys.exit(3)", "model.py", 3, "SystemExit: 3"),
    "the end without a word": ("raise SystemExit", "model.py", 2, "SystemExit: no message"),
    "several lines": ("raise ValueError('one\\ntwo')", "model.py", 2, "ValueError: one"),
    "an assertion": ("assert 1 == 2", "model.py", 2, "AssertionError"),
    "in a library": ("import json; json.loads('{')", "model.py", 2, "JSONDecodeError"),
    "beyond the package": ("from ..above import x", "model.py", 2, "ImportError"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_breaks_off_is_said_with_the_line_of_the_user(tmp_path, wrong):
    imports, file, line, said = WRONG[wrong]
    path = folder(tmp_path, imports)
    (tmp_path / "bad.py").write_text("\nx = 1 / 0\n")
    (tmp_path / "broken.py").write_text("x = 1\n\ndef f(:\n")
    (tmp_path / "circle.py").write_text("from other import y\nx = 1\n")
    (tmp_path / "other.py").write_text("from circle import x\ny = 1\n")
    (tmp_path / "endless.py").write_text("def x():\n    return x()\nx()\n")
    with pytest.raises(LoadError, match=said) as error:
        load(f"{path}:make")
    if wrong == "a circle":
        file = "other.py"
    assert f"{file}, line {line})" in str(error.value) and "\n" not in str(error.value)


def test_what_breaks_off_in_the_model_is_said_too(tmp_path):
    source = MODEL.replace("        return self.norm(x)", "        return self.norm(x[..., :3])")
    line = 1 + source[: source.index("x[..., :3]")].count("\n")
    with pytest.raises(SplitError, match=rf"RuntimeError.*model\.py, line {line}\)") as error:
        load(f"{folder(tmp_path, source=source)}:make")
    assert "\n" not in str(error.value)


def test_what_the_file_and_its_model_print_is_no_result(tmp_path, capfd):
    source = "print('of the file')\n" + MODEL.replace(
        "        x = self.embed_tokens(ids)", "        print('of the model')\n        x = self.embed_tokens(ids)"
    )
    m = load(f"{folder(tmp_path, source=source)}:make")
    out, err = capfd.readouterr()
    assert out == "" and "of the file" in err and "of the model" in err
    m.split.backbone(torch.tensor([[1, 2]]))
    out, err = capfd.readouterr()
    assert (out, err) == ("", "of the model\n")


HOLDERS = """
class Chat:
    def __init__(self):
        import inspector
        m = inspector.load("names-qwen2")
        self.model, self.tokenizer = m.model, m.tokenizer

    def __call__(self, text):
        return text

ready = Chat()
"""


@pytest.mark.parametrize("name", ("Chat", "ready"))
def test_an_object_that_holds_a_model_and_a_tokenizer(tmp_path, name):
    (tmp_path / "chat.py").write_text(HOLDERS)
    m = load(f"{tmp_path / 'chat.py'}:{name}")
    assert m.encode("Крас") == load("names-qwen2").encode("Крас")
    assert [(notice.kind, notice.names) for notice in m.notices] == [("wrapper", ("Chat",))]


def test_forgets_what_could_not_be_loaded(tmp_path):
    before, places = set(sys.modules), list(sys.path)
    with pytest.raises(LoadError):
        load(f"{folder(tmp_path, 'from blocks import Absent')}:make")
    assert sys.path == places and "blocks" not in set(sys.modules) - before
