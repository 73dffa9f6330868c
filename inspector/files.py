"""Files and folders written so that nothing is lost: a file whole or not at all, the files of a folder together or not at all.

A file is written beside its place, put on the disk, and renamed. The files of a folder are written to a hidden folder in it,
which is renamed once they are on the disk: from then on they are on their way, and whoever next reads or writes the folder
moves what a process that died has left there. Who writes a folder holds a lock on it, which goes with the process.
"""

import errno
import json
import os
import re
import secrets
import shutil
import stat
import sys
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
SCRATCH = re.compile(r"\.inspector-[0-9a-f]{16}")  # a file that is being written; not with its own name in it, which may be long
SECONDS_TO_MOVE = 10.0  # after which a process that lives, and is moving files, is no longer waited for


# Files


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a new path beside the file ``path`` to write to; on success it takes the place of the file, whole and on the disk.

    Through a symbolic link it is the link's target that is replaced; the new file has the mode and the owner of the old one.

    Raises:
        ValueError: ``check_writable``'s.
        OSError: the file could not be written; it names the file, and what is there is whole.
    """
    check_writable(path)
    place = Path(os.path.realpath(path))
    with named(path):
        old = os.stat(place) if place.exists() else None
        # Never readable for more people than the old one was, not even while it is written.
        new, fd = scratch(place.parent, 0o666 if old is None else stat.S_IMODE(old.st_mode) | 0o600)
        try:
            yield new
            sync(new)
            if old is not None:
                with suppress(OSError):  # only the administrator may give files away
                    os.chown(new, old.st_uid, old.st_gid)
                os.chmod(new, stat.S_IMODE(old.st_mode))
            os.replace(new, place)
            sync(place.parent)
        finally:
            try:
                new.unlink(missing_ok=True)
            finally:  # whatever comes in between
                os.close(fd)


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file that is either the old one or the whole new one, whatever happens meanwhile, in a folder that exists.

    What is no regular file, such as a device or a pipe, is written to. Raises as ``replacing``.
    """
    written = content.encode("utf8") if isinstance(content, str) else content
    check_writable(path)
    if is_stream(path):
        with named(path), open_stream(path) as file:
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
    if there is not None and stat.S_ISSOCK(there.st_mode):
        raise ValueError(f"{path} cannot be written: it is a socket: give a file")
    if there is not None and not (there.st_mode & 0o222 and os.access(path, os.W_OK)):  # the administrator may write to all
        raise ValueError(f"{path} cannot be written: it is read-only: give another file, or make it writable")
    if is_stream(path):
        return
    folder = Path(real(path)).parent
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise ValueError(f"{path} cannot be written: give a file in a folder that exists and that you may write to")
    above = os.stat(folder)
    if there is not None and above.st_mode & stat.S_ISVTX and os.geteuid() not in (0, there.st_uid, above.st_uid):
        raise ValueError(f"{path} cannot be written: it is another user's, and its folder lets nobody replace it: give another file")


def check_page(place: Path | None, name: str) -> None:
    """Refuses a page whose name does not end in .html, or that cannot be written. Raises ``ValueError``."""
    if place is not None and place.suffix != ".html":
        raise ValueError(f"{name} {place}: give a name that ends in .html")
    check_writable(place)


def is_stream(path: Path) -> bool:
    """Whether something is written to and not replaced: a device, a pipe, or what a process has open by a number."""
    return os.path.exists(path) and (not stat.S_ISREG(os.stat(path).st_mode) or by_number(path) is not None)


def by_number(path: Path) -> Path | None:
    """What a path leads to where that is a process's open file, such as /proc/self/fd/1 of /dev/stdout; else None."""
    while True:
        folder = os.path.realpath(os.path.dirname(os.path.abspath(path)))
        path = Path(folder) / os.path.basename(path)
        if folder == "/dev/fd" or re.fullmatch(r"/proc/\d+(/task/\d+)?/fd", folder):
            return path
        if not path.is_symlink():
            return None
        path = path.parent / os.readlink(path)


def open_stream(path: Path):
    """Opens what ``is_stream`` to write to. What this process has open itself goes on behind what it has written there."""
    number = by_number(path)
    if number is None or str(number.parent) not in ("/dev/fd", f"/proc/{os.getpid()}/fd"):
        return open(path, "wb")
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    return os.fdopen(os.dup(int(number.name)), "wb")


def scratch(folder: Path, mode: int) -> tuple[Path, int]:
    """A new empty file in a folder, and a lock on it, which is freed by closing it; files that dead processes left there go."""
    for name in filter(SCRATCH.fullmatch, os.listdir(folder)):
        with suppress(OSError):  # it is gone meanwhile, or another user's
            fd = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            if lock(fd):
                (folder / name).unlink()
            os.close(fd)
    while True:
        path = folder / f".inspector-{secrets.token_hex(8)}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        if lock(fd) is not False and os.fstat(fd).st_nlink:  # else another process has taken it for one of the dead
            return path, fd
        os.close(fd)


