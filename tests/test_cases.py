"""The collected cases of ../shared/cases, each with what is right beside it there, and the trained model that they are made of.

They lie outside of the repository: without them the tests are skipped. Each has an equivalent of our own, in the file of its room:

    flat               parts/test_tail.py            test_a_flat_model_splits_and_its_parts_are_the_model_bit_for_bit
    sequential         compare/test_divergence.py    test_layers_of_a_model_as_people_write_it_are_named
    short              loading/test_contexts.py      test_a_short_context_is_kept_to_everywhere
    loss_first         parts/test_tail.py            test_logits_are_found_in_whichever_form
    logits_of_last     parts/test_tail.py            test_a_model_that_gives_the_last_position_alone_is_split_for_that
    in_a_dict          parts/test_tail.py            test_logits_are_found_in_whichever_form
    calls_forward      parts/test_shapes.py          test_parts_that_run_as_forward_are_seen_and_the_model_is_left_as_it_was
    gated              parts/test_shapes.py          test_parts_of_a_layer_under_any_name
    shared             inside/test_contributions.py  test_three_calls_of_one_block_of_a_flat_model_are_those_of_three_blocks
    leaky              parts/test_tail.py            test_a_model_that_does_not_repeat_itself_is_told_so_and_why
    encoder            parts/test_shapes.py          test_the_cache_of_a_model_without_a_configuration
    compiled           compare/test_compiled.py      test_a_model_that_was_compiled_eagerly_is_the_same
    parallel           parts/test_wrappers.py        test_what_is_taken_off_and_said
    fewer_layers       loading/test_weights.py       test_weights_that_are_not_used_are_told_by_kind
    biases             loading/test_weights.py       test_the_setting_that_makes_the_biases_is_named
    other_head         loading/test_weights.py       test_a_head_that_differs_from_what_the_configuration_ties_it_to_runs_by_itself
    module_prefix      loading/test_weights.py       test_a_prefix_of_all_names_is_named_and_taken_off
    compiled_prefix    loading/test_weights.py       test_a_prefix_of_all_names_is_named_and_taken_off
    reward_model       loading/test_weights.py       test_weights_that_are_not_used_are_told_by_kind
    no_tokenizer       loading/test_tokenizers.py    test_a_model_without_a_readable_tokenizer_runs_on_token_ids_and_says_why
    pointer_tokenizer  loading/test_tokenizers.py    test_a_model_without_a_readable_tokenizer_runs_on_token_ids_and_says_why
    flash              loading/test_settings.py      test_attention_that_is_not_installed_is_not_needed
    text_eos           loading/test_settings.py      test_texts_are_read_as_the_numbers_that_they_spell
    rope_su            loading/test_settings.py      test_rotary_positions_of_old_names_and_forms_run_and_are_told
    added_token        loading/test_ids.py           test_the_rows_of_the_embedding_count_and_not_the_configuration
    adapter_only       loading/test_weights.py       test_an_adapter_runs_on_its_base_as_peft_itself_puts_it_there
    adapter_beside     loading/test_weights.py       test_an_adapter_beside_a_models_own_weights_is_not_applied
"""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import inspector
from inspector.cli import main
from inspector.loading import adapters
from inspector.loading.outlining import outlined
from inspector.parts.roles import roles
from inspector.parts.structure import measured
from tests.conftest import SHARED

ROWS = re.findall(r"^    (\w+) +([\w/]+\.py) +(test_\w+)$", __doc__, re.MULTILINE)
MODULES, CHECKPOINTS, STORIES = SHARED / "cases/modules.py", SHARED / "cases/checkpoints.py", (SHARED / "stories260K").resolve()
GREEDY = inspector.Sampling(temperature=0)
IDS, PROMPT = [1, 5, 7], "Once upon a time"
HAS_PEFT = importlib.util.find_spec("peft") is not None
with_modules = pytest.mark.skipif(not MODULES.is_file(), reason="the collected modules, ../shared/cases, are not here")
with_checkpoints = pytest.mark.skipif(not CHECKPOINTS.is_file(), reason="the collected checkpoints, ../shared/cases, are not here")
with_stories = pytest.mark.skipif(not (STORIES / "model.safetensors").is_file(), reason="../shared/stories260K is not here")


