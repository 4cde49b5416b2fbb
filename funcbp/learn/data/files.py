"""Readers of CSV and npz files. Whatever is wrong with a file, the message names the file, the line and the column."""

from __future__ import annotations

import csv
import re
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .dataset import DataError, Dataset, split
from .idx import read_mnist

TARGET_NAMES = ("target", "label", "y")
MOST_CLASSES = 100
INTEGER = re.compile(r"[+-]?\d+")


def read(path: str | Path, seed: int = 0) -> Dataset:
    """A data set from a file, by its extension, `.csv` or `.npz`; or from a folder with MNIST's four files.

    Args:
        path: where the file or the folder is.
        seed: of the division into training, validation and test.

    Returns:
        A data set named after the file or the folder.

    Raises:
        DataError: the file's content cannot be used.
        OSError: the file cannot be read.

    Example:
        >>> import pathlib, tempfile
        >>> from funcbp import data
        >>> path = pathlib.Path(tempfile.mkdtemp(), "parity.csv")
        >>> _ = path.write_text("a,b,target\\n" + "0,0,0\\n0,1,1\\n1,0,1\\n1,1,0\\n" * 5)
        >>> data.read(path).classes
        ('0', '1')
    """
    path = Path(path)
    if path.is_dir():
        return read_mnist(path, seed)
    readers = {".csv": read_csv, ".npz": read_npz}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path} is neither a .csv nor a .npz file, nor a folder with the four files of MNIST.")
    return readers[path.suffix.lower()](path, seed)


def read_csv(path: str | Path, seed: int = 0) -> Dataset:
    """A data set from a CSV file: numbers separated by commas, one example per line, with or without column names.

    The target is the column named target, label or y, or else the last one. If it holds whole numbers, written without
    a decimal point, at most 100 different ones and each twice on average, they are classes; otherwise it is a
    regression.

    Args:
        path: where the file is.
        seed: of the division into training, validation and test.

    Returns:
        A data set named after the file.

    Raises:
        DataError: the file is empty, ragged, or holds something that is not a finite number.
        OSError: the file cannot be read.

    Example:
        >>> import pathlib, tempfile
        >>> from funcbp import data
        >>> path = pathlib.Path(tempfile.mkdtemp(), "squares.csv")
        >>> _ = path.write_text("\\n".join(f"{i},{i * i}.0" for i in range(20)))
        >>> data.read_csv(path).y_train.shape  # a regression: the targets have decimal points
        (14, 1)
    """
    path = Path(path)
    rows, lines = _rows(path)
    names = [f"column {i + 1}" for i in range(len(rows[0]))]
    target = len(names) - 1
    if _is_header(rows):
        header = rows[0]
        names = [f"column {name!r}" for name in header]
        found = [header_i for n in TARGET_NAMES for header_i, h in enumerate(header) if h.lower() == n]
        target = found[0] if found else target
        rows, lines = rows[1:], lines[1:]
    if len(names) < 2:
        raise DataError(f"{path} has one column, and needs inputs and a target, separated by commas.")
    _check_target_is_numeric(path, rows, lines, names, target)
    table = _numbers(path, rows, lines, names)
    x, y = np.delete(table, target, 1), table[:, target]
    labels = np.unique(y)
    few = len(labels) <= MOST_CLASSES and 2 * len(labels) <= len(y)
    if few and all(INTEGER.fullmatch(row[target]) for row in rows):
        return split(path.stem, x, np.searchsorted(labels, y), classes=tuple(f"{c:.0f}" for c in labels), seed=seed)
    return split(path.stem, x, y[:, None], seed=seed)


def _rows(path: Path) -> tuple[list[list[str]], list[int]]:
    """The lines that are not blank, split at the commas, without space around cells, and their numbers in the file."""
    rows, lines = [], []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        try:
            for row in reader:
                if any(cells := [cell.strip() for cell in row]):
                    rows.append(cells)
                    lines.append(reader.line_num)
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: this is not CSV ({error}).") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not a text file in UTF-8.") from error
    if not rows:
        raise DataError(f"{path} is empty.")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(rows[0]):
            raise DataError(f"{path}, line {line}: {len(row)} values, where line {lines[0]} has {len(rows[0])}.")
    return rows, lines


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_header(rows: list[list[str]]) -> bool:
    """Whether the first line holds names: text above a number, or nothing but text."""
    text = [bool(cell) and not _is_number(cell) for cell in rows[0]]
    if all(text):
        return True
    below = rows[1] if len(rows) > 1 else rows[0]
    return any(t and _is_number(cell) for t, cell in zip(text, below, strict=True))


def _check_target_is_numeric(path: Path, rows: list[list[str]], lines: list[int], names: list[str], i: int) -> None:
    for row, line in zip(rows, lines, strict=True):
        if row[i] and not _is_number(row[i]):
            raise DataError(
                f"{path}, line {line}: the target, {names[i]}, is text ({row[i]!r}). Write the classes as "
                "whole numbers: 0, 1, 2, ..."
            )


