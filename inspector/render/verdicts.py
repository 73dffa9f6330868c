"""Verdicts and measurements for the terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from ..records.comparison import BesideCompiled, Replayed, Stretch, Verdict
from ..records.generation import SETTINGS, Sampling
from .settings import FILTER_NAMES, setting_text
from .tables import table
from .text import Translate, duration, threads_of, tokens_of, visible

LEVEL_STYLES = {"bitwise": "bold green", "rounding": "green", "tokens": "yellow", "near-tie": "yellow", "different": "bold red"}


def level_words(level: str, t: Translate) -> str:
    """A level of ``LEVELS`` in the reader's language; ``--require`` and the JSON have the English one."""
    russian = {
        "bitwise": "побитово",
        "rounding": "округление",
        "tokens": "токены",
        "near-tie": "почти ничья",
        "different": "различие",
    }
    return t(level, f"{russian[level]} ({level})")


def sampling_words(sampling: Sampling, t: Translate) -> str:
    """The settings that are on, in the order in which they act, and the seed: T=0.8, top-k 2, seed 0."""
    how = [t("greedy", "жадно") if sampling.greedy else f"T={setting_text(sampling.temperature)}"]
    names = [name for name in FILTER_NAMES if name != "temperature" and name in SETTINGS and sampling.is_on(name)]
    how += [f"{FILTER_NAMES[name]} {setting_text(getattr(sampling, name))}" for name in names]
    return ", ".join(how if sampling.greedy else [*how, f"seed {sampling.seed}"])


def verdict_line(name: str, verdict: Verdict, t: Translate, threads: int | None = None) -> RenderableType:
    """A comparison with ``model.generate()``: the level and the numbers it rests on; ``threads`` is what both sides computed with."""
    with_threads = "" if threads is None else f"{threads_of(threads, t)} · "
    level = Text(level_words(verdict.level, t), LEVEL_STYLES[verdict.level])
    cache = t("with a KV-cache · ", "с KV-cache · ") if verdict.kv_cache else ""
    named = f"{visible(name)} · " if name else ""
    line = Text.assemble(level, f" · {named}{sampling_words(verdict.sampling, t)} · {cache}{with_threads}")
    if verdict.level == "bitwise":
        n = len(verdict.tokens_hand)
        given = compared_words(verdict, t)
        what = t(f"{tokens_of(n, t)} and all {given}", f"{tokens_of(n, t)} и все {given}")
        if verdict.scores_compared:
            what = t(f"{tokens_of(n, t)}, {given} and scores", f"{tokens_of(n, t)}, {given} и оценки")
        return line + Text(
            "; ".join(
                [
                    t(f"{what} equal generate()'s", f"{what} те же, что у generate()"),
                    *changed_said(verdict, t),
                    *compiled_said(verdict.compiled, t),
                ]
            )
        )
    parts = [tokens_said(verdict, t), *unrepeated_said(verdict, t), *changed_said(verdict, t)]
    parts += [*behind_said(verdict, t), *logits_said(verdict, t), *compiled_said(verdict.compiled, t)]
    return line + Text("; ".join(parts))


def compared_words(verdict: Verdict, t: Translate) -> str:
    """What was compared at every step: logits, or what a model with a softmax inside gives in their place."""
    return t("logits", "логиты") if verdict.gives == "logits" else t("log-probabilities", "логарифмы вероятностей")


def tokens_said(verdict: Verdict, t: Translate) -> str:
    """Whether the tokens part, where, and how close that was."""
    step = verdict.first_token_difference
    if step is None:
        n = tokens_of(len(verdict.tokens_hand), t)
        return t(f"{n}, all equal", f"{n}, все равны")
    said = t(f"the tokens part at step {step + 1}", f"токены расходятся на шаге {step + 1}")
    if step >= min(len(verdict.tokens_hand), len(verdict.tokens_generate)):
        return said + t(", where one side has stopped", ", где одна сторона остановилась")
    if verdict.margin is None:
        return said
    return said + t(
        f": the margin was {verdict.margin:.2g}, the sides differ on it by {verdict.observed_error:.2g}",
        f": запас был {verdict.margin:.2g}, стороны разошлись в нём на {verdict.observed_error:.2g}",
    )


