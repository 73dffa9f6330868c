"""Positions: what tells the model the order of its tokens.

Shape letters: B batch, T tokens, D hidden, H heads, K head width.
"""

import math

import torch
from torch import Tensor, nn


def sinusoids(max_seq_len: int, d_model: int) -> Tensor:
    """The table PE(pos, 2i) = sin(pos / 10000^(2i/D)), PE(pos, 2i+1) = cos(the same), shape [max_seq_len, D].

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5. An odd ``d_model`` ends with a sine.
    """
    pos_T1 = torch.arange(max_seq_len, dtype=torch.float32)[:, None]
    frequencies = torch.exp(torch.arange(0, d_model, 2, dtype=torch.float32) * (-math.log(10000.0) / d_model))
    angles = pos_T1 * frequencies
    pe_TD = torch.zeros(max_seq_len, d_model)
    pe_TD[:, 0::2] = torch.sin(angles)
    pe_TD[:, 1::2] = torch.cos(angles)[:, : d_model // 2]
    return pe_TD


class PositionalEncoding(nn.Module):
    """Adds sinusoidal positions to the embeddings, then drops out.

    The table is a buffer: not learned, but saved with the weights and moved with the model.
    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5.

    Args:
        d_model: width of the embeddings.
        max_seq_len: number of positions in the table.
        dropout: probability of zeroing an element while training.

    Raises:
        ValueError: the sequence is longer than the table.
    """

    def __init__(self, d_model: int, max_seq_len: int = 2048, dropout: float = 0.1):
        super().__init__()
        self.max_seq_len = max_seq_len
        self.register_buffer("pe", sinusoids(max_seq_len, d_model))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] → [B, T, D]. ``positions_BT`` gives each token's place; without it they are 0 … T−1."""
        seq_len = x_BTD.shape[1]
        if seq_len > self.max_seq_len:
            raise ValueError(f"a sequence of {seq_len} tokens exceeds max_seq_len={self.max_seq_len}: shorten it or build a longer model")
        pe = self.pe[:seq_len] if positions_BT is None else self.pe[positions_BT]
        return self.dropout(x_BTD + pe)


