"""What ``inspector bench agreement`` counts."""

from inspector.bench import agreement
from inspector.loading.loading import load
from inspector.records.generation import Sampling


def test_counts_follow_the_judge(monkeypatch):
    lines = ["Анна Иванова", "Анна Иванов", "Иван Иванов", "Иванова", "Ъъъ Иванова", "Анна Шмидт"]
    monkeypatch.setattr(agreement, "sample", lambda *_, said: lines)
    result = agreement.measure(None, samples=6)
    assert (result["agrees"], result["disagrees"], result["unjudged"]) == (2, 1, 3)
    assert result["unjudged_percent"] == 50 and abs(result["agreement_percent"] - 200 / 3) < 1e-9


def test_lines_are_whole_differ_and_repeat_with_the_seed():
    m = load("names-qwen2")
    lines = agreement.sample(m, 6, Sampling(temperature=0.8, top_p=0.95, seed=0))
    assert lines == agreement.sample(m, 6, Sampling(temperature=0.8, top_p=0.95, seed=0))
    assert len(set(lines)) == 6 and not any("<" in line for line in lines)
