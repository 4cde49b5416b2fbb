"""Tables as people have them: which column is told from which others, and what is wrong where.

What is decided here is which column is the target, whether it holds classes, and how words become numbers. What is not
certain is asked for, and what is decided is said. `reading.py` reads the file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .dataset import DataError, Dataset, Input, counted, split
from .reading import TARGET_NAMES, Table, import_pandas, load_table

if TYPE_CHECKING:
    from pandas import DataFrame, Series

TASKS = ("classification", "regression")
MISSING = ("mean", "drop")
FEW, MANY = 20, 100  # whole numbers: so many different ones are classes, and more than so many are none
MOST_VALUES = 20  # of words that are inputs
MOST_LISTED = 20  # columns that are named where they are listed
SIGNED = (  # a number with the signs of shares, of money, and between thousands
    r"\(?[-+−]?\s*[€$£¥]?\s*[-+−]?(\d{1,3}([.,\s'’]\d{3})+|\d+)([.,]\d+)?\s*[%€$£¥]?\)?"
)
MEASURED = (  # a number with such signs or with a unit, as 5.2 kg, 90 km/h, -3°C or 1,5e-01
    r"[€$£¥(]?\s*[-+−]?\s*[€$£¥]?\s*[.,]?\d[\d\s.,:/'’()+−-]*"
    r"(e[-+]?\d+|[%€$£¥°]?\s?[^\W\d]{0,4}[²³]?(/[^\W\d]{1,3})?)\)?"
)
DATE = (  # with a year of four digits, or as in 1/31/24; by itself or with a time
    r"(\d{4}([-/.])\d{1,2}\2\d{1,2}|\d{1,2}([-/.])\d{1,2}\3\d{4}|\d{1,2}/\d{1,2}/\d{2}"
    r"|\d{1,2}\.? [^\W\d]{3,9}\.? \d{4})([T ]\d{1,2}:\d{2}.*)?"
)


def read_table(
    path: str | Path,
    seed: int = 0,
    *,
    target: str | int | None = None,
    task: str | None = None,
    missing: str | None = None,
    ignore: Sequence[str] = (),
) -> Dataset:
    """A data set from a table: `.csv`, `.tsv`, `.data`, `.txt`, `.parquet`, `.xlsx`, `.json`, `.arff` or `.npy`.

    Separators (tab, semicolon, bar, comma, blanks), decimal commas and encodings are found. Words among the inputs
    become a 0 or 1 for each of at most 20 values. Columns that count or name the lines, that are empty, or hold one
    value only, are left out. What was found and decided is in `about`. The file may be packed, by gzip, bzip2, xz, or
    by itself in a zip archive. JSON lines, a record in each, end in `.jsonl` or `.ndjson`.

    Args:
        path: where the file is.
        seed: of the division into training, validation and test.
        target: the name or the number, from 1, of the column to learn. If not given, it is the one named target,
            label, class, y, species, survived, outcome or diagnosis.
        task: `"classification"` or `"regression"`. If not given, words, booleans and at most 20 different whole numbers
            are classes; fractions, and more than 100 different numbers, are a regression.
        missing: what to do where values are missing: `"mean"` puts the mean of the column's training part there,
            `"drop"` leaves out the row.
        ignore: names of columns to leave out.

    Returns:
        A data set named after the file.

    Raises:
        DataError: the file cannot be read as a table, holds something that is not a finite number, or something has to
            be said: which column is the target, what its task is, what to do about missing values.
        ImportError: pandas, or what it reads the format with, is not installed.
        OSError: the file cannot be read.

    Example:
        >>> import pathlib, tempfile
        >>> from funcbp import data
        >>> path = pathlib.Path(tempfile.mkdtemp(), "pets.csv")
        >>> _ = path.write_text("weight;kind\\n" + "4,5;cat\\n30,1;dog\\n" * 10)
        >>> pets = data.read_table(path, target="kind")
        >>> pets.classes, pets.n_inputs
        (('cat', 'dog'), 1)
        >>> print(*pets.about, sep="\\n")
        Target column 'kind': 2 classes, cat 10, dog 10
        Inputs 'weight'
        Read with semicolons between cells and commas in decimals
    """
    path = Path(path)
    return of_table(path, load_table(path), seed, target=target, task=task, missing=missing, ignore=ignore)


def of_table(
    path: Path,
    table: Table,
    seed: int,
    *,
    target: str | int | None,
    task: str | None,
    missing: str | None,
    ignore: Sequence[str],
) -> Dataset:
    """The data set of a table that has been read; arguments as for `read_table`, and `path` says what to call it."""
    frame, notes = table.frame, list(table.notes)
    goal = None if target is None else _column(path, frame, target)  # whose number counts those that are ignored, too
    for name in [_column(path, frame, name) for name in ignore]:
        if name == goal:
            raise DataError(f"{path}: {_shown(name)} is to be learned, and --ignore (ignore=) leaves it out.")
        frame = frame.drop(columns=name, errors="ignore")
    goal = goal or _target(path, frame)
    if (copy := f"{goal}.1") in frame.columns:
        raise DataError(
            f"{path} has more than one {_shown(goal)}: leave out what would give it away by --ignore {copy} (ignore=)."
        )
    left_out = {name: why for name in frame.columns if name != goal and (why := _useless(frame[name], name))}
    notes += [f"Left out {_shown(name)}: {why}" for name, why in left_out.items()]
    frame = frame.drop(columns=list(left_out))
    if len(frame.columns) < 2:
        out = f" beside what was left out: {'; '.join(f'{_shown(n)}, {why}' for n, why in left_out.items())}"
        raise DataError(f"{path} has one column{out * bool(left_out)}, and needs inputs and a target.")
    frame, dropped = _without_missing(path, table, frame, goal, missing)
    notes += dropped
    where = lambda i: f"{table.where(frame.index[i])}, {_shown(goal)}"
    y, classes = as_targets(path, frame[goal].to_numpy(), where, _shown(goal), task)
    inputs = tuple(_input(path, table, frame[name]) for name in frame.columns if name != goal)
    x = encode(path, table, frame, inputs)
    about = [f"Target {_shown(goal)}: {summary_of(y, classes)}"]
    for name, values in ((goal, classes), *inputs):
        alike = Counter(value.lower() for value in values or ())
        if same := next((value for value, n in alike.items() if n > 1), None):
            them = " and ".join(repr(value) for value in values or () if value.lower() == same)
            notes.append(f"Kept apart in {_shown(name)} what differs in capitals only: {them}")
    listed = [
        f"{i.name!r}" + (f" ({counted(len(i.values), 'word')})" if i.values else "") for i in inputs[:MOST_LISTED]
    ]
    more = len(inputs) - len(listed)
    about.append("Inputs " + ", ".join(listed) + f", ... and {more:,} more" * (more > 0))
    return split(
        path.name.partition(".")[0],
        x,
        y,
        classes=classes,
        columns=inputs,
        fills=missing == "mean",
        about=(*about, *notes),
        seed=seed,
    )


def summary_of(y: np.ndarray, classes: tuple[str, ...] | None) -> str:
    """What a target holds, in words: the classes with their counts, or the range."""
    if classes is None:
        return f"numbers from {np.min(y):.4g} to {np.max(y):.4g}"
    counts = np.bincount(y, minlength=len(classes))
    shown = ", ".join(f"{name} {n:,}" for name, n in list(zip(classes, counts, strict=True))[:12])
    return f"{len(classes)} classes, {shown}" + ", ..." * (len(classes) > 12)


# --- columns ----------------------------------------------------------------------------------------------------------


def _shown(name: str) -> str:
    return name if re.fullmatch(r"column \d+", name) else f"column {name!r}"


def _column(path: Path, frame: DataFrame, wanted: str | int) -> str:
    """The column of that name, in any case, or of that number, from 1."""
    names = list(frame.columns)
    text = str(wanted).strip()
    found = [n for n in names if n == text] or [n for n in names if n.lower() == text.lower()]
    if len(found) == 1:
        return found[0]
    if re.fullmatch(r"\d+", text) and 1 <= int(text) <= len(names):
        return names[int(text) - 1]
    raise DataError(f"{path} has no column {wanted!r}. {_listed(frame)}")


def _target(path: Path, frame: DataFrame) -> str:
    found = [name for name in frame.columns if name.lower() in TARGET_NAMES]
    if len(found) == 1:
        return found[0]
    why = f"there are {' and '.join(map(repr, found))}" if found else f"none is named {', '.join(TARGET_NAMES[:6])} ..."
    raise DataError(f"Which column of {path} is to be learned? Say so by --target (target=): {why}. {_listed(frame)}")


def _listed(frame: DataFrame) -> str:
    """What the columns look like."""
    numbered = lambda i, name: name if name == _shown(name) else f"{i} {name!r}"
    shown = [f"{numbered(i, name)} ({_kind_of(frame[name])})" for i, name in enumerate(frame.columns, 1)]
    return f"The columns are {'; '.join(shown[:MOST_LISTED])}{'; ...' * (len(shown) > MOST_LISTED)}."


def _kind_of(column: Series) -> str:
    values = column.dropna()
    if not len(values):
        return "empty"
    if _holds_dates(values):
        return f"dates: {values.iloc[0]}, ..."
    numbers = _as_numbers(values)
    if numbers is None:
        words = sorted(set(map(str, values)))
        return f"{counted(len(words), 'word')}: {', '.join(w[:20] for w in words[:3])}" + (", ..." * (len(words) > 3))
    return f"numbers {numbers.min():.4g} to {numbers.max():.4g}"


def _holds_dates(values: Any) -> bool:
    """Whether at least half of a column's values are dates, or times between them."""
    if values.dtype.kind in "mM":
        return True
    return values.dtype.kind not in "biufc" and values.astype(str).str.strip().str.fullmatch(DATE).mean() >= 0.5


