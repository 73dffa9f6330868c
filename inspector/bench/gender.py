"""Where in a names model is a surname's gender decided? Patching one run into another finds it, ablation tests it.

Two prompts differ in the given name alone, «Ольга Белинск» and «Павел Белинск»; the next letter says the gender: «а» (-ая)
or «и» (-ий); after «Белов» it is «а» or the end of the line. The *lead* is the feminine token's logit less the masculine one's. An
activation of the male run, put into the female one, moves the lead from the female run's value (0 %) towards the male one's
(100 %), as far as the gender is known there (Meng et al. 2022, arXiv 2202.05262).

Shape letters: B batch, T tokens.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from ..inside.interventions import ablate, patch, sites
from ..loading.loaded import Loaded
from ..loading.texts import check_repeats
from ..loop.decoding import next_logits_of_rows
from ..records.generation import Sampling
from ..training.corpus import MASCULINE_NOUN_ENDINGS, build, gender, read_names
from .agreement import measure as agreement

GIVEN = 5  # letters of each given name: prompts of one length can be patched position by position
PLACES = ("given name", "its last letter", "space", "surname", "last position", "everywhere")


@dataclass(frozen=True)
class Batch:
    """Pairs of prompts of one length: ids [B, T] with female and with male given names, before the same surnames.

    ``feminine`` and ``masculine`` are the tokens that say the gender, ``begin`` the tokens before the given name.
    """

    female_BT: Tensor
    male_BT: Tensor
    feminine: int
    masculine: int
    begin: int

    def positions(self, place: str) -> list[int] | None:
        """Where a place of ``PLACES`` is, the end of the prompt apart from the surname before it; None is everywhere."""
        last, space = self.female_BT.shape[1] - 1, self.begin + GIVEN
        where = [range(self.begin, space - 1), [space - 1], [space], range(space + 1, last), [last]]
        return dict(zip(PLACES, [*map(list, where), None], strict=True))[place]

    def lead(self, m: Loaded, ids_BT: Tensor) -> Tensor:
        """The feminine token's logit less the masculine one's, [B]."""
        logits_BV = next_logits_of_rows(m.split, list(ids_BT))
        return logits_BV[:, self.feminine] - logits_BV[:, self.masculine]


def batches(m: Loaded, pairs: int, seed: int = 0) -> list[Batch]:
    """``pairs`` pairs of prompts, drawn from the given names of one length and the surnames that no training line holds.

    Raises:
        ValueError: the model does not read letter by letter.
    """
    rng = random.Random(seed)
    female, male, _ = read_names()
    names = [[name for name in names if len(name) == GIVEN] for names in (female, male)]
    held_out = [line for line in build().validation if " " not in line and line not in {*female, *male} and gender(line) == "m"]
    stems = [(s, None) for s in held_out if s.endswith(MASCULINE_NOUN_ENDINGS)] + [(s[:-2], "и") for s in held_out if s.endswith("кий")]
    begin = len(m.encode("", raw=True))
    rows = defaultdict(list)
    for _ in range(pairs):
        stem, letter = rng.choice(stems)
        prompts = [m.encode(f"{rng.choice(of)} {stem}", raw=True) for of in names]
        if any(len(ids) != begin + GIVEN + 1 + len(stem) for ids in prompts) or not m.stop_ids:
            raise ValueError(f"{m.origin.name} does not read names letter by letter to their end: give names-qwen2 or names-expert")
        rows[len(stem), letter].append(prompts)
    return [
        Batch(
            *(torch.tensor(ids, device=m.device) for ids in zip(*prompts, strict=True)),
            feminine=m.token_id("а"),
            masculine=m.stop_ids[0] if letter is None else m.token_id(letter),
            begin=begin,
        )
        for (_, letter), prompts in rows.items()
    ]


@torch.no_grad()
def measure(m: Loaded, pairs: int = 100, samples: int = 300, seed: int = 0, said: Callable[[str, str], None] = lambda *words: None) -> dict:
    """Where the gender is known, who reads it, and what is lost without those heads.

    Args:
        m: a names model.
        pairs: of prompts.
        samples: lines made up for each agreement in gender (temperature 0.8, top-p 0.95).
        seed: of both.
        said: is told what is being measured, in English and Russian.

    Returns:
        ``lead``, gender → mean lead; ``moved``, role → place → share of the way from the female lead to the male one that a
        patch there goes (heads are patched everywhere alone); ``ablated``: without the heads that move most, and without the
        attention that does, the share of prompts whose lead has the sign of the given name's gender, and the agreement of
        made-up lines.

    Raises:
        ValueError: the model does not read letter by letter; or the whole stream, patched, is not the male run.
    """
    check_repeats(pairs=pairs, samples=samples)
    todo = batches(m, pairs, seed)
    layers = [site.role for site in sites(m, "layers.*")]
    heads = [site.role for site in sites(m, "layers.*.attn.head.*")]
    parts = [site.role for name in ("attn", "mlp") for site in sites(m, f"layers.*.{name}")]
    leads = {name: [batch.lead(m, getattr(batch, f"{name}_BT")) for batch in todo] for name in ("female", "male")}
    gap = float(sum((male - female).sum() for female, male in zip(leads["female"], leads["male"], strict=True)))
    moved: dict[str, dict[str, float]] = {}
    patched = ["embed", *layers, *parts, *heads]
    for i, role in enumerate(patched, 1):
        said(f"patching {role}, {i} of {len(patched)}", f"подмена {role}, {i} из {len(patched)}")
        places = PLACES[-1:] if role in heads else PLACES
        moved[role] = {
            place: sum(shift(m, batch, role, place, before) for batch, before in zip(todo, leads["female"], strict=True)) / gap
            for place in places
        }
    if wrong := next((role for role in ["embed", *layers] if abs(moved[role]["everywhere"] - 1) > 1e-3), None):
        raise ValueError(f"{m.origin.name}: patching all of {wrong} does not make the female run the male one: it is not the whole stream")
    best = sorted(heads, key=lambda role: -moved[role]["everywhere"])
    attention = max((role for role in parts if role.endswith("attn")), key=lambda role: moved[role]["last position"])
    count = len(heads) // len(layers)
    ablated = []
    for roles, also_samples in [([], True), *((best[:n], n <= 2) for n in range(1, count)), ([attention], True)]:
        for fill in ("zero", "mean") if roles else ("",):
            named = ", ".join(roles)
            without = (f"without {named}", f"без {named}") if roles else ("the whole model", "вся модель")
            said(*without)
            with ExitStack() as stack:
                for role in roles:
                    stack.enter_context(ablate(m, role, fill))
                row = dict(roles=roles, fill=fill, **right(m, todo))
                if also_samples and fill != "mean":
                    sampling = Sampling(temperature=0.8, top_p=0.95, seed=seed)
                    made_up = agreement(m, samples, sampling, lambda *words, without=without: said(*map("{}: {}".format, without, words)))
                    row |= dict(agreement_percent=made_up["agreement_percent"], unjudged_percent=made_up["unjudged_percent"])
            ablated.append(row)
    means = {name: float(torch.cat(values).mean()) for name, values in leads.items()}
    return dict(pairs=pairs, samples=samples, lead=means, moved=moved, ablated=ablated)


def shift(m: Loaded, batch: Batch, role: str, place: str, before_B: Tensor) -> float:
    """By how much a patch from the male runs into the female ones moves their leads in all."""
    positions = batch.positions(place)
    if positions == []:
        return 0.0
    with patch(m, role, batch.male_BT, positions):
        return float((batch.lead(m, batch.female_BT) - before_B).sum())


def right(m: Loaded, todo: Sequence[Batch]) -> dict[str, float]:
    """Gender → share of the prompts whose lead has its sign."""
    female = torch.cat([batch.lead(m, batch.female_BT) for batch in todo]) > 0
    male = torch.cat([batch.lead(m, batch.male_BT) for batch in todo]) < 0
    return dict(female=float(female.double().mean()), male=float(male.double().mean()))
