"""The tests' own browser: what it is asked to notice it notices."""

import pytest

from tests import browser as shared
from tests.browser import console_errors, requests

PAGE = """<!doctype html><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="connect-src 'none'">
<title>t</title><script>console.log("said"); console.error("wrong"); fetch("https://example.invalid/data").catch(() => {});</script>
<img src="missing.png" alt="">"""


def test_browser_notices_errors_and_requests(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(PAGE, encoding="utf-8")
    console_errors(browser), requests(browser)
    browser.get(page.as_uri())
    assert browser.execute_script("return document.title") == "t"
    errors = console_errors(browser)
    assert any("wrong" in error for error in errors) and any("Content Security Policy" in error for error in errors)
    assert not any("said" in error for error in errors) and console_errors(browser) == []
    assert requests(browser)[:2] == [page.as_uri(), (tmp_path / "missing.png").as_uri()] and requests(browser) == []


@pytest.mark.parametrize("required", ["", "yes"])
def test_missing_browser_skips_and_fails_where_nothing_may_be_skipped(required, monkeypatch):
    monkeypatch.setattr(shared.shutil, "which", lambda name: None)
    monkeypatch.setenv("REQUIRE_BROWSER", required)
    with pytest.raises(pytest.fail.Exception if required else pytest.skip.Exception, match="no Chromium is installed"):
        shared.start()
