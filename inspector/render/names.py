"""Models of names side by side, and the n-grams that they have to beat, as a table for rich.

Texts come in English and Russian: every function takes ``t``, which picks one of the two.
"""

from rich.console import Group, RenderableType
from rich.text import Text

from .tables import table
from .text import Translate, visible


def names_view(result: dict, t: Translate) -> RenderableType:
    """What ``bench names`` measured: the corpus, a row for each model and each n-gram, and by how much the best n-gram is beaten."""
    leaks = result["unseen"] < result["validation"]
    unseen = [t("unseen", "новые")] if leaks else []
    heads = (t("parameters", "параметры"), t("active", "активные"), t("cache B", "кэш, Б"), t("tokens/s", "токен/с"), t("min", "мин"))
    view = table(t("model", "модель"), t("nats/char", "нат/знак"), *unseen, *heads, numbers=range(1, 7 + leaks))
    for row in result["models"]:
        losses = [row["loss"], row["loss_unseen"]] if leaks else [row["loss"]]
        counts = (row[name] for name in ("parameters", "active_parameters", "cache_bytes_per_token", "tokens_per_second"))
        view.add_row(row["model"], *(number(x, ".4f") for x in losses), *(number(x, ",.0f") for x in counts), number(row["minutes"], ".1f"))
    for row in result["ngrams"]:
        losses = [row["loss"], row["loss_unseen"]] if leaks else [row["loss"]]
        name = t(f"{row['order']}-gram", f"{row['order']}-граммы")
        view.add_row(Text(name, "dim"), *(number(x, ".4f") for x in losses), f"{row['counts']:,}", *("–",) * 4)
    explained = t(
        "nats/char: loss over every character of every held-out item, end symbol included. active: weights that multiply one token, "
        "of experts the chosen ones, and not those that predict further ahead. cache B: bytes of KV-cache per token, float32. "
        "tokens/s, min: of training. parameters of n-grams: stored counts.",
        "нат/знак: потери по всем знакам всех отложенных строк вместе со знаком конца. активные: веса, на которые умножается один токен, "
        "из экспертов — выбранные, без тех, что предсказывают дальше следующего. кэш, Б: байты KV-кэша на токен во float32. "
        "токен/с, мин: при обучении. параметры n-грамм: хранимые счётчики.",
    )
    return Group(Text(corpus_words(result, t)), Text(""), view, Text(""), Text(explained, "dim"), Text(""), Text(beaten(result, t)))


def agreement_view(result: dict, t: Translate) -> RenderableType:
    """What ``bench agreement`` counted: some of the lines, and how many of them agree in gender."""
    made_up = ", ".join(map(visible, result["examples"]))
    unjudged, agreeing, lines = f"{result['unjudged_percent']:.1f} %", f"{result['agreement_percent']:.1f} %", f"{result['samples']:,}"
    to = f"{result['agrees']:,}", f"{result['disagrees']:,}"
    counted = t(
        f"{unjudged} of {lines} lines cannot be judged; of the others {agreeing} agree ({to[0]} to {to[1]})",
        f"строк {lines}, из них нельзя судить о {unjudged}; из прочих согласованы {agreeing} ({to[0]} против {to[1]})",
    )
    return Group(Text(t(f"made up: {made_up}", f"придумано: {made_up}")), Text(counted))


def number(value: float | None, form: str) -> str:
    """A number in a format; a dash where there is none."""
    return "–" if value is None else format(value, form)


def corpus_words(result: dict, t: Translate) -> str:
    """What was trained on, what was held out and how, and whether the second holds what the first does."""
    train, held_out = f"{result['train']:,}", f"{result['validation']:,}"
    corpus, file = visible(result["corpus"]), visible(result["held_out"] or "")
    if result["split"] == "file":
        words = t(
            f"{corpus}: {train} items to train on; {file}: {held_out} held out.",
            f"{corpus}: строк для обучения {train}; {file}: отложенных {held_out}.",
        )
    elif result["split"] == "own":
        words = t(
            f"The embedded corpus of names: {train} items to train on, {held_out} held out; no surname is in both, given names are.",
            f"Встроенный корпус имён: строк для обучения {train}, отложенных {held_out}; общих фамилий у частей нет, имена общие.",
        )
    else:
        words = t(
            f"{corpus}: {result['dropped']:,} duplicates dropped; a tenth of the unique items held out, drawn with seed "
            f"{result['recipe']['seed']}: {train} to train on, {held_out} held out.",
            f"{corpus}: отброшено повторов {result['dropped']:,}; отложена десятая часть различных строк, seed "
            f"{result['recipe']['seed']}: для обучения {train}, отложенных {held_out}.",
        )
    if known := result["validation"] - result["unseen"]:
        words += t(
            f" {known:,} of the held-out items are in the training part too: the column unseen leaves them out.",
            f" Из отложенных строк {known:,} есть и среди обучающих: столбец «новые» — без них.",
        )
    else:
        words += t(" Training never saw any of the held-out items.", " Ни одной из отложенных строк при обучении не было.")
    if result["unknown"]:
        words += t(
            f" {result['unknown']:,} held-out characters do not occur in training: for every model they are the unknown symbol.",
            f" Отложенных знаков, которых при обучении не было: {result['unknown']:,}; для каждой модели это знак «неизвестный».",
        )
    return words


def beaten(result: dict, t: Translate) -> str:
    """Which n-gram is best, and by how much each model is better or worse."""
    best = next(row for row in result["ngrams"] if row["order"] == result["best_order"])
    words = t(
        f"The best n-gram is of order {best['order']}: {best['loss']:.4f}.",
        f"Лучшие n-граммы — порядка {best['order']}: {best['loss']:.4f}.",
    )
    margins = {row["model"]: best["loss"] - row["loss"] for row in result["models"]}
    for better, said in ((True, t("Better", "Лучше них")), (False, t("Worse", "Хуже них"))):
        if own := [t(f"{model} by", f"{model} на") + f" {abs(margin):.4f}" for model, margin in margins.items() if (margin > 0) is better]:
            words += f" {said}: {', '.join(own)}."
    return words
