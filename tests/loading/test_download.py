"""The way over the network, against a hub on this machine that holds an embedded model under Qwen's name."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from inspector.loading.finding import ASSETS, DEFAULT

ROOT = Path(__file__).parents[2]
FILES = {file.name: file.read_bytes() for file in (ASSETS / "names-qwen2").iterdir()}
COMMIT = "a" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as a download needs: files with their tag and commit, and 404 for all else."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        repository, _, file = self.path.lstrip("/").partition("/resolve/")
        content = FILES.get(file.partition("/")[2]) if repository == DEFAULT else None
        self.send_response(200 if content is not None or self.path == "/" else 404)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if body and content is not None:
            self.wfile.write(content)

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def lesson(home: Path, endpoint: str, *more: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, str(ROOT / "inference.py"), "--raw", "--prompt", "Крас", "--max-new-tokens", "2", "--json", "-", *more]
    terminal, end = os.openpty()  # bars are for terminals
    termios.tcsetwinsize(terminal, (40, 120))
    read: list[bytes] = []
    thread = threading.Thread(target=drain, args=(terminal, read))
    thread.start()
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=end, text=True, env=environment, timeout=120)
    os.close(end)
    thread.join()
    result.stderr = b"".join(read).decode()
    return result


def drain(terminal: int, read: list[bytes]) -> None:
    """Reads a terminal to its end, which on Linux is an error."""
    try:
        while part := os.read(terminal, 4096):
            read.append(part)
    except OSError:
        pass


def test_the_default_is_fetched_with_a_bar_and_found_in_the_cache_without_network(hub, tmp_path):
    fetched = lesson(tmp_path, hub)
    assert fetched.returncode == 0, fetched.stderr
    run = json.loads(fetched.stdout)["runs"][0]
    assert run["model"] == DEFAULT and len(run["steps"]) == 2
    assert "model.safetensors" in fetched.stderr and "100%" in fetched.stderr
    cached = lesson(tmp_path, "http://127.0.0.1:9")
    assert cached.returncode == 0, cached.stderr
    assert json.loads(cached.stdout)["runs"][0]["model"] == DEFAULT
    assert "%" not in cached.stderr


@pytest.mark.slow
def test_a_checkpoint_is_fetched_into_our_own_modules_too(hub, tmp_path):
    fetched = lesson(tmp_path, hub, "--native")
    assert fetched.returncode == 0, fetched.stderr
    assert json.loads(fetched.stdout)["runs"][0]["model"] == DEFAULT
