"""How large a page becomes: that of 64 steps with Qwen2.5-0.5B's vocabulary, tokenizer, layers and heads is at most 3 MB."""

import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from inspector.loading.loading import load
from inspector.loop.decoding import run
from inspector.records.generation import Sampling
from inspector.render.page import page
from inspector.report.gathering import gather, report
from tests.conftest import SHARED

QWEN = SHARED / "qwen2.5-0.5b-instruct"
MOST = 3_000_000


@pytest.mark.slow
@pytest.mark.skipif(not QWEN.is_dir(), reason="the tokenizer of Qwen2.5-0.5B-Instruct lies outside the repository, in ../shared")
def test_a_page_of_sixty_four_steps_is_small(tmp_path):
    shutil.copytree(QWEN, tmp_path / "qwen")
    config = AutoConfig.from_pretrained(QWEN)
    sizes = config.num_hidden_layers, config.num_attention_heads, config.vocab_size
    assert sizes == (24, 14, 151_936)
    config.update(dict(hidden_size=56, intermediate_size=64, num_key_value_heads=2, initializer_range=0.3))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "qwen")
    m = load(str(tmp_path / "qwen"))
    prompt = "Назови одну русскую фамилию, которая начинается на «Крас». Ответь только фамилией."
    made = run(m, m.encode(prompt), Sampling(temperature=1.5, top_k=200, top_p=0.95, seed=3), 64, kv_cache=True, recorded=512)
    assert len(made.steps) == 64
    side = gather(m, made, prompt, branches=3)
    assert len(side.branches) == 192 and len(side.redraws) == 640 and len(side.inside.lens.layers) == 24
    size = len(page(report(side)).encode())
    assert size <= MOST, f"{size:,} bytes"
    print(f"a page of 64 steps: {size:,} bytes")