def _as_numbers(values: Any) -> np.ndarray | None:
    """A column's values as numbers, or None if it holds words, dates or anything else."""
    if values.dtype.kind in "biuf":
        return values.to_numpy(float, na_value=np.nan)
    if values.dtype.kind in "mMc":
        return None
    try:
        return import_pandas().to_numeric(values).to_numpy(float, na_value=np.nan)
    except (ValueError, TypeError):
        return None


def _useless(column: Series, name: str) -> str:
    """Why a column is no input; empty if it is one."""
    if not column.notna().any():
        return "it is empty"
    numbers = _as_numbers(column)
    counts = numbers is not None and np.isin(numbers[0], (0, 1)) and bool(np.all(np.diff(numbers) == 1))
    if counts and re.fullmatch(r"(unnamed: \d+|.*\bid|.*Id|.*_id|index|row|no\.?|#)", name, re.I):
        return "it counts the rows"
    whole = numbers is None or bool(np.all(numbers == np.round(numbers)))
    names = re.fullmatch(r"(?i:(.*[\W_])?(id|uuid|guid)|row[ ._]?names?|unnamed: 0)|.*[a-z](Id|ID)", name)
    texts = column.dropna().astype(str)
    if names and whole and len(texts) == len(column) and texts.is_unique:
        return "it names the rows, and each name is there once"
    if len(texts) == len(column) > 1 and texts.nunique() == 1:
        return f"it holds {texts.iloc[0][:20]!r} and nothing else"
    return ""


