"""Damaged and hostile checkpoints: folders made of one embedded model, each with the exit codes that are right for it.

The codes are those of ``inspector run FOLDER Крас --greedy --max-new-tokens 3``. What leaves the folder, or holds code, is refused
and neither read nor run: outside of the folders lie ``OUTSIDE`` weights that are whole, and code that would write ``TOUCHED``.
"""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

MODEL = Path(__file__).parents[2] / "inspector" / "assets" / "names-qwen2"
OUTSIDE = "outside.safetensors"  # beside the folders
TOUCHED = "touched"  # beside the folders, written by code that must not run
GOOD, REFUSED, EITHER = (0,), (2,), (0, 2)
# What stands in the place of a value: JSON as it is in the file, for Python's writer does not write all of it.
ODD = {
    "null": "null",
    "list": "[[2]]",
    "dict": '{"a": [1]}',
    "negative": "-1",
    "fraction": "2.5",
    "word": '"hot"',
    "true": "true",
    "infinite": "1e400",
    "nan": "NaN",
    "escapes": '"\\u001b[31m[bold]\\n"',
    "deep": "[" * 50_000 + "]" * 50_000,
    "long": '"' + "x" * 1_000_000 + '"',
}


def folders(where: Path) -> Iterator[tuple[str, Path, tuple[int, ...]]]:
    """Makes the folders one by one under ``where``, which is made too: the name of each, its path, the exit codes that are right."""
    where.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(MODEL / "model.safetensors", where / OUTSIDE)
    for number, (name, change, codes) in enumerate(cases()):
        folder = where / f"{number:03}"
        folder.mkdir()
        for file in MODEL.iterdir():
            if file.suffix == ".safetensors":
                (folder / file.name).symlink_to(file)  # as in the hub's cache: a link out of the folder that its user made
            else:
                shutil.copyfile(file, folder / file.name)
        change(folder)
        yield name, folder, codes


Change = Callable[[Path], None]
Case = tuple[str, Change, tuple[int, ...]]


def cases() -> Iterator[Case]:
    """What is done to each folder."""
    yield "as it is", lambda folder: None, GOOD
    yield from odd_values()
    yield from torn_files()
    yield from lying_weights()
    yield from ways_out()
    yield from code()


def put(file: str, key: str, text: str) -> Change:
    """Writes JSON text as the value of a key; in place of the value that is there, or as a new one."""

    def change(folder: Path) -> None:
        path = folder / file
        held = json.loads(path.read_text()) if path.exists() else {}
        *parents, last = key.split(".")
        inner = held
        for parent in parents:
            inner = inner[parent]
        inner[last] = "-HERE-"
        path.write_text(json.dumps(held).replace('"-HERE-"', text))

    return change


# What of the values makes another model, or none, and what is a mistake only where it is used.
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size")
OTHERS = ("max_position_embeddings", "rms_norm_eps", "hidden_act", "layer_types", "rope_parameters", "tie_word_embeddings", "dtype")


def odd_values() -> Iterator[Case]:
    """One value of a JSON file is of another type, or cannot be."""
    for key in SIZES:
        for kind, text in ODD.items():
            yield f"config.json {key} {kind}", put("config.json", key, text), EITHER if kind == "null" else REFUSED
    for key in OTHERS:
        for kind in ("list", "word", "negative", "deep"):
            yield f"config.json {key} {kind}", put("config.json", key, ODD[kind]), EITHER
    for key in ("model_type", "architectures", "auto_map", "quantization_config", "is_encoder_decoder", "head_dim", "torch_dtype"):
        for kind in ("list", "dict", "word", "true", "escapes"):
            yield f"config.json {key} {kind}", put("config.json", key, ODD[kind]), EITHER
    for kind, text in ODD.items():
        # An id that the model does not have is told, and ends nothing; so is a file that nobody can read, and config.json acts.
        id = "generation_config.json eos_token_id"
        yield (
            f"{id} {kind}",
            put("generation_config.json", "eos_token_id", text),
            GOOD if kind in ("null", "negative", "deep") else REFUSED,
        )
    yield f"{id} as text", put("generation_config.json", "eos_token_id", '"2"'), GOOD
    for key in ("temperature", "top_k", "bad_words_ids", "transformers_version", "max_length", "do_sample", "stop_strings"):
        for kind in ("list", "dict", "word", "fraction"):
            yield f"generation_config.json {key} {kind}", put("generation_config.json", key, ODD[kind]), GOOD  # not used
    for key in ("tokenizer_class", "bos_token", "eos_token", "model_max_length", "added_tokens_decoder", "extra_special_tokens"):
        for kind in ("list", "dict", "negative", "word", "deep"):
            yield f"tokenizer_config.json {key} {kind}", put("tokenizer_config.json", key, ODD[kind]), EITHER
    for key in ("model", "model.type", "model.vocab", "added_tokens", "pre_tokenizer", "decoder"):
        for kind in ("list", "negative", "word"):
            yield f"tokenizer.json {key} {kind}", put("tokenizer.json", key, ODD[kind]), EITHER if key == "decoder" else REFUSED


