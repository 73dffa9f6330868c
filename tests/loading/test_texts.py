"""Which part of a prompt each token is from: the user's, the system's, the chat template's."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from inspector.bench import agreement, gender, loop, mtp, trace
from inspector.loading.loading import load
from inspector.loading.texts import parts_of
from inspector.records.generation import Sampling

QWEN = Path(__file__).parents[3] / "shared" / "qwen2.5-0.5b-instruct"
CHAT = (  # a default of its own, and the user's text trimmed
    "{% if messages[0].role == 'system' %}<|s|>{{ messages[0].content }}<|e|>{% else %}<|s|>Be kind.<|e|>{% endif %}"
    "{% for m in messages if m.role == 'user' %}<|u|>user\n{{ m.content | trim }}<|e|>{% endfor %}<|a|>"
)
PLAIN = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
REPEATING = "{% for m in messages %}{{ m.content }}? I say: {{ m.content }}!{% endfor %}"
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}<|u|>{{ messages[0].content }}<|e|>"
SHOUTING = "{% for m in messages %}<|u|>{{ m.content | upper }}<|e|>{% endfor %}"
LISTENING = "<|u|>{% if 'quiet' in messages[-1].content %}hush{% endif %}{{ messages[-1].content }}<|e|>"


def tokenizer_with(template: str | None, trim: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with this chat template, whose only merges, of two line ends and of " hi", can cross borders.

    ``trim`` leaves blanks out of the offsets, as Llama's tokenizer does.
    """
    alphabet, merges = sorted(pre_tokenizers.ByteLevel.alphabet()), [("Ċ", "Ċ"), ("Ġ", "h"), ("Ġh", "i")]
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, *map("".join, merges)])}
    own = Tokenizer(models.BPE(vocabulary, merges))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    own.decoder = decoders.ByteLevel()
    own.post_processor = processors.ByteLevel(trim_offsets=trim)
    own.add_special_tokens(["<|s|>", "<|u|>", "<|a|>", "<|e|>"])
    made = PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<|e|>")
    made.chat_template = template
    return made


def parts(tokenizer, prompt: str, system: str | None = None) -> list[tuple[str, str | None]]:
    """(part, text) of the runs of tokens that share a part."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": prompt})
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    runs: list[tuple[str | None, list[int]]] = []
    for id, part in zip(ids, parts_of(tokenizer, ids, prompt, system), strict=True):
        if not runs or runs[-1][0] != part:
            runs.append((part, []))
        runs[-1][1].append(id)
    return [(part, tokenizer.decode(run)) for part, run in runs]


def test_template_system_and_prompt_are_told_apart():
    tokenizer = tokenizer_with(CHAT)
    around = [("template", "<|e|><|u|>user\n"), ("prompt", "user"), ("template", "<|e|><|a|>")]
    assert parts(tokenizer, "user") == [("template", "<|s|>"), ("default", "Be kind."), *around]
    assert parts(tokenizer, " user\n") == [("template", "<|s|>"), ("default", "Be kind."), *around]
    assert parts(tokenizer, "user", "user") == [("template", "<|s|>"), ("system", "user"), *around]
    assert parts(tokenizer, "user", "") == [("template", "<|s|><|e|><|u|>user\n"), *around[1:]]


def test_a_prompt_that_reads_like_the_template_is_the_users():
    tokenizer = tokenizer_with(CHAT)
    assert parts(tokenizer, "Be kind.<|e|><|u|>user\nK")[3] == ("prompt", "Be kind.<|e|><|u|>user\nK")
    assert parts(tokenizer, "")[-1] == ("template", "<|e|><|u|>user\n<|e|><|a|>")


def test_a_token_across_a_border_is_nobodys():
    tokenizer = tokenizer_with(PLAIN)
    assert parts(tokenizer, "Крас") == [("template", "[user] "), ("prompt", "Крас"), ("template", "\n")]
    assert parts(tokenizer, "Крас\n") == [("template", "[user] "), ("prompt", "Крас"), (None, "\n\n")]
    assert parts(tokenizer, "hi\n\n") == [("template", "[user]"), (None, " hi"), ("prompt", "\n\n"), ("template", "\n")]


@pytest.mark.parametrize("template", [PLAIN, CHAT])
def test_blanks_that_offsets_leave_out_are_not_forgotten(template):
    """A tokenizer that trims its offsets: " hi" is one token whose blank is the template's."""
    trimmed, whole = tokenizer_with(template, trim=True), tokenizer_with(template)
    for prompt in ("hi", " hi", "hi hi"):
        assert parts(trimmed, prompt) == parts(whole, prompt)
    if template == PLAIN:
        assert (None, " hi") in parts(trimmed, "hi")


