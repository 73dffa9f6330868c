"""A model in another precision for a while: what is cast, and that its own tensors are back, bit for bit and in their place."""

import pytest
import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from inspector.bench.tiny import tiny_model
from inspector.parts.precision import dtype_of, in_dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("constants", [True, False])
def test_everything_is_cast_but_constants_where_they_are_kept_and_comes_back(dtype, constants):
    model = tiny_model("llama")
    before = {name: (tensor, tensor.data_ptr(), tensor.clone()) for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    own = before["model.rotary_emb.inv_freq"][2]
    with pytest.raises(RuntimeError, match="planted"), in_dtype(model, dtype, constants):
        assert {weight.dtype for weight in model.parameters()} == {dtype}
        turned = model.model.rotary_emb.inv_freq
        assert turned.dtype == (dtype if constants or dtype == torch.float64 else torch.float32)
        if dtype == torch.float64:  # kept, they are one step of float32 off
            torch.testing.assert_close(turned, own.double() * (1 if constants else 1 + 2**-23), rtol=1e-15, atol=0)
        raise RuntimeError("planted")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        known, place, values = before[name]
        assert tensor is known and tensor.data_ptr() == place and torch.equal(tensor, values)


def test_tied_weights_stay_tied():
    config = Qwen2Config(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=True
    )
    model = Qwen2ForCausalLM(config)
    with in_dtype(model, torch.float64):
        assert model.lm_head.weight is model.model.embed_tokens.weight and model.lm_head.weight.dtype == torch.float64
    assert model.lm_head.weight is model.model.embed_tokens.weight and model.lm_head.weight.dtype == torch.float32


def test_the_precision_of_a_model_is_that_of_its_numbers_even_if_none_is_a_parameter():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(1, dtype=torch.long))
            self.register_buffer("weight", torch.zeros(1, dtype=torch.bfloat16))

    assert dtype_of(Frozen()) == torch.bfloat16 and dtype_of(tiny_model("llama")) == torch.float32
    assert dtype_of(nn.Identity()) == torch.get_default_dtype()
