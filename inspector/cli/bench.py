"""``inspector bench``: one thin function per question; each prints a table, and writes its numbers with ``--json``."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from ..files import check_folder, check_writable
from ..process import temporary_folder
from ..records.generation import SETTINGS, Sampling
from ..render import effects, speculation
from ..render.expert import expert_view, presets_view
from ..render.growth import growth_view, save_picture
from ..render.lesson import lines_table
from ..render.names import agreement_view, names_view
from ..render.sampler import sampler_view
from ..render.speed import limits_view, ways_view
from ..render.tables import table
from ..render.text import Translate, memory, visible
from ..render.verdicts import loop_table
from .grouping import at_least_one, grouped
from .options import MODEL_HELP, ModelArgument, ModelOptions, Native, Output, PromptArgument, SamplingOptions, Threads
from .threads import SMALL, check_threads, settle_threads, threads_now
from .train import bar_of_steps
from .waiting import busy, importing

bench = typer.Typer(help="Measure: each question prints a table; --json writes its numbers.")


def in_language(say: Callable[[str], None], t: Translate) -> Callable[[str, str], None]:
    """``say`` for what measures, which says in English and Russian what it is at."""
    return lambda *words: say(t(*words))


@bench.command("gender")
@grouped(model="names-qwen2")
def bench_gender(
    model: ModelArgument,
    pairs: Annotated[int, typer.Option(help="Pairs of prompts that differ in the given name.")] = 100,
    samples: Annotated[int, typer.Option(help="Lines to make up for each agreement in gender.")] = 300,
    seed: Annotated[int, typer.Option(help="Of the pairs and of the random draws.")] = 0,
    *,
    how: ModelOptions,
    out: Output,
) -> None:
    """Where in a names model is a surname's gender decided, and what is lost without the heads that read it?"""
    at_least_one(pairs=pairs, samples=samples)
    m = how.load(model)
    with busy(out.t("measuring …", "измерение …")) as say:
        from ..bench.gender import measure

        result = measure(m, pairs, samples, seed, said=in_language(say, out.t))
    out.header(model)
    out.console.print(effects.gender_view(result, out.t))
    out.write(dict(model=model, threads=threads_now()) | result)


@bench.command("loop")
@grouped(model="names-qwen2", without=["fast"])
def bench_loop(
    model: ModelArgument,
    rounds: Annotated[int, typer.Option(help="Rounds in which all ways take turns.")] = 5,
    tokens: Annotated[int | None, typer.Option(help="Length of the context; without it several.")] = None,
    *,
    how: ModelOptions,
    out: Output,
) -> None:
    """Milliseconds per step by hand and through generate(), with and without a KV-cache, of our own modules too, in turn."""
    at_least_one(rounds=rounds, tokens=tokens)
    m = how.load(model)
    with busy(out.t("measuring …", "измерение …")) as say:
        from ..bench.loop import LENGTHS, measure, twins

        lengths = LENGTHS if tokens is None else (tokens,)
        result = measure(m, lengths, rounds, 4, in_language(say, out.t), *twins(m))
    if not result["rows"] and tokens is not None:
        raise ValueError(f"--tokens {tokens}: {model} reads at most {m.context_length}, of which a measurement adds four: give fewer")
    if not result["rows"]:
        raise ValueError(f"{model} reads at most {m.context_length} tokens: too few for the shortest measurement")
    out.header(model)
    out.console.print(loop_table(result["rows"], out.t))
    out.console.print(ways_view(result["ways"], out.t))
    out.write(dict(model=model, threads=threads_now()) | result)


@bench.command("limits")
@grouped(without=["dtype", "trust_remote_code", "native", "fast"])
def bench_limits(
    compile: Annotated[bool, typer.Option("--compile", help="Time a compiled product too: it wants a C++ compiler.")] = False,
    *,
    how: ModelOptions,
    out: Output,
) -> None:
    """What the machine can do at most: reading memory, matrix products in several ways, starting an operation."""
    t = out.t
    with busy(t("loading torch …", "загрузка torch …")) as say:
        with importing():
            from ..bench.limits import measure
            from ..loading.request import pick_device

        settle_threads(how.threads, SMALL)
        result = measure(pick_device(how.device), compile, in_language(say, t))
    out.header()
    out.console.print(limits_view(result, t))
    out.write(dict(threads=threads_now()) | result)


