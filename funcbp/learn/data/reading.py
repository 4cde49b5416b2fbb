"""Tables in files, read by pandas: what is decided here is the separator, and whether the first line holds names."""

from __future__ import annotations

import csv
import importlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import numpy as np

from ...jaxpr import extras
from .dataset import DataError, counted
from .unfold import check_unfolded, unfolded, unpacked_name

if TYPE_CHECKING:
    from types import ModuleType

    from pandas import DataFrame

TARGET_NAMES = ("target", "label", "labels", "class", "y", "species", "survived", "outcome", "diagnosis")
TEXT = (".csv", ".tsv", ".data", ".txt")
SUFFIXES = (*TEXT, ".parquet", ".xlsx", ".xlsm", ".json", ".jsonl", ".ndjson", ".arff", ".npy")
MARKS = ("#", "%", "|")  # that begin a remark
SEPARATORS = {"\t": "\t", ";": ";", "|": "|", ",": ",", " ": r"\s+"}  # by preference, and what pandas calls them
_WANTED = {  # what another form of the same kind of file is to be
    ".json": " What is read is a list of records, as of pandas' to_json(orient='records'), or one in each line.",
    ".npy": " What is read is an array of rows and columns; of images and their classes make one .npz, with x and y.",
}


class Table(NamedTuple):
    """A table, and where in its file each row is.

    Attributes:
        frame: a data frame of pandas, whose columns are called as the file calls them, or `column 1` and so on.
        named: whether the file names its columns.
        where: what to call a row, `line 7`.
        notes: what was noticed as it was read.
    """

    frame: DataFrame
    named: bool
    where: Callable[[int], str]
    notes: tuple[str, ...]


def load_table(path: Path) -> Table:
    """The table in a file, by its extension.

    Raises:
        DataError: it is not what its name says.
        ImportError: pandas is not installed.
        OSError: the file cannot be read.
    """
    suffix = unpacked_name(path).suffix.lower()
    content = unfolded(path)
    pandas = import_pandas()
    if suffix in TEXT:
        return _text_table(path, content, pandas)
    check_unfolded(path, content, suffix)
    sheets = suffix in (".xlsx", ".xlsm")
    read = {
        ".parquet": pandas.read_parquet,
        ".xlsx": lambda file: pandas.read_excel(file, sheet_name=None),
        ".json": lambda file: pandas.read_json(file, lines=_has_lines_of_records(content)),
        ".jsonl": lambda file: pandas.read_json(file, lines=True),
        ".arff": lambda file: _of_weka(io.TextIOWrapper(file, "utf-8"), pandas),
        ".npy": lambda file: _rows_of(np.lib.format.read_array(file, allow_pickle=False), pandas),
    }[{".xlsm": ".xlsx", ".ndjson": ".jsonl"}.get(suffix, suffix)]
    try:
        frame = read(io.BytesIO(content))
    except ImportError as error:
        raise ImportError(f'{path} needs another library ({error}): pip install "funcbp[data]".') from error
    except Exception as error:  # every format has its own words
        raise DataError(
            f"{path} is not a table in {suffix[1:]} format ({_first_line(error)}).{_WANTED.get(suffix, '')}"
        ) from error
    if suffix == ".json" and len(frame.columns) == 1 and frame.iloc[:, 0].map(lambda v: isinstance(v, dict)).any():
        raise DataError(f"{path} has its records below {frame.columns[0]!r}.{_WANTED[suffix]}")
    notes: tuple[str, ...] = ()
    if isinstance(frame, dict):
        name = next((name for name, sheet in frame.items() if len(sheet)), next(iter(frame)))
        others = [other for other in frame if other != name]
        notes = (f"Left out the sheets {', '.join(others)}",) if others else ()
        frame = frame[name]
    frame.columns = [str(name) for name in frame.columns]
    if not len(frame):
        raise DataError(f"{path} is empty.")
    if sheets:
        _check_names(path, frame)
    if suffix == ".parquet" and any(name is not None for name in frame.index.names):
        frame = frame.reset_index()  # pandas has written a column as the rows' names
        frame.columns = [str(name) for name in frame.columns]
    above = 2 if sheets else 1  # as the spreadsheet counts, with the row of names
    named = not (suffix == ".npy" and frame.columns[0] == "column 1")
    return Table(frame.reset_index(drop=True), named, lambda i: f"row {i + above}", notes)


