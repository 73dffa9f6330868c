"""What a prompt must be, the same at every entry point, and tokenizers without weights."""

import re

import numpy as np
import pytest
import torch

import inspector
from inspector.compare.mutations import mutate
from inspector.inside.interventions import effect
from inspector.loading.finding import LoadError
from inspector.loading.loaded import Loaded, attach
from inspector.loop.batches import run_prompts
from inspector.loop.beam_search import Beams
from inspector.loop.decoding import decode_with_logits, search
from inspector.models import ExpertModel
from inspector.models.fast import FastLinear
from inspector.records.effects import Intervention

ENTRIES = {
    "decode": lambda m, ids: list(inspector.decode(m, ids, max_new_tokens=1)),
    "decode_with_logits": lambda m, ids: list(decode_with_logits(m, ids, inspector.Sampling(), 1)),
    "run": lambda m, ids: inspector.run(m, ids, inspector.Sampling(temperature=0), max_new_tokens=1),
    "verify": lambda m, ids: inspector.verify(m, ids, max_new_tokens=1),
    "cache": lambda m, ids: inspector.cache(m, ids, max_new_tokens=1),
    "speculate": lambda m, ids: inspector.speculate(m, ids, max_new_tokens=1),
    "trace": inspector.trace,
    "lens": inspector.lens,
    "attention": inspector.attention,
    "experts": inspector.experts,
    "latents": inspector.latents,
    "further": inspector.further,
    "contributions": inspector.contributions,
    "effect": lambda m, ids: effect(m, ids, [Intervention("ablate", "layers.0.mlp", "zero")]),
    "diverge": lambda m, ids: inspector.diverge(m, m, ids),
}
WRONG = {
    "no tokens": [],
    "the prompt holds 25 tokens, the model reads at most 24": [1] * 25,
    r"ids of shape \[2, 3\]: give one prompt": torch.ones(2, 3, dtype=torch.long),
    "token id 26: tiny has the ids 0 to 25": [1, 26],
    "token id -1: tiny has": [-1],
    "ids of float32: give whole numbers": torch.ones(3),
    "ids 'Крас': give whole numbers; text goes through encode": "Крас",
    "give whole numbers; text": [[1, 2], [3]],
    "ids 'None': give whole numbers": None,
}


@pytest.fixture(scope="module")
def asked(tiny):
    """A tiny model with everything that the entries ask for, which refusals leave as it is."""
    return tiny("gpt-moe-mla-mtp", context=24)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_wrong_prompt_is_the_same_clear_error_everywhere(asked, entry, wrong):
    with pytest.raises(ValueError, match=wrong):
        ENTRIES[entry](asked, WRONG[wrong])


UNREADABLE = {
    "a meta tensor": lambda: torch.ones(1, 4, dtype=torch.long, device="meta"),
    "a sparse one": lambda: torch.tensor([1, 2]).to_sparse(),
    "rows of a sparse one": lambda: torch.tensor([[1, 2]]).to_sparse_csr(),
    "a nested one": lambda: torch.nested.nested_tensor([torch.tensor([1, 2])], layout=torch.jagged),
    "several nested": lambda: torch.nested.nested_tensor([torch.tensor([1, 2]), torch.tensor([3])], layout=torch.jagged),
}


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_tensor_whose_numbers_cannot_be_read_is_the_same_clear_error_everywhere(asked, entry, kind):
    with pytest.raises(ValueError, match=r"ids in a tensor without numbers that can be read \(.*\): give an ordinary one, or a list$"):
        ENTRIES[entry](asked, UNREADABLE[kind]())


@pytest.mark.parametrize(
    "ids",
    [{1, 2}, {"input_ids": [1]}, [2**70], object(), b"ab", [None], (i for i in [1]), np.array(["a"])],
    ids=lambda ids: type(ids).__name__,
)
def test_other_things_are_no_prompt(tiny, ids):
    with pytest.raises(ValueError, match=r"give whole numbers; text goes through encode first$"):
        tiny("qwen2").prompt(ids)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int16, np.int32, np.int64])
def test_whole_numbers_of_every_kind_are_a_prompt(tiny, dtype):
    m = tiny("qwen2")
    for ids in (np.array([1, 2], dtype), np.array([[1, 2]], dtype), torch.from_numpy(np.array([1, 2], dtype))):
        prompt = m.prompt(ids)
        assert prompt.tolist() == [[1, 2]] and prompt.dtype == torch.long
    with pytest.raises(ValueError, match="token id 26: tiny has the ids 0 to 25"):
        m.prompt(np.array([1, 26], dtype))


