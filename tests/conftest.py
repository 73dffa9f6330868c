"""What several tests share: tiny random models with a tokenizer, and the full-size stand-in."""

import errno
import gc
import os
import re
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from inspector.loading.loaded import Loaded, attach
from inspector.models import VARIANTS, ExpertModel, to_transformers
from inspector.records.generation import Origin
from inspector.training.tokenizer import character_tokenizer

torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it gives

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


def tiny_model(kind: str, vocab_size: int, context: int = 48):
    """A tiny random model of a kind, with weights large enough that its distributions are not flat."""
    torch.manual_seed(0)
    if kind == "expert":
        sizes = dict(d_model=16, n_layers=2, n_heads=2, d_ff=32, max_seq_len=context)
        return to_transformers(ExpertModel(vocab_size=vocab_size, **sizes)).eval()
    if kind in VARIANTS:
        depths = dict(mtp_depth=2) if kind.endswith("mtp") else {}
        gate = dict(gate="balanced", n_shared_experts=1) if kind == "gpt-moe-mla-mtp" else {}
        model = VARIANTS[kind](vocab_size, d_model=32, n_layers=3, n_heads=4, max_seq_len=context, **depths, **gate)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return to_transformers(model).eval()
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.5,
    )
    return Qwen2ForCausalLM(config).eval()


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What torch, transformers and the tests themselves are made of stays to the end: the garbage collector passes it over."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_addoption(parser):
    parser.addoption("--rewrite-golden", action="store_true", help="write what tests/golden should hold instead of comparing")


@pytest.fixture
def interruptible():
    """Ctrl-C acts in this test and in the processes that it starts, also where the tests run in the background, which ignores it.

    An ignored signal would stay so in every process that is started; one with a handler is as usual there.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextmanager
def faulty(k: int, fail: Callable[[], None], after: bool = False, on: bool = False):
    """The ``k``-th call to the system that changes or syncs files, from 0, fails, or that comes after it; ``on``: all later ones too."""
    names = ("rename", "replace", "fsync", "unlink", "rmdir", "mkdir")
    own, seen = {name: getattr(os, name) for name in names}, []

    def wrapped(name: str):
        def call(*arguments, **options):
            seen.append(name)
            now = len(seen) - 1 == k or (on and len(seen) > k)
            if now and not after:
                fail()
            try:
                return own[name](*arguments, **options)
            finally:
                if now and after:
                    fail()

        return call

    for name in names:
        setattr(os, name, wrapped(name))
    try:
        yield seen
    finally:
        for name, call in own.items():
            setattr(os, name, call)


@pytest.fixture(scope="session")
def forked():
    """A function: what is done in a process of its own → its exit code; 1 where it raised anything, which is told on standard error."""

    def run(action: Callable[[], object]) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                action()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                with suppress(BaseException):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    return run


@pytest.fixture
def break_at(forked):
    """A function: k, a way to fail, what is done → whether its k-th call to the system that changes or syncs files was there to fail.

    Ways: a "full" disk for this call, "full on" for all from there, "interrupted" before or "interrupted after" it, and likewise "killed".
    """

    def broken(k: int, way: str, action: Callable[[], object]) -> bool:
        after, on = way.endswith(" after"), way.endswith(" on")
        if way.startswith("killed"):

            def dies() -> None:
                with faulty(k, lambda: os._exit(9), after):
                    action()

            code = forked(dies)
            assert code in (0, 9)
            return code == 9

        def fail() -> None:
            raise KeyboardInterrupt if way.startswith("interrupted") else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with faulty(k, fail, after, on) as seen:
            try:
                action()
            except (OSError, KeyboardInterrupt):
                assert len(seen) > k
        return len(seen) > k

    return broken


@pytest.fixture
def said_of_a_full_disk():
    """A function: a number of bytes that a file may have, what is done in another process → what it says of the disk; "" if nothing."""

    def said(most: int, action: Callable[[], object]) -> str:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
                action()
            except OSError as error:
                os.write(write, str(error).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as file:
            text = file.read()
        os.waitpid(pid, 0)
        return text

    return said


@pytest.fixture(scope="session")
def tiny():
    """A function: kind ("expert", a variant of it, or "qwen2") → a tiny ``Loaded`` over the Cyrillic letters."""

    def build(kind: str, context: int = 48) -> Loaded:
        tokenizer = character_tokenizer(["абвгдежзиклмнопрст", "АБВ "])
        return attach(tiny_model(kind, len(tokenizer), context), tokenizer, Origin("tiny", "folder"))

    return build


@pytest.fixture
def standin(standin_folder):
    """The folder of the full-size stand-in, with all cores at work."""
    torch.set_num_threads(os.cpu_count() or 1)
    yield standin_folder
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def standin_folder(tmp_path_factory):
    """A checkpoint with the exact architecture of Qwen2.5-0.5B-Instruct and random weights (1 GB, made once)."""
    folder = os.environ.get("INSPECTOR_STANDIN")
    if folder:
        return Path(folder)
    script = SHARED / "make_random_checkpoint.py"
    if not script.is_file():
        pytest.skip("the full-size stand-in needs ../shared/make_random_checkpoint.py, which is not here")
    folder = tmp_path_factory.mktemp("standin") / "qwen"
    subprocess.run([sys.executable, script, folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium, selenium's driver of it, for the tests of pages; what else they need is in tests/browser.py."""
    from tests.browser import start

    driver = start()
    yield driver
    driver.quit()


@pytest.fixture
def contrasts():
    """A function: a screen saved as .svg or .html → colour of letters → its contrast to the background, as WCAG 2.1 defines it."""

    def measured(text: str) -> dict[str, float]:
        def luminance(colour: str) -> float:
            parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
            return 0.2126 * red + 0.7152 * green + 0.0722 * blue

        if "<svg" in text:
            [background] = re.findall(r'<rect fill="(#[0-9a-f]{6})" stroke', text)
            letters = set(re.findall(r"-r\d+ \{ fill: (#[0-9a-f]{6})", text)) | set(re.findall(r"-title \{\s*fill: (#[0-9a-f]{6})", text))
        else:
            [(colour, background)] = re.findall(r"body \{\s*color: (#[0-9a-f]{6});\s*background-color: (#[0-9a-f]{6})", text)
            letters = {colour, *re.findall(r"\.r\d+ \{color: (#[0-9a-f]{6})", text)}
            assert "background-color" not in text.split("</style>")[0].replace(f"background-color: {background}", "")
        paper = luminance(background)
        lights = {colour: luminance(colour) for colour in letters}
        return {colour: (max(light, paper) + 0.05) / (min(light, paper) + 0.05) for colour, light in lights.items()}

    return measured
