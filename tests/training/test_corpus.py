"""Tests of the corpus of names: its lists, the rules of gender, and the split."""

import os
import re
import subprocess
import sys

import pytest

from inspector.training.corpus import ONE_FORM, build, feminine, gender, judge, read_lines, read_names

# masculine form, feminine form; those alike have one form
FORMS = """
Иванов Иванова | Соловьёв Соловьёва | Ковалёв Ковалёва | Медведев Медведева | Пушкин Пушкина | Голицын Голицына
Достоевский Достоевская | Высоцкий Высоцкая | Троицкий Троицкая | Крамской Крамская | Трубецкой Трубецкая | Толстой Толстая
Белый Белая | Чёрный Чёрная | Будённый Будённая | Береговой Береговая | Мудрый Мудрая
Горький Горькая | Великий Великая | Долгорукий Долгорукая | Строгий Строгая | Тихий Тихая | Осадчий Осадчая | Рабочий Рабочая
Рыжий Рыжая | Хороший Хорошая | Синий Синяя | Зимний Зимняя | Летний Летняя
Львов Львова | Пнин Пнина | Зуев Зуева | Ивин Ивина | Римский-Корсаков Римский-Корсакова
Красношлюпкин Красношлюпкина | Бумбаров Бумбарова | Кракозябрский Кракозябрская
Шевченко Шевченко | Гречко Гречко | Черных Черных | Долгих Долгих | Рабинович Рабинович | Шмидт Шмидт | Мельник Мельник
Гончар Гончар | Гайдай Гайдай | Глинка Глинка | Окуджава Окуджава | Дурново Дурново | Живаго Живаго | Гюго Гюго | Рябоконь Рябоконь
Чаплин Чаплин | Дарвин Дарвин | Грин Грин | Франклин Франклин | Кронин Кронин | Цеплин Цеплин | Гершвин Гершвин | Дин Дин
Бюлов Бюлов | Флотов Флотов | Вирхов Вирхов | Литвин Литвин | Болгарин Болгарин | Палий Палий | Топчий Топчий | Цой Цой | Сова Сова
Тычина Тычина | Щербина Щербина | Казанова Казанова
"""
FORMS = [tuple(pair.split()) for line in FORMS.strip().splitlines() for pair in line.split("|")]
# In double surnames feminine() changes the last part only; the case is above to show it, not to praise it.


def forms(surname):
    return {surname, feminine(surname)}


@pytest.fixture(scope="module")
def corpus():
    return build()


def collation(word):
    return word.lower().replace("ё", "е"), word


def test_lists_are_of_the_stated_sizes_sorted_and_clean():
    for names, least in zip(read_names(), (310, 310, 1500), strict=True):
        assert len(names) >= least
        assert len(set(names)) == len(names)
        assert names == sorted(names, key=collation)
        assert [name for name in names if not re.fullmatch("[А-ЯЁ][а-яё]+", name)] == []


def test_lists_share_no_word():
    female, male, surnames = read_names()
    both_forms = {form for surname in surnames for form in forms(surname)}
    assert not set(female) & set(male)
    assert not (set(female) | set(male)) & both_forms
    assert len(both_forms) == sum(len(forms(surname)) for surname in surnames), "two surnames share a form"


def test_surnames_are_masculine_and_of_the_wanted_kinds():
    _, _, surnames = read_names()
    assert [surname for surname in surnames if gender(surname) == "f"] == []
    assert 60 <= sum(feminine(surname) == surname for surname in surnames) <= 100
    assert sum(surname.startswith("Крас") for surname in surnames) >= 40


def test_there_are_enough_labelled_words():
    assert len(set(FORMS)) == len(FORMS) >= 40


@pytest.mark.parametrize(("masculine", "expected"), FORMS)
def test_feminine_form_and_gender_of_both(masculine, expected):
    assert feminine(masculine) == expected
    if masculine == expected:
        assert gender(masculine) is None
    else:
        assert (gender(masculine), gender(expected)) == ("m", "f")


@pytest.mark.parametrize("word", ["", "а", "ов", "ая", "ой", "Лев", "Smith", "42"])
def test_gender_of_what_tells_none(word):
    assert gender(word) is None
    assert feminine(word) == word


def test_every_listed_form_has_the_gender_it_was_made_for():
    _, _, surnames = read_names()
    for surname in surnames:
        if feminine(surname) != surname:
            assert (gender(surname), gender(feminine(surname))) == ("m", "f"), surname
            assert feminine(feminine(surname)) == feminine(surname)