def unrepeated_said(verdict: Verdict, t: Translate) -> list[str]:
    """Which sides do not repeat themselves."""
    if not verdict.unrepeated:
        return []
    sides = t(" and ", " и ").join({"hand": t("by hand", "вручную"), "generate": "generate()"}[side] for side in verdict.unrepeated)
    return [
        t(
            f"not the same twice: {sides}, run once more, gave other numbers, so none of the difference can be called rounding",
            f"не повторяется: {sides} при повторном запуске даёт другие числа, поэтому разницу нельзя назвать округлением",
        )
    ]


def changed_said(verdict: Verdict, t: Translate) -> list[str]:
    """What the model was changed in while it was compared, and that dropout acts."""
    said = []
    if verdict.changed:
        listed = ", ".join(map(visible, verdict.changed[:3])) + (f" … ({len(verdict.changed)})" if len(verdict.changed) > 3 else "")
        said.append(t(f"changed in the model meanwhile: {listed}", f"в модели за это время изменилось: {listed}"))
    if verdict.training:
        said.append(t("the model was in training mode, where dropout draws", "модель была в режиме обучения, где dropout случаен"))
    return said


def compiled_said(beside: BesideCompiled | None, t: Translate) -> list[str]:
    """How a compiled model compares with the module inside it."""
    if beside is None:
        return []
    reason = visible(beside.reason or "")
    if beside.level is None:
        return [t(f"the compiled model breaks off: {reason}", f"скомпилированная модель обрывается: {reason}")]
    said = t(f"the compiled model against it: {beside.level}", f"скомпилированная модель против неё: {level_words(beside.level, t)}")
    if beside.max_difference:
        said += t(f", logits by up to {beside.max_difference:.2g}", f", логиты до {beside.max_difference:.2g}")
    if beside.error_plain is not None:
        errors = f"{beside.error_compiled:.2g}", f"{beside.error_plain:.2g}"
        said += t(" (own rounding errors {} and {})".format(*errors), " (свои ошибки округления {} и {})".format(*errors))
    return [said + (f" ({reason})" if reason else "")]


def behind_said(verdict: Verdict, t: Translate) -> list[str]:
    """What ``generate()`` does behind the logits."""
    behind = verdict.behind_logits
    if behind is None:
        return []
    step, size = behind.step + 1, f"{behind.difference:.2g}"
    if behind.what == "scores":
        return [
            t(
                f"something after the logits differs: at step {step} generate()'s scores are not what these settings make of its logits, "
                f"by up to {size}",
                f"различие возникает после логитов: на шаге {step} оценки generate() — не то, что настройки дают из его логитов, до {size}",
            )
        ]
    return [
        t(
            f"something after the logits differs: at step {step} generate()'s token is not that of its scores, {size} behind the best",
            f"различие возникает после логитов: на шаге {step} токен generate() — не тот, что по его оценкам, отстаёт на {size}",
        )
    ]


def logits_said(verdict: Verdict, t: Translate) -> list[str]:
    """By how much the logits differ, what of it is rounding, and the cause where it is known."""
    given = compared_words(verdict, t)
    if not verdict.max_difference:
        return [t(f"the {given} are equal, bit for bit", f"{given} равны бит в бит")]
    size = f"{verdict.max_difference:.2g}"
    said = [
        t(
            f"the sides first differ at step {verdict.first_difference + 1}, {given} by up to {size}",
            f"стороны впервые различаются на шаге {verdict.first_difference + 1}, {given} до {size}",
        )
    ]
    if verdict.cause:
        said.append(visible(t(verdict.cause, verdict.cause_in_russian or verdict.cause)))
    if verdict.no_float64:
        reason = visible(verdict.no_float64)
        said.append(t(f"rounding cannot be told, no float64 run: {reason}", f"округление не определить, нет прогона в float64: {reason}"))
    if verdict.error_hand is not None:
        hand, generate, floor = (f"{error:.2g}" for error in (verdict.error_hand, verdict.error_generate, verdict.floor))
        said.append(
            t(
                f"own rounding errors: by hand {hand}, generate() {generate}; floor of the float64 reference {floor}",
                f"свои ошибки округления: вручную {hand}, generate() {generate}; предел эталона float64 {floor}",
            )
        )
    return said


