"""The lesson: two language models taken apart, run by hand, and held against ``model.generate()``.

Read it from top to bottom. ``main`` loads a model of transformers and our own ``ExpertModel``; ``one_step`` is one
generation step written out; after it the loop of ``inspector.decode`` goes on, and ``verify`` asks whether the parts,
run by hand, are the model. Options are in ``inspector/cli/options.py``, what the panels look like in ``inspector/render``.

Shape letters: B batch, T tokens, D hidden, V vocabulary.
"""

if __name__ == "__main__":
    from inspector import process

    process.begin()  # before all other imports, which take a while

from dataclasses import replace
from inspect import getsource
from itertools import chain, zip_longest
from pathlib import Path
from typing import Annotated

import typer

from inspector.cli import entry, grouping, native, options, waiting
from inspector.cli.options import LESSON
from inspector.cli.report import write_lesson
from inspector.render import lesson
from inspector.render.screen import LiveSteps
from inspector.render.settings import settings_line
from inspector.render.steps import candidate_table, other_temperature, text_panel
from inspector.render.tables import notice, notices, section, subsection, title
from inspector.render.traits import architectures
from inspector.render.trees import parts_explained, split_table, trees
from inspector.render.verdicts import comparison_table, growth_table, verdict_line

QWEN_PROMPT = "Назови одну русскую фамилию, которая начинается на «Крас». Ответь только фамилией."
NAMES_PROMPT = "Крас"
OTHER = 0.5  # the temperature that is asked about beside the run's own, and 1.5 where that is its own
LENGTHS = (8, 32, 64, 128)  # context lengths at which a step is timed


def one_step(m, ids, sampling, max_new_tokens=20):
    """One step by hand. Returns the token, and after each filter the probabilities [V] of all tokens."""
    import torch

    from inspector.loop.sampling import FILTERS, bounds_of

    ids_1T = torch.tensor([ids], device=m.device)
    with torch.no_grad():
        # 1. The backbone reads the whole sequence: no cache, every step begins anew (--kv-cache: the later ones read their token alone).
        hidden_1TD = m.split.backbone(ids_1T)
        # 2. The head turns the last position's hidden state into one logit per token of the vocabulary.
        logits_V = m.split.head(hidden_1TD[:, -1:])[0, -1].float()
    # 3. The filters, in the order of transformers: repetition penalty, bans and forced tokens, temperature, top-k, top-p.
    stages, bounds = {}, bounds_of(len(ids), max_new_tokens, m.stop_ids, m.context_length)
    for name, apply in FILTERS.items():
        if sampling.is_on(name):
            logits_V = apply(logits_V, ids_1T[0], sampling, bounds)
            stages[name] = logits_V.softmax(-1)
    # 4. The draw: each token runs for an exponential time q, and the largest p/q wins. Greedy takes the best instead.
    if sampling.greedy:
        return int(logits_V.argmax()), stages
    generator = torch.Generator(m.device).manual_seed(sampling.seed)
    q_V = torch.empty_like(logits_V).exponential_(1, generator=generator)
    return int((logits_V.softmax(-1) / q_V).argmax()), stages