def _of_weka(file: TextIO, pandas: ModuleType) -> DataFrame:
    """A table of WEKA, which SciPy reads, with its words as text."""
    frame = pandas.DataFrame(importlib.import_module("scipy.io.arff").loadarff(file)[0])
    for name in [name for name in frame.columns if frame[name].dtype.kind == "O"]:
        frame[name] = frame[name].str.decode("utf-8").mask(frame[name] == b"?")
    return frame


def _rows_of(array: np.ndarray, pandas: ModuleType) -> DataFrame:
    """An array of numpy as a table: of fields with names, or of rows and columns."""
    if array.dtype.names and array.ndim == 1:
        return pandas.DataFrame(array)
    if array.ndim != 2:
        raise ValueError(f"its array is of shape {list(array.shape)}")
    return pandas.DataFrame(array, columns=[f"column {i + 1}" for i in range(array.shape[1])])


def _check_names(path: Path, frame: DataFrame) -> None:
    """Raise if the first row of a spreadsheet does not name its columns; the first may be without, as pandas writes."""
    nameless = [bool(re.fullmatch(r"Unnamed: \d+", name)) for name in frame.columns]
    if all(nameless):
        raise DataError(
            f"{path} has nothing in its first row, where the columns' names should be: begin the table there."
        )
    for i, name in enumerate(frame.columns[1:], 2):
        if nameless[i - 1] and frame[name].notna().any():
            raise DataError(
                f"{path}, row 1, has no name for column {i}, which holds values. If that row is a title, remove it; if "
                "cells are merged there, give each column a name of its own."
            )


def import_pandas() -> Any:
    """pandas, or an error that says how to have it."""
    return extras.load("pandas", "Tables are read by")


def _text_table(path: Path, content: bytes, pandas: ModuleType) -> Table:
    text, encoding = _decoded(path, content)
    text, remarks = _without_remarks(text)
    if said := re.match(r"sep=(.)\n", text):  # as Excel is told
        text = text[said.end() - 1 :]
    separator = said[1] if said and said[1] in SEPARATORS else _separator(text)
    _check_dense(path, text)
    lines, first, below = _scan(path, text, separator)
    decimal = "," if separator != "," and _has_decimal_commas(text, separator) else "."
    rows_named = bool(below) and len(below[0]) > len(first)  # as R writes them
    if rows_named and len({row[0] for row in below}) < len(below):
        raise DataError(
            f"{path} names {len(first)} columns in line {lines[0]}, and each row has {len(below[0])} values."
        )
    named = rows_named or _is_header(first, below, decimal)
    if len(lines) == named:
        raise DataError(f"{path} has names of columns, and no line below them.")
    _check_thousands(path, first, below, decimal, separator)
    frame = pandas.read_csv(
        io.StringIO(text),
        sep=SEPARATORS[separator],
        header=0 if named else None,
        decimal=decimal,
        na_values=["?"],
        skipinitialspace=True,
        index_col=0 if rows_named else False,
        low_memory=False,
    )
    places = lines[named:]
    exact = len(frame) == len(places)  # pandas and the scan agree on what a line is
    if exact:
        whole = ~frame.isna().all(axis=1).to_numpy()
        frame, places = frame[whole].reset_index(drop=True), [p for p, w in zip(places, whole, strict=True) if w]
    if not len(frame):
        raise DataError(f"{path} is empty.")
    frame = frame.reset_index(drop=True)
    frame.columns = [str(n).strip() if named else f"column {i + 1}" for i, n in enumerate(frame.columns)]
    words = {"\t": "tabs", ";": "semicolons", "|": "bars", " ": "blanks"}
    how = [f"{words[separator]} between cells"] if separator != "," and len(first) > 1 else []
    how += ["commas in decimals"] if decimal == "," else []
    how += [f"the encoding {encoding}"] if encoding != "utf-8" else []
    notes = [f"Read with {' and '.join(how)}"] if how else []
    notes += ["Left out the names of the rows"] if rows_named else []
    notes += [f"Left out {counted(remarks, 'line')} of remarks above the table"] if remarks else []
    return Table(frame, named, lambda i: f"line {places[i]}" if exact else f"row {i + 1}", tuple(notes))


