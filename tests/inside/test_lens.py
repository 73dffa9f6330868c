"""The logit lens: its last row is the model's logits, its other rows the head on transformers' own hidden states."""

import json
import math

import pytest
import torch

from inspector.bench.tiny import tiny_model
from inspector.inside.lens import lens
from inspector.loading.loaded import attach
from inspector.loading.loading import load
from inspector.models import ExpertModel
from inspector.parts.errors import InvariantError
from inspector.records.as_json import from_json, to_json
from inspector.records.inside import Lens

from .written import IDS as WRITTEN
from .written import Encoder, Flat, PastCall, flat, made

IDS = [5, 9, 20, 33, 41, 7, 60]


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "llama", "gemma2", "gemma3_text", "cohere", "granite", "bert", "bloom"])
@pytest.mark.parametrize("position", [-1, 2])
def test_every_row_is_the_models_head_on_transformers_hidden_states(family, position):
    m = attach(tiny_model(family))
    result = lens(m, IDS, position, top=3)
    with torch.no_grad():
        output = m.model(torch.tensor([IDS]), output_hidden_states=True)
        normed = [m.model.get_submodule(name)(h) for h in output.hidden_states[1:-1]] if (name := final_norm_of(family)) else None
        hidden = [*(normed or output.hidden_states[1:-1]), output.hidden_states[-1]]
        logits = [m.split.head(h)[0, position] for h in hidden]
    assert [row.role for row in result.rows] == [f"layers.{i}" for i in range(4)]
    assert result.norm is (name is not None) and result.position == position % len(IDS)
    choice = int(output.logits[0, position].argmax())
    assert result.choice.id == choice and result.rows[-1].rank == 1
    for row, row_V in zip(result.rows, logits, strict=True):
        p_V = row_V.double().softmax(-1)
        assert [guess.token.id for guess in row.top] == row_V.topk(3).indices.tolist()
        assert [guess.logit for guess in row.top] == pytest.approx(row_V.topk(3).values.tolist(), rel=1e-4, abs=1e-4)
        assert row.entropy == pytest.approx(float(-(p_V * p_V.log()).sum()), rel=1e-3)
        assert row.probability == pytest.approx(float(p_V[choice]), rel=1e-3)
        assert row.rank == row_V.argsort(descending=True).tolist().index(choice) + 1


def final_norm_of(family: str) -> str | None:
    return {"gpt2": "transformer.ln_f", "bloom": "transformer.ln_f", "bert": None}.get(family, "model.norm")


@pytest.mark.parametrize("name", ["names-qwen2", "names-expert"])
def test_the_last_row_of_an_embedded_model_has_its_own_logits(name):
    m = load(name)
    ids = m.encode("Крас")
    result = lens(m, ids)
    with torch.no_grad():
        own = m.split.head(m.split.backbone(torch.tensor([ids]))[:, -1:])[0, -1]
    assert [guess.logit for guess in result.rows[-1].top] == own.topk(5).values.tolist()
    assert from_json(Lens, json.loads(json.dumps(to_json(result)))) == result


def test_opt_without_a_final_norm_goes_straight_to_the_head():
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    sizes = dict(vocab_size=96, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4)
    after = attach(OPTForCausalLM(OPTConfig(**sizes, do_layer_norm_before=False, max_position_embeddings=64)))
    assert lens(after, IDS).norm is False
    assert lens(attach(OPTForCausalLM(OPTConfig(**sizes, max_position_embeddings=64))), IDS).norm is True
    projected = OPTForCausalLM(OPTConfig(**(sizes | dict(word_embed_proj_dim=16)), max_position_embeddings=64))
    with pytest.raises(InvariantError, match=r"after layers.1 .* a lens would leave out what stands between"):
        lens(attach(projected), IDS)


@pytest.mark.parametrize("family", ["gemma3n_text", "deepseek_v4"])
def test_a_model_with_more_between_the_last_layer_and_the_head_is_explained(family):
    with pytest.raises(InvariantError, match=r"after layers\.3 the final norm of its output is not the backbone's output"):
        lens(attach(tiny_model(family)), IDS)


def test_a_second_norm_is_not_passed_over():
    m = attach(tiny_model("llama"))
    norm = m.model.model.norm
    own = norm.forward
    norm.forward = lambda x: own(own(x))
    assert lens(m, IDS).norm  # it is the model's own, applied as the model does
    norm.forward = own
    m.model.model.register_forward_hook(lambda module, inputs, output: output.__class__(last_hidden_state=2 * output.last_hidden_state))
    with pytest.raises(InvariantError, match="the final norm of its output is not the backbone's output"):
        lens(m, IDS)