@pytest.mark.parametrize(("case", "file", "test"), ROWS, ids=[case for case, *_ in ROWS])
def test_every_case_has_an_equivalent_of_our_own(case, file, test):
    assert f"\ndef {test}(" in (Path(__file__).parent / file).read_text(encoding="utf8")


@with_modules
@with_checkpoints
def test_every_collected_case_is_in_the_table_and_here(folders):
    collected = {*re.findall(r"^def (\w+)\(\):", MODULES.read_text(), re.MULTILINE), *(folder.name for folder in folders.iterdir())}
    assert (
        {case for case, *_ in ROWS}
        == collected
        == {*MODELS, *REFUSED, *SAID, "no_tokenizer", "pointer_tokenizer", "added_token"}
        | {
            "adapter_only",
            "adapter_beside",
        }
    )


# Modules


def is_split(m) -> None:
    """Splits: backbone up to ln_f, head."""
    assert (m.split.backbone_name, m.split.head_names, m.split.describe()) == ("", ("head",), "Linear(32→50)")
    ids_BT = torch.tensor([[1, 5, 7, 2]])
    assert torch.equal(m.split.backbone(ids_BT), m.model.hidden(ids_BT))


def is_named(m) -> None:
    """Layers have roles, diverge names one."""
    found = {role: name for name, role in roles(m.model, m.split.backbone_name, m.split.head_names).items()}
    assert found["layers.1.attn.qkv"] == "blocks.1.attn.qkv" and found["layers.2.mlp.down"] == "blocks.2.mlp.2"
    other = opened("sequential")
    with torch.no_grad():
        other.model.blocks[1].mlp[2].weight.mul_(1.1)
    assert inspector.diverge(m, other, IDS).place.name == "layers.1.mlp.down"


def is_short(m) -> None:
    """Its context is 16: no probe or run goes beyond."""
    run = inspector.run(m, IDS, GREEDY, max_new_tokens=40)
    assert (m.context_length, run.stop_reason, len(run.steps)) == (16, "context_full", 14)
    with pytest.raises(ValueError, match="holds 17 tokens, the model reads at most 16"):
        inspector.run(m, [1] * 17, GREEDY)


def is_of_the_last(m) -> None:
    """Without targets only the last position."""
    with torch.no_grad():
        assert m.model(torch.tensor([IDS]))[0].shape == (1, 1, 50)
    is_split(m)


def is_seen(m) -> None:
    """What hooks do not see is there all the same, and what was not seen is said."""
    shown = [component.role for component in inspector.trace(m, IDS).components]
    assert {"layers.0.attn", "layers.2.mlp"} <= set(shown) and measured(m.model, m.split)[1].left_out == 0
    other = opened("calls_forward")
    with torch.no_grad():
        other.model.blocks[1].mlp[2].weight.mul_(1.1)
    assert inspector.diverge(m, other, IDS).place.name == "layers.1.mlp.down"


def is_gated(m) -> None:
    """fc2 is up, fc3 is down."""
    found = {role: name for name, role in roles(m.model, "", m.split.head_names).items()}
    assert [found[f"layers.1.mlp.{part}"] for part in ("gate", "up", "down")] == [f"blocks.1.mlp.fc{i}" for i in (1, 2, 3)]


def is_shared(m) -> None:
    """One block run three times: contributions count every call."""
    told = inspector.contributions(m, IDS)
    calls = [f"layers.0.{part}{call}" for call in ("", "#2", "#3") for part in ("attn", "mlp")]
    assert [term.role for term in told.terms] == ["embed", "embed_pos", *calls] and all(check.holds for check in told.checks)
    rows = [component.role for component in inspector.trace(m, IDS).components]
    assert {"layers.0", "layers.0#2", "layers.0#3"} <= set(rows)


def is_torchs(m) -> None:
    """torch's own layers with a causal mask."""
    assert m.split.causal and m.context_length == 64 and m.split.describe() == "Linear(32→50, bias)"
    _, costs, _ = measured(m.model, m.split)
    assert costs.cache_bytes["float32"] == 2 * 2 * 32 * 4 and costs.attention_flops > 0 and costs.left_out == 0
    attention = inspector.attention(m, IDS)
    assert len(attention.layers) == 2


def is_compiled(m) -> None:
    """The compiled model is compared with the one inside by verdict."""
    assert "torch.compile" in m.notices[0].english and inspector.verify(m, IDS, GREEDY, max_new_tokens=2).compiled.level == "bitwise"
    is_split(m)


