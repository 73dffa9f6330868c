"""ONNX files of native models against onnxruntime: other batches and lengths than the export saw, and with a cache step by step."""

import onnxruntime
import pytest
import torch

from inspector.models import VARIANTS, ExpertModel, MixtureOfExperts
from inspector.models.backbone import hidden_of
from inspector.models.cache import Kept
from inspector.models.families import qwen2
from inspector.models.onnx import cache_names, export_onnx

SIZES = dict(vocab_size=50, d_model=32, n_layers=1, n_heads=4, max_seq_len=24)
SAME = dict(rtol=0, atol=1e-4)  # onnxruntime adds in another order


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    """Of a kind the model, and sessions of its file without and with a cache, each made once."""
    made = {}

    def of(kind: str, kv_cache: bool):
        if (kind, kv_cache) not in made:
            torch.manual_seed(0)
            builder = dict(VARIANTS, expert=ExpertModel, qwen2=qwen2)[kind]
            model = builder(**SIZES, d_ff=48).eval()
            for name, weight in model.named_parameters():
                if name.endswith("gate.weight"):  # begins as zeros, and of equal experts nobody says which are chosen
                    torch.nn.init.normal_(weight)
            file = tmp_path_factory.mktemp("onnx") / "model.onnx"
            export_onnx(model, file, kv_cache, {"of": "тест"})
            made[kind, kv_cache] = model, onnxruntime.InferenceSession(str(file))
        return made[kind, kv_cache]

    return of


@pytest.mark.parametrize("kind", ("expert", "gpt-moe"))
@torch.no_grad()
def test_logits_and_hidden_states_are_ours_at_any_batch_and_length(kind, sessions):
    model, session = sessions(kind, False)
    assert session.get_modelmeta().custom_metadata_map["of"] == "тест"
    for batch, tokens in ((1, 1), (3, 7), (2, 24)):
        ids_BT = torch.randint(50, (batch, tokens))
        hidden_BTD, logits_BTV = map(torch.from_numpy, session.run(["hidden", "logits"], {"input_ids": ids_BT.numpy()}))
        torch.testing.assert_close(logits_BTV, model(ids_BT), **SAME)
        torch.testing.assert_close(hidden_BTD, hidden_of(model.backbone(ids_BT))[0], **SAME)
        assert torch.equal(logits_BTV.argmax(-1), model(ids_BT).argmax(-1))


@pytest.mark.parametrize("kind", ("expert", "gpt", "gpt-moe", "gpt-mla", "qwen2"))
@torch.no_grad()
def test_with_a_cache_every_step_is_ours(kind, sessions):
    model, session = sessions(kind, True)
    ids_BT = torch.randint(50, (2, 12))
    names, shapes = cache_names(model), [shape for layer in model.backbone.layers for shape in layer.self_attn.cache_shapes()]
    kept = {f"past.{name}": torch.zeros(2, heads, 0, width).numpy() for name, (heads, width) in zip(names, shapes, strict=True)}
    whole_BTV, begin = model(ids_BT), 0
    for end in (5, 6, 7, 10, 12):  # one token and several, after nothing and after some
        outputs = session.run(["logits", *(f"present.{name}" for name in names)], {"input_ids": ids_BT[:, begin:end].numpy(), **kept})
        torch.testing.assert_close(torch.from_numpy(outputs[0]), whole_BTV[:, begin:end], **SAME)
        assert (outputs[0].argmax(-1) == whole_BTV[:, begin:end].argmax(-1).numpy()).all()
        kept = {f"past.{name}": tensor for name, tensor in zip(names, outputs[1:], strict=True)}
        begin = end


def test_every_expert_reading_every_token_is_the_same_mixture():
    """Also where experts are shared and chosen by the balanced gate: what the file computes is this dispatch."""
    torch.manual_seed(0)
    model = VARIANTS["gpt-moe"](**SIZES, gate="balanced", n_shared_experts=1).double().eval()
    mixture = next(module for module in model.modules() if isinstance(module, MixtureOfExperts))
    x_ND = torch.randn(20, 32, dtype=torch.float64)
    routing = mixture.gate(x_ND[None])
    torch.testing.assert_close(mixture.everywhere(x_ND, routing), mixture.sorted_by_expert(x_ND, routing), rtol=1e-12, atol=1e-12)


def test_what_is_kept_is_handed_in_and_out_and_nothing_is_changed():
    before = torch.randn(1, 2, 3, 4)
    kept = Kept((before, before[..., :1]))
    new = torch.ones(1, 2, 2, 4)
    assert [t.shape[2] for t in kept.append(new, new[..., :1])] == [5, 5]
    assert kept.length == 5 and before.shape[2] == 3


def test_a_model_stays_as_it_was_and_a_file_that_cannot_be_written_is_refused(tmp_path):
    model = ExpertModel(**SIZES).train()
    with pytest.raises(ValueError, match="folder"):
        export_onnx(model, tmp_path / "none" / "model.onnx")
    assert model.training


def test_weights_beyond_one_file_are_refused_before_anything_is_written(tmp_path):
    with torch.device("meta"):
        model = qwen2(vocab_size=600_000)
    with pytest.raises(ValueError, match=r"weights take 3\.\d GiB, and one ONNX file holds less than 2"):
        export_onnx(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("inspector.models.onnx.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"onnx and onnxscript must be installed: pip install 'transformers-layers-inspector\[onnx\]'"):
        export_onnx(ExpertModel(**SIZES), tmp_path / "model.onnx")
