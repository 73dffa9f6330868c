"""The caches: what is kept, how much it takes, and that reading in pieces is reading at once."""

import pytest
import torch

from inspector.models import VARIANTS, Cache, ExpertModel
from inspector.models.backbone import hidden_of

BUILDERS = {"expert": ExpertModel, **VARIANTS}
SIZES = dict(vocab_size=50, d_model=32, n_layers=3, n_heads=4, max_seq_len=24)
FLOAT64 = dict(rtol=1e-10, atol=1e-11)  # the same sums in another order, through three layers


def built(name: str, **changes):
    """A random model whose norms and gates are not at their starting values, in float64."""
    torch.manual_seed(0)
    model = BUILDERS[name](**(SIZES | changes)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def test_append_returns_all_that_is_kept():
    cache = Cache(1, 4, ((1, 2),), torch.float32, "cpu")
    first, second = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0, 4.0], [5.0, 6.0]]]])
    cache.append(first)
    (kept,) = cache.append(second)
    assert kept.tolist() == [[[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]]
    assert cache.length == 3


def test_truncate_forgets_and_appending_overwrites():
    cache = Cache(1, 4, ((1, 1),), torch.float32, "cpu")
    cache.append(torch.tensor([[[[1.0], [2.0], [3.0]]]]))
    cache.truncate(1)
    (kept,) = cache.append(torch.tensor([[[[9.0]]]]))
    assert kept.flatten().tolist() == [1.0, 9.0]


def test_what_does_not_fit_is_an_error_and_changes_nothing():
    cache = Cache(1, 2, ((1, 1),), torch.float32, "cpu")
    cache.append(torch.ones(1, 1, 2, 1))
    with pytest.raises(ValueError, match="3 tokens do not fit a cache of 2"):
        cache.append(torch.ones(1, 1, 1, 1))
    assert cache.length == 2


@pytest.mark.parametrize("length", [-1, 3])
def test_truncating_to_what_is_not_there_is_an_error(length):
    cache = Cache(1, 4, ((1, 1),), torch.float32, "cpu")
    cache.append(torch.ones(1, 1, 2, 1))
    with pytest.raises(ValueError, match=f"length={length}"):
        cache.truncate(length)


# per layer and token, in numbers: 2·n_h·d_h, 2·n_g·d_h, d_c + d_r (facts of the papers), times 4 bytes
@pytest.mark.parametrize(
    ("name", "changes", "numbers"),
    [
        ("expert", {}, 2 * 4 * 8),
        ("gpt", dict(n_kv_heads=4), 2 * 4 * 8),
        ("gpt", dict(n_kv_heads=2), 2 * 2 * 8),
        ("gpt", dict(n_kv_heads=1), 2 * 1 * 8),
        ("gpt-mla", dict(kv_lora_rank=12, qk_rope_head_dim=4), 12 + 4),
    ],
)
def test_bytes_are_those_of_the_formula(name, changes, numbers):
    caches = built(name, **changes).float().new_caches(2, max_len=10)
    assert [cache.bytes_per_token for cache in caches] == [numbers * 4] * 3
    assert sum(cache.nbytes for cache in caches) == 3 * 2 * 10 * numbers * 4


def test_deepseek_v3_keeps_576_numbers_where_heads_would_keep_32768():
    torch.set_default_device("meta")
    try:
        from inspector.models import MultiHeadLatentAttention

        v3 = MultiHeadLatentAttention(
            7168, 128, kv_lora_rank=512, q_lora_rank=1536, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
        )
    finally:
        torch.set_default_device(None)
    assert sum(heads * width for heads, width in v3.cache_shapes()) == 576
    assert 2 * v3.n_heads * v3.v_head_dim == 32_768


@torch.no_grad()
@pytest.mark.parametrize("name", BUILDERS)
def test_cached_equals_uncached_under_random_chunking(name):
    model = built(name)
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 50, (3, 20), generator=random)
    expected = model(ids)
    for _ in range(5):
        cuts = torch.randint(0, 2, (19,), generator=random).nonzero().flatten() + 1
        caches = model.new_caches(3)
        parts = [model.lm_head(hidden_of(model.backbone(part, caches=caches))[0]) for part in ids.tensor_split(cuts, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), expected, **FLOAT64)


@torch.no_grad()
@pytest.mark.parametrize("name", BUILDERS)
def test_cached_reading_goes_on_after_a_truncation(name):
    model = built(name)
    ids, other = torch.randint(0, 50, (2, 2, 12), generator=torch.Generator().manual_seed(2))
    caches = model.new_caches(2)
    model.backbone(torch.cat([ids[:, :5], other[:, 5:]], dim=1), caches=caches)
    for cache in caches:
        cache.truncate(5)
    hidden, _ = hidden_of(model.backbone(ids[:, 5:], caches=caches))
    torch.testing.assert_close(model.lm_head(hidden), model(ids)[:, 5:], **FLOAT64)


@torch.no_grad()
@pytest.mark.parametrize("name", BUILDERS)
def test_padding_on_the_left_changes_nothing_with_a_cache(name):
    model = built(name)
    ids = torch.randint(0, 50, (1, 9), generator=torch.Generator().manual_seed(3))
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = torch.arange(12)[None] >= 3
    caches = model.new_caches(1)
    model.backbone(padded[:, :7], mask[:, :7], caches)
    hidden, _ = hidden_of(model.backbone(padded[:, 7:], mask, caches))
    torch.testing.assert_close(model.lm_head(hidden), model(ids)[:, 4:], **FLOAT64)


def test_more_tokens_than_the_positions_are_an_error():
    model = built("expert")
    caches = model.new_caches(1, max_len=40)
    model.backbone(torch.zeros(1, 20, dtype=torch.long), caches=caches)
    with pytest.raises(ValueError, match="25 tokens exceeds max_seq_len=24"):
        model.backbone(torch.zeros(1, 5, dtype=torch.long), caches=caches)