def _without_missing(
    path: Path, table: Table, frame: DataFrame, goal: str, missing: str | None
) -> tuple[DataFrame, list[str]]:
    """The rows to learn from, and what was left out."""
    if missing not in (None, *MISSING):
        raise DataError(f"Missing values are left out with their rows (drop) or replaced (mean), and not {missing!r}.")
    counts = {name: int(n) for name, n in frame.isna().sum().items() if n}
    if not counts:
        return frame, []
    if missing is None:
        at = frame.index[frame[next(iter(counts))].isna()][0]
        shown = ", ".join(f"{n:,} in {_shown(name)}" for name, n in counts.items())
        raise DataError(
            f"{path} has missing values: {shown}; the first is in {table.where(at)}. (Empty cells, ?, NA, None, nan "
            "and null are missing; words that are not are to be written otherwise.) Replace them by the column's mean, "
            "--missing mean (missing=), or leave out their rows, --missing drop."
        )
    lost = frame.isna().any(axis=1) if missing == "drop" else frame[goal].isna()
    notes = [f"Left out {int(lost.sum()):,} of {len(frame):,} rows, with missing values"] if lost.any() else []
    if missing == "mean" and (filled := sum(n for name, n in counts.items() if name != goal)):
        notes.append(f"Put the mean in the place of {filled:,} missing values")
    return frame[~lost], notes


