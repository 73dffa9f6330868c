"""The page that Python makes of runs and models."""

import base64
import re

import pytest

import inspector
from tests.cli.test_report import report_of


def test_a_page_is_made_of_runs_with_and_without_their_models(tmp_path):
    m = inspector.load("names-qwen2")
    run = inspector.run(m, m.encode("Крас"), inspector.Sampling(temperature=0.8, seed=3), 2, recorded=512)
    page = inspector.page((m, run, "Крас"), run, branches=1, check=False, measure=False)
    with_model, alone = page.report.sides
    assert with_model.prompt == "Крас" and with_model.carried.model == "names-qwen2" and len(with_model.branches) == 2
    assert alone.run == run and alone.tree is None and alone.vocabulary == 65 and page.weights[1] == b""
    place = tmp_path / "page.html"
    page.write(place, "ru")
    text = place.read_text(encoding="utf-8")
    assert report_of(place) == page.report and '<html lang="ru">' in text
    assert base64.b64decode(re.search(r'id="weights-0">([^<]*)<', text)[1]) == page.weights[0] != b""
    assert page._repr_html_().startswith("<iframe") and len(page._repr_html_()) < len(text) / 2 and page.html() != text
    with pytest.raises(ValueError, match=r"page\.txt: give a name that ends in \.html"):
        page.write(tmp_path / "page.txt")
    for wrong in ((), (run, run, run)):
        with pytest.raises(ValueError, match="runs for a page: give one, or two"):
            inspector.page(*wrong)
    for wrong in (m, (m, "Крас"), (run, m), (m, run, 5)):
        with pytest.raises(ValueError, match=r"nothing for a page: give \(m, run\)"):
            inspector.page(wrong)
    with pytest.raises(ValueError, match="no UTF-8, from character 1 on"):
        inspector.page((m, run, "К\ud800"), check=False, measure=False)
