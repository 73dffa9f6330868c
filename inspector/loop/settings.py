"""Every generation setting: what a run by hand takes, what ``generate()`` takes when it is told nothing, and where both are from."""

import math
from collections.abc import Collection, Iterator
from dataclasses import replace

from transformers import GenerationConfig

from ..loading.loaded import Loaded
from ..loading.settings import as_ids, as_numbers
from ..records.generation import OTHER_SETTINGS, SETTINGS, Entry, Sampling, Setting, is_id
from .sampling import FILTERS, bounds_of

IMPLEMENTED = ("do_sample", *FILTERS, "seed", "max_new_tokens", "max_length", "eos_token_id", "use_cache")
# Fields of GenerationConfig that change neither what is generated from one prompt nor where it ends.
WITHOUT_EFFECT = (
    *("pad_token_id", "bos_token_id", "decoder_start_token_id"),  # of batches, of no prompt at all, of encoder-decoders
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
    *("cache_config", "max_cache_len", "prefill_chunk_size", "compile_config", "disable_compile", "continuous_batching_config"),
    *("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),  # of a second model
    *("assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight", "speculation_type", "max_matching_ngram_size"),
    *("low_memory", "transformers_version", "_from_model_config"),
)
OF_DRAWS = {name for name, entry in (SETTINGS | OTHER_SETTINGS).items() if entry.draws} - {"seed"}
OF_BEAMS = ("early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty")


def explained(
    m: Loaded,
    prompt_length: int,
    sampling: Sampling,
    max_new_tokens: int,
    origins: dict[str, str],
    taken: bool = False,
    kv_cache: bool = False,
) -> list[Setting]:
    """A row for every setting that changes what is generated or where it ends; first those that a run by hand has, in their order.

    ``origins`` says where each setting of ``sampling``, and ``max_new_tokens``, is from; ``taken``: the checkpoint's are;
    ``kv_cache``: the run reads with a cache.
    """
    own = m.generation_config
    alone = taken_by_generate(m, prompt_length)
    here = vars(sampling) | dict(
        do_sample=not sampling.greedy,
        max_new_tokens=max_new_tokens,
        max_length=bounds_of(prompt_length, max_new_tokens, context_length=m.context_length).max_length,
        eos_token_id=m.stop_ids or None,
        use_cache=kv_cache,
    )
    asked = "default" if not taken else "library" if own.do_sample is None else "checkpoint"
    origins = origins | dict(
        do_sample="flag" if origins["temperature"] == "flag" else asked,
        max_length=origins["max_new_tokens"],
        eos_token_id="checkpoint" if m.stop_ids else "default",
        use_cache="flag" if kv_cache else "default",
    )
    acting = {name: sampling.is_on(name) for name in SETTINGS} | dict(seed=not sampling.greedy, eos_token_id=bool(m.stop_ids))
    acting["forced_bos_token_id"] &= prompt_length == 1
    others = [name for name in vars(GenerationConfig()) if name not in IMPLEMENTED and name not in WITHOUT_EFFECT]
    rows, refused = [], m.other_settings()
    for name in (*IMPLEMENTED, *others):
        said = "max_new_tokens" if name == "max_length" and own.max_new_tokens is not None else name  # the length follows from it
        row = Setting(
            name=name,
            here=here.get(name),
            origin=origins.get(name),
            applied="no" if name in others else "yes" if acting.get(name, True) else "off",
            alone=alone.get(name),
            alone_origin=None if alone.get(name) is None else "library" if getattr(own, said, None) is None else "checkpoint",
            idle=(name in OF_DRAWS and not alone["do_sample"]) or (name in OF_BEAMS and alone["num_beams"] == 1),
        )
        rows.append(replace(row, notes=tuple(notes(row, refused, sampling.greedy, alone, prompt_length))))
    return rows


def taken_by_generate(m: Loaded, prompt_length: int) -> dict:
    """The settings of ``generate()`` without arguments: the checkpoint's, and transformers' own where the checkpoint is silent."""
    own = m.generation_config
    values = own._get_default_generation_params() | {name: value for name, value in vars(own).items() if value is not None}
    for name in ("max_new_tokens", "max_length"):
        values[name] = as_numbers(values.get(name))
        if not (values[name] is None or is_id(values[name])):
            raise ValueError(f"{m.origin.name} ships {name}={values[name]!r:.60}, no whole number: leave --explain out, or correct it")
    if own.max_new_tokens is not None:
        values["max_length"] = prompt_length + values["max_new_tokens"]
    elif own.max_length is None:  # so many new tokens, as far as the model reads
        values["max_length"] = min(values["max_length"] + prompt_length, m.context_length or math.inf)
    for name in ("eos_token_id", "forced_eos_token_id"):
        values[name] = as_ids(values.get(name), name) or None
    return {name: plain(value) for name, value in values.items()}


def plain(value: object) -> object:
    """A value of a generation config as a record holds it, of what JSON has: lists as tuples, objects of transformers by their entries."""
    value = value.to_dict() if hasattr(value, "to_dict") else value
    if isinstance(value, (list, tuple, dict)):
        return tuple(map(plain, value.items() if isinstance(value, dict) else value))
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def same(name: str, a: object, b: object) -> bool:
    """Whether two values of a setting say the same: there are several ways to say that it is off."""
    acts = SETTINGS.get(name, Entry()).acts
    return a == b or not any(value not in (None, ()) and acts(value) for value in (a, b))


def notes(row: Setting, refused: Collection[str], greedy: bool, alone: dict, prompt_length: int) -> Iterator[str]:
    """What must be said of a setting beside its values; ``refused`` are those for which --checkpoint-settings is refused."""
    if row.alone_origin == "checkpoint" and row.name != "use_cache":
        if row.name in refused:
            yield "missing"
        elif row.applied != "no" and not same(row.name, row.alone, row.here):
            if row.name in ("max_new_tokens", "max_length"):
                if row.name == "max_new_tokens" or alone.get("max_new_tokens") is None:
                    yield "limit"
            elif row.origin == "flag":
                yield "overruled"
            else:
                yield "idle" if row.idle else "withheld" if refused else "not taken"
    if SETTINGS.get(row.name, Entry()).filled_in is not None and row.alone_origin == "library" and not row.idle:
        yield "filled in"
    if row.name == "repetition_penalty" and (greedy or not alone["do_sample"]) and (row.here, row.alone) != (1, 1):
        yield "greedy too"
    if row.name == "forced_bos_token_id" and row.here is not None and prompt_length != 1:
        yield "one token"