def _input(path: Path, table: Table, column: Series) -> Input:
    """How a column becomes inputs: a number, or a 0 or 1 for each of its values."""
    values = column.dropna()
    if _as_numbers(values) is not None:
        return Input(str(column.name), None)
    where = f"{path}, {_shown(str(column.name))}"
    texts = values.astype(str)
    if values.map(lambda value: isinstance(value, dict | list | np.ndarray)).any():
        raise DataError(
            f"{where} holds lists or records, such as {texts.iloc[0][:40]}, and an input is one number: give each of "
            "them a column of its own, or leave this one out by --ignore (ignore=)."
        )
    if _holds_dates(values):
        raise DataError(
            f"{where} holds dates, such as {texts.iloc[0]!r}, and these are no inputs: leave the column out by "
            "--ignore (ignore=), or put numbers that mean something in its place, such as days or the hour."
        )
    numbers = import_pandas().to_numeric(texts, errors="coerce").notna()
    words = sorted({text.strip() for text in texts})
    meant = texts.str.fullmatch(MEASURED if len(words) > MOST_VALUES else SIGNED)
    if meant.mean() >= 0.5:  # most of it is numbers, or written with the signs that are in numbers
        first = values[~numbers].index[0]
        raise DataError(
            f"{path}, {table.where(first)}, {_shown(str(column.name))}: {values[first]!r} is not a number. "
            "A number is digits and a point alone; where one is missing, leave the cell empty. Or leave the column out "
            "by --ignore (ignore=)."
        )
    if len(words) > MOST_VALUES:
        raise DataError(
            f"{where} holds {len(words):,} different words, and at most {MOST_VALUES} become inputs: leave the column "
            "out by --ignore (ignore=)."
        )
    return Input(str(column.name), tuple(words))


def encode(path: Path, table: Table, frame: DataFrame, inputs: Sequence[Input]) -> np.ndarray:
    """The columns of a table as inputs, shape (rows, inputs), nan where a value is missing.

    Raises:
        DataError: a column is missing, or a value is not finite, or none of the words that are known.
    """
    parts = []
    for name, values in inputs:
        if name not in frame.columns:
            raise DataError(f"{path} has no {_shown(name)}, which the network was trained on. {_listed(frame)}")
        column, known = frame[name], frame[name].notna().to_numpy()
        if values is None:
            numbers = _as_numbers(column)
            if numbers is None:
                _input(path, table, column)  # says which value is none
                raise DataError(f"{path}, {_shown(name)} holds words, and the network was trained on numbers there.")
            _check_finite(path, table, column, numbers)
            parts.append(numbers[:, None])
            continue
        words = np.array([str(value).strip() for value in column])
        for i in np.flatnonzero(known & ~np.isin(words, values)):
            where = f"{path}, {table.where(frame.index[i])}, {_shown(name)}"
            raise DataError(f"{where}: {str(words[i])!r} is none of {', '.join(values)}.")
        parts.append(np.where(known[:, None], words[:, None] == np.array(values), np.nan))
    return np.concatenate(parts, 1).astype(float)


def _check_finite(path: Path, table: Table, column: Series, numbers: np.ndarray) -> None:
    for i in np.flatnonzero(np.isinf(numbers)):
        raise DataError(
            f"{path}, {table.where(column.index[i])}, {_shown(str(column.name))}: {numbers[i]} is not a finite number; "
            "remove the row or fill in a value."
        )


