"""Files and folders written so that nothing is lost: a file whole or not at all, the files of a folder together or not at all.

A file is written beside its place, put on the disk, and renamed. The files of a folder are written to a hidden folder in it,
which is renamed once they are on the disk: from then on they are on their way, and whoever next reads or writes the folder
moves what a process that died has left there. Who writes a folder holds a lock on it, which goes with the process.
"""

import errno
import json
import os
import secrets
import shutil
import signal
import stat
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks on this system: two processes on one folder are then not told of each other
    fcntl = None

MANIFEST = ".inspector.json"  # in a folder: its files that were written here, the only ones that are ever replaced
NEW = ".inspector.new"  # the files that a process is writing; if it has died they are nothing
READY = ".inspector.ready"  # the files of a whole result on their way to their places, with its manifest
SCRATCH = ".inspector-"  # so begin the names of files that are being written; not with the file's own, which may be long
SECONDS_TO_MOVE = 10.0  # after which a process that lives, and is moving files, is no longer waited for


# Files


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a new path beside the file ``path`` to write to; on success it takes the place of the file, whole and on the disk.

    Through a symbolic link it is the link's target that is replaced; the new file has the mode and the owner of the old one.

    Raises:
        ValueError: ``check_writable``'s.
        OSError: the file could not be written; it names the file, and the old one is still there.
    """
    check_writable(path)
    place = Path(os.path.realpath(path))
    with named(path):
        new, lock = scratch(place.parent)
        try:
            yield new
            with suppress(FileNotFoundError):
                old = os.stat(place)
                os.chmod(new, stat.S_IMODE(old.st_mode))
                with suppress(OSError):  # only the administrator may give files away
                    os.chown(new, old.st_uid, old.st_gid)
            sync(new)
            os.replace(new, place)
            sync(place.parent)
        finally:
            new.unlink(missing_ok=True)
            os.close(lock)


def write_whole(path: Path, text: str) -> None:
    """Writes a text file that is either the old one or the whole new one, whatever happens meanwhile, in a folder that exists.

    What is no regular file, such as a device or a pipe, is written to. Raises as ``replacing``.
    """
    written = text.encode("utf8")
    check_writable(path)
    if is_stream(path):
        with named(path), open(path, "wb") as file:
            file.write(written)
    else:
        with replacing(path) as new:
            new.write_bytes(written)


def check_writable(path: Path | None) -> None:
    """Says before a long run, and not after it, that its result could not be written to a file. None and "-" are no files.

    Raises:
        ValueError: it is a folder or read-only, its folder does not exist or cannot be written to, or it has no possible name.
    """
    if path is None or str(path) == "-":
        return
    try:
        there = os.stat(path)
    except FileNotFoundError:
        there = None
    except (OSError, ValueError) as error:  # a name that is too long, links in a circle, a zero byte
        raise ValueError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}: give another file") from error
    if there is not None and stat.S_ISDIR(there.st_mode):
        raise ValueError(f"{path} cannot be written: it is a folder: give a file")
    if there is not None and not (there.st_mode & 0o222 and os.access(path, os.W_OK)):  # the administrator may write to all
        raise ValueError(f"{path} cannot be written: it is read-only: give another file, or make it writable")
    folder = Path(os.path.realpath(path)).parent
    if not is_stream(path) and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise ValueError(f"{path} cannot be written: give a file in a folder that exists and that you may write to")


def is_stream(path: Path) -> bool:
    """Whether something is written to and not replaced: a device, a pipe, or what this process has open by a number."""
    by_number = os.path.realpath(os.path.dirname(os.path.abspath(path))).startswith(("/proc/", "/dev/"))
    return os.path.exists(path) and (by_number or not stat.S_ISREG(os.stat(path).st_mode))


def scratch(folder: Path) -> tuple[Path, int]:
    """A new empty file in a folder, and a lock on it, which is freed by closing it; files that dead processes left there go."""
    for left in folder.glob(f"{SCRATCH}*"):
        with suppress(OSError):  # it is gone meanwhile, or another user's
            fd = os.open(left, os.O_RDONLY)
            if lock(fd):
                left.unlink()
            os.close(fd)
    while True:
        path = folder / f"{SCRATCH}{secrets.token_hex(8)}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if lock(fd) and os.fstat(fd).st_nlink:  # else another process has taken it for one of the dead
            return path, fd
        os.close(fd)


# Folders


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Has a folder, made where it is missing, for itself until the end; what a process that died left there is finished or undone.

    A folder that was made, and in which nothing was written, is gone afterwards.

    Raises:
        ValueError: another process has it, or it cannot be written to.
    """
    check_folder(folder)
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(folder, os.O_RDONLY)
            try:
                if not lock(fd):
                    raise ValueError(f"{folder} is being written to by another process: wait for its end, or give another folder")
                if not (folder.exists() and os.path.samestat(os.stat(folder), os.fstat(fd))):  # another process has removed it
                    continue
                finish(folder)
                yield
                return
            finally:
                os.close(fd)
    finally:
        for parent in made:
            with suppress(OSError):  # it is not empty
                parent.rmdir()


