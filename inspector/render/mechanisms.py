"""What mechanisms of their own did with a prompt, as tables for rich: experts, latents, predictions further ahead. Nothing prints."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..records.generation import Token
from ..records.mechanisms import Choice, Depth, Experts, Further, LatentLayer, Latents, Mixture
from .tables import LABEL, MAP_ROWS, bar, number, section, table
from .text import Translate, chance, memory, quoted, tokens_of

NAMED = 2  # experts of a token that are named; of more the rest is a number
IN_NUMBERS = 8  # so many experts have a column each, more have a bar each
FEWEST = 8  # rows of a table that stands beside many others


def experts_view(experts: Experts, width: int, t: Translate) -> RenderableType:
    """Which experts each token went to, a column per mixture, and how the load is shared among them."""
    some = experts.mixtures
    columns = [
        (Text(layer_of(one.role)), [choice_text(choice, len(one.load)) for choice in one.choices], choice_width(one)) for one in some
    ]
    heading = t("token / layer", "токен / слой")
    shown = list(per_token(experts.prompt, columns, heading, width, t))
    said = [
        t(
            "expert and gate weight, the largest first; the gates choose without the noise of training",
            "эксперт и вес маршрутизатора, от большего к меньшему; выбор идёт без шума, который бывает в обучении",
        )
    ]
    if any(len(choice.experts) > NAMED for one in some for choice in one.choices):
        said.append(t("+2: two more experts with smaller weights", "+2: ещё два эксперта с меньшими весами"))
    if any(one.shared for one in some):
        said.append(t("besides, shared experts that every token goes to", "кроме них общие эксперты, через которых идут все токены"))
    error = max(some, key=lambda one: one.error / (one.scale or 1))
    lines = [
        *(Text(line, "dim") for line in said),
        Text(sums_said(some, t), "green"),
        Text(
            t(
                f"the chosen experts, each asked alone, add up to what the mixture gives (numbers up to {number(error.scale)} differ by "
                f"at most {number(error.error)})",
                f"выбранные эксперты, опрошенные по одному, в сумме дают выход смеси (числа до {number(error.scale)} отличаются "
                f"не больше чем на {number(error.error)})",
            ),
            "green",
        ),
    ]
    title = t("Experts: where each token went", "Эксперты: куда пошёл каждый токен")
    return Group(section(title), *shown, Text(""), *lines, Text(""), load_table(some, width, t), *load_said(some, width, t))


def layer_of(role: str) -> str:
    """The layer's number in a role, with what tells apart calls of one layer: "3", "3#2"."""
    return role.split(".")[1] + (f"#{role.partition('#')[2]}" if "#" in role else "")


def choice_text(choice: Choice, count: int) -> Text:
    """ "2 .71  0 .29", and how many more there are."""
    digits = len(str(count - 1))
    parts = []
    for expert, weight in zip(choice.experts[:NAMED], choice.weights, strict=False):
        parts += [(f"{expert:>{digits}}", "bold" if not parts else "none"), (f" {share(weight)}  ", "dim")]
    if len(choice.experts) > NAMED:
        parts.append((f"+{len(choice.experts) - NAMED}", "dim"))
    text = Text.assemble(*parts)
    text.rstrip()
    return text


def choice_width(mixture: Mixture) -> int:
    """Columns that the widest cell of a mixture takes."""
    return max(choice_text(choice, len(mixture.load)).cell_len for choice in mixture.choices)


def share(value: float) -> str:
    """A number between 0 and 1 in three columns, larger ones in more: .07, 1.0, 2.5."""
    return f"{value:.2f}"[1:] if value < 0.995 else f"{value:.1f}"