def _decoded(path: Path, content: bytes) -> tuple[str, str]:
    marks = {b"\xff\xfe\0\0": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
    tried = [e for mark, e in marks.items() if content.startswith(mark)][:1] or ["utf-8", "cp1252", "latin-1"]
    if content.startswith(b"PK\3\4"):
        raise DataError(f"{path} is not a text file but a zip archive: unpack it, or call it .xlsx if it is one.")
    if b"\0" in content[:4096] and tried[0] not in ("utf-16", "utf-32"):
        raise DataError(f"{path} is not a text file, or is one in UTF-16 that does not say so: save it in UTF-8.")
    for encoding in tried:
        try:
            text = content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError:
            continue
        if not text.strip(" \t\n;,"):
            raise DataError(f"{path} is empty.")
        if re.match(r"\s*<(!doctype|html)", text, re.I):
            raise DataError(f"{path} is a web page and no table: download the file itself.")
        return text, "utf-8" if encoding == "utf-8-sig" else encoding
    raise DataError(f"{path} is not a text file in {tried[0]}, as it says it is.")


def _without_remarks(text: str) -> tuple[str, int]:
    """The text with empty lines in the place of the remarks above its table, and how many these are.

    A remark begins with a mark and is parted into another number of cells than the first line that has no mark; if it
    has as many, it names the columns.
    """
    lines = text.split("\n")
    begins = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith(MARKS)), 0)
    marked = [i for i in range(begins) if lines[i].strip()]
    if not marked:
        return text, 0
    separator = _separator("\n".join(lines[begins:]))
    cells = lambda line: len(next(csv.reader([line.strip(" ")], delimiter=separator, skipinitialspace=True), []))
    if cells(lines[marked[-1]]) == cells(lines[begins]) > 1:
        del marked[-1]
    for i in marked:
        lines[i] = ""
    return "\n".join(lines), len(marked)


def _check_dense(path: Path, text: str) -> None:
    """Raise if the lines are a target with pairs of an index and a value, as svmlight and libsvm write them."""
    lines = [line for line in text.split("\n", 20)[:20] if line.strip()]
    if all(re.fullmatch(r"\s*\S+(\s+\d+:\S+)+\s*", line) for line in lines):
        raise DataError(
            f"{path} is a table in the format of svmlight: make arrays of it: x, y = "
            f"sklearn.datasets.load_svmlight_file({path.name!r}); numpy.savez('{path.stem}.npz', x=x.toarray(), y=y)."
        )


def _separator(text: str) -> str:
    """The first of the separators that divides the first lines into equally many cells; else the commonest."""
    sample = [line.strip(" ") for line in text.split("\n", 60)[:60] if line.strip()]
    counts = {}
    for separator in SEPARATORS:
        rows = csv.reader(sample, delimiter=separator, skipinitialspace=True)
        try:
            counts[separator] = [len(row) for row in rows]
        except csv.Error:
            counts[separator] = [1]
    for separator, lengths in counts.items():
        if len(set(lengths)) == 1 and lengths[0] > 1:
            return separator
    return max(counts, key=lambda separator: (sum(n > 1 for n in counts[separator]), separator != " "))


