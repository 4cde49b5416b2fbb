"""The idx format, in which MNIST and its relatives are distributed.

A file is: two zero bytes; a byte for the type; a byte for the number of axes; the size of each axis, four bytes, most
significant first; and the numbers, the last axis running fastest, also most significant byte first. It may be gzipped.

References:
    Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", 1998.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from .dataset import DataError, Dataset, split
from .unfold import unfolded

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
PARTS = {"train": "train", "test": "(?:t10k|test)"}
FILE = r"{part}[-_.]?{kind}[-_.]idx{axes}(?:[-_.]?ubyte)?(?:\.gz)?"


def read_idx(path: str | Path) -> np.ndarray:
    """The array in an idx file, gzipped or not.

    Args:
        path: where the file is.

    Returns:
        An array of the shape and type that the file says, in the machine's byte order.

    Raises:
        DataError: the file is not an idx file, is truncated, or is longer than it says.
        OSError: the file cannot be read.

    Example:
        >>> import pathlib, tempfile
        >>> from funcbp import data
        >>> path = pathlib.Path(tempfile.mkdtemp(), "labels-idx1-ubyte")
        >>> _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 5, 0, 4]))
        >>> data.read_idx(path)
        array([5, 0, 4], dtype=uint8)
    """
    path = Path(path)
    content = unfolded(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in TYPES:
        raise DataError(
            f"{path} is not an idx file: it begins with {content[:4].hex(' ') or 'nothing'}, and should begin with "
            f"00 00, the code of a type ({', '.join(f'{code:02x}' for code in TYPES)}) and the number of axes."
        )
    dtype, axes = np.dtype(TYPES[content[2]]), content[3]
    start = 4 + 4 * axes
    if len(content) < start:
        raise DataError(
            f"{path} is truncated: the sizes of its {axes} axes need {start} bytes, and it has {len(content)}."
        )
    shape = tuple(int(n) for n in np.frombuffer(content[4:start], ">u4"))
    size, needed = len(content) - start, math.prod(shape) * dtype.itemsize
    if size != needed:
        wrong = "is truncated" if size < needed else "is longer than it says"
        raise DataError(f"{path} {wrong}: {list(shape)} numbers need {needed:,} bytes, and there are {size:,}.")
    try:
        array = np.frombuffer(content[start:], dtype).reshape(shape)
    except ValueError as error:
        raise DataError(f"{path} says that it holds an array that numpy cannot: {list(shape)} ({error}).") from error
    return array.astype(dtype.newbyteorder("="))  # a copy in the machine's byte order, which can be written to


def read_mnist(folder: str | Path, seed: int = 0) -> Dataset:
    """A data set from a folder with MNIST's four files; those of Fashion-MNIST and KMNIST have the same names.

    They are `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, and the same with `t10k` or `test` for the test part;
    a dot may be in the place of the second hyphen, and `-ubyte` be missing; each may be gzipped, and then ends in
    `.gz`. Nothing is downloaded.

    Args:
        folder: where the files are, or a folder with them in it, as torchvision leaves them (`MNIST/raw`).
        seed: of the choice of the validation part.

    Returns:
        A data set named after the folder.

    Raises:
        DataError: a file is missing, cannot be used, or does not fit its companion.
        OSError: a file cannot be read.

    Example:
        >>> import tempfile
        >>> from funcbp import data
        >>> try:
        ...     data.read_mnist(tempfile.mkdtemp())
        ... except data.DataError as error:
        ...     print(str(error).partition(": ")[2])
        there is no train-images-idx3-ubyte, gzipped or not.
    """
    folder = Path(folder)
    place = _place(folder)
    (x, y), (x_test, y_test) = (_part(place, part) for part in PARTS)
    if x.shape[1:] != x_test.shape[1:]:
        raise DataError(
            f"{folder}: the images for training have shape {list(x.shape[1:])}, and those for the test "
            f"{list(x_test.shape[1:])}."
        )
    labels = np.unique(np.concatenate([y, y_test]))
    flat = [images.reshape(len(images), -1).astype(np.float32) for images in (x, x_test)]
    numbers = [np.searchsorted(labels, part) for part in (y, y_test)]
    return split(
        folder.resolve().name,
        flat[0],
        numbers[0],
        classes=tuple(str(c) for c in labels),
        image_shape=(x.shape[1], x.shape[2], 1),
        seed=seed,
        test=(flat[1], numbers[1]),
    )


def is_idx(path: Path) -> bool:
    """Whether a file has the name of one of MNIST's four."""
    patterns = (_pattern(part, *kind) for part in PARTS for kind in (("images", 3), ("labels", 1)))
    return any(pattern.fullmatch(path.name) for pattern in patterns)


def _pattern(part: str, kind: str, axes: int) -> re.Pattern[str]:
    return re.compile(FILE.format(part=PARTS[part], kind=kind, axes=axes), re.I)


def _place(folder: Path) -> Path:
    """The folder itself, or the one in it, or two below, that has MNIST's files."""
    candidates = [folder, *sorted(p for pattern in ("*", "*/*") for p in folder.glob(pattern) if p.is_dir())]
    holding = [place for place in candidates if any(map(is_idx, place.iterdir()))]
    if len(holding) > 1 and folder not in holding:
        names = ", ".join(str(place) for place in holding)
        raise DataError(f"{folder} holds more than one data set: {names}. Say which.")
    return holding[0] if holding else folder


def _part(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """The images and the labels of one part."""
    images_path, labels_path = _find(folder, part, "images", 3), _find(folder, part, "labels", 1)
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or not images.size:
        raise DataError(f"{images_path} must hold images of shape (n, height, width), and holds {list(images.shape)}.")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{labels_path} must hold n whole numbers, and holds {labels.dtype}{list(labels.shape)}.")
    if len(images) != len(labels):
        raise DataError(f"{images_path} holds {len(images)} images, and {labels_path.name} {len(labels)} labels.")
    return images, labels


def _find(folder: Path, part: str, kind: str, axes: int) -> Path:
    pattern = _pattern(part, kind, axes)
    found = sorted(
        path for path in folder.iterdir() if pattern.fullmatch(path.name)
    )  # the one that is not gzipped first
    if not found:
        name = f"{'train' if part == 'train' else 't10k'}-{kind}-idx{axes}-ubyte"
        raise DataError(f"{folder} does not hold MNIST's four files: there is no {name}, gzipped or not.")
    return found[0]
