"""Files and folders written so that nothing is lost: what stands there after a write that failed anywhere, and who may write where."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from inspector import files
from inspector.files import (
    MANIFEST,
    NEW,
    READY,
    check_folder,
    check_writable,
    filling,
    is_empty,
    locked,
    named,
    new_folder,
    read_json,
    replacing,
    settle,
    write_whole,
)

WAYS = ("full", "full on", "interrupted", "interrupted after", "killed", "killed after")
EVERY_WAY = pytest.mark.parametrize("way", WAYS)


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


@pytest.fixture
def ordinary(forked, tmp_path):
    """A function that has something done by an ordinary user, who may enter ``tmp_path``."""
    if os.geteuid() != 0:
        pytest.skip("only the administrator may become somebody else")
    ours = [folder for folder in (tmp_path, *tmp_path.parents) if Path(tempfile.gettempdir()) in folder.parents]
    for folder in ours:
        folder.chmod(0o755)

    def done(action) -> None:
        def as_nobody() -> None:
            os.setgid(65534)
            os.setuid(65534)
            action()

        assert forked(as_nobody) == 0

    return done


# Files


def test_a_text_is_written_and_written_over(tmp_path):
    for text in ("old", "Анна\nМария\n"):
        write_whole(tmp_path / "file.txt", text)
        assert (tmp_path / "file.txt").read_bytes().decode("utf8") == text
    assert below(tmp_path) == ["file.txt"]


@EVERY_WAY
def test_a_file_is_old_or_new_wherever_its_writing_fails(tmp_path, break_at, way):
    path, k = tmp_path / "file.json", 0
    path.write_text("old")
    while break_at(k, way, lambda: write_whole(path, "new")):
        assert path.read_text() in ("old", "new")
        write_whole(path, "old")
        assert below(tmp_path) == ["file.json"] and path.read_text() == "old"
        k += 1
    assert k == 4 and path.read_text() == "new"  # fsync of the file, replace, fsync of the folder, unlink


def test_a_text_that_cannot_be_encoded_keeps_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    assert path.read_text() == "old" and below(tmp_path) == ["file.txt"]


def test_the_new_file_is_on_disk_before_the_old_one_goes_and_the_folder_afterwards(tmp_path, monkeypatch):
    path, seen = tmp_path / "file.txt", []
    write_whole(path, "old")
    real_fsync = os.fsync
    kind = {stat.S_IFREG: "file", stat.S_IFDIR: "folder"}
    monkeypatch.setattr(
        files.os, "fsync", lambda fd: (seen.append((kind[stat.S_IFMT(os.fstat(fd).st_mode)], path.read_text())), real_fsync(fd))
    )
    write_whole(path, "new")
    assert seen == [("file", "old"), ("folder", "new")]


def test_a_new_file_has_the_mode_of_any_other_and_a_replaced_one_that_of_the_old(tmp_path, narrow_umask):
    write_whole(tmp_path / "file.txt", "")
    with locked(tmp_path / "folder"), filling(tmp_path / "folder", "inner") as new:
        (new / "inner").write_text("")
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("file.txt", "folder", "folder/inner")}
    assert modes == {"file.txt": 0o640, "folder": 0o750, "folder/inner": 0o640}
    for mode in (0o600, 0o666, 0o755, 0o200):
        (tmp_path / "file.txt").chmod(mode)
        with replacing(tmp_path / "file.txt") as new:
            assert new.stat().st_mode & 0o777 & ~(mode | 0o600) == 0  # a secret is none for others while it is written, either
            new.write_text("new")
        assert (tmp_path / "file.txt").stat().st_mode & 0o777 == mode


def test_through_a_link_the_target_is_replaced_also_where_it_is_missing_yet(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/target")
    (tmp_path / "second").symlink_to("link")
    for text in ("first", "second"):
        write_whole(tmp_path / "second", text)
        assert (tmp_path / "there/target").read_text() == text and (tmp_path / "link").is_symlink() and (tmp_path / "second").is_symlink()
    assert below(tmp_path) == ["link", "second", "there", "there/target"]


@pytest.mark.parametrize("length", [253, 255])
def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path, length):
    write_whole(tmp_path / ("n" * length), "text")
    with locked(tmp_path / ("d" * length)), filling(tmp_path / ("d" * length), "a") as new:
        (new / "a").write_text("")
    assert below(tmp_path) == ["d" * length, "d" * length + "/" + MANIFEST, "d" * length + "/a", "n" * length]


def test_devices_pipes_and_open_files_are_written_to_and_stay(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_whole(tmp_path / "pipe", "text")
    reader.join(10)
    write_whole(tmp_path / "null", "text")
    assert read == ["text"] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert below(tmp_path) == ["null", "pipe"]


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_what_is_open_by_a_number_goes_on_behind_what_was_written_there(tmp_path, path):
    if not os.path.exists(path) and path != "link":
        pytest.skip("this system has no such path")
    (tmp_path / "link").symlink_to("/dev/stdout")
    code = f"from inspector.files import *; print('before'); write_whole(Path({path!r}), 'text\\n'); print('after')"
    with open(tmp_path / "file", "w") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert (tmp_path / "file").read_text() == "before\ntext\nafter\n"
    assert below(tmp_path) == ["file", "link"]


def test_a_reader_that_has_left_is_no_fault_of_the_file(tmp_path):
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(BrokenPipeError):
        write_whole(Path(f"/dev/fd/{write}"), "text")
    os.close(write)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="this system has no memory for files there")
def test_files_in_memory_are_files(break_at):
    path = Path(f"/dev/shm/inspector-{os.getpid()}")
    path.write_text("old")
    try:
        assert break_at(0, "full", lambda: write_whole(path, "new")) and path.read_text() == "old"
    finally:
        path.unlink()


def refused(check, path) -> str:
    with pytest.raises(ValueError) as caught:
        check(path)
    message = str(caught.value)
    assert "\n" not in message and "[Errno" not in message
    return message


def test_paths_that_cannot_be_written_are_refused_beforehand(tmp_path):
    check_writable(tmp_path / "new.json")
    check_writable(Path("-"))
    check_writable(None)
    (tmp_path / "file").write_text("kept")
    (tmp_path / "read-only").write_text("kept")
    (tmp_path / "read-only").chmod(0o444)
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "nowhere").symlink_to("no/such/file")
    told = {
        ".": "a folder",
        "no/such/x.json": "a folder that exists",
        "file/x.json": "Not a directory",
        "read-only": "read-only",
        "circle": "Too many levels",
        "nowhere": "a folder that exists",
        "n" * 256: "File name too long",
        "zero\0byte": "null",
    }
    for name, why in told.items():
        for write in (check_writable, lambda path: write_whole(path, "text")):
            message = refused(write, tmp_path / name)
            assert why in message and "cannot be written" in message
    assert (tmp_path / "read-only").read_text() == "kept"


def test_what_an_ordinary_user_may_not_write_is_refused_beforehand(tmp_path, ordinary):
    closed, sticky = tmp_path / "closed", tmp_path / "sticky"
    closed.mkdir()
    (closed / "file").write_text("old")
    (closed / "file").chmod(0o666)
    sticky.mkdir()
    sticky.chmod(0o1777)
    (sticky / "file").write_text("old")
    (sticky / "file").chmod(0o666)

    def tried() -> None:
        assert "that you may write to" in refused(check_writable, closed / "new")
        assert "that you may write to" in refused(check_writable, closed / "file")  # it could be written, but not whole
        assert "another user's" in refused(check_writable, sticky / "file")
        write_whole(sticky / "new", "text")
        write_whole(sticky / "new", "text")
        for folder in (closed, closed / "a/b"):
            assert "may write to" in refused(check_folder, folder)
        settle(closed)  # reading is all that is asked

    ordinary(tried)


def test_errors_say_which_file_and_what_to_do_and_others_stay_as_they_are(tmp_path):
    path = tmp_path / "out" / "file"
    path.parent.mkdir()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def caused() -> None:
        try:
            raise full
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598") from None

    def raises(error) -> None:
        raise error

    rust = Exception("Error while serializing: I/O error: No space left on device (os error 28)")
    for act in (lambda: raises(full), lambda: raises(rust), caused, lambda: (path.parent / "no/such").write_text("")):
        with (
            pytest.raises(OSError, match=r"out/file cannot be written: No (space left|such file).*: (make room|give another)") as told,
            named(path),
        ):
            act()
        assert "\n" not in str(told.value)
    others = (
        lambda: (tmp_path / "elsewhere").read_text(),
        lambda: raises(RuntimeError("else")),
        lambda: raises(BrokenPipeError(32, "gone")),
    )
    for act in others:
        with pytest.raises((OSError, RuntimeError)) as told, named(path):
            act()
        assert "cannot be written" not in str(told.value)


@pytest.mark.parametrize("check", [check_writable, check_folder, lambda path: write_whole(path, "text")])
def test_a_current_folder_that_is_gone_is_named(tmp_path, monkeypatch, check):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "current folder is gone" in refused(check, Path("new"))
    monkeypatch.chdir(tmp_path)


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


def test_what_another_process_is_writing_is_left_alone(tmp_path):
    with replacing(tmp_path / "a") as first:
        first.write_text("a")
        (tmp_path / ".inspector-mine").write_text("")  # as like as it is
        write_whole(tmp_path / "b", "b")  # looks for what dead processes left
    assert below(tmp_path) == [".inspector-mine", "a", "b"] and (tmp_path / "a").read_text() == "a"


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[1]", b"{", b'{"a": NaN}', b'{"a": -Infinity}', b"[" * 100_000, b'{"a": ' + b"1" * 5000 + b"}"]
)
def test_json_of_any_content_is_read_or_refused_in_one_line(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    assert "move it away" in refused(read_json, tmp_path / "x.json")
    (tmp_path / "x.json").unlink()
    os.mkfifo(tmp_path / "x.json")
    assert "no file" in refused(read_json, tmp_path / "x.json")


# Folders


def fill(folder: Path, **texts: str) -> None:
    """Has a folder hold these files, and none that was written so before."""
    with locked(folder), filling(folder, last="last") as new:
        for name, text in texts.items():
            (new / name).write_text(text)


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != MANIFEST}


@EVERY_WAY
@pytest.mark.parametrize("there", [True, False])
def test_a_folder_has_all_old_files_or_all_new_ones_wherever_its_writing_fails(tmp_path, break_at, way, there):
    """Whoever reads it next, and the user's own file stays."""
    old, new = dict(a="old", gone="old", last="old") if there else {}, dict(a="new", b="new", last="new")
    k = 0
    while True:
        folder = tmp_path / str(k)
        if there:
            fill(folder, **old)
            (folder / "notes.txt").write_text("mine")
        mine = {"notes.txt": "mine"} if there else {}
        reached = break_at(k, way, lambda folder=folder: fill(folder, **new))
        if not way.startswith(("killed", "full on")):  # who lives leaves nothing half-done
            assert not any(name in (READY, NEW) for name in below(folder)) or way == "full"
        settle(folder)
        if folder.exists():
            assert texts(folder) in ({**old, **mine}, {**new, **mine})
        fill(folder, **new)
        assert texts(folder) == {**new, **mine} and not set(os.listdir(folder)) & {READY, NEW}
        if not reached:
            break
        k += 1
    assert k > 12


