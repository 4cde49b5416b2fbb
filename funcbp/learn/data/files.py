"""Files and folders of data. Whatever is wrong with one, the message names the file and the place in it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import DataError, Dataset, Input, split
from .idx import is_idx, read_mnist
from .reading import SUFFIXES, load_table
from .tables import as_targets, encode, read_table, summary_of
from .unfold import PACKED, check_unfolded, unfolded, unpacked_name

X_NAMES = ("x", "data", "images", "image", "inputs", "input", "features", "imgs")
Y_NAMES = ("y", "target", "targets", "labels", "label", "classes", "class")
OTHERWISE_PACKED = (*PACKED, ".zst", ".tar", ".tgz", ".7z", ".rar")
SAVE, EXPORT = "save it as .xlsx or .csv", "export it as .csv"
FRAME, ARRAYS = (
    "make a table of it: pandas.{}.to_csv({{csv!r}}, index=False)",
    "make arrays of it: {}; numpy.savez({{npz!r}}, {})",
)
HDF5 = ARRAYS.format("h = h5py.File({path!r})", "x=h['x'][:], y=h['y'][:]")
TORCH = ARRAYS.format("t = torch.load({path!r})", "x=t['x'], y=t['y']")
SVMLIGHT = ARRAYS.format("x, y = sklearn.datasets.load_svmlight_file({path!r})", "x=x.toarray(), y=y")
R_TABLE = "make a table of it, in R: load({path!r}); write.csv(NAME, {csv!r}, row.names=FALSE)"
ELSEWHERE = {  # by how names end, what people have that other libraries read: what it is, and what to do
    ".xls": ("a spreadsheet in Excel's old format", SAVE),
    ".ods": ("a spreadsheet of LibreOffice", SAVE),
    ".numbers": ("a spreadsheet of Numbers", SAVE),
    ".svm": ("a table in the format of svmlight", SVMLIGHT),
    ".libsvm": ("a table in the format of svmlight", SVMLIGHT),
    ".svmlight": ("a table in the format of svmlight", SVMLIGHT),
    ".mat": ("a file of Matlab", ARRAYS.format("m = scipy.io.loadmat({path!r})", "x=m['X'], y=m['y']")),
    ".rds": ("a file of R", R_TABLE.replace("load({path!r}); write.csv(NAME", "write.csv(readRDS({path!r})")),
    ".rda": ("a file of R", R_TABLE),
    ".rdata": ("a file of R", R_TABLE),
    ".feather": ("a table of Arrow", FRAME.format("read_feather({path!r})")),
    ".orc": ("a table of ORC", FRAME.format("read_orc({path!r})")),
    ".dta": ("a table of Stata", FRAME.format("read_stata({path!r})")),
    ".sav": ("a table of SPSS", FRAME.format("read_spss({path!r})")),
    ".sas7bdat": ("a table of SAS", FRAME.format("read_sas({path!r})")),
    ".pkl": ("a pickle, and these can run programs", FRAME.format("read_pickle({path!r})")),
    ".pickle": ("a pickle, and these can run programs", FRAME.format("read_pickle({path!r})")),
    ".h5": ("a file of HDF5", HDF5),
    ".hdf5": ("a file of HDF5", HDF5),
    ".pt": ("a file of PyTorch", TORCH),
    ".pth": ("a file of PyTorch", TORCH),
    ".db": ("a database", EXPORT),
    ".sqlite": ("a database", EXPORT),
}
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
PARTS = {"train": "train", "training": "train", "val": "train", "valid": "train", "validation": "train", "test": "test"}


def is_readable(path: Path) -> bool:
    """Whether `read` knows what to do with a file or folder of that name."""
    inside = path.with_suffix("") if path.suffix.lower() in PACKED else path
    return path.is_dir() or inside.suffix.lower() in (*SUFFIXES, ".npz", ".zip") or is_idx(path)


def read(
    path: str | Path,
    seed: int = 0,
    *,
    target: str | int | None = None,
    task: str | None = None,
    missing: str | None = None,
    ignore: Sequence[str] = (),
) -> Dataset:
    """A data set from a file, by its extension: a table, an npz file, or the idx files of MNIST, or a folder of these.

    Args:
        path: where the file or the folder is.
        seed: of the division into training, validation and test.
        target, missing, ignore: for tables, as for `read_table`.
        task: `"classification"` or `"regression"`, where that is not certain.

    Returns:
        A data set named after the file or the folder.

    Raises:
        DataError: the file's content cannot be used, or an option was given that this kind of file has no use for.
        ImportError: pandas is not installed, and this is a table.
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
    _check_kind(path)
    of_tables = {"target": target, "missing": missing, "ignore": ignore or None}
    if path.is_dir() or is_idx(path):
        refuse_options(str(path), {**of_tables, "task": task})
        if path.is_dir() and (picture := next((p for p in path.glob("*/*") if p.suffix.lower() in PICTURES), None)):
            raise DataError(
                f"{path} holds pictures, such as {picture.relative_to(path)}, and these are not read here: put them "
                "into an npz file, as x of shape (examples, height, width, channels), with the folders' names as y."
            )
        return read_mnist(path if path.is_dir() else path.parent, seed)
    if unpacked_name(path).suffix.lower() == ".npz":
        refuse_options(str(path), of_tables)
        return read_npz(path, seed, task=task)
    return read_table(path, seed, target=target, task=task, missing=missing, ignore=ignore)


