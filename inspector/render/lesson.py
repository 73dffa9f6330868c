"""Where models are from, and what the lesson says at its beginning and its end.

Texts come in English and Russian: every function takes ``t``, which picks one of the two.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .tables import notice, table
from .text import Translate, memory, visible


def origins(rows: Sequence[tuple], t: Translate) -> RenderableType:
    """Where the models are from: (name, kind of origin, dtype, device) a row."""
    kinds = {"hub": t("hub", "хаб"), "folder": t("folder", "папка"), "embedded": t("embedded", "встроенная"), "python": "Python"}
    result = table(t("model", "модель"), t("from", "откуда"), "dtype", t("device", "устройство"))
    for name, kind, dtype, device in rows:
        result.add_row(Text(visible(name)), kinds[kind], str(dtype).removeprefix("torch."), str(device))
    return result


def stand_in(wanted: str, name: str, t: Translate) -> RenderableType:
    """Says that an embedded model is shown instead of the default one, and how to get that."""
    lines = (
        t(
            f"{wanted} is not in the cache and the hub does not give it, so the embedded {name} stands in: "
            "a small Qwen2 of the same architecture, trained on Russian names.",
            f"{wanted} нет в кэше, и хаб её не отдаёт, поэтому вместо неё встроенная {name}: "
            "маленький Qwen2 той же архитектуры, обученный на русских именах.",
        ),
        t(
            "For the real one run this again with a network: about 1 GB is fetched once. "
            "Or copy its files to a folder and name it: python inference.py --model FOLDER",
            "Чтобы увидеть настоящую, запустите урок с сетью: около 1 ГБ скачается один раз. "
            "Или скопируйте её файлы в папку и назовите её: python inference.py --model ПАПКА",
        ),
    )
    return notice(lines, t("The real Qwen is not here", "Настоящего Qwen здесь нет"))


def places(sizes: dict[str, int]) -> RenderableType:
    """Where the weights of a model lie that was spread: place → bytes."""
    return Text("weights: " + ", ".join(f"{memory(size)} on {place}" for place, size in sizes.items()), "dim")


def closing(t: Translate) -> RenderableType:
    """What was shown, in a sentence, and what to try next."""
    said = t(
        "A language model is a backbone, a head and a loop: what generate() does is no more than what you have just read.",
        "Языковая модель — это backbone, голова и цикл: generate() делает не больше, чем вы только что прочли.",
    )
    command = "inspector" if shutil.which("inspector") else os.path.relpath(Path(sys.executable).parent / "inspector")
    commands = (
        ("run names-qwen2 Крас --top-k 5 --seed 7", t("other settings, other surnames", "другие настройки, другие фамилии")),
        (
            "verify names-expert Крас --greedy",
            t("the verdict alone; a script reads its exit code", "только вердикт; скрипт читает код выхода"),
        ),
        ("tree names-expert", t("one model's tree", "дерево одной модели")),
    )
    lines = Table.grid(padding=(0, 2))
    for arguments, what in commands:
        lines.add_row(Text(f"{command} {arguments}", "bold"), Text(what, "dim"))
    return Panel(Group(Text(said), Text(""), lines), box=box.HEAVY)