def _numbers(path: Path, rows: list[list[str]], lines: list[int], names: list[str]) -> np.ndarray:
    """The rows as numbers, or an error that names the first cell that is none."""
    try:
        table = np.array([[float(cell) for cell in row] for row in rows])
        if np.all(np.isfinite(table)):
            return table.reshape(len(rows), len(names))
    except ValueError:
        pass
    for row, line in zip(rows, lines, strict=True):
        for cell, name in zip(row, names, strict=True):
            where = f"{path}, line {line}, {name}"
            if not cell:
                raise DataError(f"{where}: the value is missing.")
            if not _is_number(cell):
                raise DataError(f"{where}: {cell!r} is not a number.")
            if not np.isfinite(float(cell)):
                raise DataError(f"{where}: {cell!r} is not a finite number; remove the line or fill in a value.")
    raise AssertionError("every cell is a finite number")


def read_npz(path: str | Path, seed: int = 0) -> Dataset:
    """A data set from an npz file with the arrays `x` and `y`, or `x_train`, `y_train`, `x_test` and `y_test`.

    Inputs of shape (examples, inputs) are tables; (examples, height, width) and (examples, height, width, channels) are
    images. Integer targets of shape (examples,) are classes; floating-point ones are a regression.

    Args:
        path: where the file is.
        seed: of the division into training, validation and, if it is not given, test.

    Returns:
        A data set named after the file.

    Raises:
        DataError: the file is no npz file, or its arrays cannot be used.
        OSError: the file cannot be read.

    Example:
        >>> import pathlib, tempfile, numpy as np
        >>> from funcbp import data
        >>> path = pathlib.Path(tempfile.mkdtemp(), "images.npz")
        >>> np.savez(path, x=np.random.rand(20, 5, 4), y=np.arange(20) % 2)
        >>> data.read_npz(path).image_shape
        (5, 4, 1)
    """
    path = Path(path)
    with path.open("rb") as raw:
        arrays = _arrays(path, raw)
    given_test = {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys()
    if not given_test and not {"x", "y"} <= arrays.keys():
        raise DataError(
            f"{path} needs the arrays x and y, or x_train, y_train, x_test and y_test, and holds "
            f"{', '.join(sorted(arrays)) or 'none'}."
        )
    x, y = (arrays["x_train"], arrays["y_train"]) if given_test else (arrays["x"], arrays["y"])
    parts = [(x, y), (arrays["x_test"], arrays["y_test"])] if given_test else [(x, y)]
    for part_x, part_y in parts:
        _checked_arrays(path, part_x, part_y, x.shape[1:])
    y_test = parts[-1][1]
    if y_test.shape[1:] != y.shape[1:] or (y_test.dtype.kind == "f") != (y.dtype.kind == "f"):
        raise DataError(
            f"{path}: y_train and y_test must be of one kind, and are {y.dtype}{list(y.shape)} and "
            f"{y_test.dtype}{list(y_test.shape)}."
        )
    image_shape = (*x.shape[1:], 1)[:3] if x.ndim > 2 else None
    dtype = np.result_type(x, np.float32)
    flat = [(part_x.reshape(len(part_x), -1).astype(dtype), part_y) for part_x, part_y in parts]
    is_class = y.dtype.kind in "iub" and (y.ndim == 1 or y.shape[1] == 1)
    classes = None
    if is_class:
        labels = np.unique(np.concatenate([part_y.ravel() for _, part_y in parts]))
        classes = tuple(str(int(c)) for c in labels)
        flat = [(part_x, np.searchsorted(labels, part_y.ravel())) for part_x, part_y in flat]
    else:
        flat = [(part_x, part_y.reshape(len(part_y), -1).astype(np.float64)) for part_x, part_y in flat]
    test = flat[1] if given_test else None
    return split(path.stem, *flat[0], classes=classes, image_shape=image_shape, seed=seed, test=test)


def _arrays(path: Path, raw: BinaryIO) -> dict[str, np.ndarray]:
    """All arrays in the file, in memory: only reading them shows whether they are whole."""
    try:
        with np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # zip, zlib, numpy and Python's own parser have many words for one thing
        raise DataError(f"{path} is not an npz file of plain arrays, as numpy.savez writes it ({error}).") from error


def _checked_arrays(path: Path, x: np.ndarray, y: np.ndarray, shape: tuple[int, ...]) -> None:
    if x.ndim not in (2, 3, 4) or x.dtype.kind not in "iubf" or x.shape[1:] != shape or not x[:1].size:
        raise DataError(
            f"{path}: inputs must be numbers of shape (examples, inputs), (examples, height, width) or "
            f"(examples, height, width, channels), and are {x.dtype}{list(x.shape)}."
        )
    if y.dtype.kind not in "iubf":
        raise DataError(f"{path}: targets must be numbers, and are {y.dtype}. Write the classes as 0, 1, 2, ...")
    if y.ndim not in (1, 2) or len(y) != len(x):
        raise DataError(
            f"{path}: {len(x)} inputs need targets of shape ({len(x)},) or ({len(x)}, targets), and there are "
            f"targets of shape {y.shape}."
        )
    for what, array in (("inputs", x), ("targets", y)):
        if not np.all(np.isfinite(array)):
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise DataError(f"{path}: the {what} hold {array[where]} at {list(where)}, which is not a finite number.")