@contextmanager
def filling(folder: Path, last: str, own: Collection[str] = ()) -> Iterator[Path]:
    """Yields a new folder to write files to, which on success take their places in the ``locked`` folder, all of them.

    They replace those that were written here before, of which none is left; other files in the folder stay as they are.

    Args:
        last: the file that comes to its place last, by which readers know a whole result.
        own: files there that were written here too, and by other means.

    Raises:
        ValueError: a file is in the place of a new one, and was not written here.
        OSError: there is no room, or the like; the folder is as it was.
    """
    new = folder / NEW
    with named(folder):
        try:
            new.mkdir()
            yield new
            names = sorted((file.name for file in new.iterdir()), key=lambda name: (name == last, name))
            old = {*manifest(folder), *own}
            if foreign := next((name for name in names if name not in old and os.path.lexists(folder / name)), None):
                raise ValueError(f"{folder / foreign} was not written by inspector: move it away, and try again")
            (new / MANIFEST).write_text(json.dumps(dict(files=names, gone=sorted(old - set(names)))), encoding="utf8")
            for file in (*new.iterdir(), new):
                sync(file)
            new.rename(folder / READY)  # from here on the result is whole
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        with uninterrupted():
            move(folder)


def settle(folder: Path) -> None:
    """What must come before a folder is read: what a process that died left there is finished or undone; one that lives is waited for.

    Raises:
        ValueError: that is not possible.
    """
    until = time.monotonic() + SECONDS_TO_MOVE
    while any(os.path.lexists(folder / name) for name in (READY, NEW)):
        try:
            fd = os.open(folder, os.O_RDONLY)
            try:
                if lock(fd):
                    finish(folder)
                    return
            finally:
                os.close(fd)
        except OSError as error:
            if os.path.lexists(folder / READY):
                raise ValueError(
                    f"{folder}: writing it was cut off, and cannot be finished ({error.strerror}): let it be written to once"
                ) from error
            return
        if not os.path.lexists(folder / READY):  # whoever is writing has not yet come to what is read
            return
        if time.monotonic() > until:
            raise ValueError(f"{folder} is being written to by another process: try again")
        time.sleep(0.05)


def finish(folder: Path) -> None:
    """In a folder whose lock is held: moves the files of a whole result to their places, and removes those of none."""
    if os.path.lexists(folder / READY):
        with uninterrupted():
            move(folder)
    shutil.rmtree(folder / NEW, ignore_errors=True)


def move(folder: Path) -> None:
    """Moves the files that are ready to their places. It may be cut off anywhere, and is then begun again."""
    ready = folder / READY
    if ready.is_symlink() or (ready / MANIFEST).is_symlink():
        raise ValueError(f"{ready} was not written by inspector: remove it")
    if (ready / MANIFEST).exists():
        names, gone = read_manifest(ready)
        for name in names:
            if os.path.lexists(ready / name):
                os.replace(ready / name, folder / name)
        for name in gone:
            (folder / name).unlink(missing_ok=True)
        sync(folder)
        os.replace(ready / MANIFEST, folder / MANIFEST)
    shutil.rmtree(ready)
    sync(folder)


def manifest(folder: Path) -> Collection[str]:
    """The names of the files in a folder that were written here."""
    return read_manifest(folder)[0] if (folder / MANIFEST).is_file() else ()


def read_manifest(folder: Path) -> tuple[list[str], list[str]]:
    """The files that a manifest names, and those that go where it comes. Raises ``ValueError``."""
    path = folder / MANIFEST
    try:
        told = json.loads(path.read_text(encoding="utf8"))
        files, gone = told["files"], told["gone"]
        if not all(type(name) is str and name not in ("", ".", "..") and Path(name).name == name for name in [*files, *gone]):
            raise ValueError("a name that leaves the folder")  # whoever handed the folder over may have written it
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} was not written by inspector, or is damaged: remove it") from error
    return files, gone


def new_folder(path: str | Path | None) -> Path | None:
    """A folder to write to, refused where it would mix with what is there; None stays None. What dead processes left is not there.

    Raises:
        ValueError: it is a file, not empty, or cannot be written to.
    """
    folder = None if path is None else Path(path)
    if folder is not None:
        check_folder(folder)
        if folder.exists() and (READY in os.listdir(folder) or set(os.listdir(folder)) - {NEW}):
            raise ValueError(f"{folder} is not empty: give a folder that is new or empty")
    return folder


def check_folder(folder: Path) -> None:
    """Says before a long run, and not after it, that its result could not be written to a folder, which may be missing yet.

    Raises:
        ValueError: it is a file, it or the first folder above it that exists cannot be written to, or its name is not possible.
    """
    try:
        there = next(parent for parent in (folder, *folder.absolute().parents) if os.path.lexists(parent))
        os.stat(there)
        os.path.lexists(folder) or os.lstat(there / ("n" * max(len(os.fsencode(part)) for part in folder.parts)))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} cannot be written: {getattr(error, 'strerror', None) or error}: give another folder") from error
    if not there.is_dir():
        raise ValueError(f"{there} is a file: give a folder" if there == folder else f"{folder} cannot be written: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{folder} cannot be written: give a folder that you may write to")


# What both need


def lock(fd: int) -> bool:
    """Takes the lock of an open file or folder, which is freed by closing it or by the process's end; False if another one has it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)  # else a file system that has no locks
    return True


def sync(path: Path) -> None:
    """Waits until a file, or what a folder lists, is on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot do so with folders
            raise
    finally:
        os.close(fd)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """The system's errors in the block say which file or folder they are about."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # it is said already
            raise
        remedy = "make room, or give another place" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "give another place"
        raise OSError(f"{path} cannot be written: {error.strerror}: {remedy}") from error


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals that would end the process wait until the block is over; in other threads than the main one there are none."""
    signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        signals = []
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in signals}
    before = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)
