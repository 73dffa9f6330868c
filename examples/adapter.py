"""An adapter (LoRA) of the embedded model `names-qwen2`, made with peft; its weights are random, since nothing was trained.

python examples/adapter.py runs/adapter    writes it into a folder, as training scripts do
inspector tree runs/adapter                reads it there, on its base
inspector tree examples/adapter.py:adapted the same as an object of Python
"""

import sys
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

import inspector

warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # peft still calls what transformers renames


def lora() -> PeftModel:
    """The base with an adapter around it."""
    torch.manual_seed(0)
    base = inspector.load("names-qwen2").model
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(base, settings)


def adapted():
    """What `FILE.py:factory` calls: the model and its tokenizer."""
    return lora(), inspector.load("names-qwen2").tokenizer


if __name__ == "__main__":
    model = lora()
    trained, whole = (sum(p.numel() for p in model.parameters() if p.requires_grad or every) for every in (False, True))
    print(f"{trained:,} of {whole:,} parameters are the adapter's")
    if folder := sys.argv[1:]:
        model.save_pretrained(folder[0])
        print(f"{Path(folder[0]) / 'adapter_config.json'} names the base, {model.peft_config['default'].base_model_name_or_path}")