def torn_files() -> Iterator[Case]:
    """A file is cut short, empty, no text, no file."""

    def write(file: str, data: bytes) -> Change:
        return lambda folder: (folder / file).unlink(missing_ok=True) or (folder / file).write_bytes(data)

    def instead(file: str, make: Change) -> Change:
        return lambda folder: (folder / file).unlink(missing_ok=True) or make(folder / file)

    for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        data = (MODEL / file).read_bytes()
        codes = GOOD if file == "generation_config.json" else REFUSED  # without it config.json acts, and that is told
        yield f"{file} cut", write(file, data[: len(data) // 2]), codes
        yield f"{file} empty", write(file, b""), codes
        yield f"{file} not UTF-8", write(file, data.replace(b'"', b'"\xff', 1)), codes
        yield f"{file} UTF-16", write(file, data.decode().encode("utf-16")), codes
        yield f"{file} with a BOM", write(file, b"\xef\xbb\xbf" + data), codes
        for kind in ("null", "list", "word", "negative", "deep"):
            yield f"{file} is {kind}", write(file, ODD[kind].encode()), codes
        yield f"{file} a folder", instead(file, Path.mkdir), REFUSED
        yield f"{file} a FIFO", instead(file, os.mkfifo), REFUSED
        yield f"{file} a dangling link", instead(file, lambda path: path.symlink_to("nowhere")), REFUSED
        yield f"{file} /dev/zero", instead(file, lambda path: path.symlink_to("/dev/zero")), REFUSED
        yield f"{file} unreadable", lambda folder, file=file: (folder / file).chmod(0), GOOD if os.geteuid() == 0 else REFUSED
    for file in ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "model.safetensors.index.json"):
        yield f"{file} a FIFO", instead(file, os.mkfifo), REFUSED
        yield f"{file} a folder", instead(file, Path.mkdir), REFUSED
    yield "config.json gone", lambda folder: (folder / "config.json").unlink(), REFUSED
    yield "weights gone", lambda folder: (folder / "model.safetensors").unlink(), REFUSED
    yield "weights a FIFO", instead("model.safetensors", os.mkfifo), REFUSED
    yield "weights a folder", instead("model.safetensors", Path.mkdir), REFUSED
    yield "weights empty", write("model.safetensors", b""), REFUSED


def safetensors(header: dict | bytes, data: bytes = b"", length: int | None = None) -> Change:
    """Weights with a header of one's own."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.unlink()
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)

    return change


def own_weights() -> tuple[dict, bytes]:
    """The header of the model's weights, and what follows it."""
    data = (MODEL / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def lying_weights() -> Iterator[Case]:
    """Headers that say what is not so, and numbers that are none."""
    header, data = own_weights()
    names = [name for name in header if name != "__metadata__"]
    first, second = names[:2]

    def said(**change) -> dict:
        return header | {first: header[first] | change}

    begin, end = header[first]["data_offsets"]
    yield "weights cut", safetensors(header, data[:-1000]), REFUSED
    yield "weights with more behind them", safetensors(header, data + b"0" * 1000), REFUSED
    yield "weights' header is longer than the file", safetensors(header, data, 2**63 - 1), REFUSED
    yield "weights' header is 200 MB", safetensors(header, data, 200_000_000), REFUSED
    yield "weights' header is no JSON", safetensors(b"{" * 100), REFUSED
    yield "weights' header is nested", safetensors(b"[" * 100_000), REFUSED
    yield "weights without a tensor", safetensors({}), REFUSED
    yield "offsets beyond the end", safetensors(said(data_offsets=[begin, end + 10**12]), data), REFUSED
    yield (
        "offsets that overlap",
        safetensors(header | {first: header[first] | dict(data_offsets=header[second]["data_offsets"])}, data),
        REFUSED,
    )
    yield "offsets below 0", safetensors(said(data_offsets=[-4, end]), data), REFUSED
    yield "a type that there is not", safetensors(said(dtype="F33"), data), REFUSED
    yield "whole numbers for weights", safetensors(said(dtype="I32"), data), EITHER
    yield "a shape of another size", safetensors(said(shape=[3, 5, 7]), data), REFUSED
    yield "a shape turned", safetensors(said(shape=[1, *header[first]["shape"]]), data), REFUSED
    yield (
        "one tensor missing",
        safetensors({name: header[name] for name in names[:-1]}, data[: header[names[-1]]["data_offsets"][0]]),
        REFUSED,
    )
    yield "all of them NaN", safetensors(header, b"\xff" * len(data)), (1, 2)
    yield "one NaN", safetensors(header, data[:begin] + b"\x00\x00\xc0\x7f" + data[begin + 4 :]), (0, 1, 2)
    yield "infinite", safetensors(header, b"\x00\x00\x80\x7f" * (len(data) // 4)), (1, 2)
    for name, codes in {  # weights beyond what config.json says
        "model.layers.9.self_attn.o_proj.weight": GOOD,
        "model.layers.0.self_attn.o_proj.bias": GOOD,
        "model.layers.0.self_attn.rotary_emb.inv_freq": GOOD,
        "v_head.summary.weight": GOOD,
    }.items():
        more = {**header, name: dict(dtype="F32", shape=[0], data_offsets=[len(data)] * 2)}
        yield f"one more tensor, {name}", safetensors(more, data), codes
    yield (
        "a name with escapes",
        safetensors({**header, "\x1b[31m[bold]\n": dict(dtype="F32", shape=[0], data_offsets=[len(data)] * 2)}, data),
        GOOD,
    )


def indexed(weight_map: object, text: str | None = None) -> Change:
    """An index in place of the one file of weights, which lies in the folder as shard.safetensors."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "shard.safetensors")
        index = dict(metadata={"total_size": 1}, weight_map=weight_map)
        (folder / "model.safetensors.index.json").write_text(json.dumps(index) if text is None else text)

    return change


def ways_out() -> Iterator[Case]:
    """Names of files that lead out of the folder, or nowhere."""
    names = [name for name in own_weights()[0] if name != "__metadata__"]

    def shard(file: object) -> Change:
        return indexed(dict.fromkeys(names, file))

    yield "an index", shard("shard.safetensors"), GOOD
    yield "an index to ./", shard("./shard.safetensors"), EITHER
    for file in (f"../{OUTSIDE}", f"./../{OUTSIDE}", f"sub/../../{OUTSIDE}", str(MODEL / "model.safetensors"), f"..\\{OUTSIDE}"):
        yield f"an index to {file}", shard(file), REFUSED
    for file in (
        "",
        ".",
        "..",
        "/",
        "config.json",
        "~/shard.safetensors",
        "gone.safetensors",
        "a\0b",
        "x" * 5000,
        "\x1b[31m[bold]\n",
        "shard",
    ):
        yield f"an index to {file[:20]!r}", shard(file), REFUSED
    for kind, file in dict(number=5, null=None, list=["shard.safetensors"], true=True, dict={}).items():
        yield f"an index to a {kind}", shard(file), REFUSED
    for kind, found in dict(list=["shard.safetensors"], null=None, text="shard.safetensors", number=5, empty={}).items():
        yield f"a weight map that is {kind}", indexed(found), REFUSED
    for kind, text in dict(empty="", cut='{"weight_map": {', list="[]", nothing="{}", deep=ODD["deep"]).items():
        yield f"an index that is {kind}", indexed({}, text), REFUSED
    yield "one shard outside", indexed(dict.fromkeys(names, "shard.safetensors") | {names[0]: f"../{OUTSIDE}"}), REFUSED

    def named(folder: Path) -> None:
        shard(f"../{OUTSIDE}")(folder)
        (folder / "model.safetensors.index.json").rename(folder / "own.safetensors.index.json")
        put("config.json", "transformers_weights", '"own.safetensors.index.json"')(folder)

    def of_pickles(folder: Path) -> None:
        shard("../pickled.bin")(folder)
        (folder / "model.safetensors.index.json").rename(folder / "pytorch_model.bin.index.json")

    yield "an index of another name", named, REFUSED
    yield "an index of pickles", of_pickles, REFUSED
    for file in (f"../{OUTSIDE}", str(MODEL / "model.safetensors"), "gone.safetensors", "config.json"):
        yield f"transformers_weights {file}", put("config.json", "transformers_weights", json.dumps(file)), REFUSED
    for kind in ("list", "dict", "negative", "true"):
        yield f"transformers_weights {kind}", put("config.json", "transformers_weights", ODD[kind]), REFUSED
    for file in ("config.4.0.0/../../000/config.json", "config./../../000/config.json"):
        yield f"configuration_files {file}", put("config.json", "configuration_files", json.dumps([file])), EITHER
    for kind in ("word", "dict", "negative", "list"):
        yield f"configuration_files {kind}", put("config.json", "configuration_files", ODD[kind]), EITHER
        yield f"fast_tokenizer_files {kind}", put("tokenizer_config.json", "fast_tokenizer_files", ODD[kind]), EITHER
    other = "../000/tokenizer.4.0.0.json"
    yield f"fast_tokenizer_files {other}", put("tokenizer_config.json", "fast_tokenizer_files", json.dumps([other])), REFUSED
    for key in ("vocab_file", "tokenizer_file", "merges_file", "vocab", "merges", "gguf_file"):

        def elsewhere(folder: Path, key: str = key) -> None:
            (folder / "tokenizer.json").unlink()
            put("tokenizer_config.json", key, json.dumps(str(MODEL / "tokenizer.json")))(folder)

        yield f"tokenizer_config.json {key} outside", elsewhere, REFUSED
    for key in ("_name_or_path", "base_model_name_or_path", "name_or_path"):
        yield f"config.json {key} outside", put("config.json", key, json.dumps(str(MODEL))), GOOD
    adapter = json.dumps(str(MODEL))
    yield "adapter_config.json", put("adapter_config.json", "base_model_name_or_path", adapter), EITHER


class Opens:
    """What a pickle of it does when it is read without care: a file is written."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def code() -> Iterator[Case]:
    """Code that must not run."""

    def with_code(*places: tuple[str, str, str]) -> Change:
        def change(folder: Path) -> None:
            text = f"open({str(folder.parent / TOUCHED)!r}, 'w').write('ran')\n"
            for file in ("evil.py", "custom_generate/generate.py", "conftest.py", "__init__.py"):
                (folder / file).parent.mkdir(exist_ok=True)
                (folder / file).write_text(text)
            for place in places:
                put(*place)(folder)

        return change

    config, tokenizer = '{"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}', '{"AutoTokenizer": ["evil.T", "evil.T"]}'
    yield "auto_map of a known type", with_code(("config.json", "auto_map", config)), EITHER
    yield "auto_map of its own type", with_code(("config.json", "auto_map", config), ("config.json", "model_type", '"evil"')), REFUSED
    yield "auto_map elsewhere", with_code(("config.json", "auto_map", config.replace("evil.", "../evil--evil."))), EITHER
    yield "auto_map of the tokenizer", with_code(("tokenizer_config.json", "auto_map", tokenizer)), EITHER
    own = ("tokenizer_config.json", "tokenizer_class", '"T"')
    yield "a tokenizer of its own", with_code(("tokenizer_config.json", "auto_map", tokenizer), own), EITHER
    yield "custom_generate", with_code(("generation_config.json", "custom_generate", '"evil"')), GOOD
    for name in ("gptq", "bitsandbytes", "evil", "compressed-tensors"):
        text = json.dumps({"quant_method": name})
        yield f"quantization by {name}", put("config.json", "quantization_config", text), REFUSED
    yield "attention by evil/kernel", put("config.json", "_attn_implementation", '"evil/kernel"'), EITHER

    def pickled(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Opens(str(folder.parent / TOUCHED))))

    def garbage(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04" + b"\0" * 500)

    yield "a pickle with code", pickled, REFUSED
    yield "a pickle that is none", garbage, REFUSED