@bench.command("expert")
@grouped()
def bench_expert(
    rounds: Annotated[int, typer.Option(help="Rounds in which all ways take turns.")] = 3,
    threads: Threads = None,
    *,
    out: Output,
) -> None:
    """ExpertModel in its test configuration: forward and decoding speed beside GPT-2, the model's documents and the machine's limits."""
    at_least_one(rounds=rounds)
    check_threads(threads)
    with busy(out.t("loading torch …", "загрузка torch …")) as say:
        with importing():
            from ..bench.expert import measure

        settle_threads(threads, SMALL)
        result = measure(rounds, said=in_language(say, out.t))
    out.header("ExpertModel", "GPT-2")
    out.console.print(expert_view(result, out.t))
    out.write(dict(threads=threads_now()) | result)


@bench.command("presets")
@grouped()
def bench_presets(
    presets: Annotated[str, typer.Option(metavar="NAME,…", help="Of tiny, small, medium, large.")] = "tiny,small,medium,large",
    rounds: Annotated[int, typer.Option(help="Rounds in which all ways take turns.")] = 3,
    threads: Threads = None,
    *,
    out: Output,
) -> None:
    """The presets of ExpertModel: parameters, memory, tokens per second beside the documents' estimates, and what drafting costs."""
    at_least_one(rounds=rounds)
    check_threads(threads)
    with busy(out.t("loading torch …", "загрузка torch …")) as say:
        with importing():
            from ..bench.presets import measure

        settle_threads(threads, SMALL)
        rows = measure([name.strip() for name in presets.split(",")], rounds, in_language(say, out.t))
    out.header("ExpertModel", "gpt-mtp")
    out.console.print(presets_view(rows, out.t))
    out.write(dict(threads=threads_now(), rows=rows))


@bench.command("trace")
@grouped(model="names-qwen2")
def bench_trace(
    model: ModelArgument,
    rounds: Annotated[int, typer.Option(help="Rounds in which all ways take turns.")] = 5,
    tokens: Annotated[int, typer.Option(help="Length of the prompt, of random tokens; or what the model reads.")] = 128,
    *,
    how: ModelOptions,
    out: Output,
) -> None:
    """What watching costs: one pass bare, with hooks that keep references, with statistics of the blocks, of every role; and each role."""
    at_least_one(rounds=rounds, tokens=tokens)
    m = how.load(model)
    with busy(out.t("measuring …", "измерение …")) as say:
        from ..bench.trace import by_role, measure

        said = in_language(say, out.t)
        rows, roles = measure(m, tokens, rounds, said), by_role(m, tokens, rounds, said)
    t = out.t
    ways = {
        "plain": t("plain", "чистый"),
        "references": t("references", "ссылки"),
        "blocks": t("blocks", "блоки"),
        "every role": t("every role", "все роли"),
    }
    parts = t("components", "компонентов")
    result = table(t("way", "способ"), t("tokens", "токенов"), parts, t("ms", "мс"), t("to plain*", "к чистому*"), numbers=range(1, 5))
    for row in rows:
        result.add_row(ways[row["way"]], str(row["tokens"]), str(row["components"]), f"{row['ms']:.2f}", f"{row['to_plain']:.3f}")
    heads = t("statistics of", "статистика"), parts, t("numbers", "чисел"), t("ms", "мс"), t("% of the pass*", "% прохода*")
    own = table(*heads, numbers=range(1, 5))
    for row in roles:
        own.add_row(row["role"], str(row["components"]), f"{row['numbers']:,}", f"{row['ms']:.2f}", f"{100 * row['share']:.2f}")
    out.header(model)
    out.console.print(result)
    out.console.print(own)
    explained = t(
        "a time is the median of rounds after a warm-up; * the median of the ratios within rounds",
        "время — медиана раундов после прогрева; * медиана отношений внутри раундов",
    )
    out.console.print(Text(explained, "dim"))
    out.write(dict(model=model, threads=threads_now(), rows=rows, roles=roles))


