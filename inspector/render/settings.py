"""Generation settings for the terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from ..records.generation import SETTINGS, Sampling, Setting
from .tables import table
from .text import Translate, visible


def settings_line(sampling: Sampling, origins: dict[str, str], t: Translate, kv_cache: bool = False) -> RenderableType:
    """The sampling settings in the order of the filters, each with where it is from; and that a cache is on."""
    words = origin_words(t)
    off = t("off", "нет")
    always = ("repetition_penalty", "temperature", "top_k", "top_p", "seed")  # the others only where they are asked for
    parts = []
    for name in [name for name in (*FILTER_NAMES, "seed") if name in origins]:
        idle = sampling.greedy and SETTINGS[name].draws and name != "temperature"  # a temperature of 0 says that it is greedy
        value = None if idle else getattr(sampling, name)
        if name in always or value not in (None, 0):
            origin = t("greedy", "жадно") if idle else words[origins[name]]
            parts.append(f"{FILTER_NAMES.get(name, name)} {off if value is None else setting_text(value)} ({origin})")
    cache = t("; with a KV-cache", "; с KV-cache") if kv_cache else ""
    return Text(" → ".join(parts[:-1]) + "; " + parts[-1] + cache, "dim")


def origin_words(t: Translate) -> dict[str | None, str]:
    """Where a setting's value is from, in words."""
    return {
        "flag": t("flag", "флаг"),
        "checkpoint": t("checkpoint", "чекпойнт"),
        "library": t("library", "библиотека"),
        "default": t("default", "умолчание"),
        "lesson": t("lesson default", "умолчание урока"),
        None: "",
    }


def setting_text(value: object) -> str:
    """A setting's value, short: long lists of ids are cut, sequences of ids stand in brackets."""
    if value is None:
        return "–"
    if isinstance(value, (tuple, list)):
        parts = [f"[{' '.join(map(str, part))}]" if isinstance(part, (tuple, list)) else str(part) for part in value]
        return visible(" ".join(parts[:4]) + (f" … ({len(parts)})" if len(parts) > 4 else ""))
    if isinstance(value, float):
        return short if float(short := f"{value:g}") == value else repr(value)  # 0.9999999 is not 1, which is off
    return visible(str(value))


def settings_table(rows: Sequence[Setting], t: Translate) -> RenderableType:
    """Every generation setting of a run by hand beside that of ``generate()``, and then those that only the latter has.

    In brackets stands what ``generate()`` has and does not use.
    """
    words, applied = origin_words(t), {"yes": t("yes", "да"), "off": t("off", "нет")}
    alone = "generate()", t("from", "откуда")
    common = table(t("setting", "настройка"), t("this run", "здесь"), t("from", "откуда"), t("acts", "вкл."), *alone)
    foreign = table(t("not applied here", "здесь не применяется"), *alone)
    for column in (foreign.columns[0], *(common.columns[i] for i in (0, 2, 3, 5))):
        column.no_wrap = True
    common.columns[4].min_width = len("generate()")
    for row in rows:
        text = setting_text(row.alone)
        there = f"({text})" if row.idle and row.alone is not None else text, words[row.alone_origin]
        if row.applied == "no":
            foreign.add_row(row.name, *map(Text, there), style="yellow" if row.notes else "dim")
        else:
            here = setting_text(row.here), words[row.origin], applied[row.applied]
            common.add_row(
                row.name, *map(Text, (*here, *there)), style="bold" if row.applied == "yes" else "yellow" if row.notes else "dim"
            )
    return Group(common, Text(""), foreign, Text(""))


def settings_remarks(rows: Sequence[Setting], t: Translate) -> RenderableType:
    """What the table of the settings does not say, a line for each remark, and what its brackets mean."""
    brackets = t(
        "(…) generate() has this value and does not use it. – there is none.",
        "(…) у generate() есть это значение, но он его не применяет. – значения нет.",
    )
    return Text("\n".join([*remarks_on(rows, t), brackets]), "dim")


def remarks_on(rows: Sequence[Setting], t: Translate) -> list[str]:
    """What must be said of settings beside their values."""
    lines = []
    for row in rows:
        name, alone, here = row.name, setting_text(row.alone), setting_text(row.here)
        ships = t(f"{name}: the checkpoint ships {alone}", f"{name}: в чекпойнте {alone}")
        remarks = {
            "not taken": t(f"{ships}; not taken: --checkpoint-settings takes it", f"{ships}; не взято: возьмёт --checkpoint-settings"),
            "withheld": t(
                f"{ships}; not taken, and --checkpoint-settings is refused, see below",
                f"{ships}; не взято, и --checkpoint-settings откажет, см. ниже",
            ),
            "overruled": t(f"{ships}; the flag says {here}", f"{ships}; по флагу {here}"),
            "limit": t(f"{ships}; --max-new-tokens decides here", f"{ships}; здесь решает --max-new-tokens"),
            "idle": t(
                f"{ships}; generate() does not use it, it does not sample", f"{ships}; generate() его не применяет: он не сэмплирует"
            ),
            "missing": t(
                f"{ships}; generate() applies it, this run cannot, so --checkpoint-settings is refused",
                f"{ships}; generate() его применяет, здесь этого нет, поэтому --checkpoint-settings откажет",
            ),
            "filled in": t(
                f"{name}: nobody asks for {alone}, generate() fills it in when it samples",
                f"{name}: {alone} никто не просил, generate() подставляет его, когда сэмплирует",
            ),
            "greedy too": t(f"{name}: acts on greedy runs, too", f"{name}: действует и в жадном режиме"),
            "one token": t(f"{name}: acts only where a single token is fed", f"{name}: действует, только если на входе один токен"),
        }
        lines += [remarks[note] for note in row.notes]
    return lines


FILTER_NAMES = {  # in the order in which they act
    "repetition_penalty": "penalty",
    "no_repeat_ngram_size": "n-grams",
    "bad_words_ids": "bad words",
    "min_length": "min-length",
    "min_new_tokens": "min-new",
    "forced_bos_token_id": "force-bos",
    "forced_eos_token_id": "force-eos",
    "suppress_tokens": "suppress",
    "begin_suppress_tokens": "begin",
    "temperature": "temperature",
    "top_k": "top-k",
    "top_p": "top-p",
    "min_p": "min-p",
    "typical_p": "typical-p",
    "greedy": "greedy",
}
FILTERS_IN_RUSSIAN = {"n-grams": "запрет n-грамм", "bad words": "запрет слов"}  # where a sentence needs them in the singular