@grouping.grouped(without=["compile", "cuda_graph"])
def main(
    model: Annotated[str | None, typer.Option(help=f"{options.MODEL_HELP} By default Qwen2.5-0.5B-Instruct if it can be had.")] = None,
    expert: Annotated[str, typer.Option(help="The native model beside it.")] = "names-expert",
    prompt: Annotated[str | None, typer.Option(help="For the language model.")] = None,
    expert_prompt: Annotated[str, typer.Option(help="For the native model.")] = NAMES_PROMPT,
    *,
    asked: options.SamplingOptions,
    loop: options.LoopOptions,
    reading: options.PromptOptions,
    how: options.ModelOptions,
    out: options.LessonOutput,
) -> None:
    """Take two language models apart, run them by hand, and compare with model.generate()."""
    t, screen, max_new_tokens = out.t, out.console, asked.max_new_tokens
    screen.show(title(t))

    # Loading: the model of transformers, and our own beside it. torch is imported only now.
    models = loop.checked(how.load(model) if model is not None else how.load(), how.load(expert))
    from inspector import decode, verify
    from inspector.bench.loop import estimate_qwen, seconds_per_step, shares_of_pass
    from inspector.compare.sides import by_generate
    from inspector.loading.finding import DEFAULT
    from inspector.loop.decoding import make_run
    from inspector.parts.structure import measured, shapes, trait_differences
    from inspector.report.branches import branches

    how.settle(*(m.model for m in models))
    names = [m.origin.name for m in models]
    default = QWEN_PROMPT if getattr(models[0].tokenizer, "chat_template", None) and not reading.raw else NAMES_PROMPT
    prompts = [default if prompt is None else prompt, expert_prompt]
    ids = [reading.encode(models[0], prompts[0]), models[1].encode(prompts[1])]
    settings = [asked.settings(m, LESSON) for m in models]
    reads = dict(kv_cache=loop.kv_cache, recorded=out.recorded)
    loops = [decode(m, row, s, max_new_tokens, **reads) for m, row, (s, _) in zip(models, ids, settings, strict=True)]
    known = notices([*models[0].notices, *models[1].notices, *reading.remarks(models[0], prompts[0])], t)
    screen.show(lesson.origins([(m.origin.name, m.origin.kind, m.dtype, m.device) for m in models], t), *known)
    screen.show(*(lesson.stand_in(DEFAULT, names[0], t) if model is None else ()))

    # 1. What they are made of.
    screen.show(section(t("1. The module trees", "1. Деревья модулей")))
    nodes, _, traits = zip(*(measured(m.model, m.split) for m in models), strict=True)
    screen.show(trees(nodes, names, t), parts_explained(t, *nodes))
    screen.show(architectures(trait_differences(*traits), names, t))
    native.show_original(screen, models[0], how, t)  # with --native

    # 2. The split, proved when the models were loaded.
    screen.show(section(t("2. The split and its proof", "2. Разделение и его доказательство")))
    splits = [(m.origin.name, m.split, shapes(m.split, m.prompt(row))) for m, row in zip(models, ids, strict=True)]
    screen.show(split_table([(name, s.backbone_name, s.describe(), s.probe, seen) for name, s, seen in splits], t))

    # 3. From text to token ids.
    screen.show(section(t("3. The tokens that are fed", "3. Токены на входе")))
    for m, text, row, how_read in zip(models, prompts, ids, (reading, options.PromptOptions()), strict=True):
        screen.show(out.fed(m.origin.name, m, row, text, how_read))

    # 4. One step by hand, and the proof that the loop does the same.
    screen.show(section(t("4. One step by hand", "4. Один шаг вручную")))
    first, alike = [], settings[0] == settings[1]
    screen.show(*([settings_line(*settings[0], t, loop.kv_cache)] if alike else []))
    for m, row, (sampling, origins), steps in zip(models, ids, settings, loops, strict=True):
        token_id, stages = one_step(m, row, sampling, max_new_tokens)
        other = OTHER if sampling.temperature != OTHER else 1.5
        then_id, then = one_step(m, row, replace(sampling, temperature=other), max_new_tokens)
        first.append(next(steps))
        assert token_id == first[-1].token.id, "the step by hand and the loop chose different tokens"
        listed = {name: [float(p_V[c.token.id]) for c in first[-1].candidates] for name, p_V in stages.items()}
        screen.show(subsection(m.origin.name), *([] if alike else [settings_line(sampling, origins, t, loop.kv_cache)]))
        best = [(m.texts.token(id), p) for p, id in zip(*(top.tolist() for top in then["temperature"].topk(3)), strict=True)]
        chosen = None if sampling.greedy else m.texts.token(then_id)
        screen.show(candidate_table(first[-1], listed, t), other_temperature(other, best, chosen, t))

    # 5. The loop: the same step again and again, until the models end it.
    screen.show(section(t("5. The loop, step by step", "5. Цикл по шагам")))
    rows, runs, others = [], [], []
    try:
        with LiveSteps(screen, names, t) as live:
            for row in chain([first], zip_longest(*loops)):
                rows.append(row)
                live.add(row)
    except KeyboardInterrupt:
        screen.show(notice([t("stopped; what there is follows", "остановлено; дальше то, что есть")], "Ctrl-C"))
    for i, m in enumerate(models):
        steps = [row[i] for row in rows if row[i] is not None]
        runs.append(make_run(m, ids[i], settings[i][0], max_new_tokens, steps, settings[i][1], loop.kv_cache))
        others.append(next(iter(branches(m, replace(runs[i], steps=runs[i].steps[:1]), 1)), None))  # another first token

    # 6. Are the parts, run by hand, the model?
    screen.show(section(t("6. Against model.generate()", "6. Сравнение с model.generate()")))
    with waiting.busy(t("comparing …", "сравнение …")):
        verdicts = [verify(m, row, run.sampling, run.most_new_tokens, loop.kv_cache) for m, row, run in zip(models, ids, runs, strict=True)]
    screen.show(*(verdict_line(name, verdict, t) for name, verdict in zip(names, verdicts, strict=True)))
    lines = [lesson.code_lines(getsource(by_generate)), lesson.code_lines(Path(__file__).read_text(encoding="utf8"))]
    screen.show(comparison_table(models[0].split.backbone_name, models[0].split.head_name, verdicts[0], lines, t))

    # 7. What came out, and what it cost.
    screen.show(section(t("7. Texts and times", "7. Тексты и время")))
    with waiting.busy(t("measuring …", "измерение …")):
        shares = {m.origin.name: shares_of_pass(m, m.prompt(row)) for m, row in zip(models, ids, strict=True)}
        times = {m.origin.name: seconds_per_step(m, LENGTHS) for m in models}
        if nodes[0].parameters != 494_032_768:  # those of Qwen2.5-0.5B
            times[t("the real Qwen, estimated", "настоящий Qwen, оценка")] = estimate_qwen(models[0], LENGTHS)
    screen.show(*(text_panel(*one, t, other) for *one, other in zip(prompts, runs, others, strict=True)))
    command = options.command_arguments("run", names[0], prompts[0], options=[asked.again(runs[0].sampling, LESSON), loop, reading, how])
    screen.show(growth_table(times, t), lesson.no_cache(runs[0], t), *lesson.where_time_goes(shares, t))
    screen.show(*lesson.closing(command, t, runs[0].sampling.greedy))
    write_lesson(models, runs, prompts, verdicts, [asked, loop, reading, how, out], LESSON)  # with --html
    out.write(dict(runs=runs, verdicts=verdicts))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(main)
    entry(lambda: app(standalone_mode=False))
