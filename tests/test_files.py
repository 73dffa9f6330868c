"""Files and folders written whole: what stands there afterwards, and after a write that failed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from inspector import files
from inspector.files import check_writable, replacing, write_whole


def below(folder: Path) -> list[str]:
    """Everything in a folder, hidden things too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def disk_full(*args, **kwargs):
    raise OSError("disk full")


@pytest.fixture
def narrow_umask():
    """Files are made readable for the group, and closed to others."""
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_a_text_is_written_and_written_over(tmp_path):
    for text in ("old", "Анна\nМария\n"):
        write_whole(tmp_path / "file.txt", text)
        assert (tmp_path / "file.txt").read_bytes().decode("utf8") == text.replace("\n", os.linesep)
    assert below(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("name", ["os.replace", "inspector.files.os.fsync"])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch, name):
    path = tmp_path / "file.json"
    write_whole(path, "old")
    monkeypatch.setattr(name, disk_full)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, "new")
    assert path.read_text() == "old" and below(tmp_path) == ["file.json"]


def test_a_text_that_cannot_be_encoded_keeps_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    assert path.read_text() == "old" and below(tmp_path) == ["file.txt"]


def test_the_new_file_is_on_disk_before_the_old_one_goes(tmp_path, monkeypatch):
    path, seen = tmp_path / "file.txt", []
    write_whole(path, "old")
    real_fsync = os.fsync
    monkeypatch.setattr(files.os, "fsync", lambda fd: (seen.append(path.read_text()), real_fsync(fd)))
    write_whole(path, "new")
    assert seen == ["old"] and path.read_text() == "new"


def test_a_new_file_and_folder_have_the_mode_of_any_other(tmp_path, narrow_umask):
    write_whole(tmp_path / "file.txt", "")
    with replacing(tmp_path / "folder") as new:
        new.mkdir()
        (new / "inner").write_text("")
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("file.txt", "folder", "folder/inner")}
    assert modes == {"file.txt": 0o640, "folder": 0o750, "folder/inner": 0o640}


def test_a_text_is_written_to_a_folder_that_exists_alone(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "no/such/file.txt", "text")
    assert below(tmp_path) == []
    with replacing(tmp_path / "a/b/file.txt") as new:
        new.write_text("text")
    assert below(tmp_path) == ["a", "a/b", "a/b/file.txt"]


def test_a_file_does_not_take_the_place_of_a_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("kept")
    with pytest.raises(OSError):
        write_whole(tmp_path / "folder", "text")
    assert below(tmp_path) == ["folder", "folder/mine"] and (tmp_path / "folder/mine").read_text() == "kept"


def test_a_folder_takes_the_place_of_a_folder_with_all_that_is_in_it(tmp_path):
    for name in ("old", "new"):
        with replacing(tmp_path / "folder") as new:
            new.mkdir()
            (new / name).write_text("")
    assert below(tmp_path) == ["folder", "folder/new"]


@pytest.mark.parametrize("moment", ["while writing", "on the way to the disk"])
def test_a_folder_that_is_not_written_to_its_end_leaves_the_old_one(tmp_path, monkeypatch, moment):
    with replacing(tmp_path / "folder") as new:
        new.mkdir()
        (new / "old").write_text("")
    if moment != "while writing":
        monkeypatch.setattr(files.os, "fsync", disk_full)
    with pytest.raises(OSError, match="disk full"), replacing(tmp_path / "folder") as new:
        new.mkdir()
        if moment == "while writing":
            disk_full()
    assert below(tmp_path) == ["folder", "folder/old"]


def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path):
    write_whole(tmp_path / "file.txt", "old")
    code = f"""
import os, signal
from pathlib import Path
from inspector import files
files.os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
files.write_whole(Path({str(tmp_path / "file.txt")!r}), "new")
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert (tmp_path / "file.txt").read_text() == "old"


def test_paths_that_cannot_be_written_are_refused_beforehand(tmp_path):
    check_writable(tmp_path / "new.json")
    check_writable(Path("-"))
    check_writable(None)
    for path in (tmp_path, tmp_path / "no/such/folder/x.json"):
        with pytest.raises(ValueError, match="cannot be written"):
            check_writable(path)