def test_a_number_too_large_for_a_signed_one_is_named_as_it_is(tiny):
    with pytest.raises(ValueError, match="token id 9223372036854775813: tiny has the ids 0 to 25"):
        tiny("qwen2").prompt(np.array([2**63 + 5], np.uint64))


@pytest.mark.parametrize("ids", [[[1, 2], [3, 4]], [26], [1.0], None, []])
def test_speculation_of_a_bare_model_checks_its_prompt_too(tiny, ids):
    m = tiny("gpt-mtp")
    with pytest.raises(ValueError, match=r"give one prompt|token id 26|ids of float32|give whole numbers|holds no tokens"):
        inspector.speculate(m.model, ids, max_new_tokens=2)


OTHERS = {
    "run_prompts": lambda m, ids: run_prompts(m, [ids]),
    "mutate": mutate,
    "ablate": lambda m, ids: inspector.ablate(m, "layers.0.mlp"),
    "scale": lambda m, ids: inspector.scale(m, "layers.0.mlp", 2.0),
    "patch": lambda m, ids: inspector.patch(m, "layers.0.mlp", ids),
    "diverge from it": lambda m, ids: inspector.diverge(attach(ExpertModel(26, d_model=8, n_layers=1, n_heads=2)), m, ids),
}


@pytest.mark.parametrize("given", ["model", "name", "nothing", "class"])
@pytest.mark.parametrize("entry", [*ENTRIES, *OTHERS])
def test_what_is_no_loaded_model_is_the_same_clear_error_everywhere(tiny, entry, given):
    m = {"model": tiny("qwen2").model, "name": "names-qwen2", "nothing": None, "class": Loaded}[given]
    expected = "give what inspector.load or inspector.attach returns$"
    if (entry, given) == ("speculate", "model"):  # which takes models as well
        expected = "no multi-token prediction"
    with pytest.raises(ValueError, match=expected):
        (ENTRIES | OTHERS)[entry](m, [1, 2])


@pytest.mark.parametrize("given", ["names-qwen2", None, "loaded", torch.nn.Linear], ids=repr)
def test_only_a_module_is_attached(tiny, given):
    with pytest.raises(ValueError, match=r"is no module that could be attached: give the model itself"):
        inspector.attach(tiny("qwen2") if given == "loaded" else given)


SAMPLED = {
    "decode": lambda m, sampling: list(inspector.decode(m, [1, 2], sampling)),
    "decode_with_logits": lambda m, sampling: list(decode_with_logits(m, [1, 2], sampling, 2)),
    "run": lambda m, sampling: inspector.run(m, [1, 2], sampling),
    "run_prompts": lambda m, sampling: run_prompts(m, [[1, 2], [3]], sampling),
    "verify": lambda m, sampling: inspector.verify(m, [1, 2], sampling),
    "search": lambda m, sampling: search(m.split, torch.tensor([1, 2]), sampling, 2, beams=Beams(2)),
    "speculate": lambda m, sampling: inspector.speculate(m, [1, 2], sampling),
}


@pytest.mark.parametrize("wrong", [None, 0.7, "greedy", {"temperature": 1}, inspector.Sampling], ids=repr)
@pytest.mark.parametrize("entry", SAMPLED)
def test_what_is_no_sampling_is_the_same_clear_error_everywhere(tiny, entry, wrong):
    with pytest.raises(ValueError, match=r"^sampling=.*: give a Sampling, such as Sampling\(\) or Sampling\(temperature=0\)$"):
        SAMPLED[entry](tiny("gpt-mtp"), wrong)


@pytest.mark.parametrize("wrong", [None, 5, torch.tensor(5)], ids=repr)
def test_what_is_no_list_of_prompts_is_refused(tiny, wrong):
    with pytest.raises(ValueError, match=r"^prompts=.*: give a list of prompts, each a list of ids$"):
        run_prompts(tiny("qwen2"), wrong)


def test_prompts_come_in_whatever_can_be_gone_through(tiny):
    m = tiny("qwen2")
    texts = [made.text for made in run_prompts(m, [[1, 2], [3, 4]], max_new_tokens=2)]
    for prompts in (
        torch.tensor([[1, 2], [3, 4]]),
        np.array([[1, 2], [3, 4]]),
        ([i, i + 1] for i in (1, 3)),
        (torch.tensor([[1, 2]]), [3, 4]),
    ):
        assert [made.text for made in run_prompts(m, prompts, max_new_tokens=2)] == texts


@pytest.mark.parametrize("wrong", [None, 5, "layers.0.mlp", [None], ["layers.0.mlp"], []], ids=repr)
def test_what_are_no_interventions_is_refused(tiny, wrong):
    with pytest.raises(ValueError, match=r"give a list, \[Intervention\(|is no intervention: give Intervention|nothing to change"):
        effect(tiny("qwen2"), [1, 2], wrong)
    with pytest.raises(ValueError, match=r"sources=\['Крас'\]: give a dictionary"):
        effect(tiny("qwen2"), [1, 2], [Intervention("patch", "layers.0.mlp", "Крас")], ["Крас"])