def is_parallel(m) -> None:
    """The wrapper is taken off, and said."""
    assert "DataParallel" in m.notices[0].english
    is_split(m)


MODELS = {
    "flat": is_split,
    "sequential": is_named,
    "short": is_short,
    "loss_first": is_split,
    "logits_of_last": is_of_the_last,
    "in_a_dict": is_split,
    "calls_forward": is_seen,
    "gated": is_gated,
    "shared": is_shared,
    "encoder": is_torchs,
    "compiled": is_compiled,
    "parallel": is_parallel,
}
REFUSED = {"leaky": r"Flat does not give the same logits twice for the same ids .*F\.dropout\(\) without training=self\.training draws"}


def opened(case: str):
    return inspector.load(f"{MODULES}:{case}")


@with_modules
@pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")
@pytest.mark.parametrize("case", MODELS)
def test_a_module_as_people_write_it_is_right(case):
    m = opened(case)
    assert inspector.verify(m, IDS, GREEDY, max_new_tokens=3).level == "bitwise"
    assert {notice.kind for notice in m.notices} <= {"wrapper"}
    MODELS[case](m)


@with_modules
@pytest.mark.parametrize("case", REFUSED)
def test_a_module_that_cannot_be_right_is_refused_with_the_reason(case):
    with pytest.raises(ValueError, match=REFUSED[case]):
        opened(case)


# Checkpoints

