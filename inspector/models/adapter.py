"""The native models as transformers sees them, so that its Auto classes load them and its ``generate()`` can referee."""

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .expert import ExpertModel, init_weights


class ExpertConfig(PreTrainedConfig):
    """The arguments of ``ExpertModel`` under its own names, readable by transformers under the usual ones too."""

    model_type = "inspector-expert"
    attribute_map = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "d_ff",
        "max_position_embeddings": "max_seq_len",
    }
    vocab_size: int = 10_000
    d_model: int = 512
    n_layers: int = 6
    n_heads: int = 8
    d_ff: int | None = None
    max_seq_len: int = 2048
    dropout: float = 0.1
    tie_word_embeddings: bool = False
    use_cache: bool = False

    def arguments(self) -> dict:
        """What ``ExpertModel(**arguments)`` needs."""
        names = ("vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "max_seq_len", "dropout", "tie_word_embeddings")
        return {name: getattr(self, name) for name in names}


class ExpertForCausalLM(PreTrainedModel, GenerationMixin):
    """``ExpertModel`` with transformers' interface: the same children, the same state-dict keys, the same computation.

    It has no cache. transformers' ``generate()`` feeds one token at a time to a model that is said to have one, so the
    generation config says ``use_cache=False``, and being asked to use a cache is an error.
    """

    config_class = ExpertConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _tied_weights_keys = {"lm_head.weight": "backbone.embed_tokens.weight"}

    def __init__(self, config: ExpertConfig):
        super().__init__(config)
        native = ExpertModel(**config.arguments())
        self.backbone = native.backbone
        self.lm_head = native.lm_head
        self.post_init()
        self.generation_config.use_cache = False

    def _init_weights(self, module: nn.Module) -> None:
        init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.backbone.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the token embedding."""
        self.backbone.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values=None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs,
    ) -> CausalLMOutput:
        """[B, T] → logits [B, T, V], or of the last ``logits_to_keep`` positions when that is not 0.

        ``attention_mask`` [B, T] is 1 for real tokens. ``labels`` [B, T] add transformers' usual loss: shifted by one
        inside, −100 ignored.

        Raises:
            ValueError: a cache is asked for, which would stay empty while ``generate()`` reads single tokens, or one is given.
        """
        if use_cache or (past_key_values is not None and past_key_values.get_seq_length() > 0):
            raise ValueError("ExpertForCausalLM has no cache: pass use_cache=False, as its generation config does")
        mask = attention_mask.bool() if attention_mask is not None else None
        hidden_BTD = self.backbone(input_ids, mask)
        logits_BTV = self.lm_head(hidden_BTD[:, -logits_to_keep:])
        loss = self.loss_function(logits_BTV, labels, vocab_size=self.config.vocab_size, **kwargs) if labels is not None else None
        return CausalLMOutput(loss=loss, logits=logits_BTV)


def to_transformers(model: ExpertModel) -> ExpertForCausalLM:
    """The adapter around ``model``'s own modules: nothing is copied, both share their weights."""
    adapter = ExpertForCausalLM(ExpertConfig(**model.config, architectures=["ExpertForCausalLM"]))
    adapter.backbone, adapter.lm_head = model.backbone, model.lm_head
    adapter.generation_config = GenerationConfig(use_cache=False)
    return adapter.train(model.training)


AutoConfig.register(ExpertConfig.model_type, ExpertConfig, exist_ok=True)
AutoModelForCausalLM.register(ExpertConfig, ExpertForCausalLM, exist_ok=True)