def test_the_result_is_on_the_disk_before_its_first_file_moves(tmp_path, monkeypatch):
    """What a crash of the machine leaves is the same as what a kill leaves: files, their folder, the renaming, and then the moves."""
    order = []
    own = {name: getattr(os, name) for name in ("fsync", "replace", "rename")}

    def fsync(fd):
        order.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        own["fsync"](fd)

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, lambda a, b, name=name: (order.append(f"{name} {Path(b).name}"), own[name](a, b)))
    fill(tmp_path / "out", a="", last="")
    assert set(order[:4]) == {"a", "last", MANIFEST, NEW} and order[3] == NEW
    assert order[4:] == [f"rename {READY}", "out", "replace a", "replace last", "out", f"replace {MANIFEST}", "out"]


def test_files_that_were_not_written_here_stay_and_are_not_replaced(tmp_path):
    fill(tmp_path / "out", a="old", last="old")
    (tmp_path / "out/b").write_text("mine")
    with pytest.raises(ValueError, match=r"out/b was not written by inspector: move it away"):
        fill(tmp_path / "out", a="new", b="new", last="new")
    assert texts(tmp_path / "out") == dict(a="old", b="mine", last="old")
    (tmp_path / "out/a").unlink()
    (tmp_path / "out/a").mkdir()  # what was written here is not there any more
    with pytest.raises(ValueError, match="out/a was not written by inspector"):
        fill(tmp_path / "out", a="new", last="new")
    assert sorted(os.listdir(tmp_path / "out")) == [MANIFEST, "a", "b", "last"]