def comparison_table(backbone: str, head: str, verdict: Verdict, lines: Sequence[int], t: Translate) -> RenderableType:
    """By hand beside ``model.generate()``, with what this run measured; ``lines`` of code, of generate's call and of the lesson."""
    n_hand = len(verdict.tokens_hand)
    built_in = t("torch.multinomial: the largest p/q", "torch.multinomial: наибольшее p/q")
    own = t("the same: equal seeds give equal q", "то же: при равных seed и q равны")
    if verdict.sampling.greedy:
        own, built_in = t("our own argmax", "свой argmax"), t("built in, torch.argmax", "встроенное, torch.argmax")
    off = t("off here, on by default", "здесь выключен, обычно включён")
    by_hand = f"model.{backbone}(ids) → model.{head}(…)"
    if not backbone:  # its own forward, stopped where the head begins
        by_hand = t("model(ids) up to the head → head", "model(ids) до головы → голова")
    rows = (
        (
            t("calls", "вызовы"),
            t("1, the loop is inside", "1, цикл внутри"),
            t(f"{n_hand} × backbone, {n_hand} × head", f"{n_hand} × backbone, {n_hand} × голова"),
        ),
        (
            t("forward pass", "прямой проход"),
            t("model(ids), a black box", "model(ids), чёрный ящик"),
            by_hand,
        ),
        (t("sampling", "сэмплирование"), built_in, own),
        ("KV-cache", *(2 * [t("on", "включён")] if verdict.kv_cache else [off, t("none", "нет")])),
        (t("lines of code", "строк кода"), t(f"{lines[0]}, the call", f"{lines[0]}, вызов"), f"{lines[1]}, inference.py"),
        (
            t("time of a step, median", "время шага, медиана"),
            *("–" if s is None else duration(s, t) for s in (verdict.step_seconds_generate, verdict.step_seconds_hand)),
        ),
    )
    result = table(t("aspect", "аспект"), "model.generate()", t("by hand", "вручную"), wide=(1, 2))
    for row in rows:
        result.add_row(*(Text(cell) for cell in row))
    return result


def growth_table(times: dict[str, dict[int, float]], t: Translate) -> RenderableType:
    """Seconds of a step by hand at several context lengths: model → length → seconds.

    More context cannot cost less: where it seems to, the machine had other work, and the row is not shown.
    """
    lengths = sorted({length for row in times.values() for length in row})
    result = table(t("a step at N tokens", "шаг при N токенах"), *map(str, lengths), numbers=range(1, len(lengths) + 1))
    for name, row in times.items():
        believed = {length: duration(seconds, t) if rises(row) else "?" for length, seconds in row.items()}
        result.add_row(Text(visible(name)), *(believed.get(length, "–") for length in lengths))
    if all(map(rises, times.values())):
        return result
    busy = t(
        "?: the machine was too busy to tell (more tokens seemed to take less time)",
        "?: машина была слишком занята, чтобы судить (больше токенов будто бы заняли меньше времени)",
    )
    return Group(result, Text(busy, "yellow"))


def rises(times: dict[int, float]) -> bool:
    """Whether a longer context takes no less time, as far as ``duration`` shows it: length → seconds."""
    shown = [round(seconds, 4 if seconds < 1 else 2) for _, seconds in sorted(times.items())]
    return shown == sorted(shown)


LOOP_COLUMNS = ("context", "hand_ms", "generate_ms", "hand_to_generate", "recording_percent", "limit_ms", "hand_to_limit")


def loop_table(rows: Sequence[dict], t: Translate) -> RenderableType:
    """What ``inspector bench loop`` measured: the numbers of its JSON rows under their names, and what these mean."""
    heads = ("\n_".join(name.rsplit("_", 1)) for name in LOOP_COLUMNS)  # in two lines, for narrow terminals
    result = table(*heads, numbers=range(len(LOOP_COLUMNS)))
    for row in rows:
        result.add_row(*(f"{row[name]:.2f}" if isinstance(row[name], float) else str(row[name]) for name in LOOP_COLUMNS))
    meaning = t(
        "ms of a step: backbone, head, filters and draw; medians after a warm-up. hand_to_generate is the median of the rounds' ratios, "
        "recording_percent that of the steps' (a step's record, beside its time)",
        "столбцы названы, как в файле с числами: context — длина контекста; hand_ms и generate_ms — мс на шаг вручную и в generate(); "
        "limit_ms — меньше шаг здесь занять не может; hand_to_… — отношение шага вручную к нему и к generate(). "
        "Шаг: backbone, голова, фильтры и выбор; медианы "
        "после прогрева, hand_to_generate — медиана отношений по раундам; recording_percent — запись шага в процентах от его времени",
    )
    return Group(result, Text(meaning, "dim"))


