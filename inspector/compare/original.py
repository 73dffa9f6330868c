"""A model in our own modules against the same checkpoint in those of transformers."""

from dataclasses import replace

import torch
from torch import Tensor

from ..loading.loaded import Loaded
from ..parts.heads import own_logits
from ..parts.precision import dtype_of, in_dtype
from ..records.comparison import BesideCompiled
from .verifying import beside_compiled


@torch.no_grad()
def beside_original(original: Loaded, ours: Loaded, ids_1T: Tensor) -> BesideCompiled:
    """How the logits of ``ours`` compare with those of ``original``, over one pass of all positions of ids [1, T].

    ``error_compiled`` is that of ours. Where the two are not equal bit for bit, both are cast to float64 in place and back.
    """

    def logits(ids_1T: Tensor) -> Tensor:
        with in_dtype(ours.model, dtype_of(original.model)):
            return own_logits(ours.model, ids_1T)

    return beside_compiled(replace(original, compiled=logits), ids_1T)