def test_one_process_alone_writes_a_folder_and_its_lock_goes_with_it(tmp_path):
    folder = tmp_path / "out"
    code = f"""
import sys
from inspector.files import *
with locked(Path({str(folder)!r})), filling(Path({str(folder)!r}), "last") as new:
    (new / "last").write_text("half")
    print("there", flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "there\n"
    with pytest.raises(ValueError, match="is being written to by another process: wait for its end, or give another folder"):
        fill(folder, last="mine")
    settle(folder)  # a reader does not disturb it
    assert below(folder) == [NEW, f"{NEW}/last"]
    process.kill()
    process.wait()
    assert is_empty(folder) and new_folder(folder) == folder
    fill(folder, last="mine")
    assert texts(folder) == dict(last="mine")


def test_a_folder_that_was_made_for_nothing_is_gone_and_one_that_was_there_stays(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("there", "a/b/c"):
        with pytest.raises(RuntimeError), locked(tmp_path / name), filling(tmp_path / name, "x"):
            raise RuntimeError
    assert below(tmp_path) == ["there"]


def test_who_is_refused_does_not_remove_the_folder_of_who_is_there(tmp_path, monkeypatch):
    """Both have found it missing: the second one's making it is none."""
    real_exists = Path.exists
    with locked(tmp_path / "out"):
        monkeypatch.setattr(Path, "exists", lambda path: path.name != "out" and real_exists(path))
        with pytest.raises(ValueError, match="another process"), locked(tmp_path / "out"):
            pass
        monkeypatch.undo()
        assert (tmp_path / "out").is_dir()


