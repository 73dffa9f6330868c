"""How far a model reads, which ids it takes and how many heads it has: under people's names, and measured where nothing says it."""

import argparse
import math
from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from inspector.parts import limits
from inspector.parts.limits import context_length, head_number, measured, vocabulary

V, D = 30, 8


class Plain(nn.Module):
    """No positions at all."""

    def __init__(self, **attributes):
        super().__init__()
        self.embed, self.head = nn.Embedding(V, D), nn.Linear(D, V)
        for name, value in attributes.items():
            setattr(self, name, value)

    def places(self, T: int):
        return 0

    def forward(self, ids):
        return self.head(self.embed(ids) + self.places(ids.shape[1]))


class Learned(Plain):
    """The table stands before the tokens' embedding, as a search for the first embedding would not expect."""

    def __init__(self, rows: int, **attributes):
        nn.Module.__init__(self)
        self.wpe = nn.Embedding(rows, D)
        self.embed, self.head = nn.Embedding(V, D), nn.Linear(D, V)
        for name, value in attributes.items():
            setattr(self, name, value)

    def places(self, T):
        return self.wpe(torch.arange(T))


class Sliced(Learned):  # a Parameter [1, N, D], cut to the length
    def __init__(self, rows, **attributes):
        super().__init__(rows, **attributes)
        self.pe = nn.Parameter(torch.randn(1, rows, D))

    def places(self, T):
        return self.pe[:, :T]


class SlicedWeight(Learned):
    def places(self, T):
        return self.wpe.weight[:T]


class Narrowed(Sliced):
    def places(self, T):
        return self.pe.narrow(1, 0, T)


class Gathered(Sliced):
    def places(self, T):
        return self.pe[0][torch.arange(T)]


class Offset(Learned):  # OPT's two rows before the first place
    def places(self, T):
        return self.wpe(torch.arange(2, T + 2))


class Rows(Learned):  # positions for every row of the batch
    def places(self, T):
        return self.wpe(torch.arange(T)[None].expand(1, T))


class PlainTensor(Learned):  # no buffer, as some ports keep their angles
    def __init__(self, rows, **attributes):
        super().__init__(rows, **attributes)
        self.freqs_cis = torch.polar(torch.ones(rows, D), torch.randn(rows, D))

    def places(self, T):
        return self.freqs_cis[0:T].real


class SquareMask(Plain):
    def __init__(self, rows, **attributes):
        super().__init__(**attributes)
        self.register_buffer("mask", torch.tril(torch.ones(1, 1, rows, rows)))

    def forward(self, ids):
        x, T = self.embed(ids), ids.shape[1]
        weights = (x @ x.mT).masked_fill(self.mask[0, 0, :T, :T] == 0, -math.inf).softmax(-1)
        return self.head(weights @ x)


TABLES = (Learned, Sliced, SlicedWeight, Narrowed, Gathered, Rows, PlainTensor, SquareMask)


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("rows", (1, 2, 3, 4, 8, 50))
def test_a_table_of_positions_tells_the_context(kind, rows):
    assert context_length(kind(rows)) == rows
    assert vocabulary(kind(rows)) == V  # and not the table's rows


def test_rows_before_the_first_place_are_none_of_the_context():
    assert context_length(Offset(18)) == 16


class Grows(Plain):
    """A cache of angles that is made anew when more are asked for."""

    cache = None

    def places(self, T):
        if self.cache is None or len(self.cache) < T:
            self.cache = torch.randn(T, D)
        return self.cache[:T]


class Sines(Plain):
    def places(self, T):
        return torch.sin(torch.arange(T)[:, None] * torch.arange(D))


class Relative(Plain):  # a table of distances, and a constant slice of another
    def __init__(self):
        super().__init__()
        self.distances, self.other = nn.Embedding(5, D), nn.Parameter(torch.randn(7, D))

    def places(self, T):
        distance_TT = (torch.arange(T)[:, None] - torch.arange(T)).clamp(-2, 2) + 2
        return self.distances(distance_TT).sum(1) + self.other[:3].sum(0)


class Types(Plain):
    def __init__(self):
        super().__init__()
        self.types = nn.Embedding(2, D)

    def forward(self, ids):
        return self.head(self.embed(ids) + self.types(torch.zeros_like(ids)))


class Notes(Plain):  # keeps the length of what it has read last
    def forward(self, ids):
        self.seq_len = ids.shape[1]
        return super().forward(ids)


class Local(Plain):  # an attention that looks a few tokens back
    def __init__(self):
        super().__init__(attention=Plain(window_size=4))


@pytest.mark.parametrize("kind", (Plain, Grows, Sines, Relative, Types, Notes, Local))
def test_what_no_table_limits_has_no_context(kind):
    model = kind()
    assert context_length(model) is context_length(model) is None


@dataclass
class Settings:
    block_size: int = 24


