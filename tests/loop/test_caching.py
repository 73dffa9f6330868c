"""Reading with a cache: bit for bit what ``generate(use_cache=True)`` does, and up to rounding what reading anew gives."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import GenerationConfig

import inspector
from inspector.bench.tiny import tiny_model
from inspector.compare.verifying import verify
from inspector.loading.loaded import attach
from inspector.loop.batches import as_alone, padded_length, run_prompts
from inspector.loop.beam_search import Beams
from inspector.loop.caching import CacheError, cached, logits_after
from inspector.loop.decoding import decode, next_logits, run, search
from inspector.models import VARIANTS, ExpertModel
from inspector.models.families import FAMILY_BUILDERS
from inspector.parts.splitting import Split
from inspector.records.as_json import from_json, to_json
from inspector.records.comparison import Verdict
from inspector.records.generation import Run, Sampling

IDS = torch.tensor([[5, 17, 29, 41, 53, 8, 30, 71, 60]])  # longer than the windows of the tiny models
MORE = (2, 14, 33, 90, 7)
GREEDY = Sampling(temperature=0)
NEW = 8
TYPES = ("qwen2", "gpt2", "gemma2", "gemma3_text", "mistral", "phi3", "mamba", "mamba2", "jamba", "bamba", "recurrent_gemma", "rwkv")
TYPES += ("minimax", "xlstm", "deepseek_v3", "bert", "reformer")
NATIVE = {"expert": ExpertModel, **VARIANTS, **FAMILY_BUILDERS}


def native(kind: str, context: int = 40):
    """A tiny native model of a kind, its weights large enough that distributions are not flat."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=96, d_model=32, n_layers=2, n_heads=4, d_ff=48, max_seq_len=context)
    if kind == "deepseek-v3":
        sizes |= dict(kv_lora_rank=16, q_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, n_dense_layers=1)
        sizes |= dict(n_experts=4, n_chosen=2, expert_d_ff=24, n_groups=2, n_chosen_groups=1, mtp_depth=1)
    model = NATIVE[kind](**sizes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def by_transformers(model, ids_BT: torch.Tensor, mask_BT: torch.Tensor | None = None, **settings):
    """Tokens [B, T] and logits, [B, V] a step, of transformers' own loop with its cache."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    given = dict(max_new_tokens=NEW, do_sample=False, use_cache=True, return_dict_in_generate=True, output_logits=True, pad_token_id=0)
    mask_BT = torch.ones_like(ids_BT) if mask_BT is None else mask_BT.long()
    output = model.generate(ids_BT, attention_mask=mask_BT, **given | settings)
    model.generation_config = own
    return output.sequences[:, ids_BT.shape[1] :], output.logits


def steps_by_hand(m, rows_T, count: int = NEW):
    """Likewise by hand, and the backbone that read."""
    backbone, tokens, logits = cached(m, max(map(len, rows_T)) + count), [], []
    for _ in range(count):
        logits.append(logits_after(backbone, m.split, rows_T))
        tokens.append(logits[-1].argmax(-1))
        rows_T = [torch.cat([row_T, token[None]]) for row_T, token in zip(rows_T, tokens[-1], strict=True)]
    return torch.stack(tokens, 1), logits, backbone


def equal(a, b) -> bool:
    return all(torch.equal(x.float(), y.float()) for x, y in zip(a, b, strict=True))


def forced(m, ids_1T: torch.Tensor = IDS, more=MORE):
    """Logits [V] after a prompt and after each token behind it, read with a cache."""
    backbone = cached(m, ids_1T.shape[1] + len(more))
    rows = [torch.cat([ids_1T[0], torch.tensor(more[:i], dtype=torch.long)]) for i in range(len(more) + 1)]
    return [logits_after(backbone, m.split, [row_T])[0] for row_T in rows]


# One row


@pytest.mark.parametrize("model_type", TYPES)
def test_every_step_is_that_of_generate_with_a_cache(model_type):
    m = attach(tiny_model(model_type))
    shapes = []
    embedding = next(module for module in m.model.modules() if isinstance(module, nn.Embedding))
    embedding.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    tokens, logits, backbone = steps_by_hand(m, [IDS[0]])
    assert shapes == [(1, 9)] + [(1, 1)] * (NEW - 1) and backbone.length == IDS.shape[1] + NEW - 1
    expected, theirs = by_transformers(m.model, IDS)
    assert torch.equal(tokens, expected) and equal(logits, theirs)


@pytest.mark.parametrize("model_type", TYPES)
def test_what_is_read_with_a_cache_is_what_is_read_anew_up_to_rounding(model_type):
    m = attach(tiny_model(model_type))
    anew = [next_logits(m.split, torch.cat([IDS, torch.tensor([MORE[:i]], dtype=torch.long)], 1)) for i in range(len(MORE) + 1)]
    torch.testing.assert_close(forced(m), anew, rtol=1e-4, atol=1e-4)
    if model_type not in ("rwkv", "gemma2"):  # whose steps happen to add in the same order
        assert not equal(forced(m), anew)


@pytest.mark.parametrize("kind", NATIVE)
def test_a_native_model_is_bitwise_its_adapter_in_generate_with_a_cache(kind):
    model = native(kind)
    m = attach(inspector.models.to_transformers(model))
    verdicts = [verify(m, IDS, sampling, NEW, kv_cache=True) for sampling in (GREEDY, Sampling(temperature=0.9, top_p=0.9, seed=1))]
    assert [v.level for v in verdicts] == ["bitwise"] * 2 and all(v.kv_cache for v in verdicts)
    anew = [next_logits(m.split, torch.cat([IDS, torch.tensor([MORE[:i]], dtype=torch.long)], 1)) for i in range(len(MORE) + 1)]
    torch.testing.assert_close(forced(m), anew, rtol=1e-4, atol=1e-4)
    bare = attach(model)
    assert equal(forced(replace(bare, split=replace(bare.split, last_alone=True))), forced(m))
    for settings in (dict(temperature=0), dict(seed=3, top_k=9), dict(num_beams=3)):
        ids_BT = torch.cat([IDS, IDS.flip(1)])
        assert torch.equal(model.generate(ids_BT, NEW, **settings, kv_cache=True), model.generate(ids_BT, NEW, **settings))


def test_later_steps_run_in_the_mode_in_which_generate_runs_them(tiny, monkeypatch):
    """Which on accelerators takes other products for a mixture of experts: never in the first step."""
    m, entered = tiny("qwen2"), []

    @contextmanager
    def noting():
        entered.append(len(entered))
        yield

    monkeypatch.setattr(m.model, "_optimize_model_for_decode", noting)
    list(decode(m, m.encode("абв"), GREEDY, 4, kv_cache=True))
    assert len(entered) == 3


def test_the_loop_the_run_and_the_verdict_with_a_cache(tiny):
    m = tiny("qwen2")
    ids = m.encode("абв")
    sampled = Sampling(temperature=0.9, top_k=9, seed=4)
    steps = list(decode(m, ids, sampled, NEW, kv_cache=True))
    assert [step.token.id for step in steps] == [step.token.id for step in decode(m, ids, sampled, NEW)]
    assert [step.context_length for step in steps] == list(range(len(ids), len(ids) + NEW))
    made = run(m, ids, sampled, NEW, kv_cache=True)
    assert made.kv_cache and from_json(Run, to_json(made)) == made and not run(m, ids, sampled, 1).kv_cache
    verdict = verify(m, ids, sampled, NEW, kv_cache=True)
    assert verdict.level == "bitwise" and verdict.kv_cache and from_json(Verdict, to_json(verdict)) == verdict


def test_a_mistake_with_the_cache_is_no_rounding(tiny, monkeypatch):
    from inspector.loop.caching_theirs import TransformersCached

    begin = TransformersCached.begin

    def shifted(self, mask_BT):
        begin(self, mask_BT)
        self.kept["position_ids"] = self.kept["position_ids"].clone()
        self.kept["position_ids"][:, -1] += 1  # the second token read after the prompt stands one place too far

    monkeypatch.setattr(TransformersCached, "begin", shifted)
    m = tiny("qwen2")
    assert verify(m, m.encode("абв"), GREEDY, NEW, kv_cache=True).level in ("tokens", "different")


def test_rounding_with_a_cache_is_told_from_float64(tiny):
    """A head that rounds otherwise: the same up to rounding, and each side's own error is measured with a cache, too."""
    m = tiny("qwen2")
    m = replace(m, split=replace(m.split, head=lambda hidden: m.model.lm_head(hidden * 3) / 3))
    verdict = verify(m, m.encode("абв"), GREEDY, NEW, kv_cache=True)
    assert verdict.level == "rounding" and verdict.error_hand > 0 and verdict.error_generate > 0


# What is kept


def test_what_is_kept_in_bytes():
    m = attach(tiny_model("qwen2"))
    backbone = cached(m, 20)
    backbone(IDS)
    config = m.model.config
    per_token = config.num_hidden_layers * 2 * config.num_key_value_heads * config.hidden_size // config.num_attention_heads * 4
    assert backbone.nbytes == 9 * per_token
    backbone(torch.tensor([[3]]))
    assert backbone.nbytes == 10 * per_token
    window = cached(attach(tiny_model("mistral")), 20)
    window(IDS)
    assert window.nbytes == 5 * per_token  # of a window of six tokens what the next one sees
    model = native("gpt-mla")
    backbone = cached(attach(model), 20)
    backbone(IDS)
    assert backbone.nbytes == 20 * sum(cache.bytes_per_token for cache in model.new_caches(1))
    assert cached(attach(tiny_model("recurrent_gemma")), 20)(IDS).shape == (1, 9, 32)


@pytest.mark.parametrize("kind", ["qwen2", "mistral", "native"])
def test_truncated_it_reads_on_as_before(kind):
    m = attach(native("gpt") if kind == "native" else tiny_model(kind))
    backbone, short = cached(m, 20), IDS[:, :3]
    backbone(short)
    once = backbone(torch.tensor([[3, 4]]))
    backbone.truncate(3)
    assert backbone.length == 3
    backbone(torch.tensor([[9]]))
    backbone.truncate(3)
    assert torch.equal(backbone(torch.tensor([[3, 4]])), once)
    with pytest.raises(ValueError, match=r"length=6: the cache holds 5 tokens"):
        backbone.truncate(6)


@pytest.mark.parametrize("model_type", ["mamba", "jamba", "mistral", "recurrent_gemma", "rwkv"])
def test_what_cannot_be_brought_back_is_refused(model_type):
    backbone = cached(attach(tiny_model(model_type)), 20)
    backbone(IDS)
    with pytest.raises(ValueError, match="cannot be brought back from 9 tokens to 8"):
        backbone.truncate(8)
    backbone.truncate(9)


@pytest.mark.parametrize("model_type", ["qwen2", "mistral", "mamba", "recurrent_gemma", "minimax", "xlstm", "native"])
def test_rows_that_are_chosen_go_on_and_generations_do_not_meet(model_type):
    m = attach(native("gpt-mla") if model_type == "native" else tiny_model(model_type))
    other = IDS.flip(1)
    alone, both = [cached(m, 20), cached(m, 20)], cached(m, 20)
    for backbone, ids in zip(alone, (IDS, other), strict=True):
        backbone(ids)
    both(torch.cat([IDS, other]))
    both.select(torch.tensor([1, 0, 1]))
    last = torch.tensor([[3], [4], [3]])
    expected = [alone[1](last[:1]), alone[0](last[1:2])]
    torch.testing.assert_close(both(last), torch.cat([expected[0], expected[1], expected[0]]), rtol=1e-4, atol=1e-4)


# Several rows

PROMPTS = [IDS[0].tolist(), [4, 5], [7, 8, 9]]


@pytest.mark.parametrize("model_type", ["qwen2", "gpt2", "gemma3_text", "mistral", "mamba", "jamba", "bamba"])
def test_rows_of_other_lengths_are_read_as_generate_reads_them_padded_on_the_left(model_type):
    m = attach(tiny_model(model_type))
    rows = [torch.tensor(ids) for ids in PROMPTS]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
    mask = torch.tensor([[9 - i <= len(row) for i in range(9)] for row in rows])
    expected, theirs = by_transformers(m.model, padded, mask)
    tokens, logits, _ = steps_by_hand(m, rows)
    assert torch.equal(tokens, expected) and equal(logits, theirs)


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "mistral", "mamba", "rwkv", "native", "native table"])
def test_prompts_of_other_lengths_give_what_each_gives_alone(kind):
    """Where a row is not the same beside others (mamba and rwkv pad it), the rows run one by one."""
    m = attach(native("gpt-mla" if kind == "native" else "expert") if kind.startswith("native") else tiny_model(kind))
    made = run_prompts(m, PROMPTS, GREEDY, NEW, batch_size=3, kv_cache=True)
    alone = [run(m, ids, GREEDY, NEW, kv_cache=True) for ids in PROMPTS]
    assert [[s.token.id for s in one.steps] for one in made] == [[s.token.id for s in one.steps] for one in alone]
    assert as_alone(m, [torch.tensor(ids) for ids in PROMPTS], NEW, kv_cache=True) == (kind not in ("mamba", "rwkv"))
    for one, other in zip(made, alone, strict=True):
        a, b = ([step.candidates[0].logit for step in each.steps] for each in (one, other))
        assert a == pytest.approx(b, rel=1e-4, abs=1e-4) and one.kv_cache


