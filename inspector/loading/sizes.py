"""Sizes that cannot be: what a configuration may say at all, how many modules a model may have, and how much memory there is."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

MOST_MODULES = 100_000  # DeepSeek-V3 with a module for each matrix of each expert has 60,000; each takes 3 kB, and 0.1 ms and more
MOST_PARAMETERS = 10**14
CORE = {  # sizes in config.json that are whole numbers wherever they stand as one number → the least
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layers", "n_layer"), 1),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "vocab_size", "intermediate_size"), 1),
    **dict.fromkeys(("num_attention_heads", "n_heads", "n_head", "num_key_value_heads", "head_dim"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 1),
    **dict.fromkeys(("num_experts", "n_experts", "num_local_experts", "n_routed_experts", "n_shared_experts"), 0),
}
MOST = (  # what a setting's name holds → the most that it may say: ten times and more what the largest models have
    (re.compile(r"(^|_)(layers?|blocks?|depth|num_nextn_predict_layers)$"), 2000),
    (re.compile(r"(^|_)(heads?|(?<!per_)experts?)$"), 10**5),
    (re.compile(r"(^|_)(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length)$"), 10**12),
    (re.compile(r"(^|_)(vocab_size|hidden_size|intermediate_size|ffn_dim|d_model|d_ff|n_embd|n_inner|head_dim|rank|width)$"), 10**8),
)


class TooLargeError(ValueError):
    """A model that no machine holds, or not this one."""


def impossible(settings: dict, path: str = "") -> str | None:
    """The first size in a config.json that cannot be, and the remedy; None where all can. Nested configurations are looked at too."""
    for name, value in settings.items():
        if isinstance(value, dict) and name.endswith("config") and (found := impossible(value, f"{path}{name}.")):
            return found
        most = next((most for pattern, most in MOST if pattern.search(name)), None)
        if isinstance(value, list) and "layer" in name and len(value) > MOST[0][1]:
            return f"{path}{name} of {len(value):,} entries: a model has at most {MOST[0][1]:,} layers: shorten it"
        for one in value if isinstance(value, list) else [value]:
            if name in CORE and one is not None and (type(one) is not int or one < CORE[name]) and not isinstance(one, (list, dict)):
                return f"{path}{name}={short(one)}: give a whole number from {CORE[name]} up"
            if most and isinstance(one, (int, float)) and not -most <= one <= most:
                return f"{path}{name}={short(one)}: give at most {most:,}"
    return None


def short(value: object) -> str:
    """A value as JSON says it, and of a number past reading its size."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**21:
        return f"{'-' * (value < 0)}10^{abs(value).bit_length() * 30103 // 100000}"
    shown = {True: "true", False: "false"}.get(value, repr(value)) if isinstance(value, bool) else repr(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}…"


@contextmanager
def few_modules() -> Iterator[None]:
    """Breaks off where more modules are built than a model may have. Raises ``TooLargeError``."""
    built = 0

    def count(module: nn.Module, name: str, part: nn.Module | None) -> None:
        nonlocal built
        built += 1
        if built > MOST_MODULES:
            raise TooLargeError(f"more than {MOST_MODULES:,} modules: lower the number of its layers or experts")

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def check_parameters(count: int) -> None:
    """Refuses more parameters than any model has. Raises ``TooLargeError``."""
    if count > MOST_PARAMETERS:
        raise TooLargeError(f"{count:.2g} parameters, and at most {MOST_PARAMETERS:.0e} are taken for a model: lower its sizes")


def check_memory(needed: int, remedy: str) -> None:
    """Refuses what takes more memory than there is. Raises ``TooLargeError`` with both numbers and the remedy."""
    if needed > (there := memory()):
        raise TooLargeError(f"needs {gigabytes(needed)} GB of memory, there are {gigabytes(there)} GB: {remedy}")


def gigabytes(count: int) -> str:
    """ "12.3", or "10^25" where a number is past reading."""
    return f"{count / 1e9:,.1f}" if count < 10**21 else f"10^{len(str(count // 10**9)) - 1}"


def memory(root: Path = Path("/")) -> int:
    """Bytes that this process can still take: of the machine's memory, of its control groups', of its own address space.

    ``root`` is where /proc and /sys stand.
    """
    left = [psutil.virtual_memory().available, *control_groups(root)]
    try:
        import resource

        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        if most != resource.RLIM_INFINITY:
            left.append(most - psutil.Process().memory_info().vms)
    except ImportError:  # Windows has no such limit
        pass
    return max(0, min(left))


def control_groups(root: Path) -> Iterator[int]:
    """Bytes left in each control group of this process that has a limit, as a container's (Linux, both versions)."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for number, kinds, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if number != "0" and "memory" not in kinds.split(","):
            continue
        new = number == "0"
        top = root / ("sys/fs/cgroup" if new else "sys/fs/cgroup/memory")
        names = ("memory.max", "memory.current", "inactive_file")
        names = names if new else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        own = top / path.lstrip("/")
        for group in [own, *own.parents]:
            if group == top.parent:
                break
            most, used = (number_in(group / name) for name in names[:2])
            if most is not None and used is not None:
                yield most - used + (number_in(group / "memory.stat", names[2]) or 0)  # files read lately, which give way


def number_in(file: Path, key: str = "") -> int | None:
    """The number in a file of the system's, or on the line of ``key``; None where there is none, such as for "max"."""
    try:
        found = re.search(rf"^{key}\s*(\d+)$", file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None