def read_json(path: Path) -> dict:
    """The object in a file that was written here. Others may have put anything in its place.

    Raises:
        ValueError: it is no file, cannot be read, or holds anything else.
    """
    try:
        if not path.is_file():  # to read a pipe would wait for ever
            raise ValueError("no file")
        found = json.loads(path.read_text(encoding="utf8"), parse_constant=not_in_json)
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}, not an object")
        return found
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise ValueError(f"{path} was not written by inspector, or is damaged ({reason}): move it away") from error


def not_in_json(name: str) -> None:
    """For ``json.loads``, which by itself reads NaN and Infinity, that JSON does not have."""
    raise ValueError(f"{name} is not in JSON")


# Folders


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Has a folder, made where it is missing, for itself until the end; what a process that died left there is finished or undone.

    A folder that was made, and in which nothing was written, is gone afterwards.

    Raises:
        ValueError: another process has it, or it cannot be written to.
    """
    check_folder(folder)
    made = [parent for parent in (folder, *folder.absolute().parents) if not parent.exists()]
    with named(folder):
        fd = lock_folder(folder)
    try:
        with named(folder):
            finish(folder)
        yield
    finally:
        try:
            for parent in made:  # under the lock: else another process could be left with a folder that is no more
                with suppress(OSError):  # it is not empty
                    parent.rmdir()
        finally:  # whatever comes in between
            os.close(fd)


def lock_folder(folder: Path) -> int:
    """Makes a folder where it is missing, and opens it with its lock. Raises ``ValueError`` as ``locked``."""
    for _ in range(100):
        with suppress(FileNotFoundError):  # another process is removing the folder that it had made
            folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(folder, os.O_RDONLY)
            got = lock(fd)
            if got is not False and folder.exists() and os.path.samestat(os.stat(folder), os.fstat(fd)):
                return fd
            os.close(fd)
            if got is False:
                raise ValueError(f"{folder} is being written to by another process: wait for its end, or give another folder")
    raise ValueError(f"{folder} cannot be written: give another folder")


@contextmanager
def filling(folder: Path, last: str, own: Collection[str] = ()) -> Iterator[Path]:
    """Yields a new folder to write files to, which on success take their places in the ``locked`` folder, all of them.

    They replace those that were written here before, of which none is left; other files in the folder stay as they are.
    Interrupted, the folder is as it was, or has all new files.

    Args:
        last: the file that comes to its place last, by which readers know a whole result.
        own: files there that were written here too, and by other means.

    Raises:
        ValueError: a file is in the place of a new one, and was not written here; the folder is as it was.
        OSError: there is no room, or the like; the folder is as it was, or whoever comes next finishes it.
    """
    new = folder / NEW
    try:
        with named(folder):
            new.mkdir()
            yield new
            names = sorted((file.name for file in new.iterdir()), key=lambda name: (name == last, name))
            old = check_places(folder, names, own)
            told = dict(files=names, gone=sorted(old - set(names)))
            (new / MANIFEST).write_text(json.dumps(told, allow_nan=False), encoding="utf8")
            for file in (*new.iterdir(), new):
                sync(file)
            os.rename(new, folder / READY)  # from here on the result is whole
            finish(folder)
    except BaseException:
        with suppress(OSError, ValueError):  # the first error is told; the rest is left to whoever comes next
            finish(folder)
        raise


def check_places(folder: Path, names: Collection[str], own: Collection[str] = ()) -> set[str]:
    """Refuses what is in the place of a file that ``filling`` would bring; what was written there before. ``own`` as there.

    Raises:
        ValueError: it was not written here.
    """
    old = {*manifest(folder), *own}
    for name in names:
        there = folder / name
        if os.path.lexists(there) and (name not in old or (there.is_dir() and not there.is_symlink())):
            raise ValueError(f"{there} was not written by inspector: move it away, and try again")
    return old


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
                got = lock(fd)
                if got or (got is None and os.path.lexists(folder / READY)):  # without locks it may be a living one's
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
    """In a folder whose lock is held: moves the files of a whole result to their places, and removes those of none.

    It may be cut off anywhere, and is then begun again.

    Raises:
        ValueError: what is there was not written here.
    """
    ready = folder / READY
    if os.path.lexists(ready):
        if ready.is_symlink() or not ready.is_dir():
            raise ValueError(f"{ready} was not written by inspector: remove it")
        if os.path.lexists(ready / MANIFEST):  # else the files have moved
            names, gone = read_manifest(ready)
            sync(folder)  # that the result is whole is on the disk before the first file of it leaves
            for name in names:
                if os.path.lexists(ready / name):
                    os.replace(ready / name, folder / name)
            for name in gone:
                with suppress(IsADirectoryError, PermissionError, FileNotFoundError):  # the user's, who has put it there since
                    os.unlink(folder / name)
            sync(folder)
            os.replace(ready / MANIFEST, folder / MANIFEST)
        shutil.rmtree(ready)
        sync(folder)
    shutil.rmtree(folder / NEW, ignore_errors=True)


def manifest(folder: Path) -> Collection[str]:
    """The names of the files in a folder that were written here."""
    return read_manifest(folder)[0] if os.path.lexists(folder / MANIFEST) else ()


def read_manifest(folder: Path) -> tuple[list[str], list[str]]:
    """The files that a manifest names, and those that go where it comes. Raises ``ValueError``."""
    told = read_json(folder / MANIFEST)
    files, gone = told.get("files"), told.get("gone")
    if (folder / MANIFEST).is_symlink() or not (isinstance(files, list) and isinstance(gone, list)) or not all(map(is_name, files + gone)):
        raise ValueError(f"{folder / MANIFEST} was not written by inspector, or is damaged: move it away")
    return files, gone


def is_name(name: object) -> bool:
    """Whether a manifest may name such a file: whoever handed the folder over may have written one that leaves it."""
    try:
        os.fsencode(name)
    except (TypeError, UnicodeEncodeError):
        return False
    return name not in ("", ".", "..") and not re.search(r"[/\\\0]", name) and not name.startswith(".inspector")


def new_folder(path: str | Path | None) -> Path | None:
    """A folder to write to, refused where it would mix with what is there; None stays None. What dead processes left is settled.

    Raises:
        ValueError: it is a file, not empty, or cannot be written to, or ``settle``'s.
    """
    folder = None if path is None else Path(path)
    if folder is not None:
        check_folder(folder)
        settle(folder)  # whoever is refused finds a whole result there
        if not is_empty(folder):
            raise ValueError(f"{folder} is not empty: give a folder that is new or empty")
    return folder


def is_empty(folder: Path) -> bool:
    """Whether nothing is in a folder, or it is missing; what dead processes left half-written is nothing."""
    return not folder.exists() or all(name == NEW or SCRATCH.fullmatch(name) for name in os.listdir(folder))


def check_folder(folder: Path) -> None:
    """Says before a long run, and not after it, that its result could not be written to a folder, which may be missing yet.

    Raises:
        ValueError: it is a file, it or the first folder above it that exists cannot be written to, or its name is not possible.
    """
    try:
        if "\0" in str(folder):
            raise ValueError(f"{str(folder)!r} cannot be written: it holds a zero byte: give another folder")
        real(folder)
        there = next(parent for parent in (folder, *folder.absolute().parents) if os.path.lexists(parent))
        longest = max((len(os.fsencode(part)) for part in folder.parts), default=0)
        for name in (there / ("n" * longest), folder / ("n" * 100)):  # what the file system takes, and how long paths in it get
            with suppress(FileNotFoundError, NotADirectoryError):
                os.lstat(name)
        if os.path.islink(there):
            with suppress(FileNotFoundError):
                os.stat(there)
    except OSError as error:
        raise ValueError(f"{folder} cannot be written: {error.strerror}: give another folder") from error
    if not there.is_dir():
        what = "a file" if there.exists() else "a link that leads nowhere"
        raise ValueError(f"{there} is {what}: give a folder" if there == folder else f"{folder} cannot be written: {there} is {what}")
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        raise ValueError(f"{folder} cannot be written: give a folder that you may write to")


# What both need


def lock(fd: int) -> bool | None:
    """Takes the lock of an open file or folder, which is freed by closing it or by the process's end.

    False: another one has it. None: there are no locks here.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def real(path: str | os.PathLike) -> str:
    """The path without links, from the root on. Raises ``ValueError`` where the current folder, which it begins at, is gone."""
    try:
        return os.path.realpath(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path} cannot be written: the current folder is gone: change to another one") from error


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
    """Errors of writing in the block, a library's too, say in one line which file or folder they are about, and what to do.

    What is said already, an error about a file elsewhere, and that the reader of a pipe has left, stay as they are.
    """
    try:
        yield
    except (ValueError, BrokenPipeError):
        raise
    except Exception as error:
        number = error_number(error)
        about = getattr(error, "filename", None)
        folder = real(path) if os.path.isdir(path) else os.path.dirname(real(path))
        if number is None or (isinstance(about, (str, os.PathLike)) and os.path.commonpath([folder, real(about)]) != folder):
            raise
        remedy = "make room, or give another place" if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "give another place"
        raise OSError(f"{path} cannot be written: {os.strerror(number)}: {remedy}") from error


def error_number(error: BaseException | None) -> int | None:
    """The system's number of what went wrong: of an error itself, in a library's words, or of what it came from; None if it has none."""
    while error is not None:
        if isinstance(error, OSError):
            return error.errno
        if found := re.search(r"\(os error (\d+)\)", str(error)):  # as what is written in Rust says it
            return int(found[1])
        error = error.__cause__ or error.__context__
    return None
