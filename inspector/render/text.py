"""Small texts: two languages, control characters made visible, numbers with units."""

import locale
import os
import re
import unicodedata
from collections.abc import Callable, Sequence

from ..records.generation import Token

Translate = Callable[[str, str], str]


def translator(language: str) -> Translate:
    """A function that picks the English or the Russian of two texts, for "en", "ru", or "auto": the user's locale.

    Raises:
        ValueError: another language.
    """
    if language == "auto":
        setting = next((os.environ[v] for v in ("LC_ALL", "LC_MESSAGES", "LANG") if os.environ.get(v)), None) or locale.getlocale()[0] or ""
        language = "ru" if setting.lower().startswith("ru") else "en"
    if language not in ("en", "ru"):
        raise ValueError(f"language {language!r}: choose auto, en or ru")
    return lambda english, russian: russian if language == "ru" else english


def both(say: Callable[[Translate], str]) -> tuple[str, str]:
    """What is said, in English and in Russian, for a page that has both."""
    return say(translator("en")), say(translator("ru"))


def visible(text: str) -> str:
    """Text from a prompt, a tokenizer or a model, with every character that acts instead of showing made visible."""
    shown = []
    for character in text:
        category = unicodedata.category(character)
        if category in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
            shown.append(repr(character)[1:-1])
        else:
            shown.append(character)
    if shown and unicodedata.category(shown[0][0]).startswith("M"):
        shown.insert(0, "◌")  # a combining mark needs something to stand on
    return "".join(shown)


def space(tokens: Sequence[Token]) -> str:
    """What stands between tokens in running text: nothing, but a space where every one is its number, as without a tokenizer."""
    return " " if all(token.text == str(token.id) for token in tokens) else ""


# Spaces that look like the common one, and characters that show nothing at all; control characters are seen to by ``visible``.
BLANKS = re.compile(
    "[\u00a0\u034f\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180d\u180f\u2000-\u200a\u202f\u205f\u2800\u3000\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)


def quoted(text: str) -> str:
    """A token's text between quotation marks, so that its spaces show, and two texts never look alike for what cannot be seen in them:
    a backslash is doubled, and blanks, and what would be composed to another character, are written as numbers."""
    composed = unicodedata.normalize("NFC", text) == text
    shown = visible(text.replace("\\", "\\\\"))
    if not composed:
        shown = "".join(ascii(c)[1:-1] if unicodedata.combining(c) or unicodedata.normalize("NFC", c) != c else c for c in shown)
    return f"«{BLANKS.sub(lambda blank: ascii(blank[0])[1:-1], shown)}»"


def count(number: int) -> str:
    """A number of parameters or FLOPs, short, as in the names of models: 803.7k, 494.0M."""
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def tokens_of(number: int, t: Translate) -> str:
    """A number of tokens in words: 1 token, 5 tokens; 1 токен, 2 токена, 5 токенов."""
    return counted(number, "token", "токен", t)


def threads_of(number: int, t: Translate) -> str:
    """A number of threads in words: 1 thread, 2 threads; 1 поток, 2 потока, 5 потоков."""
    return counted(number, "thread", "поток", t)


def counted(number: int, english: str, russian: str, t: Translate) -> str:
    """A number of things in words; the Russian word is masculine and ends in a hard consonant."""
    last, teens = number % 10, 11 <= number % 100 <= 14
    ending = "" if singular(number) else "а" if 2 <= last <= 4 and not teens else "ов"
    return t(f"{number:,} {english}{'s' * (number != 1)}", f"{number:,} {russian}{ending}")


def singular(number: int) -> bool:
    """Whether what a Russian number counts is in the singular: with 1, 21 and 101, and not with 11."""
    return number % 10 == 1 and number % 100 != 11


def some(modules: Sequence[str], t: Translate, at_most: int = 5) -> str:
    """The first names of modules; the model itself has none."""
    named = [name or t("the model itself", "сама модель") for name in modules[:at_most]]
    return ", ".join([*named, *(["…"] if len(modules) > at_most else [])])


def memory(size: int, t: Translate) -> str:
    """A number of bytes in binary units: 3.1 MiB; 3.1 МиБ."""
    for exponent, unit in ((30, t("GiB", "ГиБ")), (20, t("MiB", "МиБ")), (10, t("KiB", "КиБ"))):
        if size >= 2**exponent:
            return f"{size / 2**exponent:.1f} {unit}"
    return f"{size} {t('B', 'Б')}"


def chance(p: float) -> str:
    """A probability, short: 0.21, 7e-05 where two decimals would say nothing, and >0.99 where they would say that it is certain."""
    if 0.995 <= p < 1:
        return ">0.99"
    return f"{p:.2f}" if p >= 0.01 or p == 0 else f"{p:.1g}"


def percent(share: float) -> str:
    """A share in per cent, short: 8.5 %, <0.01 % where two decimals would say nothing, and >99.9 % where one would say that it is all."""
    value = 100 * share
    if 99.95 <= value < 100:
        return ">99.9 %"
    return f"{value:.1f} %" if value >= 0.1 else f"{value:.2f} %" if value >= 0.01 else "<0.01 %"


def duration(seconds: float, t: Translate) -> str:
    """A time, short: 12.3 ms, 1.25 s; 12.3 мс, 1.25 с."""
    return f"{seconds * 1e3:.1f} {t('ms', 'мс')}" if seconds < 1 else f"{seconds:.2f} {t('s', 'с')}"