def handed_over(folder: Path, files=("config.json",), gone=()) -> Path:
    """A folder as somebody else could have made it: files on their way, with a manifest."""
    (folder / READY).mkdir(parents=True)
    (folder / READY / "config.json").write_text("new")
    (folder / READY / MANIFEST).write_text(json.dumps(dict(files=files, gone=gone)))
    return folder


def test_who_is_refused_a_folder_finds_the_result_whole_in_it(tmp_path):
    folder = handed_over(tmp_path / "out")
    assert "is not empty" in refused(new_folder, folder)
    assert (folder / "config.json").read_text() == "new" and not (folder / READY).exists()


@pytest.mark.parametrize(
    "name", ["../victim", "/victim", "..", ".", "", "a/../../victim", "a\\b", "\0", "\ud800", 5, None, ["victim"], ".inspector.new"]
)
@pytest.mark.parametrize("part", ["files", "gone"])
def test_a_manifest_names_files_of_its_folder_alone(tmp_path, part, name):
    (tmp_path / "victim").write_text("kept")
    folder = handed_over(tmp_path / "out", **{part: [name]})
    assert "was not written by inspector" in refused(settle, folder)
    with pytest.raises(ValueError, match="was not written by inspector"), locked(folder):
        pass
    assert (tmp_path / "victim").read_text() == "kept"


def test_links_and_other_things_in_the_place_of_what_is_on_its_way_are_refused(tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/config.json").write_text("kept")
    (tmp_path / "victim" / MANIFEST).write_text(json.dumps(dict(files=["config.json"], gone=["config.json"])))
    for name in ("link", "file", "manifest", "pipe", "fifo"):
        folder = tmp_path / name
        folder.mkdir()
        if name == "link":
            (folder / READY).symlink_to(tmp_path / "victim")
        elif name == "file":
            (folder / READY).write_text("")
        elif name == "manifest":
            (folder / READY).mkdir()
            (folder / READY / MANIFEST).symlink_to(tmp_path / "victim" / MANIFEST)
        elif name == "pipe":
            (folder / READY).mkdir()
            os.mkfifo(folder / READY / MANIFEST)
        else:
            os.mkfifo(folder / READY)
        assert "was not written by inspector" in refused(settle, folder)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / NEW).symlink_to(tmp_path / "victim")
    settle(tmp_path / "new")
    assert sorted(os.listdir(tmp_path / "victim")) == [MANIFEST, "config.json"]


def test_what_cannot_be_finished_for_want_of_rights_is_said(tmp_path, ordinary):
    folder = handed_over(tmp_path / "out")
    folder.chmod(0o555)

    def tried() -> None:
        assert "was cut off, and cannot be finished (Permission denied)" in refused(settle, folder)

    ordinary(tried)
    settle(folder)
    assert texts(folder) == {"config.json": "new"}


def test_a_file_to_go_that_became_a_folder_is_the_users(tmp_path):
    folder = handed_over(tmp_path / "out", gone=["kept"])
    (folder / "kept").mkdir()
    settle(folder)
    assert sorted(os.listdir(folder)) == [MANIFEST, "config.json", "kept"]


def test_folders_that_cannot_be_written_are_refused_beforehand(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "nowhere").symlink_to("no/such")
    told = {
        "file": "is a file: give a folder",
        "file/below": "is a file",
        "circle": "Too many levels",
        "nowhere": "a link that leads nowhere",
        "nowhere/below": "a link that leads nowhere",
        "n" * 256: "File name too long",
        f"{'n' * 256}/below": "File name too long",
        "/".join(["n" * 200] * 25): "File name too long",
        "zero\0byte": "zero byte",
    }
    for name, why in told.items():
        for check in (check_folder, new_folder, lambda path: fill(path, last="")):
            assert why in refused(check, tmp_path / name)
    assert below(tmp_path) == ["circle", "file", "nowhere"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("")
    assert "is not empty" in refused(new_folder, tmp_path / "full") and new_folder(None) is None


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="this system has no such folder")
def test_a_folder_that_the_system_does_not_let_be_made_is_refused():
    with pytest.raises((ValueError, OSError), match="/proc/nothing cannot be written"), locked(Path("/proc/nothing")):
        pass
