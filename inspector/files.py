"""Files and folders written whole: to a temporary one, to the disk, and then in the place of the old one."""

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, parents: bool = True):
    """Yields a new path beside ``path`` to write a file or folder to; on success it takes the place of ``path``, whole.

    Everything is on disk before the old one goes; on an error the old one stays and the new one is removed. Only of a
    folder that takes the place of another one, killing the process between two renamings leaves the old one beside it,
    in a hidden folder. A file never takes the place of a folder. Folders above ``path`` are made, unless ``parents`` is off.
    """
    path = Path(path)
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        new = scratch / path.name
        yield new
        for file in [new, *new.rglob("*")] if new.is_dir() else [new]:
            fd = os.open(file, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
        if not (path.is_dir() and new.is_dir()):
            new.replace(path)  # refused by the system where a folder would go for a file
            return
        old = scratch / "old"  # a folder that is not empty cannot be replaced in one step
        path.rename(old)
        try:
            new.replace(path)
        except BaseException:
            old.rename(path)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_writable(path: Path | None) -> None:
    """Says before a long run, and not after it, that its result could not be written.

    Raises:
        ValueError: the folder does not exist or cannot be written to, or ``path`` is a folder.
    """
    if path is None or str(path) == "-":
        return
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"{path} cannot be written: give a file in a folder that exists and that you may write to")


def write_whole(path: Path, text: str) -> None:
    """Writes a text file that is either the old one or the whole new one, whatever happens meanwhile, in a folder that exists."""
    with replacing(path, parents=False) as new:
        new.write_text(text, encoding="utf8")


def new_folder(path: str | Path | None) -> Path | None:
    """A folder to write to, refused where it would mix with what is there; None stays None.

    Raises:
        ValueError: it is a file, or not empty.
    """
    folder = None if path is None else Path(path)
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is {'not empty' if folder.is_dir() else 'a file'}: give a folder that is new or empty")
    return folder
