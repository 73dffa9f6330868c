"""What ``inspector bench expert`` and ``inspector bench presets`` measured, as tables."""

from rich.console import Group, RenderableType
from rich.text import Text

from .tables import table
from .text import Translate


def sides(t: Translate) -> dict[str, str]:
    """What the measured ways are called."""
    return dict(
        expert="ExpertModel",
        fast=t("ExpertModel, fast", "ExpertModel, fast"),
        gpt2="GPT-2",
        gpt2_linear=t("GPT-2 with nn.Linear", "GPT-2 с nn.Linear"),
    )


def expert_view(result: dict, t: Translate) -> RenderableType:
    """Forward passes beside GPT-2 and the documents, and decoding beside ``generate()`` and the products alone."""
    words = sides(t)
    speed, to_gpt2 = t("tokens/s", "токенов/с"), t("× GPT-2*", "× GPT-2*")
    heads = t("rows", "строк"), t("documents", "документы"), t("way", "способ"), speed, t("× documents", "× документы")
    forward = table(*heads, to_gpt2, t("% of limit", "% предела"), numbers=(0, 1, 3, 4, 5, 6))
    for row in result["forward"]:
        for way, own in row["tokens_per_s"].items():
            to = f"{row['to_documented'][way]:.1f}", f"{row['to_gpt2'][way]:.2f}" if way in row["to_gpt2"] else ""
            share = f"{100 * own / row['limit']:.0f}"
            forward.add_row(str(row["rows"]), f"{row['documented']:.1f}", words[way], f"{own:,.0f}", *to, share)
    heads = t("way", "способ"), speed, to_gpt2, t("× with nn.Linear*", "× с nn.Linear*")
    decoding = table(*heads, t("% of products", "% произведений"), t("% of reading", "% чтения"), numbers=range(1, 6))
    for row in result["decoding"]:
        ratios = f"{row['to_gpt2']:.2f}", f"{row['to_gpt2_linear']:.2f}"
        shares = f"{100 * row['of_best']:.0f}", f"{100 * row['of_sum']:.0f}"
        decoding.add_row(words[row["way"]], f"{row['tokens_per_s']:.1f}", *ratios, *shares)
    products = table(t("products alone", "одни произведения"), speed, numbers=(1,))
    for way, own in sorted(result["products_tokens_per_s"].items(), key=lambda item: item[1]):
        products.add_row(t("reading by a sum", "чтение суммой") if way == "sum" else way, f"{own:.0f}")
    size = f"{result['parameters']:,}", f"{result['gpt2_parameters']:,}"
    said = [
        t(
            f"parameters: {size[0]}; GPT-2, whose head is tied: {size[1]}. Random weights, float32",
            f"параметров: {size[0]}; у GPT-2, где голова общая с эмбеддингом: {size[1]}. Веса случайны, float32",
        ),
        t("forward passes of rows of 50 tokens:", "прямые проходы, в строке 50 токенов:"),
        t("greedy decoding with a KV-cache, 32 tokens after 10:", "жадная генерация с KV-кэшем, 32 токена после 10:"),
        t(
            "* the median of the ratios within rounds; fast: oneDNN's products on the same weights. Limit: the weights' products at the "
            "speed of a large matrix product. % of products: of what all products of one token allow in their fastest way, nothing between "
            "them; below, each way of bench limits. GPT-2 stores its weights transposed: with nn.Linear it calls the products that "
            "ExpertModel calls. It decodes by generate(use_cache=True)",
            "* медиана отношений внутри раундов; fast — произведения oneDNN с теми же весами. Предел: произведения с весами со скоростью "
            "большого матричного произведения. % произведений: от того, что допускают все произведения одного токена самым быстрым "
            "способом, если между ними ничего нет; ниже — каждым из способов bench limits. GPT-2 хранит веса транспонированными: с "
            "nn.Linear она вызывает те же произведения, что ExpertModel. Генерирует она через generate(use_cache=True)",
        ),
    ]
    first, of_forward, of_decoding, explained = said
    return Group(
        Text(first), Text(f"\n{of_forward}"), forward, Text(f"\n{of_decoding}"), decoding, Text(""), products, Text(explained, "dim")
    )


def presets_view(rows: list[dict], t: Translate) -> RenderableType:
    """Sizes, memory, speed beside the documents' estimates, and what drafting costs, preset by preset."""
    heads = t("preset", "пресет"), t("parameters", "параметров"), t("float32, MiB", "float32, МиБ"), "float16", "int8"
    sizes = table(*heads, numbers=range(1, 5))
    heads = t("preset", "пресет"), t("way", "способ"), t("forward, tokens/s", "проход, токенов/с"), t("decoding", "генерация")
    speeds = table(*heads, t("documents", "документы"), numbers=(2, 3, 4))
    heads = t("preset", "пресет"), t("step, ms", "шаг, мс"), t("drafting pass, ms", "спекулятивный проход, мс")
    drafting = table(*heads, t("pays from tokens per pass", "выгодно от токенов на проход"), numbers=range(1, 4))
    words = sides(t)
    for row in rows:
        sizes.add_row(row["preset"], f"{row['parameters']:,}", *(f"{own / 2**20:.1f}" for own in row["bytes"].values()))
        estimated = "" if row["estimated"] is None else "–".join(dict.fromkeys(map(str, row["estimated"])))
        for way, own in row["forward_tokens_per_s"].items():
            speeds.add_row(row["preset"], words[way], f"{own:,.0f}", f"{row['decoding_tokens_per_s'][way]:,.0f}", estimated)
        own = row["drafting"]
        drafting.add_row(row["preset"], *(f"{own[name]:.2f}" for name in ("plain_ms", "pass_ms", "needed_tokens_per_pass")))
    said = [
        t(
            "one row of 50 tokens forward; greedy decoding with a KV-cache, 12 tokens after 10; random weights, float32:",
            "проход одной строки из 50 токенов; жадная генерация с KV-кэшем, 12 токенов после 10; веса случайны, float32:",
        ),
        t(
            "what drafting costs a gpt-mtp of these sizes (a drafting pass: one draft, and both tokens checked):",
            "во что обходится спекуляция gpt-mtp этих размеров (спекулятивный проход: один набросок и проверка обоих токенов):",
        ),
        t(
            "documents: what the model's documents estimate for these sizes on a CPU, under other names. Medians of rounds after a warm-up",
            "документы: оценка документов модели для этих размеров на CPU, под другими именами. Медианы раундов после прогрева",
        ),
    ]
    return Group(sizes, Text(f"\n{said[0]}"), speeds, Text(f"\n{said[1]}"), drafting, Text(said[2], "dim"))
