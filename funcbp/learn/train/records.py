"""Measurements while a training goes on: into files, to a tracker, and as a progress bar."""

from __future__ import annotations

import contextlib
import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from ...jaxpr import extras


class Tracker(Protocol):
    """What measurements can be given to: anything with this method, such as a run of Weights & Biases."""

    def log(self, metrics: Mapping[str, object], *, step: int) -> object:
        """Take the measurements of an epoch; `step` is its number."""


class JsonLines:
    """Measurements as JSON lines, one object per epoch; what is not finite becomes null.

    Args:
        path: of the file; it is begun anew.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> from funcbp import train
        >>> path = pathlib.Path(tempfile.mkdtemp(), "metrics.jsonl")
        >>> tracker = train.JsonLines(path)
        >>> tracker.log({"loss": 0.5}, step=1)
        >>> tracker.close()
        >>> path.read_text()
        '{"epoch": 1, "loss": 0.5}\\n'
    """

    def __init__(self, path: str | Path):
        self._file: TextIO = open(path, "w", encoding="utf-8")  # noqa: SIM115 (open as long as the tracker is)

    def log(self, metrics: Mapping[str, object], *, step: int) -> None:
        """Write a line."""
        with _named(self._file):
            self._file.write(json_line({"epoch": step, **metrics}))
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with _named(self._file):
            self._file.close()


class Csv:
    """Measurements as a table of comma-separated values, one line per epoch, with a header.

    Args:
        path: of the file; it is begun anew.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> from funcbp import train
        >>> path = pathlib.Path(tempfile.mkdtemp(), "metrics.csv")
        >>> tracker = train.Csv(path)
        >>> tracker.log({"loss": 0.5}, step=1)
        >>> tracker.close()
        >>> path.read_text()
        'epoch,loss\\n1,0.5\\n'
    """

    def __init__(self, path: str | Path):
        self._file: TextIO = open(path, "w", encoding="utf-8", newline="")  # noqa: SIM115
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._begun = False

    def log(self, metrics: Mapping[str, object], *, step: int) -> None:
        """Write a line; all have the columns of the first."""
        if not self._begun:
            self._writer.writerow(["epoch", *metrics])
            self._begun = True
        with _named(self._file):
            self._writer.writerow([step, *metrics.values()])
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with _named(self._file):
            self._file.close()


@contextlib.contextmanager
def _named(file: TextIO) -> Iterator[None]:
    """Name the file in the error of a disk that is full, which Python leaves out."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or file.name
        raise


def json_line(record: Mapping[str, object]) -> str:
    """A record as a line of JSON; what is not finite becomes null."""
    finite = lambda value: None if isinstance(value, float) and not math.isfinite(value) else value
    return json.dumps({k: finite(v) for k, v in record.items()}, ensure_ascii=False) + "\n"


Log = str | Path | Tracker  # where measurements go
FILES: dict[str, type[JsonLines] | type[Csv]] = {".jsonl": JsonLines, ".csv": Csv}


class Recorder:
    """All that is given as `log`, as one. It notes the first failure to write, which ends the learning, and not here.

    Attributes:
        files: those that are given by their paths.
        others: what is given as a tracker.
        unwritten: why something could not be written; None if all was.
    """

    def __init__(self) -> None:
        self.files: list[JsonLines | Csv] = []
        self.others: list[Tracker] = []
        self.unwritten: OSError | None = None

    def log(self, epoch: int, row: Mapping[str, Any]) -> None:
        """Hand on the measurements of an epoch, if those before could be written."""
        if self.unwritten:
            return
        with self._noted():
            for file in self.files:
                file.log(numbers_of(row), step=epoch)
            for tracker in self.others:
                tracker.log(row, step=epoch)

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            with self._noted():
                file.close()

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.unwritten = self.unwritten or error


@contextlib.contextmanager
def trackers(log: Any, past: Sequence[Mapping[str, float]]) -> Iterator[Recorder]:
    """Open all that is given as `log`, and close the files in the end.

    Files are begun anew, with the measurements of the past; a tracker has seen those.

    Raises:
        ValueError: a file is neither .jsonl nor .csv.
        TypeError: something has no method `log`.
        OSError: a file cannot be begun.
    """
    wanted = [] if log is None else log if isinstance(log, list | tuple) else [log]
    with contextlib.closing(Recorder()) as recorder:
        for each in wanted:
            if isinstance(each, str | Path):
                suffix = Path(each).suffix.lower()
                if suffix not in FILES:
                    raise ValueError(f"Measurements are written to .jsonl or .csv files, and {str(each)!r} is neither.")
                recorder.files.append(FILES[suffix](each))
            elif callable(getattr(each, "log", None)):
                recorder.others.append(each)
            else:
                raise TypeError(f"A tracker has a method log(metrics, step=), and {each!r} has none.")
        for epoch, row in enumerate(past, 1):
            for file in recorder.files:
                file.log(numbers_of(row), step=epoch)
        yield recorder


def numbers_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The measurements that are one number, and no array: those that files and the progress bar have room for."""
    return {name: value for name, value in row.items() if not getattr(value, "ndim", 0)}


@contextlib.contextmanager
def progress_bar(
    wanted: bool | Callable[..., Any], total: int, done: int
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A progress bar as a function of the number of new epochs and the last measurements.

    Args:
        wanted: False for none, True for tqdm, or a class like it.
        total: how many epochs there will be.
        done: how many there were.
    """
    if not wanted:
        yield lambda epochs, row: None
        return
    make = tqdm() if wanted is True else wanted
    with make(total=total, initial=done, desc="Training", unit="epoch") as bar:

        def show(epochs: int, row: Mapping[str, float]) -> None:
            shown = [f"{name.replace('_', ' ')} {v:.4f}" for name, v in numbers_of(row).items() if name != "seconds"]
            bar.set_postfix_str(", ".join(shown), refresh=False)
            bar.update(epochs)

        yield show


def tqdm() -> Callable[..., Any]:
    """The class of progress bars.

    Raises:
        ImportError: tqdm is not installed.
    """
    return extras.load("tqdm", "The progress bar needs").tqdm
