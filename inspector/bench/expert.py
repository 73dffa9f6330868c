"""How fast is ``ExpertModel``, beside Hugging Face's GPT-2 of the same size, its documents, and what this machine can do at most?"""

import statistics
from collections import Counter
from collections.abc import Callable

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from ..loading.texts import check_repeats
from ..models import ExpertModel
from ..models.fast import has_onednn, make_fast
from .limits import flops_per_second, products, timed

TEST_CONFIGURATION = dict(vocab_size=10_000, d_model=512, n_layers=6, n_heads=8, d_ff=2048)  # 29,155,328 parameters
LENGTH = 50  # tokens of each row of a forward pass, as in the documents
DOCUMENTED = {1: 318.8, 2: 834.4, 4: 697.5, 8: 634.9}  # rows → tokens/s of a forward pass, as the model's documents give them
PROMPT, NEW = 10, 32  # tokens of a decoding
Said = Callable[[str, str], None]


def in_turn(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """The seconds of each way in each of ``rounds``, in which all take turns, to and fro, after one that warms up."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way in list(ways) if turn % 2 == 0 else list(ways)[::-1]:
            own = timed(ways[way])
            if turn:
                seconds[way].append(own)
    return seconds


def ratio(of: list[float], to: list[float]) -> float:
    """How many times as long one way takes as another: the median of the ratios within rounds."""
    return statistics.median(own / other for own, other in zip(of, to, strict=True))


def fast_form(model: ExpertModel) -> ExpertModel:
    """The same model with the fast products; the weights of the one that is given stay as they lie."""
    with torch.device("meta"):
        fast = type(model)(**model.config)
    fast.load_state_dict(model.state_dict(), assign=True)
    make_fast(fast)
    return fast.train(model.training)


def gpt2_of_size(config: dict) -> GPT2LMHeadModel:
    """Hugging Face's GPT-2 with the sizes of an ``ExpertModel``'s configuration, random weights, in evaluation mode."""
    sizes = dict(n_embd=config["d_model"], n_layer=config["n_layers"], n_head=config["n_heads"], n_inner=config["d_ff"])
    own = GPT2Config(vocab_size=config["vocab_size"], **sizes, n_positions=config["max_seq_len"], bos_token_id=None, eos_token_id=None)
    return GPT2LMHeadModel(own).eval()


def with_linear(model: nn.Module) -> nn.Module:
    """The same model, in place, with ``nn.Linear`` where GPT-2 has ``Conv1D``, which stores a weight the other way round, [in, out]."""
    for module in list(model.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, Conv1D):
                width, out = part.weight.shape
                linear = nn.Linear(width, out, device="meta")
                linear.weight, linear.bias = nn.Parameter(part.weight.detach().T.contiguous()), part.bias
                setattr(module, name, linear)
    return model


def decode(model: ExpertModel, ids_1T: torch.Tensor, new: int) -> torch.Tensor:
    """Greedy, with the cache: the prompt and ``new`` tokens."""
    return model.generate(ids_1T, new, temperature=0, kv_cache=True)


def decode_gpt2(model: nn.Module, ids_1T: torch.Tensor, new: int) -> torch.Tensor:
    """The same through transformers' ``generate()``."""
    how = dict(do_sample=False, use_cache=True, attention_mask=torch.ones_like(ids_1T), pad_token_id=0)
    return model.generate(ids_1T, max_new_tokens=new, **how)


def product_seconds(model: nn.Module) -> dict[str, float]:
    """What all products of a model's linear layers take for one token, in the ways of ``limits.products``, nothing between them."""
    shapes = Counter((part.in_features, part.out_features) for part in model.modules() if isinstance(part, nn.Linear))
    found = [(count, products(shape, 1)) for shape, count in shapes.items()]
    return {way: sum(count * own[way] for count, own in found) for way in found[0][1]}


def numbers_per_token(model: nn.Module) -> int:
    """The weights that a token is multiplied with."""
    return sum(part.weight.numel() for part in model.modules() if isinstance(part, nn.Linear))


def measure(rounds: int = 3, config: dict = TEST_CONFIGURATION, said: Said = lambda *words: None) -> dict:
    """Tokens per second of forward passes and of cached greedy decoding, random weights, float32 on the CPU.

    Ways take turns within a round; tokens/s are those of the median time, ratios the medians of the rounds' ratios. ``limit`` of
    a forward pass: its products at the speed of a large matrix product; of decoding: all products in their fastest way (``best``)
    and the weights read by a sum, nothing else. ``said`` is told what runs, in English and Russian.
    """
    check_repeats(rounds=rounds)
    torch.manual_seed(0)
    ours = ExpertModel(**config).eval()
    gpt2 = gpt2_of_size(ours.config)
    sides = dict(expert=ours) | (dict(fast=fast_form(ours)) if has_onednn() else {})
    limit = flops_per_second() / (2 * numbers_per_token(ours))
    forward = []
    for rows, documented in DOCUMENTED.items():
        said(f"forward, {rows} × {LENGTH} tokens", f"прямой проход, {rows} × {LENGTH} токенов")
        ids_BT = torch.randint(config["vocab_size"], (rows, LENGTH))
        with torch.no_grad():
            seconds = in_turn({name: lambda m=m, ids=ids_BT: m(ids) for name, m in (sides | dict(gpt2=gpt2)).items()}, rounds)
        speeds = {way: rows * LENGTH / statistics.median(own) for way, own in seconds.items()}
        to_gpt2 = {way: ratio(seconds["gpt2"], seconds[way]) for way in sides}
        to_documented = {way: speed / documented for way, speed in speeds.items()}
        forward.append(
            dict(rows=rows, documented=documented, tokens_per_s=speeds, to_gpt2=to_gpt2, to_documented=to_documented, limit=limit)
        )
    said("decoding", "генерация")
    ids_1T = torch.randint(config["vocab_size"], (1, PROMPT))
    ways = {name: lambda m=m: decode(m, ids_1T, NEW) for name, m in sides.items()}
    linear = with_linear(gpt2_of_size(ours.config))
    ways |= dict(gpt2=lambda: decode_gpt2(gpt2, ids_1T, NEW), gpt2_linear=lambda: decode_gpt2(linear, ids_1T, NEW))
    seconds = in_turn(ways, rounds)
    said("the products alone", "одни произведения")
    alone = product_seconds(ours)
    best = min(own for way, own in alone.items() if way != "sum")
    decoding = [
        dict(
            way=way,
            tokens_per_s=NEW / statistics.median(own),
            to_gpt2=ratio(seconds["gpt2"], own),
            to_gpt2_linear=ratio(seconds["gpt2_linear"], own),
            of_best=best / (statistics.median(own) / NEW),
            of_sum=alone["sum"] / (statistics.median(own) / NEW),
        )
        for way, own in seconds.items()
    ]
    counts = dict(parameters=ours.get_num_params(), gpt2_parameters=sum(p.numel() for p in gpt2.parameters()))
    alone = {way: 1 / own for way, own in alone.items()}
    return dict(config=ours.config, **counts, forward=forward, decoding=decoding, products_tokens_per_s=alone)
