"""What components do, as tables for rich: contributions to a logit, and interventions. Records only.

Texts come in English and Russian: every function takes ``t``, which picks one of the two.
"""

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from ..records.effects import Check, Contributions, Effect, Intervention, Term
from .settings import setting_text
from .tables import table
from .text import Translate, chance, quoted


def bar(value: float, largest: float, width: int) -> Text:
    """A number as a bar that begins in the middle of ``width`` columns: to the left and red below zero, to the right and green above."""
    half = (width - 1) // 2
    length = round(half * abs(value) / largest) if largest else 0
    full = "█" * min(half, length)
    if value < 0:
        return Text(" " * (half - len(full))).append(full, "red").append("│", "dim")
    return Text(" " * half).append("│", "dim").append(full, "green")


def shortened(terms: Sequence[Term], top: int | None) -> tuple[Sequence[Term], Term | None]:
    """The ``top`` terms that decide most between the two tokens, in their order, and the sum of all others; None keeps all."""
    if top is None or top >= len(terms):
        return terms, None
    kept = set(sorted(range(len(terms)), key=lambda i: -abs(terms[i].difference))[:top])
    others = [term for i, term in enumerate(terms) if i not in kept]
    rest = Term("", sum(term.logit for term in others), sum(term.difference for term in others))
    return [term for i, term in enumerate(terms) if i in kept], rest