class RotaryEmbedding(nn.Module):
    """The angles of RoPE, which turns each pair of numbers of a query or key by one that grows with the token's position.

    Number i of the first half and number i of the second half make a pair (Llama's layout), turned by pos · θ^(−2i/K). The
    product of a turned query and a turned key depends on the distance of their positions only. Models that read longer texts
    than they were trained on turn some pairs more slowly (``frequencies``).
    Source: Su et al. 2021 (arXiv 2104.09864), section 3.2. Reference: ``LlamaRotaryEmbedding``.

    Args:
        width: of what is turned, K.
        theta: θ, the base of the frequencies.
        scaling: as ``rope_parameters`` of transformers have it: ``rope_type`` and the numbers of ``SCALINGS``; None: none.

    Raises:
        ValueError: an odd width has a number without a partner; a scaling that is none of ``SCALINGS``, or lacks a number.
    """

    def __init__(self, width: int, theta: float = 10_000.0, scaling: dict | None = None):
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"a width of {width} cannot be turned in pairs: give an even one")
        self.width, self.theta, self.scaling = width, theta, checked_scaling(scaling)
        self.factor = attention_factor(self.scaling)

    def forward(self, positions_BT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """[B, T] → cos and sin of the angles, [B, T, K] each, both halves alike, for queries and keys of ``dtype``."""
        # Angles in float32 whatever the model's dtype: in bfloat16 position 257 would be 256.
        angles_BTK = positions_BT[..., None].float() * frequencies(self.width, self.theta, self.scaling, positions_BT.device).repeat(2)
        return (angles_BTK.cos() * self.factor).to(dtype), (angles_BTK.sin() * self.factor).to(dtype)

    def extra_repr(self) -> str:
        """Sizes, for the module's printed form."""
        scaling = f", {self.scaling['rope_type']} ×{self.scaling['factor']:g}" if self.scaling else ""
        return f"{self.width}, theta={self.theta:g}{scaling}"


def apply_rotary_pos_emb(q_BHTK: Tensor, k_BGTK: Tensor, cos_BTK: Tensor, sin_BTK: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys turned by a ``RotaryEmbedding``'s angles. Reference: the function of this name in transformers."""
    cos_B1TK, sin_B1TK = cos_BTK[:, None], sin_BTK[:, None]
    return tuple(x * cos_B1TK + rotate_half(x) * sin_B1TK for x in (q_BHTK, k_BGTK))


def rotate_half(x_BHTK: Tensor) -> Tensor:
    """A quarter turn of every pair: (a, b) → (−b, a)."""
    first, second = x_BHTK.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


SCALINGS = {  # the numbers that each takes beside its defaults
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}


def checked_scaling(scaling: dict | None) -> dict | None:
    """A scaling that ``frequencies`` knows, or None where it says "default". Raises ``ValueError``."""
    if scaling is None or scaling.get("rope_type", "default") == "default":
        return None
    kind = scaling["rope_type"]
    if kind not in SCALINGS:
        raise ValueError(f"rope_type={kind!r:.60}: choose one of {', '.join(('default', *SCALINGS))}")
    for name in SCALINGS[kind]:
        if not isinstance(value := scaling.get(name), int | float) or not 0 < value < math.inf:
            raise ValueError(f"rope_type={kind!r} with {name}={value!r:.60}: give a number above 0")
    return dict(scaling)


def frequencies(width: int, theta: float, scaling: dict | None = None, device: torch.device | str | None = None) -> Tensor:
    """By how much each pair turns from one position to the next, [K/2] float32: θ^(−2i/K), changed as ``scaling`` says.

    llama3 (Llama 3.1's model card): pairs with fewer than ``low_freq_factor`` turns in the original context turn ``factor``
    times more slowly, those with more than ``high_freq_factor`` as ever, between them by shares.
    yarn (Peng et al. 2023, arXiv 2309.00071, section 3.2): likewise, with shares by the number of the pair.
    Reference: ``transformers.modeling_rope_utils``.
    """
    turns = theta ** (torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    usual = 1.0 / turns
    if scaling is None:
        return usual
    return (llama3 if scaling["rope_type"] == "llama3" else yarn)(usual, turns, width, theta, scaling)


def llama3(usual: Tensor, turns: Tensor, width: int, theta: float, scaling: dict) -> Tensor:
    """``frequencies`` of that name."""
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    context = scaling["original_max_position_embeddings"]
    wavelength = 2 * math.pi / usual
    slow = usual / factor
    share = (context / wavelength - low) / (high - low)
    between = (1 - share) * usual / factor + share * usual
    return torch.where(wavelength > context / low, slow, torch.where(wavelength < context / high, usual, between))


def yarn(usual: Tensor, turns: Tensor, width: int, theta: float, scaling: dict) -> Tensor:
    """``frequencies`` of that name."""
    context = scaling["original_max_position_embeddings"]

    def pair_of(turns: float) -> float:
        """The pair that makes so many turns in the original context."""
        return width * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_of(scaling.get("beta_fast") or 32), pair_of(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    last += 0.001 if first == last else 0
    pairs = torch.arange(width // 2, device=usual.device, dtype=torch.float32)
    kept = 1 - ((pairs - first) / (last - first)).clamp(0, 1)
    return 1.0 / (scaling["factor"] * turns) * (1 - kept) + usual * kept


def attention_factor(scaling: dict | None) -> float:
    """What YaRN multiplies cos and sin with (arXiv 2309.00071, section 3.4); 1 without it."""
    if scaling is None or scaling["rope_type"] != "yarn":
        return 1.0
    if (given := scaling.get("attention_factor")) is not None:
        return given
    both = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return magnified(scaling, both[0]) / magnified(scaling, both[1]) if all(both) else magnified(scaling, 1.0)


def magnified(scaling: dict, mscale: float) -> float:
    """0.1 · mscale · ln(factor) + 1: by how much longer contexts sharpen attention."""
    return 0.1 * mscale * math.log(scaling["factor"]) + 1.0 if scaling["factor"] > 1 else 1.0
