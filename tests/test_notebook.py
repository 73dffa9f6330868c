"""The notebooks in examples/ run from top to bottom without a network, show what the records have, and are one lesson in two languages."""

import html
import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import pytest

from tests.render.test_forms import page_in

missing = [name for name in ("nbclient", "nbformat", "ipykernel") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"{' and '.join(missing)} not installed: pip install -e '.[dev]'")
EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ("lesson.ipynb", "lesson_ru.ipynb")
SAID = {  # id of a cell → what its output says in English and in Russian, as the console prints it
    "split": ("['<s>', 'К', 'р', 'а', 'с'] (1, 5, 128) (1, 5, 65)",) * 2,
    "step": ("wins the race, ahead of", "побеждает в гонке; второй —"),
    "sampling": ("T=0 ", "T=0 "),
    "verify": ("bitwise", "побитово"),
    "trace": ("the watched pass gave the bits of the unwatched one", "проход с наблюдением дал те же биты"),
    "lens": ("the last row equals the logits of this pass bit for bit", "последняя строка равна логитам этого прохода бит в бит"),
    "attention": ("layer 3, head 2", "слой 3, голова 2"),
    "contributions": ("The next token: «н»", "Следующий токен: «н»"),
    "intervene": ("most probable: «а» → «и»", "вероятнее всего: «а» → «и»"),
    "branch": ("Крас|", "Крас|"),
}


def read(name: str) -> dict:
    return json.loads((EXAMPLES / name).read_text(encoding="utf8"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The cells of the notebooks with their outputs, by name and id; the two ran one after the other in one kernel of this Python.

    No kernel need be registered, and the second need not import torch again.
    """
    import nbformat
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    class Own(KernelSpecManager):
        def get_kernel_spec(self, name):
            return KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python")

    both, *others = (nbformat.read(EXAMPLES / name, as_version=4) for name in NAMES)
    for other in others:
        for cell in other.cells:
            cell.id += "-again"
            both.cells.append(cell)
    folder = tmp_path_factory.mktemp("notebook")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(folder / "ipython")}
    client = NotebookClient(both, km=AsyncKernelManager(kernel_spec_manager=Own()), timeout=120, resources=dict(metadata=dict(path=folder)))
    cells = client.execute(env=environment).cells
    assert {path.name for path in folder.iterdir()} <= {"ipython"}  # nothing was written
    half = len(cells) // 2
    return {
        name: {cell.id.removesuffix("-again"): cell for cell in part}
        for name, part in zip(NAMES, (cells[:half], cells[half:]), strict=True)
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_stored_without_outputs_and_without_what_is_of_one_machine(name):
    import nbformat

    nbformat.validate(nbformat.read(EXAMPLES / name, as_version=4))
    cells = read(name)["cells"]
    assert [cell["id"] for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
    assert not re.search(r"(?<![\w.])/(?:home|root|work|tmp|Users|content)\b|[A-Z]:\\\\", (EXAMPLES / name).read_text(encoding="utf8"))
    assert [line for cell in cells if cell["id"] == "install" for line in cell["source"]] == ["# %pip install --quiet .."]


def test_the_two_notebooks_have_the_same_cells_and_the_same_code():
    english, russian = (read(name)["cells"] for name in NAMES)
    assert [(cell["id"], cell["cell_type"]) for cell in english] == [(cell["id"], cell["cell_type"]) for cell in russian]
    for ours, theirs in zip(english, russian, strict=True):
        code = [re.sub(r"\s*#.*|\w\w_\w\w(?=\.UTF-8)", "", source(cell)) for cell in (ours, theirs)]
        cyrillic = [bool(re.search("[а-яё]{3}", source(cell))) for cell in (ours, theirs)]
        assert code[0] == code[1] if ours["cell_type"] == "code" else cyrillic[1] and code[0] != code[1], ours["id"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_shows_what_its_records_have(name, executed):
    russian = NAMES.index(name)
    shown = {}
    for id, cell in executed[name].items():
        for output in cell.get("outputs", ()):
            assert output["output_type"] in ("execute_result", "stream") and output.get("name") != "stderr", (id, output)
            data = output.get("data", {})
            shown[id] = shown.get(id, "") + (data.get("text/html") or html.escape(output["text"]))
            if data:
                assert len(data["text/plain"]) < 1500, id  # what a terminal shows of the same cell
    texts = {id: html.unescape(re.sub(r"<[^>]*>", "", text)) for id, text in shown.items()}
    assert {id: words[russian] for id, words in SAID.items() if words[russian] not in texts.get(id, "")} == {}
    for id in ("load", "run", "page"):
        assert shown[id].startswith('<iframe class="inspector"') and len(shown[id]) < 400_000
        assert f'<html lang="{"ru" if russian else "en"}">' in page_in(shown[id])