def test_a_model_that_gives_nan_is_explained():
    model = ExpertModel(vocab_size=96, d_model=16, n_layers=2, n_heads=2, d_ff=32).eval()
    with torch.no_grad():
        model.lm_head.weight[0] = math.nan
    with pytest.raises(InvariantError, match="gives NaN here"):
        lens(attach(model, finite=False), IDS)


def test_wrong_positions_and_numbers_are_refused(tiny):
    m = tiny("qwen2")
    ids = [id % m.vocab_size for id in IDS]
    for position in (len(ids), -len(ids) - 1):
        with pytest.raises(ValueError, match=f"position {position}: the prompt has 7 tokens"):
            lens(m, ids, position)
    with pytest.raises(ValueError, match="top=0"):
        lens(m, ids, top=0)
    with pytest.raises(ValueError, match="no tokens"):
        lens(m, [])


def test_more_tokens_than_the_vocabulary_has_are_all_of_it(tiny):
    m = tiny("qwen2")
    assert len(lens(m, [3, 7, 11], top=10_000).rows[0].top) == m.vocab_size


class InPlaceNorm(torch.nn.Module):
    """A norm that writes into what it is given."""

    def __init__(self, own):
        super().__init__()
        self.weight, self.eps = own.weight, own.variance_epsilon

    def forward(self, x):
        return x.mul_(torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)).mul_(self.weight)


def test_a_norm_that_writes_into_its_input_is_read_without_spoiling_the_model():
    m = attach(tiny_model("llama"))
    own = lens(m, IDS)
    m.model.model.norm = InPlaceNorm(m.model.model.norm)
    before = m.split.backbone(torch.tensor([IDS]))
    found = lens(attach(m.model), IDS)
    assert torch.equal(before, m.split.backbone(torch.tensor([IDS]))) and found.norm is True
    assert [row.top[0].token.id for row in found.rows] == [row.top[0].token.id for row in own.rows]


def test_what_stands_behind_the_last_layer_is_seen_where_it_is_written_into_that_layers_output():
    """Without a final norm the last layer's output must be the backbone's, which it is not: 1 is added to it in place."""
    m = attach(tiny_model("bert"))
    last = m.modules["layers.3"]
    assert lens(m, IDS).norm is False
    encoder = next(module for module in m.model.modules() if any(child is last for child in getattr(module, "layer", ())))
    own = encoder.forward
    encoder.forward = lambda *args, **options: [output := own(*args, **options), output.last_hidden_state.add_(1)][0]
    with pytest.raises(InvariantError, match="its output is not the backbone's output"):
        lens(attach(m.model), IDS)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (dict(position=True), "position=True: give a whole number"),
        (dict(position="0"), "position='0': give a whole number"),
        (dict(position=7), "position 7: the prompt has 7 tokens: give a number from -7 to 6"),
        (dict(top=0), "top=0: give a whole number from 1 up"),
        (dict(top=2.0), "top=2.0: give a whole number from 1 up"),
    ],
)
def test_numbers_that_are_none_are_refused(more, said):
    with pytest.raises(ValueError, match=said):
        lens(attach(tiny_model("llama")), IDS, **more)


def test_the_lens_of_flat_models_reads_every_call_of_a_layer_also_with_the_sequence_first():
    for kind, sizes, roles in (
        (Flat, dict(n=1, times=3), ["layers.0", "layers.0#2", "layers.0#3"]),
        (Flat, {}, ["layers.0", "layers.1"]),
        (Encoder, {}, ["layers.0", "layers.1"]),
        (Encoder, dict(batch_first=False), ["layers.0", "layers.1"]),
    ):
        m = flat(made(kind, **sizes))
        record = lens(m, WRITTEN)
        assert [row.role for row in record.rows] == roles and record.norm == (kind is Flat)
        with torch.no_grad():
            best = float(m.split.head(m.split.backbone(torch.tensor([WRITTEN])))[0, -1].max())
            assert record.rows[-1].top[0].logit == pytest.approx(best, rel=1e-5)  # torch's layers leave their fast path
    with pytest.raises(InvariantError, match=r"layers\.0 and the others are not run as modules"):
        lens(flat(made(PastCall)), WRITTEN)
