"""``inspector bench``: one thin function per question; each prints a table and then one line of JSON."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from ..records.generation import Sampling
from ..render import effects, speculation
from ..render.names import names_view
from ..render.screen import QuietConsole
from ..render.tables import table
from ..render.text import translator
from .options import (
    Device,
    Dtype,
    Greedy,
    Language,
    MaxNewTokens,
    MinP,
    ModelArgument,
    NoRepeatNgramSize,
    RepetitionPenalty,
    Seed,
    Temperature,
    TopK,
    TopP,
    TypicalP,
    loaded,
    sampling_flags,
    settings,
)
from .train import bar_of_steps

bench = typer.Typer(help="Measure: each question prints a table and then one line of JSON.")


@bench.command("gender")
def bench_gender(
    model: ModelArgument = "names-qwen2",
    pairs: Annotated[int, typer.Option(help="Pairs of prompts that differ in the given name.")] = 100,
    samples: Annotated[int, typer.Option(help="Lines to make up for each agreement in gender.")] = 300,
    seed: Annotated[int, typer.Option(help="Of the pairs and of the random draws.")] = 0,
    language: Language = "auto",
) -> None:
    """Where in a names model is a surname's gender decided, and what is lost without the heads that read it?"""
    for name, value in (("--pairs", pairs), ("--samples", samples)):
        if value < 1:
            raise ValueError(f"{name} {value}: give a whole number from 1 up")
    t = translator(language)
    m = loaded(model)
    from ..bench.gender import measure

    with Console(stderr=True).status("") as status:
        result = measure(m, pairs, samples, seed, said=lambda text: status.update(Text(text)))
    QuietConsole(highlight=False).print(effects.gender_view(result, t))
    print(json.dumps(dict(model=model) | result, ensure_ascii=False))