def test_a_text_that_the_template_repeats_is_marked_each_time():
    assert parts(tokenizer_with(REPEATING), "Be") == [("prompt", "Be"), ("template", "? I say: "), ("prompt", "Be"), ("template", "!")]


def test_a_template_without_a_place_for_a_system_text_has_no_default_of_it():
    assert parts(tokenizer_with(REFUSING), "hi") == [("template", "<|u|>"), ("prompt", "hi"), ("template", "<|e|>")]
    assert {part for part, _ in parts(tokenizer_with(PLAIN), "hi")} <= {"template", "prompt", None}


def test_a_prompt_in_the_place_of_a_system_text_is_the_users():
    either = "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% else %}{{ messages[-1].content }}{% endif %}<|e|>"
    assert parts(tokenizer_with(either), "Be") == [("prompt", "Be"), ("template", "<|e|>")]


@pytest.mark.parametrize(("template", "prompt"), [(SHOUTING, "hi"), (LISTENING, "be quiet")])
def test_where_it_cannot_be_told_nothing_is_said(template, prompt):
    assert {part for part, _ in parts(tokenizer_with(template), prompt)} == {None}


def test_ids_of_something_else_are_not_told_apart():
    assert parts_of(tokenizer_with(CHAT), [5, 6], "hi") == [None, None]
    assert parts_of(tokenizer_with(None), [5, 6], "hi") == [None, None]


def test_without_a_template_special_tokens_stand_against_the_prompt():
    m = load("names-qwen2")
    assert parts_of(m.tokenizer, m.encode("Кра"), "Кра") == ["special", "prompt", "prompt", "prompt"]
    typed = m.encode("<s>К", raw=True)
    assert parts_of(m.tokenizer, typed, "<s>К", raw=True)[0] == "special"
    assert parts_of(m.tokenizer, typed, "<s>К", raw=True)[1:] == ["prompt"] * (len(typed) - 1)
    assert parts_of(None, [1, 2], "1 2") == ["prompt", "prompt"]


@pytest.mark.skipif(not QWEN.is_dir(), reason="needs ../shared/qwen2.5-0.5b-instruct, which is not here")
def test_qwens_own_template():
    tokenizer = AutoTokenizer.from_pretrained(QWEN)
    default = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    start, end = "<|im_start|>", "<|im_end|>\n"
    assert parts(tokenizer, "Назови «Крас».") == [
        ("template", f"{start}system\n"),
        ("default", default),
        ("template", f"{end}{start}user\n"),
        ("prompt", "Назови «Крас»."),
        ("template", f"{end}{start}assistant\n"),
    ]
    found = parts(tokenizer, f"\n{default}", "user")
    assert found[1] == ("system", "user") and found[3:5] == [(None, "\n\n"), ("prompt", default)]
    ids = tokenizer("Крас")["input_ids"]
    assert parts_of(tokenizer, ids, "Крас", raw=True) == ["prompt"] * len(ids)


@pytest.mark.parametrize("count", [0, -1, 10**12, 2.5, True])
def test_repetitions_without_end_are_refused(count):
    m = load("gpt-mtp")
    for repeated in (
        lambda: gender.measure(m, pairs=count),
        lambda: gender.measure(m, samples=count),
        lambda: agreement.measure(m, samples=count),
        lambda: mtp.made_up(m, samples=count),
        lambda: mtp.measure(m, [[1]], Sampling(), turns=count),
        lambda: loop.measure(m, rounds=count),
        lambda: trace.measure(m, rounds=count),
        lambda: trace.by_role(m, rounds=count),
    ):
        with pytest.raises(ValueError, match=rf"(pairs|samples|turns|rounds)={count}: give (at most 1,000,000|a whole number from 1 up)"):
            repeated()