@bench.command("sampler")
@grouped()
def bench_sampler(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help=f"{MODEL_HELP} Its logits, and its cached step.")] = None,
    vocabulary: Annotated[int | None, typer.Option(help="Without a MODEL, the number of made-up logits; 151,936 by default.")] = None,
    step_ms: Annotated[float | None, typer.Option(help="What a cached step takes, in milliseconds; without it that of MODEL.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds in which all ways take turns.")] = 15,
    *,
    how: ModelOptions,
    out: Output,
) -> None:
    """Filters, draw and ledger on a large vocabulary, beside transformers' warpers and torch.multinomial, in turn."""
    at_least_one(vocabulary=vocabulary, rounds=rounds)
    if model is not None and vocabulary is not None:
        raise ValueError(f"--vocabulary {vocabulary}: {model} has a vocabulary of its own: leave one of them out")
    if step_ms is not None and not 0 < step_ms < float("inf"):
        raise ValueError(f"--step-ms {step_ms}: give a positive number of milliseconds")
    m = how.load(model) if model is not None else None
    with busy(out.t("measuring …", "измерение …")) as say:
        with importing():
            from ..bench.sampler import VOCABULARY, made_up, measure, of_model
        if m is None:
            settle_threads(how.threads, SMALL)
            logits, seconds = made_up(vocabulary or VOCABULARY), None
        else:
            logits, seconds = of_model(m)
        seconds = seconds if step_ms is None else step_ms / 1e3
        rows = measure(logits, seconds, rounds, in_language(say, out.t))
    out.header(*[] if model is None else [model])
    out.console.print(sampler_view(rows, seconds, out.t))
    size = len(next(iter(logits.values())))
    out.write(dict(model=model, threads=threads_now(), vocabulary=size, step_ms=None if seconds is None else 1e3 * seconds, rows=rows))


@bench.command("precision")
@grouped(model="names-qwen2", without=["dtype", "fast", "quantise"])
def bench_precision(
    model: ModelArgument,
    rounds: Annotated[int, typer.Option(help="Rounds in which all ways take turns.")] = 3,
    *,
    how: ModelOptions,
    out: Output,
) -> None:
    """What smaller precisions save and what they cost: size, cached greedy decoding, distance from float32 on held-out text."""
    at_least_one(rounds=rounds)
    with busy(out.t("measuring …", "измерение …")) as say:
        from ..bench.precision import measure

        rows, common = measure(lambda **arguments: how.load(model, **arguments), rounds, in_language(say, out.t))
    t = out.t
    heads = (
        *(t("precision", "точность"), t("weights", "веса"), t("tokens/s", "токенов/с"), t("ratio*", "отн.*")),
        *(t("of limit", "предела"), t("KL, nats", "KL, нат"), t("same", "тот же")),
    )
    result = table(*heads, numbers=range(1, len(heads)))
    for row in rows:
        speed = f"{row['tokens_per_s']:.1f}", f"{row['speed_up']:.2f}", f"{100 * row['of_limit']:.0f} %"
        result.add_row(row["way"], memory(row["bytes"], t), *speed, f"{row['kl']:.2g}", f"{100 * row['agreement']:.1f} %")
    out.header(model)
    out.console.print(result)
    text = t("random ids", "случайные номера") if common["random_ids"] else t("held-out names", "отложенные имена")
    explained = t(
        f"greedy decoding with a cache, {common['new_tokens']} steps of one token; * to float32, the median of the ratios within rounds. "
        f"The limit: the weights that a step reads, at the {common['gb_per_s']:.0f} GB/s at which a sum reads memory. KL to float32, and "
        f"how often the best next token is the same: {common['held_out_tokens']} tokens, {text}",
        f"жадное декодирование с кэшем, {common['new_tokens']} шагов по токену; * к float32, медиана отношений внутри раундов. Предел: "
        f"веса, которые читает шаг, со скоростью {common['gb_per_s']:.0f} ГБ/с, с какой сумма читает память. KL к float32 и как часто "
        f"лучший следующий токен тот же: {common['held_out_tokens']} токенов, {text}",
    )
    out.console.print(Text(explained, "dim"))
    out.write(dict(model=model, threads=threads_now(), rows=rows) | common)


@bench.command("agreement")
@grouped(model="names-expert")
def bench_agreement(
    model: ModelArgument,
    samples: Annotated[int, typer.Option(help="Number of lines to make up.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the random draws.")] = 0,
    *,
    how: ModelOptions,
    out: Output,
) -> None:
    """Do given name and surname agree in gender in what a names model makes up (temperature 0.8, top-p 0.95)?"""
    at_least_one(samples=samples)
    m = how.load(model)
    with busy(out.t("making lines up …", "придумываются строки …")) as say:
        from ..bench.agreement import measure

        result = measure(m, samples, Sampling(temperature=0.8, top_p=0.95, seed=seed), said=in_language(say, out.t))
    out.header(model)
    out.console.print(agreement_view(result, out.t))
    out.write(dict(model=model, threads=threads_now()) | result)