RUNS = {
    "decode": lambda m, **given: list(inspector.decode(m, [1, 2], **given)),
    "run": lambda m, **given: inspector.run(m, [1, 2], **given),
    "run_prompts": lambda m, **given: run_prompts(m, [[1, 2], [3]], **given),
    "search": lambda m, **given: search(m.split, torch.tensor([1, 2]), inspector.Sampling(), beams=Beams(2), **given),
    "speculate": lambda m, **given: inspector.speculate(m, [1, 2], **given),
}


@pytest.mark.parametrize("wrong", [0, -1, True, 1.0, 2.5, "3", None])
@pytest.mark.parametrize("entry", RUNS)
def test_a_number_of_new_tokens_that_cannot_be_is_the_same_clear_error_everywhere(tiny, entry, wrong):
    with pytest.raises(ValueError, match=re.escape(f"max_new_tokens={wrong!r}: give a whole number from 1 up")):
        RUNS[entry](tiny("gpt-mtp"), max_new_tokens=wrong)


@pytest.mark.parametrize("wrong", [0, -3, True, 2.0, "2", None])
def test_a_batch_size_that_cannot_be_is_refused(tiny, wrong):
    with pytest.raises(ValueError, match=re.escape(f"batch_size={wrong!r}: give a whole number from 1 up")):
        run_prompts(tiny("qwen2"), [[1, 2]], batch_size=wrong)


def test_many_prompts_are_checked_as_one_is(tiny):
    m = tiny("qwen2")
    for message, ids in WRONG.items():
        if "25" not in message:  # which is of a model that reads 24
            with pytest.raises(ValueError, match=message):
                run_prompts(m, [[1], ids], max_new_tokens=1)
    assert run_prompts(m, [], max_new_tokens=1) == []
    with pytest.raises(ValueError, match=r"seed=9223372036854775807: each of 2 prompts takes the next one: give one up to 2\^63 - 2"):
        run_prompts(m, [[1], [2]], inspector.Sampling(seed=2**63 - 1), 1)
    assert run_prompts(m, [[1], [2]], inspector.Sampling(seed=2**63 - 2), 1)[1].sampling.seed == 2**63 - 1


@pytest.mark.parametrize("wrong", [True, -1, 1.0, None])
def test_a_number_of_candidates_that_cannot_be_is_refused(tiny, wrong):
    with pytest.raises(ValueError, match=re.escape(f"listed={wrong!r}: give a whole number, 0 for none")):
        inspector.decode(tiny("qwen2"), [1, 2], listed=wrong)


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize(
    ("message", "ids"),
    {
        "token id 26: ExpertModel has the ids 0 to 25": torch.tensor([[1, 26]]),
        "token id -1: ExpertModel has": torch.tensor([[-1, 2]]),
        "ids of float32: give whole numbers": torch.ones(1, 2),
        "ids of bool": torch.ones(1, 2, dtype=torch.bool),
        "the prompt holds no tokens": torch.ones(1, 0, dtype=torch.long),
    }.items(),
)
def test_generate_of_the_native_models_refuses_what_are_no_ids_of_theirs(message, ids, num_beams):
    with pytest.raises(ValueError, match=message):
        ExpertModel(vocab_size=26, d_model=8, n_layers=1, n_heads=2).generate(ids, 2, num_beams=num_beams)


def test_a_prompt_is_a_list_a_row_or_a_batch_of_one(tiny):
    m = tiny("qwen2")
    for ids in ([1, 2], (1, 2), range(1, 3), torch.tensor([1, 2]), torch.tensor([[1, 2]]), torch.tensor([1, 2], dtype=torch.int32)):
        prompt = m.prompt(ids)
        assert prompt.tolist() == [[1, 2]] and prompt.dtype == torch.long and m.tokens(ids) == tuple(map(m.texts.token, (1, 2)))


def test_a_prompt_has_memory_of_its_own(tiny):
    ids = torch.tensor([[1, 2]])
    tiny("qwen2").prompt(ids)[0, 0] = 3
    assert ids.tolist() == [[1, 2]]


@pytest.mark.parametrize("entry", ["run", "verify", "trace", "diverge", "effect"])
def test_a_batch_of_one_gives_what_a_list_gives(tiny, entry):
    m = tiny("qwen2")

    def numbers(ids):
        made = ENTRIES[entry](m, ids)
        return made.tokens_hand if entry == "verify" else made.steps[0].token if entry == "run" else getattr(made, "prompt", None)

    assert numbers(torch.tensor([[1, 2, 3]])) == numbers([1, 2, 3])


