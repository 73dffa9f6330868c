"""The corpus of Russian names: given names, surnames, and pairs that agree in gender."""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from os import PathLike
from pathlib import Path

VOWELS = frozenset("аеёиоуыэюя")

# Surnames whose ending suggests a gender that they do not have: one form serves women and men.
# In lower case; the groups say why each is here. It is a table of known cases and cannot be complete.
ONE_FORM = frozenset(
    word
    for group in (
        # foreign surnames in -ин / -ын: «Джеральдина Чаплин», «Аретта Франклин» (Грин, Дин need no entry, see gender())
        "чаплин дарвин франклин кронин цеплин цеппелин кельвин кальвин гершвин болдуин болдвин гудвин",
        "эрвин ирвин годвин мелвин мартин маклин лафлин маклафлин расин хедин берлин бельвин уоррин",
        # foreign surnames in -ов / -ев
        "бюлов флотов вирхов гуцков лютцов бредов тиссов",
        # nouns in -ин / -ын that serve as surnames unchanged
        "болгарин татарин осетин мордвин литвин боярин барин дворянин мещанин гражданин господин крестьянин мартын",
        # nouns in -ов / -ев
        "остров покров",
        # nouns in -ий / -ой / -ый
        "палий топчий кулий бабий багрий гордий гудзий корний бакалий водопой герой",
        # masculine and feminine alike in -ина / -ова: nouns, and foreign surnames
        "тычина щербина калина малина долина година купина кручина перепечина дуброва",
        "голова корова подкова казанова медина молина мессина",
    )
    for word in group.split()
)

# Russian surnames that decline although no vowel stands before the ending.
SHORT_BUT_REGULAR = frozenset({"львов", "львова", "пнин", "пнина", "мхов", "мхова"})

MASCULINE_NOUN_ENDINGS = ("ов", "ев", "ёв", "ин", "ын")
MASCULINE_ADJECTIVE_ENDINGS = ("ый", "ий", "ой")
FEMININE_ENDINGS = ("ова", "ева", "ёва", "ина", "ына", "ая", "яя")

# After these letters «ий» is a matter of spelling and the adjective is a hard one: Горький, Великий → Горькая, Великая.
HARD_BEFORE_IY = frozenset("кгхжшщч")


@dataclass(frozen=True)
class Corpus:
    """The lines of both parts; no surname, in either form, is in both."""

    train: tuple[str, ...]
    validation: tuple[str, ...]

    def counts(self) -> dict[str, dict[str, int]]:
        """State how many lines of each kind (given name, surname, pair) each part holds."""
        return {"train": _count_kinds(self.train), "validation": _count_kinds(self.validation)}


def feminine(surname: str) -> str:
    """Return the feminine form of a masculine surname; a surname of one form is returned as it is."""
    if gender(surname) != "m":
        return surname
    if surname.lower().endswith(MASCULINE_NOUN_ENDINGS):
        return surname + "а"
    is_soft = surname.lower().endswith("ий") and surname[-3].lower() not in HARD_BEFORE_IY
    return surname[:-2] + ("яя" if is_soft else "ая")


def gender(surname: str) -> str | None:
    """Return "f" or "m" by the ending alone, or None where the ending does not say (one form for both, or unknown)."""
    word = surname.lower()
    if word in ONE_FORM:
        return None
    if word.endswith(FEMININE_ENDINGS):
        ending_length, result = (3 if word.endswith("а") else 2), "f"
    elif word.endswith(MASCULINE_NOUN_ENDINGS + MASCULINE_ADJECTIVE_ENDINGS):
        ending_length, result = 2, "m"
    else:
        return None
    # A word such as Цой, Грин, Лев or Сова has its root where the others have their ending.
    if word in SHORT_BUT_REGULAR or _has_vowel(word[:-ending_length]):
        return result
    return None