@bench.command("names")
@grouped()
def bench_names(
    corpus: Annotated[
        str, typer.Option(help="A text file with one item a line, or names: the embedded corpus of Russian names with its own split.")
    ] = "names",
    validation: Annotated[
        Path | None, typer.Option(help="A text file held out of training; without it a tenth of a file's unique items is.")
    ] = None,
    models: Annotated[str, typer.Option(metavar="NAME,…", help="The models to train.")] = "expert,qwen2,gpt,gpt-moe,gpt-mla,gpt-mtp",
    parameters: Annotated[int, typer.Option(help="In all, of every model: the width of the feed-forward is chosen to fit.")] = 750_000,
    d_model: Annotated[int, typer.Option(help="Width of the hidden states.")] = 128,
    n_layers: Annotated[int, typer.Option(help="Number of blocks.")] = 4,
    n_heads: Annotated[int, typer.Option(help="Attention heads in each.")] = 4,
    steps: Annotated[int, typer.Option(help="Number of updates.")] = 1250,
    batch_size: Annotated[int, typer.Option(help="Lines in an update.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Peak of the schedule: warm-up, then a cosine.")] = 2e-3,
    dropout: Annotated[float, typer.Option(help="Probability while training.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of weights, order and dropout, and of a split.")] = 0,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Folder that keeps the models; the same command goes on where it was stopped."),
    ] = None,
    threads: Threads = None,
    *,
    out: Output,
) -> None:
    """Which architecture learns names best with equal parameters and steps, and by how much does it beat counting n-grams?"""
    at_least_one(parameters=parameters)
    check_threads(threads)
    if folder is not None:
        check_folder(folder)
    t = out.t
    with busy(t("loading torch …", "загрузка torch …")) as say:
        with importing():
            from ..bench.names import equal_recipes, measure, parts

        say(t("sizing the models …", "подбор размеров …"))
        settle_threads(threads, parameters)
        data = parts(corpus, validation, seed)
        sizes = dict(d_model=d_model, n_layers=n_layers, n_heads=n_heads)
        how = dict(steps=steps, batch_size=batch_size, learning_rate=learning_rate, dropout=dropout, seed=seed)
        recipes = equal_recipes([name.strip() for name in models.split(",")], parameters, data, **sizes, **how)
    console = Console(stderr=True, highlight=False)
    with temporary_folder("inspector-names-") as temporary, bar_of_steps(console) as bar:
        tasks = {name: bar.add_task(name, total=steps) for name in recipes}
        shown = dict.fromkeys(recipes)

        def told(name, done) -> None:
            if done is None:
                console.print(f"{t(name, 'n-граммы') if name == 'n-grams' else name} …")
                return
            loss, held = t(f"loss {done.loss:.4f}", f"потери {done.loss:.4f}"), ""
            if done.validation_loss is not None:
                held = t(f", held out {done.validation_loss:.4f}", f", на отложенном {done.validation_loss:.4f}")
            bar.update(tasks[name], completed=done.step, description=f"{name}: {loss}{held}")
            if done.validation_loss != shown[name]:
                shown[name] = done.validation_loss
                left = f"{done.seconds_left:.0f}"
                line = t(
                    f"{name}, step {done.step:,}: {loss}{held} nats per character, {left} s left",
                    f"{name}, шаг {done.step:,}: {loss}{held} нат на символ, осталось {left} с",
                )
                console.print(line, markup=False)

        try:
            result = measure(data, recipes, folder or Path(temporary), told)
        except (KeyboardInterrupt, SystemExit):
            if folder is not None:
                stopped = t(
                    f"stopped; what is done is in {folder}: the same command goes on",
                    f"остановлено; сделанное лежит в {folder}: та же команда продолжит",
                )
                console.print(stopped, markup=False)
            raise
    out.header(*recipes)
    out.console.print(names_view(result, t))
    out.write(dict(threads=threads_now()) | result)