def test_a_patch_may_come_from_a_batch(tiny):
    m = tiny("qwen2")
    rows = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with torch.no_grad(), inspector.patch(m, "layers.0.mlp", rows):
        assert torch.equal(m.split.backbone(rows), m.split.backbone(rows))


def test_a_model_whose_weights_are_buffers_has_a_precision(tiny):
    m = tiny("qwen2")
    for module in m.model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                del module._parameters[name]
                module.register_buffer(name, weight.data)
    assert m.dtype == torch.float32 and inspector.run(m, [1, 2], max_new_tokens=1).dtype == "float32"


def test_special_tokens_are_gathered_once_and_again_when_the_tokenizer_changes(tiny, monkeypatch):
    m = tiny("qwen2")
    tokenizer = m.tokenizer
    gathered = []
    own = type(tokenizer).added_tokens_decoder
    monkeypatch.setattr(type(tokenizer), "added_tokens_decoder", property(lambda self: gathered.append(1) or own.fget(self)))

    def special():
        """By the tokenizer's own word; what is shown says the same."""
        ids = range(len(tokenizer))
        expected = [id in tokenizer.all_special_ids or id in own.fget(tokenizer) for id in ids]
        gathered.clear()
        assert [m.texts.token(id).special for id in ids] == expected
        assert len(gathered) <= 1
        return [id for id, yes in enumerate(expected) if yes]

    before = special()
    special()
    assert not gathered  # nothing has changed since
    tokenizer.add_tokens([f"<{i}>" for i in range(256)])
    assert len(special()) == len(before) + 256
    tokenizer.add_special_tokens({"extra_special_tokens": ["<extra>", "<0>"]})
    assert len(special()) == len(before) + 257
    tokenizer.eos_token = "а"  # one that was there, and was none
    assert set(special()) > {tokenizer.convert_tokens_to_ids("а")}
    again = tiny("qwen2")
    assert [id for id in range(len(again.tokenizer)) if again.texts.token(id).special] == before  # another tokenizer is its own


def test_what_views_by_role_leave_out_is_noticed():
    """Modules without a role, and such as run past their call, are known before anything is concluded; a plain model has no notice."""

    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = ExpertModel(vocab_size=20, d_model=16, n_layers=1, n_heads=2, d_ff=32)
            self.extra, self.side = torch.nn.Linear(16, 16), torch.nn.Conv1d(16, 16, 3, padding=2)

        def hidden(self, ids):
            x = self.model.backbone(ids)
            x = x + self.side(x.transpose(1, 2))[..., : ids.shape[1]].transpose(1, 2)
            return x + torch.nn.functional.linear(x, self.extra.weight, self.extra.bias)

        def forward(self, ids):
            return self.model.lm_head(self.hidden(ids))

    model = Odd().eval()
    m = attach(model, split=inspector.split(model, backbone=model.hidden, head=model.model.lm_head))
    unnamed = [notice for notice in m.notices if notice.kind == "unnamed"]
    assert any("side" in notice.names and "not known" in notice.english for notice in unnamed)
    assert any(notice.names == ("extra",) and "functions use their weights" in notice.english for notice in unnamed)
    assert attach(model.model).notices == ()
    model.hidden = lambda ids: model.extra.forward(model.model.backbone(ids))
    again = attach(model, split=inspector.split(model, backbone=model.hidden, head=model.model.lm_head))
    assert not any("extra" in notice.names for notice in again.notices if "use their weights" in notice.english)  # watched by its forward


def test_a_fast_model_is_said_to_be_one_and_others_are_refused_by_name(tmp_path):
    m = inspector.load("names-expert", device="cpu", fast=True)
    assert [notice.kind for notice in m.notices].count("fast") == 1
    assert any(isinstance(module, FastLinear) for module in m.model.modules())
    assert any(
        isinstance(module, FastLinear) for module in inspector.load("names-qwen2", device="cpu", native=True, fast=True).model.modules()
    )
    own = tmp_path / "own.py"
    own.write_text("def model(): raise AssertionError('not called')\n", encoding="utf8")
    for name, how, why in (
        ("names-qwen2", {}, "names-qwen2: fast products are for native models: add --native, or leave --fast out"),
        ("names-expert", dict(dtype="bfloat16"), "the model is bfloat16 on cpu: give --device cpu --dtype float32"),
        ("names-expert", dict(device_map="auto"), "leave --device-map and --max-memory out"),
        (f"{own}:model", {}, "fast products are for native models: leave --fast out"),
    ):
        with pytest.raises(LoadError, match=re.escape(why)):
            inspector.load(name, fast=True, **how)