@bench.command("loop")
def bench_loop(
    model: ModelArgument = "names-qwen2",
    rounds: Annotated[int, typer.Option(help="Rounds in which all ways take turns.")] = 5,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Milliseconds per step by hand and through generate(use_cache=False), in turn, at several context lengths."""
    if rounds < 1:
        raise ValueError(f"--rounds {rounds}: give a whole number from 1 up")
    m = loaded(model, device=device, dtype=dtype)
    from ..bench.loop import measure

    rows = measure(m, rounds=rounds)
    if not rows:
        raise ValueError(f"{model} reads at most {m.context_length} tokens: too few for the shortest measurement")
    heads = ("context", "hand ms", "generate ms", "ratio", "recording %", "limit ms", "to limit")
    result = table(*heads, numbers=range(len(heads)))
    for row in rows:
        result.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    QuietConsole(highlight=False).print(result)
    print(json.dumps(dict(model=model, rows=rows)))


@bench.command("trace")
def bench_trace(
    model: ModelArgument = "names-qwen2",
    rounds: Annotated[int, typer.Option(help="Rounds in which all ways take turns.")] = 5,
    tokens: Annotated[int, typer.Option(help="Length of the prompt, of random tokens; or what the model reads.")] = 128,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """What watching costs: one pass bare, with hooks that keep references, with statistics of the blocks, of every role; and each role."""
    for name, value in (("--rounds", rounds), ("--tokens", tokens)):
        if value < 1:
            raise ValueError(f"{name} {value}: give a whole number from 1 up")
    m = loaded(model, device=device, dtype=dtype)
    from ..bench.trace import by_role, measure

    rows, roles = measure(m, tokens, rounds), by_role(m, tokens, rounds)
    result = table("way", "tokens", "components", "ms", "to plain", numbers=range(1, 5))
    for row in rows:
        result.add_row(row["way"], str(row["tokens"]), str(row["components"]), f"{row['ms']:.2f}", f"{row['to_plain']:.3f}")
    own = table("statistics of", "components", "numbers", "ms", "% of the pass", numbers=range(1, 5))
    for row in roles:
        own.add_row(row["role"], str(row["components"]), f"{row['numbers']:,}", f"{row['ms']:.2f}", f"{100 * row['share']:.2f}")
    console = QuietConsole(highlight=False)
    console.print(result)
    console.print(own)
    print(json.dumps(dict(model=model, rows=rows, roles=roles)))


@bench.command("agreement")
def bench_agreement(
    model: ModelArgument = "names-expert",
    samples: Annotated[int, typer.Option(help="Number of lines to make up.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the random draws.")] = 0,
) -> None:
    """Do given name and surname agree in gender in what a names model makes up (temperature 0.8, top-p 0.95)?"""
    if samples < 1:
        raise ValueError(f"--samples {samples}: give a whole number from 1 up")
    m = loaded(model)
    from ..bench.agreement import measure

    result = measure(m, samples, Sampling(temperature=0.8, top_p=0.95, seed=seed))
    console = QuietConsole(highlight=False)
    console.print("made up: " + ", ".join(result["examples"]), markup=False)
    console.print(
        f"{result['unjudged_percent']:.1f} % of {samples} lines cannot be judged; of the others {result['agreement_percent']:.1f} % agree"
    )
    print(json.dumps(dict(model=model) | result, ensure_ascii=False))


@bench.command("names")
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
    out: Annotated[Path | None, typer.Option(help="Folder that keeps the models; the same command goes on where it was stopped.")] = None,
    language: Language = "auto",
) -> None:
    """Which architecture learns names best with equal parameters and steps, and by how much does it beat counting n-grams?"""
    t = translator(language)
    if parameters < 1:
        raise ValueError(f"--parameters {parameters}: give a whole number from 1 up")
    with Console(stderr=True).status("loading torch …"):
        from tempfile import TemporaryDirectory

        from ..bench.names import equal_recipes, measure, parts

        data = parts(corpus, validation, seed)
        sizes = dict(d_model=d_model, n_layers=n_layers, n_heads=n_heads)
        how = dict(steps=steps, batch_size=batch_size, learning_rate=learning_rate, dropout=dropout, seed=seed)
        recipes = equal_recipes([name.strip() for name in models.split(",")], parameters, data, **sizes, **how)
    console = Console(stderr=True, highlight=False)
    with TemporaryDirectory(prefix="inspector-names-") as folder, bar_of_steps(console) as bar:
        tasks = {name: bar.add_task(name, total=steps) for name in recipes}
        shown = dict.fromkeys(recipes)

        def told(name, done) -> None:
            if done is None:
                console.print(f"{name} …")
                return
            held = "" if done.validation_loss is None else f", held out {done.validation_loss:.4f}"
            bar.update(tasks[name], completed=done.step, description=f"{name}: loss {done.loss:.4f}{held}")
            if done.validation_loss != shown[name]:
                shown[name] = done.validation_loss
                console.print(f"{name}, step {done.step:,}: loss {done.loss:.4f}{held} nats per character, {done.seconds_left:.0f} s left")

        try:
            result = measure(data, recipes, out or Path(folder), told)
        except KeyboardInterrupt:
            if out is not None:
                console.print(f"stopped; what is done is in {out}: the same command goes on", markup=False)
            raise
    QuietConsole(highlight=False).print(names_view(result, t))
    print(json.dumps(result, ensure_ascii=False))


@bench.command("mtp")
def bench_mtp(
    model: ModelArgument,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Text to continue, once for each; the model makes some up by default.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Prompts to make up where none is given.")] = 8,
    max_new_tokens: MaxNewTokens = 40,
    rounds: Annotated[int, typer.Option(help="Rounds in which all ways take turns.")] = 3,
    greedy: Greedy = False,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    repetition_penalty: RepetitionPenalty = None,
    min_p: MinP = None,
    typical_p: TypicalP = None,
    no_repeat_ngram_size: NoRepeatNgramSize = None,
    seed: Seed = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    language: Language = "auto",
) -> None:
    """What drafting with multi-token prediction saves: acceptance, tokens per pass, speed beside the plain loops. Greedy by default.

    Exit code 1 if a greedy token differs from the plain loop's by more than rounding.
    """
    for name, value in (("--samples", samples), ("--rounds", rounds), ("--max-new-tokens", max_new_tokens)):
        if value < 1:
            raise ValueError(f"{name} {value}: give a whole number from 1 up")
    t = translator(language)
    flags = sampling_flags(greedy, temperature, top_k, top_p, repetition_penalty, seed, min_p, typical_p, no_repeat_ngram_size)
    m = loaded(model, device=device, dtype=dtype)
    from ..bench.mtp import made_up, measure
    from ..loop.speculation import native

    native(m)
    # A filter that acts on draws alone asks for draws.
    draws = any(name in flags for name in ("top_k", "top_p", "min_p", "typical_p"))
    sampling, _ = settings(m, flags, seed, False, None if draws else dict(temperature=0.0))
    prompts = [m.encode(text, raw=True) for text in prompt] if prompt else made_up(m, samples, sampling.seed)
    with Console(stderr=True).status(t("measuring …", "измерение …")):
        result = measure(m, prompts, sampling, max_new_tokens, rounds)
    QuietConsole(highlight=False).print(speculation.mtp_view(result, t))
    print(json.dumps(dict(model=model) | result, ensure_ascii=False))
    if not all(row["near_tie"] for row in result["partings"]):
        raise typer.Exit(1)