def _check_kind(path: Path) -> None:
    """Raise if a file is of a kind that is not read here, by its name or by that of what is packed in it."""
    if path.suffix.lower() in OTHERWISE_PACKED and not is_readable(path):
        raise DataError(f"{path} is packed in a way that is not read here: unpack it, and name the file in it.")
    inside = unpacked_name(path) if path.suffix.lower() == ".zip" and path.exists() else path
    if inside.suffix.lower() in ELSEWHERE:
        what, how = ELSEWHERE[inside.suffix.lower()]
        names = {end: inside.with_suffix(f".{end}").name for end in ("csv", "npz")}
        raise DataError(f"{path} is {what}: {how.format(path=inside.name, **names)}.")
    if not is_readable(inside):
        raise DataError(
            f"{path} is none of {', '.join((*SUFFIXES, '.npz'))}, one of these packed as {', '.join((*PACKED, '.zip'))}"
            ", or a folder with the four files of MNIST. A table of text in a file of another name: call it .csv."
        )


def refuse_options(what: str, options: Mapping[str, object]) -> None:
    """Refuse options that were given for data which has no use for them.

    Raises:
        DataError: one of them is not None.
    """
    if given := [name for name, value in options.items() if value is not None]:
        raise DataError(f"{what} has no use for {', '.join(given)}, which tables have: leave that out.")


def read_npz(path: str | Path, seed: int = 0, *, task: str | None = None) -> Dataset:
    """A data set from an npz file with the arrays `x` and `y`, or `x_train`, `y_train`, `x_test` and `y_test`.

    They may be called images, data, features or inputs, and labels, targets or classes, in any case, with the part in
    front or behind (`train_images`); a part for validation is learned from, too, and another one taken. Inputs of shape
    (examples, inputs) are tables; (examples, height, width) and (examples, height, width, channels) are images. Words,
    one-hot rows and whole numbers are classes; floating-point numbers are a regression, unless they are few and whole.

    Args:
        path: where the file is.
        seed: of the division into training, validation and, if it is not given, test.
        task: `"classification"` or `"regression"`, if it shall not be judged by the targets.

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
    parts = _parts(path, load_arrays(path))
    shape = parts["train"][0].shape[1:]
    for x, y in parts.values():
        check_inputs(path, x, shape)
        if y.ndim not in (1, 2) or len(y) != len(x):
            raise DataError(
                f"{path}: {len(x)} inputs need targets of shape ({len(x)},) or ({len(x)}, targets), and there are "
                f"targets of shape {y.shape}."
            )
    y, tested = parts["train"][1], parts.get("test", parts["train"])[1]
    kinds = {tested.dtype.kind, y.dtype.kind}
    if tested.shape[1:] != y.shape[1:] or (len(kinds) > 1 and not kinds <= {*"iub"}):
        raise DataError(
            f"{path}: y_train and y_test must be of one kind, and are {y.dtype}{list(y.shape)} and "
            f"{tested.dtype}{list(tested.shape)}."
        )
    values = np.concatenate([y for _, y in parts.values()])
    if task is None and y.dtype.kind in "iub" and (y.ndim == 1 or y.shape[1] == 1):
        task = "classification"  # of an array that says it holds whole numbers
    values, classes = as_targets(path, values, lambda i: f"the targets' example {i + 1}", "the target", task)
    sizes = np.cumsum([0, *(len(y) for _, y in parts.values())])
    dtype = np.result_type(parts["train"][0], np.float32)
    flat = [
        (x.reshape(len(x), -1).astype(dtype), values[start:stop])
        for (x, _), start, stop in zip(parts.values(), sizes[:-1], sizes[1:], strict=True)
    ]
    return split(
        path.stem,
        *flat[0],
        classes=classes,
        image_shape=(*shape, 1)[:3] if len(shape) > 1 else None,
        about=(f"Target {summary_of(values, classes)}",),
        seed=seed,
        test=flat[1] if "test" in parts else None,
    )


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays in an npz file, in memory: only reading them shows whether they are whole."""
    content = unfolded(path)
    check_unfolded(path, content, ".npz")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # zip, zlib, numpy and Python's own parser have many words for one thing
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} is not an npz file of plain arrays, as numpy.savez writes it ({reason}).") from error