def test_exceptions_are_all_needed():
    # An entry that the endings alone would leave unjudged only lengthens the table.
    endings = ("ов", "ев", "ёв", "ин", "ын", "ый", "ий", "ой", "ова", "ева", "ёва", "ина", "ына", "ая", "яя")
    assert [word for word in ONE_FORM if not word.endswith(endings)] == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Анна Иванова", "agrees"),
        ("Иван Иванов", "agrees"),
        (" Анна\tКраснощёкова\n", "agrees"),
        ("Пётр Бумбаров", "agrees"),
        ("Анна Иванов", "disagrees"),
        ("Иван Трубецкая", "disagrees"),
        ("Мария Синий", "disagrees"),
        ("Никита Бумбарова", "disagrees"),
        ("Анна Шевченко", "unjudged"),
        ("Анна Чаплин", "unjudged"),
        ("Анна Марина", "unjudged"),
        ("Иванова Анна", "unjudged"),
        ("Бумба Иванова", "unjudged"),
        ("Анна", "unjudged"),
        ("Анна Иванова Петрова", "unjudged"),
        ("", "unjudged"),
    ],
)
def test_judge(line, expected):
    assert judge(line) == expected


def test_pairs_agree_and_few_cannot_be_judged(corpus):
    for part in (corpus.train, corpus.validation):
        verdicts = [judge(line) for line in part if " " in line]
        assert verdicts.count("disagrees") == 0
        assert verdicts.count("unjudged") / len(verdicts) < 0.08


def test_build_is_deterministic_and_follows_the_seed(corpus):
    assert build() == corpus
    other = build(seed=1)
    assert other.train != corpus.train and set(other.validation) != set(corpus.validation)


def test_build_does_not_depend_on_hash_order():
    program = (
        "import hashlib; from inspector.training.corpus import build; c = build();"
        "print(hashlib.sha256('\\n'.join(c.train + c.validation).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1


def test_validation_surnames_are_never_seen_in_training(corpus):
    female, male, surnames = read_names()
    base = {form: surname for surname in surnames for form in forms(surname)}
    given = set(female) | set(male)

    def bases(lines):
        return {base[line.split()[-1]] for line in lines if line not in given}

    train, validation = bases(corpus.train), bases(corpus.validation)
    assert not train & validation
    assert train | validation == set(surnames)
    assert len(validation) == round(len(surnames) * 0.1)


def test_every_form_stands_alone_and_with_its_pairs(corpus):
    female, _, surnames = read_names()
    lines = corpus.train + corpus.validation
    assert len(set(lines)) == len(lines)
    pairs = {}
    for line in lines:
        if " " in line:
            name, form = line.split(" ")
            pairs.setdefault(form, []).append(name in female)
    for surname in surnames:
        if feminine(surname) == surname:
            assert sorted(pairs[surname]) == [False] * 8 + [True] * 8
        else:
            assert (pairs[surname], pairs[feminine(surname)]) == ([False] * 8, [True] * 8)
    assert {form for surname in surnames for form in forms(surname)} <= set(lines)


def test_given_names_alone_are_split_nine_to_one(corpus):
    female, male, _ = read_names()
    given = set(female) | set(male)
    train, validation = given & set(corpus.train), given & set(corpus.validation)
    assert train | validation == given and not train & validation
    assert len(validation) == round(len(given) * 0.1)


def test_counts_sum_to_the_whole(corpus):
    _, _, surnames = read_names()
    counts = corpus.counts()
    assert list(counts) == ["train", "validation"]
    assert all(list(kinds) == ["given name", "surname", "pair"] for kinds in counts.values())
    assert sum(counts["train"].values()) == len(corpus.train)
    assert sum(counts["validation"].values()) == len(corpus.validation)
    assert sum(kinds["pair"] for kinds in counts.values()) == 16 * len(surnames)
    assert sum(kinds["surname"] for kinds in counts.values()) == sum(len(forms(surname)) for surname in surnames)


def test_build_follows_its_arguments():
    _, _, surnames = read_names()
    corpus = build(validation_share=0.2, pairs_per_form=3)
    counts = corpus.counts()
    assert counts["validation"]["pair"] == 6 * round(len(surnames) * 0.2)
    assert build(pairs_per_form=0).counts()["train"]["pair"] == 0


@pytest.mark.parametrize("arguments", [{"validation_share": 0}, {"validation_share": 1}, {"pairs_per_form": -1}, {"pairs_per_form": 5000}])
def test_build_refuses_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        build(**arguments)


def test_read_lines_strips_and_skips(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeff Анна \r\n\r\n\tИван Петров\n   \nОльга\u2028Б".encode())
    assert read_lines(path) == read_lines(str(path)) == ["Анна", "Иван Петров", "Ольга\u2028Б"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        ("folder", "is a folder"),
        (b"\xc0\xed\xed\xe0\n", "not UTF-8"),
        (b"", "no items"),
        (b"\xef\xbb\xbf \r\n\n", "no items"),
    ],
)
def test_read_lines_errors_name_the_path_and_the_remedy(tmp_path, content, reason):
    path = tmp_path / "names.txt"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_lines(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and reason in message and "; " in message
    assert "\n" not in message
