"""Has a names model learned the grammar? Do given name and surname agree in gender in what it makes up?"""

from collections import Counter
from collections.abc import Callable

import torch

from ..loading.texts import check_repeats
from ..loop.decoding import loop
from ..loop.sampling import new_generator
from ..records.generation import Sampling
from ..training.corpus import judge


def sample(
    m, samples: int, sampling: Sampling, max_new_tokens: int = 48, said: Callable[[str, str], None] = lambda *words: None
) -> list[str]:
    """Lines that the model makes up from nothing but its begin symbol, all from one random generator.

    ``said`` is told how many there are, in English and Russian.
    """
    generator = new_generator(sampling.seed, m.device)
    ids_1T = torch.tensor([m.encode("", raw=True)], device=m.device)
    lines = []
    for _ in range(samples):
        steps = loop(
            m.split,
            ids_1T,
            sampling,
            max_new_tokens,
            stop_ids=m.stop_ids,
            context_length=m.context_length,
            generator=generator,
            listed=0,
        )
        lines.append(m.texts.whole([step.token.id for step, _ in steps]))
        said(f"lines: {len(lines)} of {samples}", f"строк {len(lines)} из {samples}")
    return lines


def measure(
    m,
    samples: int = 1000,
    sampling: Sampling = Sampling(temperature=0.8, top_p=0.95, seed=0),
    said: Callable[[str, str], None] = lambda *words: None,
) -> dict:
    """How many of ``samples`` lines can be judged, and how many of those agree.

    Judged is a line of two words whose first is a given name of the lists and whose second ends as surnames of one
    gender do; everything else (a single word, an invented given name, a surname of one form) is not.
    """
    check_repeats(samples=samples)
    lines = sample(m, samples, sampling, said=said)
    verdicts = Counter(judge(line) for line in lines)
    judged = verdicts["agrees"] + verdicts["disagrees"]
    return dict(
        samples=samples,
        unjudged=verdicts["unjudged"],
        unjudged_percent=100 * verdicts["unjudged"] / samples,
        agrees=verdicts["agrees"],
        disagrees=verdicts["disagrees"],
        agreement_percent=100 * verdicts["agrees"] / judged if judged else 0.0,
        examples=lines[:12],
    )
