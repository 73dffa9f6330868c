"""Takes a picture of an HTML file as Chromium shows it: ``python tools/screenshot.py PAGE.html PICTURE.png --width 1280 --height 800``.

The page is shown light, without a network, and in its first seconds, once it has drawn itself.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from inspector.files import write_whole

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND"
SECONDS = 60


def screenshot(page: Path, width: int, height: int, at: str = "") -> bytes:
    """The PNG of a page in a window of so many pixels; ``at`` is what stands in its address behind #.

    Raises:
        ValueError: there is no such page, or no Chromium that takes a picture of it.
    """
    if not page.is_file():
        raise ValueError(f"{page}: there is no such file: give an HTML file")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        raise ValueError(f"no Chromium is on the path: install one, as {NAMES[0]}")
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.png"
        how = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", OFFLINE]
        how += [f"--user-data-dir={folder}/profile", f"--window-size={width},{height}", "--virtual-time-budget=5000"]
        how += [
            "--run-all-compositor-stages-before-draw",
            "--force-prefers-reduced-motion",
            "--blink-settings=preferredColorScheme=1",
            f"--screenshot={picture}",
        ]
        done = subprocess.run(
            [program, *how, page.resolve().as_uri() + (f"#{at}" if at else "")], capture_output=True, text=True, timeout=SECONDS
        )
        if not picture.is_file():
            raise ValueError(f"{program} took no picture of {page}: {done.stderr.strip()[-300:] or 'it gives no reason'}")
        return picture.read_bytes()


def main() -> int:
    """The command line; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--at", default="", help='behind # in the address: language, model and step of a report, as "en.1.3"')
    given = parser.parse_args()
    try:
        write_whole(given.picture, screenshot(given.page, given.width, given.height, given.at))
    except (ValueError, OSError, subprocess.TimeoutExpired) as error:
        print(f"screenshot: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