def test_a_row_that_ends_leaves_the_others_as_they_are():
    m = attach(native("gpt"))
    first = [step.token.id for step in run(m, PROMPTS[1], GREEDY, NEW).steps]
    m = replace(m, stop_ids=(first[1],))
    made = run_prompts(m, PROMPTS, GREEDY, NEW, batch_size=3, kv_cache=True)
    assert len(made[1].steps) <= 2 and max(len(one.steps) for one in made) == NEW
    assert [one.text for one in made] == [one.text for one in run_prompts(m, PROMPTS, GREEDY, NEW, batch_size=3)]


def test_places_for_padding_are_counted_where_rows_end_at_the_context():
    """Rows of 9 and 2 tokens, of at most 12: both read 11, and the shorter one has 7 places more before it."""
    m = replace(attach(native("gpt")), context_length=12)
    assert padded_length(m, [IDS[0], IDS[0, :2]], 10) == 9 + 9
    assert padded_length(m, [IDS[0], IDS[0, :2]], 3) == 9 + 2


def test_rows_whose_padding_does_not_fit_the_context_run_one_by_one():
    m = attach(native("expert", context=12))
    made = run_prompts(m, PROMPTS, GREEDY, 20, batch_size=3, kv_cache=True)  # the short ones read on after the long one is full
    assert [len(one.steps) for one in made] == [4, 11, 10]
    assert [one.text for one in made] == [run(m, ids, GREEDY, 20).text for ids in PROMPTS]