NAMES = (
    *("block_size", "context_length", "ctx_len", "max_seq_len", "max_seq_length", "max_length", "max_len", "seq_len", "n_ctx"),
    *("n_positions", "max_position_embeddings", "context_size", "window"),
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("holder", ("", "config", "cfg", "args", "params", "hparams", "conf"))
def test_the_names_that_people_use(name, holder):
    for kind in (dict, argparse.Namespace, SimpleNamespace, OrderedDict):
        model = Plain(**({holder: kind(**{name: 16})} if holder else {name: 16}))
        assert context_length(model) == 16


def test_what_is_stated_in_other_places():
    assert context_length(Plain(config=Settings())) == 24
    assert context_length(Plain(config=SimpleNamespace(model=Settings()))) == 24
    assert context_length(Plain(config=dict(model=dict(n_ctx=12)))) == 12
    assert context_length(Plain(transformer=Plain(config=dict(n_ctx=12)))) == 12
    inner = nn.ModuleList([Plain(block_size=n) for n in (8, 8)])
    assert context_length(Plain(blocks=inner)) == 8
    inner[0].block_size = 9  # they do not agree
    assert context_length(Plain(blocks=inner)) is None
    wrapped = Plain(llm=LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=40)))
    assert context_length(wrapped) == 40


class Raises:
    @property
    def n_ctx(self):
        raise RuntimeError("not built yet")


@pytest.mark.parametrize("value", (0, -1, True, "64", 16.5, None, 10**30, [16], nn.Identity(), torch.zeros(3), float("nan")))
def test_a_value_that_is_no_sensible_number_loses(value):
    assert context_length(Plain(block_size=value)) is None
    assert context_length(Learned(9, block_size=value)) == 9
    assert context_length(Plain(config=Raises(), n_positions=value, args=dict(n_ctx=11))) == 11


def test_the_smaller_of_name_and_table():
    assert context_length(Learned(9, block_size=64)) == 9  # what reads beyond it breaks off
    assert context_length(Learned(64, block_size=9)) == 9  # what the model says of itself, which its forward may assert
    assert context_length(Learned(64, window_size=9)) == 64  # a window is another thing where a table tells how far it reads
    assert context_length(Learned(64, seq_len=9)) == 64  # the rows of a training


SIZES = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=V)


def test_models_of_transformers_say_it_themselves(monkeypatch):
    monkeypatch.setattr(limits, "measured", lambda model: pytest.fail("no pass is needed"))
    gpt2 = GPT2LMHeadModel(GPT2Config(n_positions=20, n_embd=8, n_layer=1, n_head=2, vocab_size=V))
    opt = OPTForCausalLM(OPTConfig(**SIZES, max_position_embeddings=20, word_embed_proj_dim=8, ffn_dim=8))
    for model in (gpt2, opt):
        assert context_length(model) == 20
        assert vocabulary(model) == V
        assert head_number(model) == 2
    gpt2.transformer.wte = nn.Embedding(V - 5, 8)  # the rows count, not the configuration
    assert vocabulary(gpt2) == V - 5


def test_the_tables_of_transformers_are_those_of_their_configurations():
    gpt2 = GPT2LMHeadModel(GPT2Config(n_positions=20, n_embd=8, n_layer=1, n_head=2, vocab_size=V))
    opt = OPTForCausalLM(OPTConfig(**SIZES, max_position_embeddings=20, word_embed_proj_dim=8, ffn_dim=8))
    assert measured(gpt2).positions == measured(opt).positions == 20


class OneHot(Plain):
    def forward(self, ids):
        return self.head(nn.functional.one_hot(ids, V).float() @ self.embed.weight)


class OfParameter(Plain):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(V - 3, D))

    def forward(self, ids):
        return self.head(self.table[ids])


def test_the_vocabulary_is_what_the_ids_are_looked_up_in():
    assert vocabulary(OfParameter()) == V - 3
    padded = Plain()
    padded.head = nn.Linear(D, V + 2)  # more logits than rows
    assert vocabulary(padded) == V
    assert vocabulary(OneHot(n_vocab=V - 1)) == V - 1  # no table: what is stated
    assert vocabulary(OneHot()) == V  # else the width of the logits


@pytest.mark.parametrize("name", ("num_attention_heads", "n_head", "n_heads", "num_heads", "nhead", "heads"))
def test_heads_of_the_attention_or_the_model(name):
    assert head_number(Plain(config={name: 4})) == 4
    assert head_number(Plain(**{name: 4}), nn.Identity()) == 4
    assert head_number(Plain(config={name: 4}), Plain(**{name: 2})) == 2  # the attention knows better
    assert head_number(Plain(), nn.MultiheadAttention(D, 2)) == 2
    assert head_number(Plain()) is None


def test_a_measure_leaves_the_model_as_it_was():
    model = Learned(9).train()
    model.head.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    context_length(model)
    assert model.training and not model.head.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_measure_is_made_once_for_tables_of_one_size():
    model = Learned(9)
    calls = []
    model.register_forward_hook(lambda *given: calls.append(1))
    assert context_length(model) == 9 and vocabulary(model) == V
    first = len(calls)
    assert first <= len(limits.LENGTHS) and context_length(model) == 9 and len(calls) == first
    model.wpe = nn.Embedding(5, D)
    assert context_length(model) == 5


def test_without_numbers_names_alone_tell():
    assert context_length(Learned(9).to("meta")) is None
    assert context_length(Learned(9, block_size=7).to("meta")) == 7


def test_rows_that_are_not_there_break_off_before_an_accelerator_does():
    model = Learned(9)
    lookups = limits.Lookups(model, torch.tensor([[1, 0]]))
    with pytest.raises(IndexError):
        lookups.looked_up(model.wpe.weight, 0, torch.tensor([8, 9]))
    assert not lookups.tables
