"""Files that are whole, or as they were: whatever ends the process that writes them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

__all__ = ["unfinished", "write_atomically"]


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object], keep: Path | None = None) -> None:
    """Write a file so that it is never seen half written: beside its place first, and then moved there.

    A link to a file stays one. What is no file, such as a pipe or /dev/stdout, is written to as it is.

    Args:
        path: where the file shall be; what was there is replaced.
        write: writes the content to the binary file it is given.
        keep: what was there is kept under this name, if one is given.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; then `path` is as it was.

    Example:
        >>> import pathlib, tempfile
        >>> from funcbp import train
        >>> path = pathlib.Path(tempfile.mkdtemp(), "note.txt")
        >>> train.write_atomically(path, lambda file: file.write(b"whole"))
        >>> path.read_text()
        'whole'
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        with open(path, "wb") as stream:
            write(stream)
        return
    place = path.resolve() if path.is_symlink() else path
    try:
        _write_beside(place, write, keep)
    except OSError as error:  # of the file that was asked for, and not of the one beside it
        error.filename, error.filename2 = str(path), None
        raise
    _flush(place.parent)


def _write_beside(path: Path, write: Callable[[BinaryIO], object], keep: Path | None) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    handle, new = tempfile.mkstemp(dir=path.parent, prefix=unfinished(path))
    old = f"{new}.old"
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(new, 0o666 & ~_umask())
        if keep and path.exists():  # at no moment is there nothing at `path`
            _give_second_name(path, old)
            os.replace(old, keep)
            Path(old).unlink(missing_ok=True)  # two names of one file are not moved onto each other
        os.replace(new, path)
    except BaseException:
        for left in (new, old):
            Path(left).unlink(missing_ok=True)
        raise


def unfinished(path: Path) -> str:
    """How the names begin of the files in which `path` is written before it is whole."""
    return f".{path.name}.funcbp-new-"


def _give_second_name(path: Path, name: str) -> None:
    try:
        os.link(path, name)
    except OSError:  # a file system without links
        shutil.copy2(path, name)


def _flush(folder: Path) -> None:
    """That a file has another name is written to the disk, too, where the system can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