def contributions_view(record: Contributions, width: int, t: Translate, top: int | None = None) -> RenderableType:
    """Each term with what it adds to the chosen token's logit, and to its lead over the rival; below, whether they add up."""
    chosen, rival = quoted(record.token.text), quoted(record.rival.text)
    terms, rest = shortened(record.terms, top)
    result = table(t("written by", "кто пишет"), t("logit", "логит"), "", f"{chosen} − {rival}", "", numbers=(1, 3))
    rows = [*terms, *([rest] if rest else [])]
    beside = max(12, *(cell_len(row.role) for row in rows)) + 8 + max(8, cell_len(f"{chosen} − {rival}")) + 12
    room = max(9, min(31, (width - beside) // 2))
    largest = [max((abs(of(row)) for row in rows), default=0.0) for of in (lambda r: r.logit, lambda r: r.difference)]
    for row in rows:
        name = row.role or t(f"the other {len(record.terms) - len(terms)}", f"остальные {len(record.terms) - len(terms)}")
        bars = (bar(row.logit, largest[0], room), bar(row.difference, largest[1], room))
        result.add_row(Text(name, "dim" if not row.role else ""), f"{row.logit:+z.3f}", bars[0], f"{row.difference:+z.3f}", bars[1])
    logit, lead = (next(check for check in record.checks if check.name == name) for name in ("logit", "difference"))
    result.add_row(Text(t("sum", "сумма"), "bold"), Text(f"{logit.sum:+z.3f}", "bold"), "", Text(f"{lead.sum:+z.3f}", "bold"), "")
    asked = record.logit < record.rival_logit  # for: the next token is the best one
    said = t(
        f"{'A token' if asked else 'The next token'}: {chosen}, logit {record.logit:z.3f}; "
        f"the best {'' if asked else 'other '}one: {rival}, logit {record.rival_logit:z.3f}.",
        f"{'Токен' if asked else 'Следующий токен'}: {chosen}, логит {record.logit:z.3f}; "
        f"лучший{'' if asked else ' из остальных'}: {rival}, логит {record.rival_logit:z.3f}.",
    )
    if record.after:
        words = " → ".join(record.after)
        said += t(f" Both are before {words}, which is no sum.", f" Оба — до {words}: это уже не сумма.")
    frozen = t(
        "The final norm's scale is held at its value for this prompt; the middle of a bar is 0.",
        "Масштаб последней нормы зафиксирован для этого запроса; середина полоски — 0.",
    )
    return Group(Text(said), Text(""), result, Text(""), checks_table(record.checks, t), Text(frozen, "dim"))


def checks_table(checks: Sequence[Check], t: Translate) -> RenderableType:
    """What adds up, and how exactly: an error above the allowed one would have been an error of the view."""
    names = {
        "residual": t("residual (worst dim.)", "поток (худшая коорд.)"),
        "logit": t("logit", "логит"),
        "difference": t("difference", "разность"),
    }
    heads = t("check", "проверка"), t("sum", "сумма"), t("model", "модель"), t("error", "ошибка"), t("allowed", "допустимо"), ""
    result = table(*heads, numbers=(1, 2, 3, 4))
    for check in checks:
        mark = Text("✓", "green") if check.holds else Text("✗", "bold red")
        numbers = f"{check.sum:z.6f}", f"{check.target:z.6f}", f"{check.error:.1e}", f"{check.allowed:.1e}"
        result.add_row(Text(names.get(check.name, check.name)), *numbers, mark)
    return result


def in_words(what: Intervention, t: Translate) -> str:
    """An intervention in words, such as ``layers.3.attn × 0.5``."""
    where = "" if what.position is None else t(f", at position {what.position}", f", в позиции {what.position}")
    if what.kind == "scale":
        return f"{what.role} × {setting_text(float(what.value))}{where}"
    if what.kind == "patch":
        return t(f"{what.role} from {quoted(str(what.value))}{where}", f"{what.role} из {quoted(str(what.value))}{where}")
    mean = t("the mean over the positions", "среднее по позициям")
    return f"{what.role} := {'0' if what.value == 'zero' else mean}{where}"


def effect_view(record: Effect, t: Translate, top: int = 10) -> RenderableType:
    """The next token's distribution before and after, the tokens that moved most first; then what was changed and what was proved."""
    heads = t("before", "до"), t("after", "после"), t("logit before", "логит до"), t("logit after", "логит после")
    result = table(t("token", "токен"), *heads, numbers=(1, 2, 3, 4))
    for shift in record.shifts[:top]:
        moved = shift.probability_after - shift.probability_before
        style = "green" if moved >= 0.005 else "red" if moved <= -0.005 else "dim"
        probabilities = (chance(p) for p in (shift.probability_before, shift.probability_after))
        logits = (f"{value:z.3f}" for value in (shift.logit_before, shift.logit_after))
        result.add_row(Text(quoted(shift.token.text)), *(Text(text, style) for text in (*probabilities, *logits)))
    lines = [in_words(what, t) for what in record.interventions]
    places = ", ".join(f"{role} {positions}" for role, positions in record.roles.items())
    lines.append(t(f"positions changed, of {len(record.prompt)}: {places}", f"изменено позиций из {len(record.prompt)}: {places}"))
    if record.calls:
        several = ", ".join(f"{role} × {calls}" for role, calls in record.calls.items())
        lines.append(
            t(f"run several times, and changed in every call: {several}", f"выполняются несколько раз, изменён каждый вызов: {several}")
        )
    best = [max(record.shifts, key=of).token.text for of in (lambda s: s.probability_before, lambda s: s.probability_after)]
    most = t(f"most probable: {quoted(best[0])} → {quoted(best[1])}", f"вероятнее всего: {quoted(best[0])} → {quoted(best[1])}")
    kl = f"KL({t('before‖after', 'до‖после')}) = {record.kl:.4g} {t('nats', 'нат')}"
    proved = t(
        "Proved: hooks that change nothing leave every bit of the logits as it was, and so does the end of the intervention.",
        "Доказано: хуки, которые ничего не меняют, не трогают ни бита логитов; после вмешательства все биты прежние.",
    )
    if not record.same_hooked:
        proved = t(
            f"Hooks alone lead this model to other last bits: logits differ by {record.apart:.1e} from the model's own, given as before.",
            f"Хуки сами по себе меняют последние биты этой модели: логиты отличаются на {record.apart:.1e} от её собственных (они слева).",
        )
    style = "dim" if record.same_hooked else "yellow"
    return Group(Text("\n".join(lines)), Text(""), result, Text(""), Text(f"{kl}; {most}", "bold"), Text(proved, style))


def share(x: float | None) -> Text:
    """A share in percent; large ones stand out."""
    if x is None:
        return Text("")
    return Text("0%" if abs(x) < 0.005 else f"{x:.0%}", "bold" if x >= 0.5 else "dim" if x < 0.1 else "")


def gender_view(result: dict, t: Translate) -> RenderableType:
    """What ``bench gender`` measured: where a patch moves the lead, and what is right without some heads."""
    female, male = result["lead"]["female"], result["lead"]["male"]
    said = t(
        f"{result['pairs']} pair{'s' * (result['pairs'] != 1)} of prompts that differ in the given name alone. Mean logit of the "
        f"feminine token less the masculine one: {female:+z.2f} after female names, {male:+z.2f} after male ones. Below: how much of that "
        "way it goes when a female run gets an activation of the male one, at one place.",
        f"Пары запросов ({result['pairs']}) отличаются только именем. Логит женского токена минус логит мужского, в среднем: "
        f"{female:+z.2f} после женских имён, {male:+z.2f} после мужских. Ниже: какую часть этого пути он проходит, если женский "
        "прогон получает активацию мужского в одном месте.",
    )
    names = {
        "given name": t("given name", "имя"),
        "its last letter": t("its last letter", "его конец"),
        "space": t("space", "пробел"),
        "surname": t("surname", "фамилия"),
        "last position": t("last position", "последняя"),
        "everywhere": t("everywhere", "везде"),
    }
    moved = table(t("patched", "подмена"), *names.values(), numbers=range(1, 7))
    for role, places in result["moved"].items():
        moved.add_row(role, *(share(places.get(place)) for place in names))
    heads = t("right ♀", "верно ♀"), t("right ♂", "верно ♂"), t("lines agree", "согласовано"), t("no judging", "нельзя судить")
    ablated = table(t("without", "без"), t("put there", "вместо"), *heads, numbers=(2, 3, 4, 5))
    fills = {"": "", "zero": "0", "mean": t("mean", "среднее")}
    for row in result["ablated"]:
        percents = ("" if (x := row.get(f"{name}_percent")) is None else f"{x:.1f} %" for name in ("agreement", "unjudged"))
        first, *others = row["roles"] or [t("nothing", "ничего")]
        roles = ", ".join([first, *(role.removeprefix(first.rpartition(".")[0] + ".") for role in others)])
        ablated.add_row(Text(roles), fills[row["fill"]], f"{row['female']:.0%}", f"{row['male']:.0%}", *percents)
    return Group(Text(said), Text(""), moved, Text(""), ablated)