def _scan(path: Path, text: str, separator: str) -> tuple[list[int], list[str], list[list[str]]]:
    """The numbers of the lines that hold something, the first of them, and what is below it; raise if one is ragged."""
    lines: list[int] = []
    below: list[list[str]] = []
    first: list[str] = []
    source = (line.strip(" \n") + "\n" for line in io.StringIO(text)) if separator == " " else io.StringIO(text)
    reader = csv.reader(source, delimiter=separator, skipinitialspace=True, strict=True)
    before, rows_named = 0, False
    try:
        for row in reader:
            begins, before = before + 1, reader.line_num
            if not row or (len(row) == 1 and not row[0].strip()):
                continue
            if len(lines) == 1 < len(first) and separator in " \t" and row[-1].strip():
                rows_named = len(row) == len(first) + 1
            if first and len(row) != len(first) + rows_named:
                remark = len(first) == 1 or len(row) == 1 or row[0].lstrip().startswith(MARKS)
                title = " If that is a title or a comment, remove it." if remark else ""
                raise DataError(
                    f"{path}, line {begins}: {counted(len(row), 'value')}, where line {lines[0]} has {len(first)}."
                    f"{title}"
                )
            lines.append(begins)
            if not first:
                first = [cell.strip() for cell in row]
            elif len(below) < 1000:
                below.append([cell.strip() for cell in row])
    except csv.Error as error:
        why = 'a " opens a cell and never closes it' if "end of data" in str(error) else str(error)
        raise DataError(f"{path}, line {before + 1}: this is not CSV ({why}).") from error
    full = [row for row in below[:20] if sum(map(bool, row)) > 1]
    if len(first) > 1 and sum(map(bool, first)) == 1 and full:
        raise DataError(
            f"{path}, line {lines[0]}: one value, {next(filter(None, first))!r}, in {len(first)} columns. If that is a "
            "title or a comment, remove it."
        )
    return lines, first, below


def _has_decimal_commas(text: str, separator: str) -> bool:
    between = "[ ]" if separator == " " else re.escape(separator)
    cell = rf"(?:^|{between})[ ]*-?\d*%s\d+(?:[eE][+-]?\d+)?[ ]*(?={between}|$)"
    head = text[:20000]
    return bool(re.search(cell % ",", head, re.M)) and not re.search(cell % r"\.", head, re.M)


def _check_thousands(path: Path, first: list[str], below: list[list[str]], decimal: str, separator: str) -> None:
    """Raise if a column holds 900 and 1.000: what would be read as a decimal mark may be one between thousands."""
    if separator == ",":
        return
    grouped = re.compile(rf"-?[1-9]\d{{0,2}}\{decimal}\d{{3}}")
    for i, name in enumerate(first):
        cells = [row[i] for row in below if len(row) == len(first) and row[i]]
        groups = [cell for cell in cells if grouped.fullmatch(cell)]
        rest = [cell for cell in cells if not grouped.fullmatch(cell)]
        large = [cell for cell in rest if re.fullmatch(r"-?\d{3}", cell)]
        if groups and large and all(re.fullmatch(r"-?\d{1,3}", cell) for cell in rest):
            raise DataError(
                f"{path}, column {name!r} holds {large[0]} and {groups[0]}, which may be "
                f"{groups[0].replace(decimal, '')} or not: write thousands without a mark between them."
            )


def _has_lines_of_records(content: bytes) -> bool:
    return content.lstrip().startswith(b"{") and re.search(rb"}\s*\n\s*{", content) is not None


def _is_header(first: list[str], below: list[list[str]], decimal: str) -> bool:
    """Whether the first line holds names: one of a target, or text above a number, or text that never comes again."""
    if any(cell.lower() in TARGET_NAMES for cell in first):
        return True
    text = [bool(cell) and not _is_number(cell, decimal) for cell in first]
    if below and any(t and _is_number(cell, decimal) for t, cell in zip(text, below[0], strict=True)):
        return True
    return all(text) and not any(cell == row[i] for row in below for i, cell in enumerate(first))


def _is_number(cell: str, decimal: str = ".") -> bool:
    try:
        float(cell.replace(decimal, "."))
    except ValueError:
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