def coverage_table(heads: Sequence[str], rows: Sequence[tuple[str, ...]], width: int) -> RenderableType:
    """What became of each model type: (type, head, …figures…, reason) a row; on a narrow terminal head and reason below the figures."""
    if width >= 140:
        result = table(*heads, wide=(1, len(heads) - 1))
        for row in rows:
            result.add_row(*map(Text, row))
        return result
    lines = []
    for name, head, *figures, reason in rows:
        labels = ("", "", "", *(f"{head} " for head in heads[5:-1]))  # levels speak for themselves
        said = " · ".join(f"{label}{value}" for label, value in zip(labels, figures, strict=True) if value != "–")
        lines.append(Text.assemble((name, "bold"), "  ", (said, "dim")))
        lines += [Padding(Text(text, style), (0, 0, 0, 4)) for text, style in ((head, "green"), (reason, "yellow")) if text != "–"]
    return Group(*lines)


def replayed_words(result: Replayed, t: Translate, threads: int | None = None) -> RenderableType:
    """What a replay compared, and whether all of it recurs; else the first number that does not. ``threads`` computed, where known."""
    parts = {
        t("tokens", "токены"): result.compared.get("id", 0),
        t("logits", "логиты"): result.compared.get("logit", 0) + result.compared.get("logits", 0),
        t("probabilities", "вероятности"): result.compared.get("probability_before", 0) + result.compared.get("probability_after", 0),
        "q": result.compared.get("draw", 0) + result.compared.get("draws", 0),
    }
    rest = sum(result.compared.values()) - sum(parts.values())
    told = ", ".join(f"{name} {number:,}" for name, number in parts.items() if number)
    cache = [t("with a KV-cache", "с KV-cache")] if result.kv_cache else []
    computed = [threads_of(threads, t)] if threads is not None else []
    name = visible(result.model)
    if result.with_model != result.model:
        name += t(f", replayed with {visible(result.with_model)}", f", повтор на {visible(result.with_model)}")
    about = Text("".join(f" · {one}" for one in (name, *cache, *computed)))
    compared = t(
        f"compared in {result.steps} of {result.recorded} steps: {told}; {rest:,} other entries",
        f"сравнено шагов: {result.steps} из {result.recorded}: {told}; прочих записей {rest:,}",
    )
    if result.departure is None:
        word = Text(t("recurs", "повторяется"), "bold green")
        return Group(
            word + about,
            Text(t("every recorded number is the same, bit for bit", "каждое записанное число то же, бит в бит")),
            Text(compared, "dim"),
        )
    at = result.departure
    values = visible(f"{at.recorded!r:.60}"), visible(f"{at.found!r:.60}")
    said = t(
        f"the first that differs, at step {at.step + 1}: {at.what} was {values[0]}, is now {values[1]}",
        f"первое отличие на шаге {at.step + 1}: {at.what} — было {values[0]}, стало {values[1]}",
    )
    return Group(Text(t("does not recur", "не повторяется"), "bold red") + about, Text(said), Text(compared, "dim"))


def stretch_words(stretch: Stretch, t: Translate) -> str:
    """One stretch of a stepped-through generation: what was compared with ``generate()``, and what came out."""
    a, b = stretch.first + 1, stretch.last + 1
    steps = t(f"step {a}", f"шаг {a}") if a == b else t(f"steps {a}–{b}", f"шаги {a}–{b}")
    equal = stretch.max_difference == 0
    logits = (
        t("logits equal bit for bit", "логиты равны бит в бит")
        if equal
        else t(f"logits differ by up to {stretch.max_difference:.1e}", f"логиты расходятся до {stretch.max_difference:.1e}")
    )
    if stretch.compared == "logits":
        why = t("forced, so the choice is not generate()'s", "токен назван вручную, выбор не сравнить с generate()")
        if stretch.why != "forced":
            why = t(
                f"{stretch.why} acts by where it begins or ends, so the choice cannot be compared",
                f"{stretch.why} зависит от начала и конца, выбор не сравнить",
            )
        return f"{steps}: {logits}; {why}"
    tokens = t("tokens equal", "токены равны") if stretch.tokens_equal else t("tokens differ", "токены различаются")
    return f"{steps}: {tokens}, {logits}; {sampling_words(stretch.sampling, t)}"
