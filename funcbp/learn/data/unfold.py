"""Compressed files, read no further than what is reasonable: a few bytes can unfold to more than the memory."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import io
import zipfile
import zlib
from pathlib import Path

from .dataset import DataError

MOST = 4 * 2**30  # bytes that a compressed file may unfold to
GZIP = b"\x1f\x8b"


def unfolded(path: Path) -> bytes:
    """The content of a file, unpacked if it is gzipped.

    Raises:
        DataError: it is damaged, or unfolds to too much.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    if not content.startswith(GZIP):
        return content
    try:
        with gzip.open(io.BytesIO(content)) as file:
            content = file.read(MOST + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is a gzip file that is truncated or damaged ({error}).") from error
    _check(path, len(content))
    return content


def check_unfolded(path: Path, content: bytes, suffix: str) -> None:
    """Raise if a .npz, .xlsx or .parquet file says that it unfolds to too much; damaged ones are not judged."""
    size = 0
    with contextlib.suppress(Exception):  # of a damaged file: whoever reads it says what is wrong
        if suffix in (".npz", ".xlsx"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                size = sum(i.file_size for i in archive.infolist() if i.compress_type != zipfile.ZIP_STORED)
        elif suffix == ".parquet":
            metadata = importlib.import_module("pyarrow.parquet").ParquetFile(io.BytesIO(content)).metadata
            size = metadata.num_rows * metadata.num_columns * 8
    _check(path, size)


def _check(path: Path, size: int) -> None:
    if size > MOST:
        raise DataError(f"{path} unfolds to more than {MOST / 2**30:g} GiB, and is not read: unpack it first.")
