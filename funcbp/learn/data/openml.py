"""The data sets of OpenML that scikit-learn has fetched before, read by its own reader from where it keeps them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from ...jaxpr import extras
from .dataset import DataError, Dataset
from .reading import Table
from .tables import of_table

PREFIX = "openml:"


def read_openml(
    name: str,
    seed: int = 0,
    *,
    target: str | int | None = None,
    task: str | None = None,
    missing: str | None = None,
    ignore: Sequence[str] = (),
) -> Dataset:
    """A data set that `sklearn.datasets.fetch_openml` has left in scikit-learn's folder; nothing is fetched.

    The folder is `~/scikit_learn_data`, or what the environment variable `SCIKIT_LEARN_DATA` says.

    Args:
        name: what OpenML calls it, or its number there, which tells versions apart.
        seed: of the division into training, validation and test.
        target: the column to learn, as for `read_table`; if not given, the one that OpenML says it is.
        task, missing, ignore: as for `read_table`.

    Returns:
        A data set of that name.

    Raises:
        DataError: it is not there as a whole, there are several versions, it cannot be read, or as for `read_table`.
        ImportError: scikit-learn or pandas is not installed.

    Example:
        >>> from funcbp import data
        >>> try:
        ...     data.read_openml("no such name")
        ... except data.DataError as error:
        ...     print(str(error).split(";")[0])
        scikit-learn has not fetched 'no such name' from OpenML

    References:
        J. Vanschoren, J. van Rijn, B. Bischl, L. Torgo, "OpenML: networked science in machine learning", 2013.
    """
    datasets = extras.load("sklearn.datasets", "OpenML is read by")
    kept = _kept(Path(datasets.get_data_home(), "openml", "openml.org"))
    found = [about for about in kept if name.lower() in (about["name"].lower(), str(about["id"]))]
    if not found:
        shown = ", ".join(sorted({about["name"] for about in kept})[:20]) or "nothing"
        raise DataError(
            f"scikit-learn has not fetched {name!r} from OpenML; in its folder there is {shown}. Fetch it once: "
            f"sklearn.datasets.fetch_openml({name!r})."
        )
    if len(found) > 1:
        shown = ", ".join(f"{PREFIX}{about['id']} (version {about['version']})" for about in found)
        raise DataError(f"There are {len(found)} versions of {name!r}: say which, {shown}.")
    (about,) = found
    try:
        bunch = datasets.fetch_openml(data_id=int(about["id"]), as_frame="auto")
    except (OSError, ValueError) as error:
        raise DataError(f"OpenML's {about['name']} cannot be read: {error}") from error
    if bunch.frame is None:
        raise DataError(f"OpenML's {about['name']} is sparse, and inputs are dense here.")
    frame = bunch.frame.apply(lambda column: column.astype(object) if column.dtype == "category" else column)
    if target is None and len(bunch.target_names) == 1:
        (target,) = bunch.target_names
    table = Table(frame, True, lambda i: f"row {i + 1}", ())
    return of_table(Path(about["name"]), table, seed, target=target, task=task, missing=missing, ignore=ignore)


def _kept(home: Path) -> list[dict[str, Any]]:
    """What OpenML says of each data set of which everything is there that scikit-learn asks for."""
    api, found = home / "api" / "v1" / "json" / "data", []
    for path in sorted(api.glob("[0-9]*.gz")):
        try:
            with gzip.open(path) as file:
                about = json.load(file)["data_set_description"]
        except (OSError, EOFError, ValueError, KeyError):
            continue
        content = home / (urlparse(about["url"]).path.lstrip("/") + ".gz")
        if all(part.exists() for part in (content, api / "features" / path.name, api / "qualities" / path.name)):
            found.append(about)
    return found
