"""What the line of a verdict says, in both languages."""

from dataclasses import fields

import pytest

from inspector.records.comparison import LEVELS, BehindLogits, Verdict
from inspector.records.generation import SETTINGS, Sampling
from inspector.render.text import translator
from inspector.render.verdicts import level_words, sampling_words, verdict_line

EN, RU = translator("en"), translator("ru")


def verdict(level="different", tokens=(5, 6), others=(5, 7), **numbers):
    return Verdict(level, 2, 0, 1.5e-6, tokens, others, 0.2, 0.3, **(dict(sampling=Sampling(seed=4)) | numbers))


def said(made, t=EN):
    return verdict_line("m", made, t).plain


def test_every_setting_that_is_on_is_named():
    """One that acts on draws alone is off in a greedy run; the seed and a temperature of 1 belong to every draw."""
    values = dict(
        top_k=2,
        top_p=0.3,
        repetition_penalty=1.1,
        min_p=0.1,
        typical_p=0.9,
        no_repeat_ngram_size=3,
        bad_words_ids=((5,), (7, 8)),
        forced_bos_token_id=4,
        forced_eos_token_id=(2,),
        suppress_tokens=(6,),
        begin_suppress_tokens=(9,),
        min_length=4,
        min_new_tokens=3,
    )
    assert values.keys() == {field.name for field in fields(Sampling)} - {"temperature", "seed"}
    for name, value in values.items():
        other = {"min_length": dict(min_new_tokens=0)}.get(name, {})
        drawn, greedy = (Sampling(**{"temperature": T, "seed": 7, name: value} | other) for T in (1.0, 0.0))
        assert sampling_words(drawn, EN).startswith("T=1, ") and sampling_words(drawn, EN).endswith(", seed 7")
        assert len(sampling_words(drawn, EN).split(", ")) == 3, name
        assert len(sampling_words(greedy, EN).split(", ")) == (1 if SETTINGS[name].draws else 2), name
    assert sampling_words(Sampling(temperature=0.8, top_p=0.3, top_k=2, seed=0), EN) == "T=0.8, top-k 2, top-p 0.3, seed 0"
    assert sampling_words(Sampling(temperature=0, repetition_penalty=1.2), RU) == "жадно, penalty 1.2"


def test_levels_are_worded_in_both_languages():
    assert [level_words(level, EN) for level in LEVELS] == list(LEVELS)
    russian = [level_words(level, RU) for level in LEVELS]
    assert len({word.split(" (")[0] for word in russian}) == len(LEVELS)
    assert all(word.endswith(f" ({level})") for word, level in zip(russian, LEVELS, strict=True))  # --require takes the English one


def test_scores_are_named_only_where_they_were_compared():
    equal = dict(level="bitwise", others=(5, 6))
    assert "2 tokens and all logits equal generate()'s" in said(verdict(**equal))
    assert "2 tokens, logits and scores equal generate()'s" in said(verdict(**equal, scores_compared=True))
    assert said(verdict(**equal, changed=("norm.eps",))).endswith("; changed in the model meanwhile: norm.eps")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (verdict(unrepeated=("hand",)), ["not the same twice: by hand,", "part at step 2;"]),
        (verdict(unrepeated=("hand", "generate"), changed=("a.b", "c.d", "e", "f")), ["by hand and generate()", "a.b, c.d, e … (4)"]),
        (verdict(unrepeated=("generate",), training=True), ["not the same twice: generate(),", "in training mode"]),
        (verdict(behind_logits=BehindLogits(1, "scores", 50.0)), ["something after the logits differs: at step 2", "by up to 50"]),
        (verdict(behind_logits=BehindLogits(1, "choice", 2.6)), ["token is not that of its scores, 2.6 behind the best"]),
        (verdict("tokens", others=(5, 6), no_float64="RuntimeError: no"), ["2 tokens, all equal", "no float64 run: RuntimeError: no"]),
        (verdict(others=(5,)), ["where one side has stopped"]),
        (verdict(margin=0.5, observed_error=0.9), ["the margin was 0.5, the sides differ on it by 0.9"]),
        (verdict(cause="fed \x1b[1m", cause_in_russian="дано"), ["fed \\x1b[1m"]),
    ],
)
def test_what_is_known_is_said(made, words):
    line = said(made)
    assert [word for word in words if word not in line] == []
    assert "None" not in line + said(made, RU)
    assert ("own rounding errors" in line) == (made.error_hand is not None)


def test_equal_logits_are_not_said_to_differ():
    line = said(Verdict("different", 2, 1, 0.0, (5, 6), (5, 7), 0.2, 0.3, Sampling(seed=4), behind_logits=BehindLogits(1, "choice", 1.0)))
    assert "the logits are equal, bit for bit" in line and "by up to" not in line


def test_what_a_model_with_a_softmax_gives_is_not_called_logits():
    same = verdict("bitwise", (5, 6), (5, 6), gives="log-probabilities", scores_compared=True)
    assert "2 tokens, log-probabilities and scores equal" in said(same) and "логарифмы вероятностей" in said(same, RU)
    apart = verdict("rounding", (5, 6), (5, 6), gives="probabilities")
    assert "log-probabilities by up to 1.5e-06" in said(apart) and "logits" not in said(apart)