@bench.command("startup")
@grouped(model="names-expert")
def bench_startup(
    model: ModelArgument,
    prompt: PromptArgument = "Анна",
    rounds: Annotated[int, typer.Option(help="Rounds in which all commands take turns.")] = 1,
    native: Native = False,
    threads: Threads = None,
    *,
    out: Output,
) -> None:
    """Seconds until a command has answered, beside the imports that it cannot do without and the work that it does."""
    at_least_one(rounds=rounds)
    check_threads(threads)
    t = out.t
    with busy(t("measuring …", "измерение …")) as say:
        with importing():
            from ..bench.startup import measure

        rows = measure(model, prompt, native, threads, rounds, said=in_language(say, t))
    heads = t("imports, s", "импорты, с"), t("work, s", "работа, с"), t("to both*", "к сумме*")
    result = table(t("process", "процесс"), t("s", "с"), *heads, numbers=range(1, 5), wide=[0])
    for row in rows:
        numbers = ("–" if row[name] is None else f"{row[name]:.2f}" for name in ("seconds", "imports", "work", "ratio"))
        result.add_row(visible(row["command"]), *numbers)
    out.console.print(result)
    explained = t(
        "work: the command once more in the same process; medians of the rounds, * of the ratios within them",
        "работа: та же команда ещё раз в том же процессе; медианы раундов, * — отношений внутри них",
    )
    out.console.print(Text(explained, "dim"))
    out.write(dict(model=model, native=native, rows=rows))


@bench.command("lines")
@grouped(without=["native"], model="names-qwen2")
def bench_lines(model: ModelArgument, *, how: ModelOptions, out: Output) -> None:
    """How much code is a native model? The classes and functions that a forward pass enters, without comments, docstrings and masks.

    Published checkpoints are put into our own modules for it.
    """
    t = out.t
    m = how.load(model, native=True)
    with busy(t("counting …", "подсчёт …")):
        from ..bench.lines import measure

        result = measure(m)
    out.header(model)
    out.console.print(lines_table(result["definitions"], result["lines"], t))
    out.write(dict(model=model) | result)


@bench.command("compile")
@grouped(model="names-expert")
def bench_compile(
    model: ModelArgument,
    tokens: Annotated[int, typer.Option(help="Length of the context, of random tokens; or what the model reads.")] = 32,
    rounds: Annotated[int, typer.Option(help="Rounds in which all ways take turns.")] = 5,
    *,
    how: ModelOptions,
    out: Output,
) -> None:
    """What torch.compile, and on CUDA a captured graph, save of a step, and how long they take before the first."""
    at_least_one(tokens=tokens, rounds=rounds)
    m, t = how.load(model), out.t
    with busy(t("measuring …", "измерение …")) as say:
        from ..bench.compiling import measure

        rows = measure(m, tokens, rounds, in_language(say, t))
    ways = {
        "plain": t("as it is", "как есть"),
        "compiled": t("compiled", "скомпилирован"),
        "cached": t("KV-cache", "KV-кэш"),
        "graph": t("KV-cache, CUDA graph", "KV-кэш, граф CUDA"),
    }
    heads = t("tokens", "токенов"), t("ms", "мс"), t("to plain*", "к исходному*"), t("warm-up, s", "прогрев, с")
    result = table(t("loop", "цикл"), *heads, numbers=range(1, 5))
    for row in rows:
        numbers = str(row["tokens"]), f"{row['ms']:.2f}", f"{row['to_plain']:.3f}", f"{row['warm_up']:.1f}"
        result.add_row(ways[row["way"]], *numbers)
    out.header(model)
    out.console.print(result)
    explained = t(
        "a time is the median of rounds after a warm-up; * the median of the ratios within rounds, of a graph to the cache without",
        "время — медиана раундов после прогрева; * медиана отношений внутри раундов, у графа — к кэшу без него",
    )
    out.console.print(Text(explained, "dim"))
    out.write(dict(model=model, threads=threads_now(), rows=rows))


