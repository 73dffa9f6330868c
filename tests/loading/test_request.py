"""What is asked for beside a model's name, and what of it is refused before anything is looked up."""

import re

import pytest
import torch
from transformers import Qwen2Config

from inspector.loading.finding import LoadError
from inspector.loading.request import Request

SPREAD = (dict(device_map="auto"), dict(max_memory={"cpu": 10**9}))


def refused(name: str, asked: Request) -> str:
    with pytest.raises(LoadError) as caught:
        asked.check(name)
    return str(caught.value)


@pytest.mark.parametrize("spread", SPREAD, ids=str)
def test_a_spread_is_refused_for_what_has_a_place_of_its_own(spread, tmp_path):
    (tmp_path / "m.onnx").touch()
    assert "stays where your function puts it: leave --device-map and --max-memory out" in refused("own.py:make", Request(**spread))
    assert "on the CPU in float32: leave --device, --dtype and --device-map out" in refused(str(tmp_path / "m.onnx"), Request(**spread))
    assert "contradict each other: leave one of them out" in refused("names-qwen2", Request(quantise="int8", **spread))


def test_what_a_function_or_an_onnx_file_does_not_know_is_refused(tmp_path):
    (tmp_path / "m.onnx").touch()
    assert refused("own.py:make", Request(native=True)).endswith("a model of your own has no native form: leave --native out")
    assert refused("own.py:make", Request(fast=True)).endswith("fast products are for native models: leave --fast out")
    for asked in (Request(native=True), Request(fast=True), Request(quantise="int8"), Request(attn_implementation="sdpa")):
        assert "onnxruntime computes it as it was exported" in refused(str(tmp_path / "m.onnx"), asked)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (Request(device="cpu", device_map="auto"), "device 'cpu' and device map 'auto' contradict each other"),
        (Request(device="cpu", max_memory={"cpu": 1}), "device 'cpu' and device map 'auto' contradict each other"),
        (Request(device="none", dtype="none"), "device 'none' is not on this machine"),
        (Request(dtype="none"), "dtype 'none': choose one of auto, float32"),
    ],
)
def test_a_place_or_a_dtype_that_cannot_be_is_refused_before_the_name_is_looked_up(asked, told):
    assert re.match(re.escape(told), refused("no such model", asked))


def test_memory_alone_implies_a_device_map_and_its_places_the_dtype():
    assert Request().spread is None and Request(max_memory={}).spread == "auto"
    for asked in (Request(max_memory={"cpu": 1}), Request(device_map={"": "cpu", "lm_head": "disk"}), Request(device="cpu")):
        assert asked.as_dtype() == asked.picked_dtype() == torch.float32 and asked.place() == torch.device("cpu")
    assert Request(dtype="bfloat16").picked_dtype() is None and Request(dtype="bfloat16").as_dtype() == torch.bfloat16


def test_what_does_not_go_with_the_model_that_was_found_is_refused():
    for asked, told in (
        (Request(native=True, device_map="auto"), "the native form lies in one place: leave --device-map and --max-memory out"),
        (Request(fast=True), "fast products are for native models: add --native, or leave --fast out"),
    ):
        with pytest.raises(LoadError, match=f"^q: {told}$"):
            asked.check_model("q", Qwen2Config())
    Request(native=True, fast=True).check_model("q", Qwen2Config())