def judge(line: str) -> str:
    """Say of a line that a model produced whether given name and surname agree: "agrees", "disagrees" or "unjudged".

    Judged are lines of two words: a given name of the lists, then a surname whose ending tells its gender. A given name in second
    place («Анна Марина») is no surname, whatever its ending.
    """
    words = line.split()
    if len(words) != 2:
        return "unjudged"
    given, surname = words
    female, male = _given_names()
    if given not in female | male or surname in female | male:
        return "unjudged"
    surname_gender = gender(surname)
    if surname_gender is None:
        return "unjudged"
    return "agrees" if surname_gender == ("f" if given in female else "m") else "disagrees"


def read_names() -> tuple[list[str], list[str], list[str]]:
    """Return the female given names, the male given names and the surnames (masculine forms) that come with the package."""
    folder = files("inspector") / "assets" / "names"
    female, male, surnames = (
        (folder / name).read_text(encoding="utf-8").split() for name in ("given_female.txt", "given_male.txt", "surnames.txt")
    )
    return female, male, surnames


def build(seed: int = 0, validation_share: float = 0.1, pairs_per_form: int = 8) -> Corpus:
    """Build the corpus: the same arguments always give the same lines in the same order.

    Surnames are split, both forms together. A form stands once alone and with `pairs_per_form` given names of its gender; a surname
    of one form takes that many of each gender. Of the given names alone a tenth goes to validation, whatever `validation_share` is;
    in pairs all given names may occur in both parts.
    """
    female, male, surnames = read_names()
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share is {validation_share}: give a number between 0 and 1")
    if not 0 <= pairs_per_form <= min(len(female), len(male)):
        raise ValueError(f"pairs_per_form is {pairs_per_form}: give a number from 0 to {min(len(female), len(male))}")
    rng = random.Random(seed)
    validation_surnames, train_surnames = _split(surnames, validation_share, rng)
    validation_given, train_given = _split(female + male, 0.1, rng)

    def lines(given: list[str], part: list[str]) -> tuple[str, ...]:
        result = list(given)
        for surname in part:
            for form, names in ((surname, male), (feminine(surname), female)):
                result.append(form)
                result += [f"{name} {form}" for name in rng.sample(names, pairs_per_form)]
        # A surname of one form was added twice; unlike a set, a dict keeps the order from run to run.
        result = list(dict.fromkeys(result))
        rng.shuffle(result)
        return tuple(result)

    return Corpus(train=lines(train_given, train_surnames), validation=lines(validation_given, validation_surnames))


def read_text(path: str | PathLike[str]) -> str:
    """Read a UTF-8 text file, a byte order mark left out; raise ValueError, with the remedy, where that cannot be done."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; give the path of a text file with one item a line") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: is a folder; give the path of a text file in it") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 (at byte {error.start}); save the file as UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None


def read_lines(path: str | PathLike[str]) -> list[str]:
    """Read a UTF-8 text file of one item a line; raise ValueError as ``read_text`` does, and for a file without items."""
    text = read_text(path)
    # Not splitlines(): it also splits at characters such as U+2028 and form feed, which may stand inside an item.
    items = [item for line in text.split("\n") if (item := line.strip())]
    if not items:
        raise ValueError(f"{path}: holds no items; write one item a line")
    return items


def _has_vowel(word: str) -> bool:
    return not VOWELS.isdisjoint(word)


@cache
def _given_names() -> tuple[frozenset[str], frozenset[str]]:
    female, male, _ = read_names()
    return frozenset(female), frozenset(male)


def _split(items: list[str], share: float, rng: random.Random) -> tuple[list[str], list[str]]:
    shuffled = rng.sample(items, len(items))
    size = round(len(items) * share)
    return shuffled[:size], shuffled[size:]


def _count_kinds(lines: Iterable[str]) -> dict[str, int]:
    female, male = _given_names()
    counts = {"given name": 0, "surname": 0, "pair": 0}
    for line in lines:
        counts["pair" if " " in line else "given name" if line in female | male else "surname"] += 1
    return counts
