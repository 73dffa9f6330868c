"""The twenty questions of questions.md: each answer is where the table says, with the right value.

The values are found here anew, from the models and by torch and transformers; a screen's words are asserted beside them.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from inspector.cli.options import SamplingOptions
from inspector.loading.loading import load
from inspector.loop.decoding import decode
from inspector.records.generation import Sampling

ROOT = Path(__file__).parents[1]
ROWS = re.findall(r"^\| (\d+) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", (ROOT / "tests/questions.md").read_text(encoding="utf8"), re.M)
DEFAULTS = dict(temperature=0.8, top_p=0.9)  # of the lesson
NAMES = "names-qwen2", "names-expert"


@pytest.fixture(scope="module")
def screen() -> list[str]:
    """The sections of the main screen for a fixed run, 100 columns wide; each in one line, too, so that a wrapped sentence is found."""
    environment = dict(COLUMNS="100", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", PATH="", PYTHONIOENCODING="utf8")
    command = [sys.executable, str(ROOT / "inference.py"), "--lang", "en"]
    shown = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, encoding="utf8").stdout
    sections = re.split(r"\n(?=\d\. )", shown.replace("\u00a0", " "))
    return [text + "\n" + " ".join(text.split()) for text in sections]


class Side:
    """One of the two models, what is fed, and what torch and transformers make of the first step."""

    def __init__(self, name: str):
        self.m = load(name)
        self.ids = self.m.encode("Крас")
        self.logits_V = self.m.model(torch.tensor([self.ids])).logits[0, -1].detach()
        warm = TemperatureLogitsWarper(0.8)(None, self.logits_V[None])
        self.warm_V = warm.softmax(-1)[0]
        self.p_V = TopPLogitsWarper(0.9)(None, warm).softmax(-1)[0]
        self.q_V = torch.empty_like(self.p_V).exponential_(1, generator=torch.Generator().manual_seed(0))
        self.steps = list(decode(self.m, self.ids, Sampling(**DEFAULTS, seed=0)))

    def text(self, id: int) -> str:
        return self.m.texts.token(int(id)).text

    def by_generate(self, ids, **how) -> list[int]:
        """New ids by transformers."""
        ids_1T = torch.tensor([ids])
        torch.manual_seed(0)
        settings = dict(max_new_tokens=20, use_cache=False, pad_token_id=0, eos_token_id=list(self.m.stop_ids)) | how
        return self.m.model.generate(ids_1T, **settings)[0, len(ids) :].tolist()


@pytest.fixture(scope="module")
def sides() -> list[Side]:
    return [Side(name) for name in NAMES]


def chosen_at(side, i):
    """Step i, its token, its probabilities before and after the filters, from a forward pass of its own."""
    ids = side.ids + [step.token.id for step in side.steps[:i]]
    scores = side.m.model(torch.tensor([ids])).logits[:, -1].detach()
    warm = TemperatureLogitsWarper(0.8)(None, scores)
    kept = TopPLogitsWarper(0.9)(None, warm)
    return scores[0], warm[0], kept[0], side.steps[i].token.id


def about_step(side, i) -> list[str]:
    scores_V, warm_V, kept_V, id = chosen_at(side, i)
    kept, removed = int(kept_V.isfinite().sum()), int(kept_V.isinf().sum())
    rank = int((kept_V > kept_V[id]).sum()) + 1
    before, after = float(scores_V.softmax(-1)[id]), float(kept_V.softmax(-1)[id])
    mass = 100 * float(warm_V.softmax(-1)[kept_V.isinf()].sum())
    return [
        f"«{side.text(id)}» {scores_V[id]:.2f}: rank {rank} of {kept} kept; p {before:.2f} → {after:.2f}",
        f"top-p removed {removed} of 65 ({mass:.1f} % of the mass)",
    ]


def first(sides, screen):
    return [said for side in sides for said in about_step(side, 2)[:1]]


def runner_up(sides, screen):
    qwen, expert = sides
    ratios = (expert.p_V / expert.q_V).topk(2)
    best, second = (f"«{expert.text(id)}» {value:.4g}" for value, id in zip(ratios.values, ratios.indices, strict=True))
    ids = qwen.logits_V.topk(2).indices
    assert qwen.p_V[ids[1]] == 0 and qwen.steps[0].token.id == ids[0]
    return [f"the largest p/q wins: {best}, then {second}", f"«{qwen.text(ids[1])}» removed by top-p"]


def removed(sides, screen):
    return [said for side in sides for said in about_step(side, 0)[1:]]


def shapes(sides, screen):
    made = []
    for side in sides:
        ids = torch.tensor([side.ids])
        hidden = side.m.split.backbone(ids)
        logits = side.m.split.head(hidden[:, -1:])
        made.append(" → ".join(str(list(x.shape)) for x in (ids, hidden, logits)))
    return made


def heads(sides, screen):
    said = []
    for side in sides:
        model = side.m.model
        weight = model.lm_head.weight
        tied = weight is model.get_input_embeddings().weight
        said.append(f"Linear({weight.shape[1]}→{weight.shape[0]}{', tied' * tied})")
    assert [", tied" in one for one in said] == [True, False]
    return said


def parts(sides, screen):
    probe = sides[0].m.split.probe
    for side in sides:
        ids = torch.randint(65, (1, probe), generator=torch.Generator().manual_seed(1))
        assert torch.equal(side.m.split.head(side.m.split.backbone(ids)), side.m.model(ids).logits)
    return [f"head(backbone(ids)) = model(ids), bit for bit, on a probe of {probe} tokens"]


def equal(sides, screen):
    said = ["torch.multinomial: the largest p/q", "the same: equal seeds give equal q"]
    for side, name in zip(sides, NAMES, strict=True):
        new = side.by_generate(side.ids, do_sample=True, temperature=0.8, top_p=0.9, top_k=0)
        assert new == [step.token.id for step in side.steps]
        torch.manual_seed(0)
        assert torch.multinomial(side.p_V, 1).item() == int((side.p_V / side.q_V).argmax())
        said.append(f"bitwise · {name} · T=0.8, top-p 0.9, seed 0 · {len(new)} tokens, logits and scores equal generate()'s")
    return said


def cooler(sides, screen):
    said = []
    for side in sides:
        scores = TemperatureLogitsWarper(0.5)(None, side.logits_V[None])
        p, ids = scores.softmax(-1)[0].topk(3)
        listed = ", ".join(f"«{side.text(id)}» {value:.4f}" for value, id in zip(p, ids, strict=True))
        chosen = int((TopPLogitsWarper(0.9)(None, scores).softmax(-1)[0] / side.q_V).argmax())
        said.append(f"at temperature 0.5 with the same seed: {listed}; «{side.text(chosen)}» would be chosen")
    return said


def noise(sides, screen):
    rows = []
    for side in sides:
        id = side.steps[0].token.id
        rows.append(f" {side.q_V[id]:.3f} {side.p_V[id] / side.q_V[id]:.4f} ◀ chosen")
    return [*rows, "run names-qwen2 Крас --temperature 0.8 --top-p 0.9 --seed 0"]


def parameters(sides, screen):
    said = []
    for side in sides:
        named = dict(side.m.model.named_parameters())
        for words, pattern in (("attention", r"\battn|self_attn"), ("feed-forward", r"\.mlp\."), ("embedding", "embed_tokens")):
            number = sum(p.numel() for name, p in named.items() if re.search(pattern, name) and "norm" not in name)
            said.append(f"{words} {number / 1000:.1f}k")
    return said


def positions(sides, screen):
    qwen, expert = (side.m.model for side in sides)
    assert "rotary_emb" in {name.rpartition(".")[2] for name, _ in qwen.named_modules()}
    rows, columns = next(x for name, x in expert.named_buffers() if "position" in name).shape[-2:]
    return [f"RoPE turns q and k in attention sinusoids {rows}×{columns}, added to the embeddings"]


def no_cache(sides, screen):
    read = [len(sides[0].ids) + i for i in range(len(sides[0].steps))]
    for name in NAMES:
        assert re.search(rf"^{name} +(([\d.]+ m?s +){{3}}|(\? +){{3}})–$", screen[7], re.M), name  # ? on a machine that is busy
    said = f"the {len(read)} steps of names-qwen2 read {read[0]} + … + {read[-1]} = {sum(read)} tokens"
    return ["a step at N tokens 8 32 64 128", f"{said}; with one each is read once: {read[-1]}"]


def operations(sides, screen):
    for name in NAMES:
        [listed] = re.findall(rf"^time of the prompt's pass, {name}: (.*)$", screen[7], re.M)
        shares = {word: int(number) for word, number in re.findall(r"([\w-]+) (\d+) %", listed)}
        assert {"attention", "feed-forward", "rest"} <= set(shares) and abs(sum(shares.values()) - 100) <= 2, listed
        assert min(shares["attention"], shares["feed-forward"]) > 5
    return []


def ended(sides, screen):
    assert all(side.steps[-1].token.id in side.m.stop_ids for side in sides)
    assert screen[7].split("\n")[0].startswith("7.") and screen[7].count("the model ended it") == 4  # two, in lines and in one
    return []


def template(sides, screen):
    said = []
    for side, name in zip(sides, NAMES, strict=True):
        assert getattr(side.m.tokenizer, "chat_template", None) is None
        tokens = [f"«{side.text(id)}» {id}" for id in side.ids]
        said += [f"{name}: {len(side.ids)} tokens fed, no chat template", f"special: {tokens[0]} prompt: {' '.join(tokens[1:])}"]
    return said


def settings(sides, screen):
    sampling, origins = SamplingOptions().settings(sides[0].m, DEFAULTS)
    words = {"lesson": "lesson default", "default": "default"}
    values = dict(temperature=sampling.temperature, **{"top-k": sampling.top_k or "off"}, **{"top-p": sampling.top_p})
    said = " → ".join(f"{name} {value} ({words[origins[name.replace('-', '_')]]})" for name, value in values.items())
    return [f"penalty 1 (default) → {said}; seed 0 (default)"]


def sure(sides, screen):
    said = []
    for side in sides:
        entropies = [torch.distributions.Categorical(logits=chosen_at(side, i)[0]).entropy().item() for i in range(len(side.steps))]
        rows = re.findall(r"entropy (\d\.\d\d)", screen[5].rpartition("\n")[0])
        assert {f"{entropy:.2f}" for entropy in entropies} <= set(rows)
        assert f"least sure at step {1 + entropies.index(max(entropies))}" in screen[7]
    return said


def differences(sides, screen):
    qwen, expert = (side.m.model.config for side in sides)
    size, kv_heads = qwen.hidden_size // qwen.num_attention_heads, qwen.num_key_value_heads
    biases = []
    for side in sides:
        names = [name.split(".")[-2] for name, _ in side.m.model.named_parameters() if name.endswith("proj.bias") and ".0." in name]
        biases.append(", ".join(name.removesuffix("_proj") for name in names))
    norms = [type(side.m.model.get_submodule(name)).__name__ for side, name in zip(sides, ("model.norm", "backbone.norm"), strict=True)]
    activation = type(sides[1].m.model.get_submodule("backbone.layers.0.mlp.act_fn")).__name__
    width = f"Linear {qwen.hidden_size}→{qwen.vocab_size}"
    return [
        "embeddings as they are × √D",
        f"norms {norms[0].removeprefix('Qwen2')} before each part (pre-norm) {norms[1]} after each sum (post-norm)",
        f"attention heads: {qwen.num_attention_heads} × {size}, of keys and values: {kv_heads} heads: {expert.n_heads} × "
        f"{expert.d_model // expert.n_heads}",
        f"feed-forward SiLU(gate) × up, width {qwen.intermediate_size} {activation}, width {expert.d_ff}",
        f"biases {biases[0]} {biases[1]}",
        f"head {width}, tied to the embedding {width}, weights of its own",
    ]


def otherwise(sides, screen):
    said = []
    for side in sides:
        other = next(int(id) for id in side.logits_V.argsort(descending=True) if id != side.steps[0].token.id)
        new = [other, *side.by_generate([*side.ids, other], do_sample=False, max_new_tokens=19)]
        text = side.m.tokenizer.decode(new, skip_special_tokens=True).replace(" ", "")
        said.append(f"with «{side.text(other)}» first, then greedily: |{text}")
    return said


def tried(sides, screen):
    """That what is foretold is seen."""
    m, ids = sides[0].m, sides[0].ids
    flatter = list(decode(m, ids, Sampling(temperature=1.5, top_p=0.9, seed=1)))
    assert flatter[0].kept["top_p"] > sides[0].steps[0].kept["top_p"]
    assert [step.token for step in decode(m, ids, Sampling(**DEFAULTS, seed=0))] == [step.token for step in sides[0].steps]
    again = "the same seed, so the same q and the same tokens: "
    flat = "a flatter p: top-p keeps more tokens, and names get stranger: "
    return [
        rf"{again}\S+.* run names-qwen2 Крас --temperature 0\.8",
        rf"{flat}\S+.* run names-qwen2 Крас --temperature 1\.5 --top-p 0\.9 --seed 1",
    ]


ANSWERS = [first, runner_up, removed, shapes, heads, parts, equal, cooler, noise, parameters, positions]
ANSWERS += [no_cache, operations, ended, template, settings, sure, differences, otherwise, tried]


def test_the_table_asks_twenty_questions_and_the_main_screen_answers_at_least_fifteen():
    assert [int(row[0]) for row in ROWS] == list(range(1, 21)) == list(range(1, len(ANSWERS) + 1))
    assert sum(main != "–" for *_, main in ROWS) >= 15


@pytest.mark.parametrize(("number", "main"), [(int(row[0]), row[4]) for row in ROWS if row[4] != "–"])
def test_the_main_screen_answers_where_the_table_says(number, main, screen, sides):
    there = "\n".join(screen[int(section)] for section in re.findall(r"section (\d)", main))
    assert there
    for said in ANSWERS[number - 1](sides, screen):
        assert re.search(said, there) if ANSWERS[number - 1] is tried else said in there, said