SAID = {  # folder → what is said, of the weights by tree as well
    "fewer_layers": "18 weights of layers 3 and 4 are not used: config.json says 3 layers, the file has 5",
    "biases": "15 biases are not used, so that what runs is not the model that was saved: no setting of llama makes just these, a qwen2",
    "other_head": "The configuration ties lm_head.weight to model.embed_tokens.weight",
    "module_prefix": "The names of the weights in the file begin with 'module.' (DataParallel or DDP)",
    "compiled_prefix": "The names of the weights in the file begin with '_orig_mod.' (torch.compile)",
    "reward_model": "1 weight of a classifier's head is not used here (config.json says LlamaForSequenceClassification)",
    "flash": "config.json asks for attention by code that is not installed here: _attn_implementation='flash_attention_2'",
    "text_eos": "generation_config.json writes numbers, true or false as texts",
    "rope_su": "config.json says rope_scaling.type='su', the old name of longrope",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    if not CHECKPOINTS.is_file():
        pytest.skip("the collected checkpoints, ../shared/cases, are not here")
    folder = tmp_path_factory.mktemp("checkpoints")
    subprocess.run([sys.executable, CHECKPOINTS, folder], check=True, capture_output=True)
    return folder


def tokens_of(m, prompt: str = PROMPT) -> list[int]:
    return [step.token.id for step in inspector.run(m, m.encode(prompt), GREEDY, max_new_tokens=4).steps]


@pytest.fixture(scope="module")
def whole():
    """The tokens that the model goes on with of which the folders are made."""
    return tokens_of(inspector.load(str(STORIES))) if STORIES.is_dir() else None


@with_checkpoints
@pytest.mark.parametrize("case", SAID)
def test_a_checkpoint_as_people_have_it_says_what_is_odd(case, folders, whole):
    m = inspector.load(str(folders / case))
    assert m.notices[0].english.startswith(SAID[case]), m.notices[0].english
    if case != "text_eos":  # a tree generates nothing
        assert m.notices[0] in outlined(str(folders / case))[2]
    assert inspector.verify(m, m.encode(PROMPT), GREEDY, max_new_tokens=3).level == "bitwise"
    if case in ("module_prefix", "compiled_prefix", "reward_model", "flash", "text_eos", "rope_su"):
        assert tokens_of(m) == whole
    if case == "text_eos":
        assert m.stop_ids == (2,)
    if case == "other_head":  # run and tree agree
        head = m.model.lm_head.weight
        assert torch.equal(head, m.model.model.embed_tokens.weight.flip(0)) and not m.split.tied
        assert sum(p.numel() for p in m.model.parameters()) == sum(p.numel() for p in outlined(str(folders / case))[0].parameters())


@with_checkpoints
@pytest.mark.parametrize(("case", "why"), [("no_tokenizer", "the checkpoint has no file"), ("pointer_tokenizer", "is a Git LFS pointer")])
def test_without_a_tokenizer_prompts_are_token_ids(case, why, folders, whole):
    m = inspector.load(str(folders / case))
    [notice] = m.notices
    assert notice.english.startswith("No tokenizer, so that prompts are token ids") and why in notice.english
    ids = inspector.load(str(STORIES)).encode(PROMPT)
    assert tokens_of(m, " ".join(map(str, ids))) == whole


@with_checkpoints
@pytest.mark.parametrize("verb", ["run", "verify", "trace", "contributions", "intervene", "diverge"])
def test_a_token_without_a_row_is_refused_by_id_and_range_in_every_verb(verb, folders, said):
    folder = str(folders / "added_token")
    more = {"run": ["--greedy"], "verify": ["--greedy"], "intervene": ["--ablate", "layers.0.mlp"]}.get(verb, [])
    names = [folder, folder] if verb == "diverge" else [folder]
    code, _, error = said(verb, *names, "Once <|user|>", *more)
    assert code == 2 and "token id 512" in error and "0 to 511" in error and error.count("\n") == 1, error


@with_checkpoints
def test_an_adapter_alone_is_put_on_its_base_or_names_the_package(folders, whole, monkeypatch):
    folder = str(folders / "adapter_only")
    if HAS_PEFT:
        m = inspector.load(folder)
        assert m.notices[0].english == f"The adapter (LORA, r=4 on q_proj, v_proj) is applied to its base model {STORIES}"
        assert m.notices[0] in outlined(folder)[2] and [notice.kind for notice in m.notices] == ["adapter"]
        assert tokens_of(m) != whole
    monkeypatch.setattr(adapters, "has_peft", lambda: False)
    with pytest.raises(ValueError, match=rf"an adapter \(LORA\) of the base model {STORIES}: .* pip install peft"):
        inspector.load(folder)


@with_checkpoints
@pytest.mark.parametrize("installed", [True, False])
def test_an_adapter_beside_the_weights_is_not_applied(installed, folders, whole, monkeypatch):
    if not installed:
        monkeypatch.setattr(adapters, "has_peft", lambda: False)
    m = inspector.load(str(folders / "adapter_beside"))
    assert "is not applied" in m.notices[0].english and tokens_of(m) == whole


# The trained model


@pytest.fixture
def said(monkeypatch, capsys):
    """A function: a command line → its exit code, what it printed, and its line about an error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.setattr(sys, "argv", ["inspector", *arguments])
        with pytest.raises(SystemExit) as exit:
            main()
        return (exit.value.code, *capsys.readouterr())

    return run


@with_stories
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "--greedy", "--max-new-tokens", "8"], "Once upon a time|, there was a little"),
        (["verify", "--greedy", "--max-new-tokens", "8"], "bitwise"),
        (["verify", "--seed", "3", "--require", "rounding", "--max-new-tokens", "8"], "bitwise"),
        (["trace", "--lens"], "the last row equals the logits of this pass bit for bit"),
        (["trace", "--attention"], "every row of weights sums to 1, and no token looks at a later one"),
        (["contributions", "--heads"], "difference"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_trained_model_in_every_view(arguments, told, said):
    verb, *options = arguments
    code, out, error = said(verb, str(STORIES), PROMPT, *options)
    assert (code, error) == (0, "") and told in out and "To know first" not in out and "✗" not in out


@with_stories
def test_its_tree_and_itself_beside_it(said):
    code, out, error = said("tree", str(STORIES))
    assert (code, error) == (0, "") and "260,032 parameters" in out and "To know first" not in out
    code, out, error = said("diverge", str(STORIES), str(STORIES), PROMPT)
    assert (code, error) == (0, "") and "No component of B introduces more than rounding" in out


@with_stories
@pytest.mark.parametrize("word", [",", "."])
def test_a_comma_and_a_full_stop_are_banned_as_they_stand_in_text(word, said, tmp_path):
    plain, banned = tmp_path / "plain.json", tmp_path / "banned.json"
    command = ("run", str(STORIES), PROMPT, "--greedy", "--max-new-tokens", "20")
    assert said(*command, "--json", str(plain))[0] == said(*command, "--bad-words", word, "--json", str(banned))[0] == 0
    without, text = (json.loads(path.read_text())["text"] for path in (banned, plain))
    assert word in text and word not in without
