"""A whole native language model: backbone, head, and where there are any the depths of multi-token prediction.

Shape letters: B batch, T tokens, D hidden, V vocabulary.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .attention import causal_mask
from .backbone import Backbone, hidden_of
from .cache import Cache
from .moe import BalancedGate, NoisyTopKGate
from .mtp import MultiTokenPrediction


class LanguageModel(nn.Module):
    """A decoder-only language model made of the parts it is given: ``lm_head(backbone(ids))``.

    Args:
        variant: its name among ``VARIANTS``, or "expert".
        config: the arguments that its builder took.
        backbone: token ids → final hidden states.
        mtp: depths of multi-token prediction, which share embedding and head.
    """

    def __init__(self, variant: str, config: dict, backbone: Backbone, mtp: Iterable[MultiTokenPrediction] = ()):
        super().__init__()
        self.variant = variant
        self.config = config
        self.backbone = backbone
        self.lm_head = nn.Linear(config["d_model"], config["vocab_size"], bias=False)
        if depths := list(mtp):
            self.mtp = nn.ModuleList(depths)
        self.apply(init_weights)
        if config["tie_word_embeddings"]:
            self.lm_head.weight = backbone.embed_tokens.weight

    def forward(self, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T] → logits [B, T, V].

        ``mask`` is bool, True = may attend: [B, T] marks real tokens (False: padding), or anything that broadcasts to
        [B, 1, T, T]. It is combined with causality. With a [B, T] mask positions count real tokens.
        """
        return self.lm_head(hidden_of(self.backbone(input_ids, mask))[0])

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int = 0,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        early_stopping: bool | str = False,
        kv_cache: bool = False,
    ) -> Tensor:
        """Prompts [B, T] → prompts and continuations [B, T + new], in evaluation mode, by the project's one decoding loop.

        Temperature 0 is greedy. Rows are drawn one after another from one random generator; a row that ends early, at an
        ``eos_token_id`` or at ``max_seq_len``, is filled with ``pad_token_id``.

        With ``num_beams`` above 1 each row is the best continuation that a beam search finds. It draws nothing, so the default
        temperature stands for 0 there, and other settings of draws are refused; ``length_penalty`` and ``early_stopping``,
        which act with beams alone, are explained at ``inspector.loop.beam_search.Beams``. With ``kv_cache`` a step reads only the
        token that the step before chose; the logits then differ by rounding.

        Raises:
            ValueError: settings that cannot be, or not together, or a prompt longer than ``max_seq_len``.
        """
        from ..loop.decoding import generate  # here, because there is one loop: models import nothing else of the project

        return generate(
            self,
            input_ids,
            max_new_tokens,
            stop_ids=[eos_token_id] if isinstance(eos_token_id, int) else eos_token_id or [],
            pad_token_id=pad_token_id,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            beams=dict(num_beams=num_beams, length_penalty=length_penalty, early_stopping=early_stopping),
            kv_cache=kv_cache,
        )

    def new_caches(self, batch_size: int, max_len: int | None = None) -> list[Cache]:
        """An empty cache for each layer, for ``max_len`` tokens (``max_seq_len`` by default): ``backbone(ids, caches=…)`` fills them."""
        return self.backbone.new_caches(batch_size, max_len or self.config["max_seq_len"])

    def new_cache(self, block: nn.Module, batch_size: int, max_len: int | None = None) -> Cache:
        """An empty cache for one block."""
        weight = self.backbone.embed_tokens.weight
        return Cache(batch_size, max_len or self.config["max_seq_len"], block.self_attn.cache_shapes(), weight.dtype, weight.device)

    def get_num_params(self, non_embedding: bool = False) -> int:
        """Number of parameters, a tied weight counted once; ``non_embedding`` leaves the token embedding out."""
        total = sum(p.numel() for p in self.parameters())
        return total - self.backbone.embed_tokens.weight.numel() if non_embedding else total

    def get_model_config(self) -> dict:
        """The builder's arguments, with ``total_params`` and ``non_embedding_params``."""
        return self.config | dict(total_params=self.get_num_params(), non_embedding_params=self.get_num_params(non_embedding=True))

    def _create_causal_mask(self, seq_len: int, device: torch.device | str | None = None) -> Tensor:
        """Lower triangle [T, T] bool, True = may attend."""
        return causal_mask(seq_len, device)


def init_weights(module: nn.Module) -> None:
    """Starting values: embeddings N(0, 1/D), Xavier for linear layers, noisy gates at zero."""
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, NoisyTopKGate):
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.noise_weight)
    elif isinstance(module, BalancedGate):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.e_score_correction_bias)
