"""What ``inspector bench trace`` measures: one pass watched in four ways, with ratios inside a round."""

from inspector.bench import trace as bench


def test_the_ways_watch_what_they_say(tiny):
    rows = bench.measure(tiny("qwen2", context=24), rounds=2)
    assert [row["way"] for row in rows] == ["plain", "references", "blocks", "every role"]
    assert [row["components"] for row in rows][:3] == [0, 9, 9] and rows[3]["components"] > 9
    assert all(row["tokens"] == 24 and row["ms"] > 0 and row["to_plain"] > 0 for row in rows)


def test_ratios_are_to_the_bare_pass_and_within_a_round(tiny, monkeypatch):
    """With a clock that gives every call twice the time of the one before: only within a round is the order known."""
    seconds = iter([1.0, 2.0, 3.0, 4.0, 40.0, 30.0, 20.0, 10.0])  # the second round runs backwards
    monkeypatch.setattr(bench, "timed", lambda call: next(seconds))
    rows = bench.measure(tiny("qwen2"), rounds=2)
    assert [row["to_plain"] for row in rows] == [1.0, 2.0, 3.0, 4.0]
