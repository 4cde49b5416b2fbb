"""Packed files, read no further than what is reasonable: a few bytes can unfold to more than the memory."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import importlib
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any

from .dataset import DataError

MOST = 4 * 2**30  # bytes that a packed file may unfold to
Reader = Callable[[IO[bytes]], Any]
PACKED: dict[str, tuple[str, bytes, Reader]] = {  # by how names end: what it is called, how it begins, how it is read
    ".gz": ("gzip", rb"\x1f\x8b", gzip.open),
    ".bz2": ("bzip2", rb"BZh[1-9]1AY&SY", bz2.open),
    ".xz": ("xz", rb"\xfd7zXZ\0", lzma.open),
}
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError, NotImplementedError)


def unpacked_name(path: Path) -> Path:
    """What a file is called when it is unpacked: `t.csv` for `t.csv.gz`, for a zip archive the only file in it.

    Raises:
        DataError: a zip archive is damaged, or holds another number of files than one.
        OSError: a zip archive cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".zip":
        return path.with_name(PurePosixPath(_only_file(path, path.read_bytes())).name)
    return path.with_suffix("") if suffix in PACKED else path


def unfolded(path: Path) -> bytes:
    """The content of a file, unpacked if it is packed by gzip, bzip2, xz, or as the only file of a zip archive.

    Raises:
        DataError: it is damaged, unfolds to too much, or a zip archive holds another number of files than one.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    readers = [(name, read) for name, begins, read in PACKED.values() if re.match(begins, content)]
    if path.suffix.lower() == ".zip":
        inside = _only_file(path, content)
        readers = [("zip", lambda file: zipfile.ZipFile(file).open(inside))]  # noqa: SIM115 (opened by `with`)
    for called, read in readers:
        try:
            with read(io.BytesIO(content)) as file:
                content = file.read(MOST + 1)
        except DAMAGED as error:
            why = "needs a password: unpack it" if "encrypted" in str(error) else f"is truncated or damaged ({error})"
            raise DataError(f"{path} is a {called} file that {why}.") from error
    _check(path, len(content))
    return content


def _only_file(path: Path, content: bytes) -> str:
    """The name of the one file in a zip archive; what macOS puts beside it does not count."""
    try:
        names = [i.filename for i in zipfile.ZipFile(io.BytesIO(content)).infolist() if not i.is_dir()]
    except DAMAGED as error:
        raise DataError(f"{path} is a zip file that is truncated or damaged ({error}).") from error
    names = [n for n in names if not n.startswith("__MACOSX/") and PurePosixPath(n).name != ".DS_Store"]
    if len(names) != 1:
        held = f"{len(names)} files ({', '.join(names[:5])}{', ...' * (len(names) > 5)})" if names else "no file"
        raise DataError(f"{path} holds {held}, and one is read: unpack it, and name the file or folder in it.")
    return names[0]


def check_unfolded(path: Path, content: bytes, suffix: str) -> None:
    """Raise if a .npz, .xlsx or .parquet file says that it unfolds to too much; damaged ones are not judged."""
    size = 0
    with contextlib.suppress(Exception):  # of a damaged file: whoever reads it says what is wrong
        if suffix in (".npz", ".xlsx", ".xlsm"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                size = sum(i.file_size for i in archive.infolist() if i.compress_type != zipfile.ZIP_STORED)
        elif suffix == ".parquet":
            metadata = importlib.import_module("pyarrow.parquet").ParquetFile(io.BytesIO(content)).metadata
            size = metadata.num_rows * metadata.num_columns * 8
    _check(path, size)


def _check(path: Path, size: int) -> None:
    if size > MOST:
        raise DataError(f"{path} unfolds to more than {MOST / 2**30:g} GiB, and is not read: unpack it first.")
