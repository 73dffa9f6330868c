"""The autoregressive loop by hand: from logits to a token, token after token, many prompts, beams, drafts."""
