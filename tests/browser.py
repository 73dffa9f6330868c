"""The browser that the tests of pages share: a headless Chromium, and what it said and asked for.

The fixture ``browser`` (tests/conftest.py) is selenium's driver of it, one for all tests: open a page with ``browser.get(path.as_uri())``
and run JavaScript with ``browser.execute_script("return …", argument)``.
"""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def missing() -> str:
    """What there is not of what the tests of pages need; "" where all is there."""
    try:
        import selenium.webdriver  # noqa: F401
    except ImportError:
        return "selenium is not installed: pip install selenium"
    if not any(map(shutil.which, NAMES)):
        return "no Chromium is installed: apt-get install chromium"
    return "" if shutil.which("chromedriver") else "no chromedriver is installed: apt-get install chromium-driver"


def start():
    """A headless Chromium that keeps its console and its requests. Where there is none it skips, and fails if REQUIRE_BROWSER is set."""
    if reason := missing():
        (pytest.fail if os.environ.get("REQUIRE_BROWSER") else pytest.skip)(f"a page is tested in a browser, and {reason}")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, NAMES)))
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
        "--disable-features=IsolateSandboxedIframes",
    ):
        options.add_argument(argument)
    options.add_argument("--force-prefers-reduced-motion")  # what a test sees does not hang on an animation
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    driver.set_script_timeout(60)
    return driver


def console_errors(browser) -> list[str]:
    """What the console was told of errors and warnings since it was asked last: exceptions, what the policy blocked, missing files."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def requests(browser) -> list[str]:
    """The addresses that were asked for since it was asked last, the page's own among them."""
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    return [message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"]


def open_page(browser, place: Path, text: str, hash: str = "", broken: bool = False):
    """The browser with a report page open, of which nothing of the console or of requests is read yet. Fails where the page does not draw
    itself; one that is ``broken`` only has to say something."""
    place.write_text(text, encoding="utf-8")
    console_errors(browser), requests(browser)
    browser.get("about:blank")
    browser.get(place.as_uri() + hash)
    drawn = "document.getElementById('page').textContent" if broken else "document.body.dataset.ready"
    for _ in range(500):
        if browser.execute_script(f"return {drawn}"):
            return browser
        time.sleep(0.02)
    pytest.fail(str(console_errors(browser)))