@bench.command("mtp")
@grouped(max_new_tokens=40)
def bench_mtp(
    model: ModelArgument,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Text to continue, once for each; the model makes some up by default.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Prompts to make up where none is given.")] = 8,
    rounds: Annotated[int, typer.Option(help="Rounds in which all ways take turns.")] = 3,
    *,
    asked: SamplingOptions,
    how: ModelOptions,
    out: Output,
) -> None:
    """What drafting with multi-token prediction saves: acceptance, tokens per pass, speed beside the plain loops. Greedy by default.

    Exit code 1 if a greedy token differs from the plain loop's by more than rounding.
    """
    at_least_one(samples=samples, rounds=rounds, max_new_tokens=asked.max_new_tokens)
    m = how.load(model)
    with busy(out.t("measuring …", "измерение …")) as say:
        from ..bench.mtp import made_up, measure
        from ..loop.speculation import native

        native(m)
        # A setting that acts on draws alone asks for draws.
        draws = any(SETTINGS[name].draws for name in asked.flags)
        sampling, _ = asked.settings(m, None if draws else dict(temperature=0.0))
        prompts = [m.encode(text, raw=True) for text in prompt] if prompt else made_up(m, samples, sampling.seed)
        result = measure(m, prompts, sampling, asked.max_new_tokens, rounds, in_language(say, out.t))
    out.header(model)
    out.console.print(speculation.mtp_view(result, out.t))
    out.write(dict(model=model, threads=threads_now()) | result)
    if not all(row["near_tie"] for row in result["partings"]):
        raise typer.Exit(1)


@bench.command("onnx")
@grouped(model="names-expert")
def bench_onnx(
    model: ModelArgument,
    tokens: Annotated[int, typer.Option(help="New tokens, behind a prompt of 8.")] = 40,
    rounds: Annotated[int, typer.Option(help="Rounds in which all ways take turns.")] = 5,
    *,
    how: ModelOptions,
    out: Output,
) -> None:
    """How fast does onnxruntime decode the exported model beside torch, with and without a cache, and do the two agree?

    Exit code 1 if a token differs, or a logit by more than 1e-4.
    """
    at_least_one(tokens=tokens, rounds=rounds)
    m, t = how.load(model), out.t
    with busy(t("measuring …", "измерение …")) as say:
        from ..bench.onnx import WAYS, measure

        result = measure(m, tokens, rounds, in_language(say, t))
    heads = t("way", "способ"), t("tokens/s", "токенов/с"), t("to torch*", "к torch*"), t("same", "те же")
    shown = table(*heads, t("differs by", "отличие"), t("MiB", "МиБ"), numbers=range(1, 6))
    for row in result["rows"]:
        same = t("yes", "да") if row["same_tokens"] else t("no", "нет")
        size = "" if row["bytes"] is None else f"{row['bytes'] / 2**20:.1f}"
        speed = f"{row['tokens_per_second']:,.0f}"
        shown.add_row(t(row["way"], WAYS[row["way"]]), speed, f"{row['to_torch']:.2f}", same, f"{row['difference']:.1e}", size)
    out.header(model)
    out.console.print(shown)
    explained = t(
        "greedy; same: its tokens are torch's; differs by: its logits, at most; a time is the median of rounds after a warm-up; "
        "* speed to torch without a cache, the median of the ratios within rounds",
        "жадно; те же: токены как у torch; отличие: логитов, не больше; время — медиана раундов после прогрева; "
        "* скорость к torch без кэша, медиана отношений внутри раундов",
    )
    out.console.print(Text(explained, "dim"))
    out.write(dict(model=model, threads=threads_now()) | result)
    if not all(row["same_tokens"] and row["difference"] <= 1e-4 for row in result["rows"]):
        raise typer.Exit(1)


@bench.command("growth")
@grouped()
def bench_growth(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help=f"By default a preset with random weights. {MODEL_HELP}")] = None,
    longest: Annotated[int, typer.Option(help="Longest context, in tokens; shorter where the model reads less.")] = 4096,
    processes: Annotated[int, typer.Option(help="Train with 1 to so many processes; 1 leaves training out.")] = 2,
    rounds: Annotated[int, typer.Option(help="Measurements of each size, of which the median counts.")] = 3,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the curves as a chart; --save-png saves the screen.")] = None,
    *,
    how: ModelOptions,
    out: Output,
) -> None:
    """How do time and memory grow with context, batch and parameters, and training with processes? The exponents are fitted."""
    at_least_one(longest=longest, processes=processes, rounds=rounds)
    check_writable(png)
    t = out.t
    m = None if model is None else how.load(model)
    with busy(t("measuring …", "измерение …")) as say:
        with importing():
            from ..bench.growth import PRESET, measure
        if m is None:
            settle_threads(how.threads, SMALL)
        result = measure(m, longest, processes, rounds, in_language(say, t))
    out.header(model or f"ExpertModel, {PRESET}")
    out.console.print(growth_view(result, out.console.width, t))
    if png is not None:
        save_picture(result, png, t)
    out.write(dict(model=model, threads=threads_now()) | result)
