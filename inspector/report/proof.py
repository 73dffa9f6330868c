"""What a run is held against: ``generate()`` with the same settings, in numbers, in words and in code."""

from ..compare.sides import explicit_settings
from ..compare.verifying import verify, within_context
from ..loading.loaded import Loaded
from ..records.comparison import Verdict
from ..records.generation import SETTINGS, Run
from ..records.report import Words
from ..render.settings import remarks_on
from ..render.text import both
from ..render.verdicts import verdict_line


def proof(m: Loaded, run: Run, verdict: Verdict | None = None, check: bool = True) -> dict:
    """The fields of a ``Side`` that say what the run was held against. Without a ``verdict`` and with ``check`` it is compared here."""
    remarks = [both(lambda t, row=row: remarks_on([row], t)) for row in run.settings]
    found = dict(setting_words=tuple(pair for pairs in remarks for pair in zip(*pairs, strict=True)))
    why = unequal(run) or (None if verdict or check else ("not compared", "не сравнивалось"))
    if why is None:
        try:
            verdict = verdict or verify(m, [token.id for token in run.prompt], run.sampling, run.most_new_tokens, run.kv_cache)
        except ValueError as error:
            why = (str(error), str(error))
    if why is not None or verdict is None:
        return found | dict(verdict_words=why)
    most = within_context(m, len(run.prompt), run.most_new_tokens)
    words: Words = both(lambda t: verdict_line(run.model, verdict, t).plain)
    told = explicit_settings(run.sampling, most, m.stop_ids, run.kv_cache)
    return found | dict(verdict=verdict, verdict_words=words, told=told, commands=commands(run, told))


def unequal(run: Run) -> Words | None:
    """Why a run as a whole has no equal in ``generate()``: it was stepped through; None where it has one."""
    if not run.steps:
        return "no step was taken", "ни одного шага не сделано"
    if any(step.forced or step.sampling or step.seeded for step in run.steps):
        return (
            "tokens were forced or settings changed on the way: generate() has no such call",
            "по пути токены задавались вручную или менялись настройки: у generate() такого вызова нет",
        )
    return None


def commands(run: Run, told: dict) -> tuple[str, str, str]:
    """The loop by hand, the call of ``generate()``, and what compares the two, as Python; ``m`` is the model, ``ids`` the prompt."""
    on = [name for name in SETTINGS if name != "seed" and (run.sampling.is_on(name) or (name == "temperature" and run.sampling.greedy))]
    seed = [] if run.sampling.greedy else ["seed"]
    sampling = f"inspector.Sampling({', '.join(f'{name}={getattr(run.sampling, name)!r}' for name in (*on, *seed))})"
    cache = ", kv_cache=True" * run.kv_cache
    most = run.most_new_tokens
    by_hand = f"steps = inspector.decode(m, ids, {sampling}, max_new_tokens={most}{cache})\n[step.token.id for step in steps]"
    arguments = ", ".join(f"{name}={value!r}" for name, value in told.items())
    seeded = "" if run.sampling.greedy else f"torch.manual_seed({run.sampling.seed})\n"
    generate = f"{seeded}m.model.generate(m.prompt(ids), {arguments})[0, len(ids):].tolist()"
    return by_hand, generate, f"inspector.verify(m, ids, {sampling}, max_new_tokens={most}{cache}).level"
