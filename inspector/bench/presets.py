"""What do the presets weigh, how fast are they, and from which acceptance on does drafting pay at their sizes?"""

import statistics
from collections.abc import Sequence

import torch

from ..loading.texts import check_repeats
from ..models import PRESETS, VARIANTS, ExpertModel
from ..models.fast import has_onednn, make_fast
from .expert import LENGTH, PROMPT, Said, decode, fast_form, in_turn
from .mtp import pass_costs

# Preset → tokens/s as the model's documents estimate them, (least, most), for the sizes of that preset under whatever name. (They call
# the sizes of "small" tiny, those of "medium" small, those of "large" medium, and have none for "tiny".)
ESTIMATED = {"small": (500, 500), "medium": (150, 200), "large": (50, 100)}
NEW = 12  # tokens of a decoding


def measure(names: Sequence[str] = tuple(PRESETS), rounds: int = 3, said: Said = lambda *words: None) -> list[dict]:
    """Per preset: exact parameters, memory of the weights, tokens per second forward and decoding, and what drafting costs there.

    ``bytes``: of the parameters in float32, float16 and int8. Speeds are those of random weights in float32 on the CPU, of the library's
    products and of the fast ones, with the median time of the rounds in which all take turns. ``drafting`` is ``mtp.pass_costs`` of a
    ``gpt-mtp`` of the preset's sizes, with the fast products where there are any. ``said`` is told what runs, in English and Russian.

    Raises:
        ValueError: there is no such preset, or none is named.
    """
    check_repeats(rounds=rounds)
    for name in names:
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}: choose of {', '.join(PRESETS)}")
    result = []
    for name in names:
        said(name, name)
        torch.manual_seed(0)
        model = ExpertModel.from_preset(name).eval()
        sides = dict(expert=model) | (dict(fast=fast_form(model)) if has_onednn() else {})
        ids_1T = torch.randint(model.config["vocab_size"], (1, LENGTH))
        with torch.no_grad():
            forward = in_turn({way: lambda m=m, ids=ids_1T: m(ids) for way, m in sides.items()}, rounds)
        decoding = in_turn({way: lambda m=m, ids=ids_1T: decode(m, ids[:, :PROMPT], NEW) for way, m in sides.items()}, rounds)
        parameters = model.get_num_params()
        del model, sides
        drafter = VARIANTS["gpt-mtp"](**PRESETS[name]).eval()
        if has_onednn():
            make_fast(drafter)
        result.append(
            dict(
                preset=name,
                **PRESETS[name],
                parameters=parameters,
                bytes=dict(float32=4 * parameters, float16=2 * parameters, int8=parameters),
                estimated=ESTIMATED.get(name),
                forward_tokens_per_s={way: LENGTH / statistics.median(own) for way, own in forward.items()},
                decoding_tokens_per_s={way: NEW / statistics.median(own) for way, own in decoding.items()},
                drafting=pass_costs(drafter, ids_1T[0, :PROMPT], NEW, rounds),
            )
        )
        del drafter
    return result
