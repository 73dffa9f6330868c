"""What ``inspector bench lines`` counts: code that runs, and no other."""

import pytest

from inspector.bench import lines
from inspector.loading.finding import LoadError
from inspector.loading.loading import load

SOURCE = '''"""A docstring,
of two lines."""

from functools import cache  # 1, of the file


@cache
def of_two_lines(x):
    """Not counted."""
    # nor this
    return [
        x,

        "a text, which is no docstring",
    ]


class Part:
    """Not counted."""

    size = 3

    def entered(self):
        text = """a text
        of two lines"""
        return len(text) + inner(self.size)

    def not_entered(self):
        return 5


def inner(x):
    def deeper():
        return [x for _ in range(2)]

    return deeper()[0]


def never(x):
    return x
'''


def test_code_is_what_is_left_without_blank_lines_comments_and_docstrings():
    kept = [line for i, line in enumerate(SOURCE.splitlines(), 1) if i in lines.lines_of_code(SOURCE)]
    assert len(kept) == 21 and not any("ounted" in line or "#" in line[:6] or not line.strip() for line in kept)
    assert '        of two lines"""' in kept and 'of two lines."""' not in kept


def test_definitions_are_those_that_ran_with_the_methods_that_ran(tmp_path, monkeypatch):
    file = tmp_path / "parts.py"
    file.write_text(SOURCE)
    monkeypatch.setattr(lines, "ROOT", tmp_path)
    names = {}
    exec(compile(SOURCE, str(file), "exec"), names)
    reading, building = lines.entered(lambda: names["Part"]().entered()), lines.entered(lambda: names["of_two_lines"](1))
    found = {one.name: one for one in lines.defined(reading, building)}
    assert set(found) == {"of_two_lines", "Part", "inner"}
    assert (found["Part"].methods, found["Part"].lines, found["Part"].part) == (("entered",), 6, "model")
    assert (found["inner"].lines, found["inner"].part) == (4, "model")
    assert (found["of_two_lines"].lines, found["of_two_lines"].part) == (6, "building")


def test_a_native_qwen2_can_be_read_in_one_sitting():
    result = lines.measure(load("names-qwen2", native=True))
    model = {one.name: one.methods for one in result["definitions"] if one.part == "model"}
    classes = {"Backbone", "Block", "GroupedQueryAttention", "LanguageModel", "RMSNorm", "RotaryEmbedding", "SwiGLU"}
    assert {name for name, methods in model.items() if methods} == classes
    assert all({"__init__", "forward"} <= set(model[name]) for name in classes)
    assert not {"generate", "weights", "new_caches"} & {method for methods in model.values() for method in methods}
    assert {one.name for one in result["definitions"] if one.part == "masks"} == {"attendable", "past_length"}  # no mask is made
    assert 100 < result["lines"]["model"] <= 200
    assert result["lines"]["model"] == sum(one.lines for one in result["definitions"] if one.part == "model")


def test_what_is_not_native_has_no_lines_of_ours():
    with pytest.raises(LoadError, match="no native model"):
        lines.measure(load("names-qwen2"))