def per_token(
    prompt: Sequence[Token], columns: Sequence[tuple[Text, Sequence[Text], int]], heading: str, width: int, t: Translate
) -> Iterator[RenderableType]:
    """Tables with a row for each token and as many columns (head, cells, width) as fit side by side; of a long prompt the end."""
    blocks: list[list[tuple[Text, Sequence[Text]]]] = []
    room = 0
    for head, cells, wide in columns:
        wide = max(wide, len(head)) + 3
        if not blocks or room < wide:
            blocks.append([])
            room = width - LABEL - 3
        room -= wide
        blocks[-1].append((head, cells))
    rows = min(len(prompt), max(FEWEST, MAP_ROWS // max(1, len(blocks))))
    for block in blocks:
        result = table(heading)
        result.columns[0].no_wrap, result.columns[0].width, result.columns[0].overflow = True, LABEL, "ellipsis"
        for head, _ in block:
            result.add_column(head, no_wrap=True, overflow="ellipsis")
        for i in range(len(prompt) - rows, len(prompt)):
            result.add_row(label(i, prompt[i]), *(cells[i] for _, cells in block))
        yield result
    if rows < len(prompt):
        yield left_out(rows, len(prompt), t)


def label(index: int, token: Token) -> Text:
    """A token at the left of a row."""
    text = Text(f"{index} {quoted(token.text)}", no_wrap=True)
    text.truncate(LABEL, overflow="ellipsis")
    return text


def left_out(rows: int, length: int, t: Translate) -> Text:
    """What a table of a long prompt does not show."""
    return Text(
        t(
            f"the last {rows} of {tokens_of(length, t)}; what follows counts all of them, and so does --json",
            f"последние {rows} из {length:,}; дальше и в --json учтены все",
        ),
        "yellow",
    )


def sums_said(mixtures: Sequence[Mixture], t: Translate) -> str:
    """What the gate weights of a token sum to."""
    totals = {None if one.total is None else f"{one.total:.4g}" for one in mixtures}
    if totals == {None}:
        return t(
            "the weights of a token are shares of all experts, so those of the chosen ones sum to less than all",
            "веса токена — доли среди всех экспертов, поэтому у выбранных в сумме меньше целого",
        )
    if len(totals) == 1:
        return t(f"the weights of every token sum to {min(totals)}", f"веса каждого токена дают в сумме {min(totals)}")
    listed = ", ".join(sorted(total for total in totals if total is not None))
    return t(f"the weights of a token sum to {listed}, in some layers to less", f"веса токена дают {listed}, в некоторых слоях меньше")


def load_table(mixtures: Sequence[Mixture], width: int, t: Translate) -> Table:
    """The share of the choices and of the weights that each expert has, a row per mixture."""
    count = max(len(one.load) for one in mixtures)
    heading = t("load", "загрузка")
    if in_numbers(count, width):
        result = table(heading, *map(str, range(count)), numbers=range(1, count + 1))
        for one in mixtures:
            cells = (f"{100 * load:.0f}/{100 * weight:.0f}" for load, weight in zip(one.load, one.importance, strict=True))
            result.add_row(layer_of(one.role), *cells)
        return result
    heads = (t("choices", "выборы"), t("weights", "веса"), t("most", "больше всех"), t("none", "без токенов"))
    result = table(heading, *heads, numbers=(4,))
    for one in mixtures:
        top = max(range(len(one.load)), key=lambda e: one.load[e])
        bars = (Text("".join(bar(value, max(values)) for value in values), "cyan") for values in (one.load, one.importance))
        result.add_row(layer_of(one.role), *bars, f"{top}: {one.load[top]:.0%}", str(sum(load == 0 for load in one.load)))
    return result


def in_numbers(count: int, width: int) -> bool:
    """Whether so many experts have a column of numbers each; else they have a bar each."""
    return count <= IN_NUMBERS and width >= LABEL + 9 * count


def load_said(mixtures: Sequence[Mixture], width: int, t: Translate) -> Iterator[Text]:
    """What the table of loads shows."""
    count = max(len(one.load) for one in mixtures)
    if in_numbers(count, width):
        yield Text(
            t(
                f"of each expert, per cent of all choices / of all weights; even would be {100 / count:.0f}/{100 / count:.0f}",
                f"у каждого эксперта процент от всех выборов / от всех весов; поровну было бы {100 / count:.0f}/{100 / count:.0f}",
            ),
            "dim",
        )
    else:
        yield Text(
            t(
                f"a bar for each expert, full at the layer's largest; even would be {1 / count:.1%}",
                f"столбик на эксперта, полный у наибольшего в слое; поровну было бы {1 / count:.1%}",
            ),
            "dim",
        )


def latents_view(latents: Latents, width: int, t: Translate) -> RenderableType:
    """What is kept of a token beside what that stands for, per layer; and the sizes token by token."""
    kept_heads = (
        t("layer", "слой"),
        t("kept", "хранится"),
        t("instead of", "вместо"),
        t("bytes", "байт"),
        t("bytes instead of", "байт вместо"),
    )
    costs = table(*kept_heads, numbers=(3, 4))
    heads = (t("rms", "rms"), t("latent", "латент"), t("shared key", "общий ключ"), t("keys", "ключи"), t("values", "значения"))
    result = table(*heads, numbers=range(1, 5))
    for one in latents.layers:
        made = f"{one.heads} × ({one.key} + {one.value})"
        costs.add_row(layer_of(one.role), f"{one.latent} + {one.shared_key}", made, str(one.kept_bytes), f"{one.full_bytes:,}")
        result.add_row(layer_of(one.role), *(number(value) for value in sizes_of(one)))
    kept, full = (sum(getattr(one, name) for one in latents.layers) for name in ("kept_bytes", "full_bytes"))
    error = max(latents.layers, key=lambda one: one.error / (one.scale or 1))
    lines = [
        Text(
            t(
                f"a latent and one turned key for all heads stand for every head's key and value: {memory(kept, t)} per token instead of "
                f"{memory(full, t)}, {full / kept:.1f} times less; rms is the root mean square over tokens (and heads)",
                f"латент и один повёрнутый ключ на все головы заменяют ключи и значения каждой головы: {memory(kept, t)} на токен вместо "
                f"{memory(full, t)}, в {full / kept:.1f} раза меньше; rms — среднеквадратичное по токенам (и головам)",
            ),
            "dim",
        ),
        Text(
            t(
                f"from the latents alone the heads give the same (numbers up to {number(error.scale)} differ by at most "
                f"{number(error.error)}), and the keys and values seen are made of them",
                f"из одних латентов головы дают то же (числа до {number(error.scale)} отличаются не больше чем на "
                f"{number(error.error)}), и наблюдаемые ключи и значения сделаны из них",
            ),
            "green",
        ),
    ]
    top = max(key for one in latents.layers for token in one.tokens for key in token.keys)
    columns = []
    for one in latents.layers:
        cells = []
        for token in one.tokens:
            bars = "".join(bar(key, top) for key in token.keys)
            cells.append(Text.assemble(f"{token.latent:5.2f} {token.shared_key:5.2f} ", (bars, "cyan")))
        columns.append((Text(layer_of(one.role)), cells, 12 + one.heads))
    said = t(
        f"per layer the rms of the token's latent, of its shared key, and a bar for each head's key made of it, full at {number(top)}",
        f"в каждом слое rms латента токена, его общего ключа и столбик на ключ каждой головы из латента, полный при {number(top)}",
    )
    title = t("Latents: what is kept of each token", "Латенты: что хранится о каждом токене")
    tokens = per_token(latents.prompt, columns, t("token / layer", "токен / слой"), width, t)
    return Group(section(title), costs, Text(""), result, Text(""), *lines, Text(""), *tokens, Text(""), Text(said, "dim"))


def sizes_of(one: LatentLayer) -> tuple[float, float, float, float]:
    """Root mean squares over all tokens: of the latent, the shared key, all heads' keys and values."""

    def over(values: Sequence[float]) -> float:
        return (sum(value**2 for value in values) / len(values)) ** 0.5

    latent, shared = over([token.latent for token in one.tokens]), over([token.shared_key for token in one.tokens])
    keys, values = ([number for token in one.tokens for number in getattr(token, name)] for name in ("keys", "values"))
    return latent, shared, over(keys), over(values)


def further_view(further: Further, width: int, t: Translate) -> RenderableType:
    """Each token of the prompt with what the main head and every depth had said of it, and how often they were right."""
    prompt = [*further.prompt[1:], None]  # the first token is predicted by nobody; behind the last one comes the next
    columns, room = [], max(14, (width - LABEL - 3) // len(further.depths) - 3)
    for depth in further.depths:
        cells = [guess_text(depth, position, room) for position in range(1, len(further.prompt) + 1)]
        head = Text(t("head", "голова") if depth.depth == 0 else t(f"depth {depth.depth}", f"глубина {depth.depth}"))
        columns.append((head, cells))
    rows = min(len(prompt), MAP_ROWS)
    result = table(t("token", "токен"))
    result.columns[0].no_wrap, result.columns[0].width, result.columns[0].overflow = True, LABEL, "ellipsis"
    for head, _ in columns:
        result.add_column(head, no_wrap=True, overflow="ellipsis")
    for i in range(len(prompt) - rows, len(prompt)):
        token = prompt[i]
        name = label(i + 1, token) if token is not None else Text(t("next", "дальше"), "italic")
        result.add_row(name, *(cells[i] for _, cells in columns))
    cut = [left_out(rows - 1, len(further.prompt), t)] if rows < len(prompt) else []
    rates = table(t("predicted by", "предсказывает"), t("right", "верно"), "%", t("as the head", "как голова"), "%", numbers=(1, 2, 3, 4))
    for depth, (head, _) in zip(further.depths, columns, strict=True):
        all_said = len(depth.foretold)
        agrees = [f"{depth.agrees:,} / {all_said:,}", hundredths(depth.agrees, all_said)] if depth.depth else ["", ""]
        rates.add_row(head, f"{depth.hits:,} / {depth.judged:,}", hundredths(depth.hits, depth.judged), *agrees)
    said = t(
        "a row is a token of the prompt, with the guesses for it and their probability: the head's from one place before it, depth k's "
        "from 1 + k places before, with the tokens up to the one before it as input",
        "строка — токен запроса, в ней догадки о нём и их вероятность: головы — за одну позицию до него, глубины k — за 1 + k позиций, "
        "на входе у неё токены до предыдущего включительно",
    )
    if len(further.depths) == 1:
        said = t("the prompt is too short for a depth to predict anything", "запрос короток: глубинам нечего предсказывать")
    proof = t(
        "the head's logits are the same bits after the depths have run, and no guess changes with the token that it is about",
        "логиты головы после работы глубин те же бит в бит, и ни одна догадка не меняется вместе с токеном, о котором она",
    )
    title = t("Further ahead: what each depth predicted", "Дальше следующего: что предсказала каждая глубина")
    return Group(section(title), result, *cut, Text(""), Text(said, "dim"), Text(proof, "green"), Text(""), rates)


def guess_text(depth: Depth, position: int, room: int) -> Text:
    """ "✓ «а» 0.71": whether it was right, the guess and its probability; a dash where the depth cannot say anything yet.

    In more than ``room`` columns the guess is cut, and its probability is not.
    """
    at = position - 1 - depth.depth
    if not 0 <= at < len(depth.foretold):
        return Text("–", "dim")
    one = depth.foretold[at]
    mark, style = {True: ("✓", "bold green"), False: ("✗", "red"), None: ("·", "none")}[one.right]
    guess, sure = Text(quoted(one.guess.token.text), style), f" {chance(one.guess.probability)}"
    guess.truncate(room - 2 - len(sure), overflow="ellipsis")
    return Text.assemble((f"{mark} ", style), guess, (sure, "dim"))


def hundredths(part: int, whole: int) -> str:
    """A number of hundredths, for a column whose head says %; a dash of nothing."""
    return f"{100 * part / whole:.0f}" if whole else "–"
