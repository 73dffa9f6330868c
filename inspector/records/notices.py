"""What to know about a model before anything is concluded from what it does."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Notice:
    """Something that loading found and that does not keep the model from running, with its remedy where there is one.

    Args:
        kind: one word for programs, such as "unused", "tied", "adapter", "tokenizer", "settings", "wrapper", "unnamed", "future".
        english, russian: one sentence that names the model's or the file's value, and the remedy.
        names: what it is about, such as weights or modules; a screen shows the first few.
    """

    kind: str
    english: str
    russian: str
    names: tuple[str, ...] = ()