# --- targets ----------------------------------------------------------------------------------------------------------


def as_targets(
    path: Path, values: np.ndarray, where: Callable[[int], str], what: str, task: str | None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """A target's values as numbers of classes with the classes' names, or as numbers, shape (examples, targets).

    Args:
        path: of the file.
        values: shape (examples,), or for a regression, or one-hot, (examples, targets).
        where: what to call the place of an example's target.
        what: what the target is called.
        task: `"classification"`, `"regression"`, or None to judge by the values.

    Raises:
        DataError: the values do not fit the task, or do not say what it is.
    """
    if task not in (None, *TASKS):
        raise DataError(f"The task is {' or '.join(TASKS)}, and was {task!r}.")
    values = np.asarray(values)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 2:
        one_hot = values.shape[1] > 1 and np.isin(values, (0, 1)).all() and (values.sum(1) == 1).all()
        if task == "regression" or not (one_hot or task):
            return values.astype(float), None
        if not one_hot:
            raise DataError(f"{path}: {what} has {values.shape[1]} numbers for each example, and classes have one.")
        return values.argmax(1), tuple(map(str, range(values.shape[1])))
    is_number = values.dtype.kind in "iuf" or (values.dtype.kind == "O" and _all_numbers(values))
    if not is_number:
        if task == "regression":
            raise DataError(f"{path}: {what} holds words, such as {str(values[0])!r}, and a regression needs numbers.")
        words = np.array([str(value).strip() for value in values])
        names, y = np.unique(words, return_inverse=True)
        if task is None:
            _check_meant(path, words, where)
            _check_repeated(path, what, len(names), len(y))
        return y, tuple(map(str, names))
    numbers = values.astype(float)
    for i in np.flatnonzero(~np.isfinite(numbers)):
        raise DataError(f"{path}, {where(int(i))}: {numbers[i]} is not a finite number.")
    labels, y = np.unique(numbers, return_inverse=True)
    if task is None and (task := _task_of(labels, len(y))) is None:
        raise DataError(
            f"{path}: {what} holds {len(labels):,} different whole numbers, which may be classes or not. Say so: "
            "--task classification or --task regression (task=)."
        )
    if task == "regression":
        return numbers[:, None], None
    return y, tuple(f"{label:.0f}" if label.is_integer() else f"{label:g}" for label in labels)


def _task_of(labels: np.ndarray, examples: int) -> str | None:
    if np.any(labels != np.round(labels)) or len(labels) > MANY or 2 * len(labels) > examples:
        return "regression"
    return "classification" if len(labels) <= FEW else None


def _all_numbers(values: np.ndarray) -> bool:
    return all(isinstance(value, int | float | Decimal) and not isinstance(value, bool) for value in values)


def _check_meant(path: Path, words: np.ndarray, where: Callable[[int], str]) -> None:
    """Raise if most of the words may be meant as numbers or dates."""
    number = np.array([re.fullmatch(SIGNED, word) is not None for word in words])
    bare = np.array([re.fullmatch(r"[-+]?[\d.]+", word) is not None for word in words])
    if number.mean() >= 0.5 and not bare.all():
        i = int(np.argmax(number & ~bare)) if number[~bare].mean() >= 0.5 else int(np.argmax(~bare))
        raise DataError(
            f"{path}, {where(i)}: {str(words[i])!r} is not a number. A number is digits and a point alone; if these "
            "are classes, say so: --task classification (task=)."
        )
    if np.mean([re.fullmatch(DATE, word) is not None for word in words]) >= 0.5:
        raise DataError(
            f"{path}, {where(0)}: {str(words[0])!r} is a date, and what is learned are classes or numbers. If these "
            "are classes, say so: --task classification (task=)."
        )


def _check_repeated(path: Path, what: str, classes: int, examples: int) -> None:
    if classes > MOST_VALUES and 2 * classes > examples:
        raise DataError(
            f"{path}: {what} holds {classes:,} different words in {examples:,} rows, and these are no classes."
        )