def role_of(name: str) -> tuple[str, str] | None:
    """What an array is by its name: `("x", "train")`, with no part if it is of all examples; None if it is no such."""
    words = name.lower().replace("-", "_").split("_")
    parts = [PARTS[word] for word in words if word in PARTS]
    (kind,) = [word for word in words if word not in PARTS][:1] or [""]
    role = "x" if kind in X_NAMES else "y" if kind in Y_NAMES else ""
    return (role, "".join(parts)) if role and len(parts) <= 1 and len(words) == len(parts) + 1 else None


def _parts(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets of the training part, and of the test part if there is one."""
    found: dict[tuple[str, str], list[Any]] = {}
    for name, array in arrays.items():
        if role := role_of(name):
            found.setdefault(role, []).append(array)
    whole = "" if ("x", "") in found else "train"
    wanted = [(role, part) for part in ((whole, "test") if ("x", "test") in found else (whole,)) for role in "xy"]
    if any(role not in found for role in wanted):
        raise DataError(
            f"{path} needs the arrays x and y, or x_train, y_train, x_test and y_test, and holds "
            f"{', '.join(sorted(arrays)) or 'none'}."
        )
    try:
        joined = {role: np.concatenate(found[role]) if len(found[role]) > 1 else found[role][0] for role in wanted}
    except ValueError as error:
        raise DataError(f"{path}: its parts cannot be joined ({error}).") from error
    return {part or "train": (joined["x", part], joined["y", part]) for _, part in wanted[::2]}


def check_inputs(path: Path, x: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raise if an array holds no inputs of that shape."""
    if x.ndim not in (2, 3, 4) or x.dtype.kind not in "iubf" or x.shape[1:] != shape or not x[:1].size:
        raise DataError(
            f"{path}: inputs must be numbers of shape (examples, inputs), (examples, height, width) or "
            f"(examples, height, width, channels), and are {x.dtype}{list(x.shape)}."
        )
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[3] > 4:
        raise DataError(
            f"{path}: images of shape {list(shape)} have their channels first, as PyTorch has them, and here they are "
            "last: numpy.moveaxis(x, 1, 3)."
        )
    if not np.all(np.isfinite(x)):
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
        raise DataError(f"{path}: the inputs hold {x[where]} at {list(where)}, which is not a finite number.")


def read_inputs(path: str | Path, columns: Sequence[Input] | None, n_inputs: int, fills: bool = False) -> np.ndarray:
    """Examples of the kind that a network was trained on, without their targets.

    Args:
        path: of a table, which may hold other columns, too, or of an npz file with an array `x`, or its only one.
        columns: which columns of a table are the inputs; None: all of them, as numbers.
        n_inputs: how many inputs there shall be.
        fills: whether values may be missing.

    Returns:
        Inputs, not scaled, shape (examples, inputs), nan where a value is missing.

    Raises:
        DataError: the file holds something else.
        OSError: the file cannot be read.

    Example:
        >>> import pathlib, tempfile
        >>> from funcbp import data
        >>> path = pathlib.Path(tempfile.mkdtemp(), "new.csv")
        >>> _ = path.write_text("name,size\\nRex,4\\nTom,2\\n")
        >>> data.read_inputs(path, [data.Input("size", None)], 1)
        array([[4.],
               [2.]])
    """
    path = Path(path)
    if unpacked_name(path).suffix.lower() == ".npz":
        arrays = load_arrays(path)
        found = [a for name, a in arrays.items() if role_of(name) in (("x", ""), ("x", "test"))] or list(
            arrays.values()
        )
        if len(found) != 1:
            raise DataError(f"{path} needs one array x, and holds {', '.join(sorted(arrays)) or 'none'}.")
        check_inputs(path, found[0], found[0].shape[1:])
        x = found[0].reshape(len(found[0]), -1).astype(float)
    else:
        table = load_table(path)
        frame = table.frame
        if columns is None:
            columns = [Input(name, None) for name in frame.columns]
        x = encode(path, table, frame, columns)
        if not fills and np.isnan(x).any():
            row = np.argwhere(np.isnan(x))[0, 0]
            raise DataError(
                f"{path}, {table.where(frame.index[row])}: a value is missing, and the network was trained without "
                "--missing mean."
            )
    if x.shape[1] != n_inputs:
        raise DataError(f"{path} has {x.shape[1]} inputs in each example, and the network was trained on {n_inputs}.")
    return x