BEAMED = ("qwen2", "gemma2", "mistral", "mamba", "jamba", "minimax", "recurrent_gemma", "expert", "gpt-moe", "gpt-mla")


@pytest.mark.parametrize("kind", BEAMED)
def test_beams_find_the_same_with_a_cache(kind):
    m = attach(native(kind) if kind in NATIVE and kind != "qwen2" else tiny_model(kind))
    for sizes in (Beams(3), Beams(4, -1.0, "never")):
        anew = search(m.split, IDS[0], GREEDY, NEW, sizes, stop_ids=(2, 9))
        found = search(m.split, IDS[0], GREEDY, NEW, sizes, stop_ids=(2, 9), backbone=cached(m, IDS.shape[1] + NEW))
        assert [h.ids for h in found] == [h.ids for h in anew]
        assert [h.score for h in found] == pytest.approx([h.score for h in anew], rel=1e-4, abs=1e-4)


# What cannot


class Bigram(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, ids):
        return self.head(self.embedding(ids).cumsum(1))


@pytest.mark.parametrize("use", ["decode", "verify", "run_prompts"])
def test_a_module_of_the_users_is_refused_by_name(use):
    torch.manual_seed(0)
    m = attach(Bigram())
    ways = dict(
        decode=lambda: list(decode(m, [1, 2], GREEDY, 3, kv_cache=True)),
        verify=lambda: verify(m, [1, 2], GREEDY, 3, kv_cache=True),
        run_prompts=lambda: run_prompts(m, [[1, 2], [3]], GREEDY, 3, kv_cache=True),
    )
    with pytest.raises(ValueError, match=r"Bigram is neither transformers' nor native.*leave --kv-cache \(kv_cache=True\) out"):
        ways[use]()


@pytest.mark.parametrize(
    ("model_type", "why"),
    [("openai-gpt", "OpenAIGPTLMHeadModel keeps no cache"), ("blt", "BltForCausalLM does not read with a KV-cache")],
)
def test_a_model_of_transformers_that_cannot_is_refused_by_name(model_type, why):
    with pytest.raises(CacheError, match=why):
        next(decode(attach(tiny_model(model_type)), IDS, GREEDY, 3, kv_cache=True))


def test_a_split_of_ones_own_without_a_backbone_module_is_refused(tiny):
    m = tiny("qwen2")
    with pytest.raises(CacheError, match="the backbone of Qwen2ForCausalLM is no module of it"):
        cached(replace(m, split=Split(lambda ids: m.split.backbone(ids), m.split.head, backbone_name="f")), 9)


def test_rows_of_rwkv_are_not_read_side_by_side():
    """Its state of several rows is added to the wrong axis: transformers gives as many positions as there are rows."""
    m = attach(tiny_model("rwkv"))
    with pytest.raises(CacheError, match=r"RwkvForCausalLM gives hidden states \[2, 2, 32\] for ids \[2, 1\]"):
        search(m.split, IDS[0], GREEDY, NEW, Beams(2), backbone=cached(m, 20))
