"""From a name to a model that can be taken apart: where it lies, its weights, its tokenizer, its split."""
