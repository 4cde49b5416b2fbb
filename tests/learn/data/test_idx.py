"""The idx format: what it holds comes back, and what is wrong with a file is said."""

import gzip
import struct

import numpy as np
import pytest

from funcbp import data
from funcbp.learn.train import job

RNG = np.random.default_rng(0)
CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}


def idx(array):
    """The bytes of an idx file, written by the format's description."""
    kind = array.dtype.str[1:]
    header = struct.pack(f">HBB{array.ndim}I", 0, CODES[kind], array.ndim, *array.shape)
    return header + array.astype(f">{kind}").tobytes()


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_every_type_comes_back(tmp_path, kind, compress):
    array = (RNG.normal(size=(3, 4, 2)) * 50).astype(kind)
    path = tmp_path / "array"
    path.write_bytes(compress(idx(array)))
    read = data.read_idx(path)
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype and read.dtype.isnative
    read += 1  # it belongs to the caller


def test_empty_and_without_axes(tmp_path):
    path = tmp_path / "array"
    path.write_bytes(idx(np.zeros((0, 5), "u1")))
    assert data.read_idx(path).shape == (0, 5)
    path.write_bytes(idx(np.array(7, "i4")))
    assert data.read_idx(path) == 7


WHOLE = idx(np.arange(12, dtype="i4").reshape(3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an idx file: it begins with nothing, and should begin with 00 00"),
        (b"\x89PNG", r"is not an idx file: it begins with 89 50 4e 47, .* \(08, 09, 0b, 0c, 0d, 0e\)"),
        (b"\0\0\x0a\x01", "is not an idx file: it begins with 00 00 0a 01"),
        (WHOLE[:7], "is truncated: the sizes of its 2 axes need 12 bytes, and it has 7"),
        (WHOLE[:-1], r"is truncated: \[3, 4\] numbers need 48 bytes, and there are 47"),
        (WHOLE + b"\0", r"is longer than it says: \[3, 4\] numbers need 48 bytes, and there are 49"),
        (b"\0\0\x08\x03" + b"\xff" * 12, r"is truncated: .* and there are 0"),
        (b"\0\0\x08\x50" + b"\0\0\0\1" * 80 + b"7", r"says that it holds an array that numpy cannot: \[1, 1,"),
        (gzip.compress(WHOLE, mtime=0)[:-9], "is a gzip file that is truncated or damaged"),
        (
            gzip.compress(WHOLE, mtime=0)[:-8] + b"\0" * 8,
            r"is a gzip file that is truncated or damaged \(CRC check failed",
        ),
        (b"\x1f\x8bnothing", r"is a gzip file that is truncated or damaged \("),
        (gzip.compress(WHOLE[:-4], mtime=0), r"is truncated: \[3, 4\] numbers need 48 bytes, and there are 44"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, content, message):
    path = tmp_path / "train-images"
    path.write_bytes(content)
    with pytest.raises(data.DataError, match=message):
        data.read_idx(path)


# --- MNIST's four files -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Images of 3 x 4 pixels, half of the files gzipped."""
    place = tmp_path / "tiny"
    place.mkdir()
    for prefix, n in (("train", 40), ("t10k", 8)):
        labels = np.arange(n, dtype="u1") % 4
        images = RNG.integers(0, 256, (n, 3, 4)).astype("u1")
        images[:, 0, 0] = 60 * labels
        (place / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (place / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    return place


def test_the_four_files_are_a_data_set(folder):
    d = data.read(folder)
    assert (d.name, d.classes, d.image_shape) == ("tiny", ("0", "1", "2", "3"), (3, 4, 1))
    assert (len(d.x_train), len(d.x_validation), len(d.x_test)) == (36, 4, 8)
    np.testing.assert_allclose(d.inputs.undo(d.x_train)[:, 0], 60 * d.y_train, atol=1e-3)
    np.testing.assert_allclose(d.inputs.undo(d.x_test)[:, 0], 60 * d.y_test, atol=1e-3)


def test_as_others_leave_them(folder, tmp_path):
    """torchvision's MNIST/raw, Kaggle's names with a dot, and one of the files itself."""
    want = data.read(folder).x_test
    np.testing.assert_array_equal(data.read(folder / "train-images-idx3-ubyte.gz").x_test, want)
    raw = tmp_path / "root" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in list(folder.iterdir()):
        path.rename(raw / path.name.replace("-idx", ".idx").replace("-ubyte", ""))
    np.testing.assert_array_equal(data.read(tmp_path / "root").x_test, want)
    other = tmp_path / "root" / "FashionMNIST" / "raw"
    other.mkdir(parents=True)
    (other / "train-images-idx3-ubyte").touch()
    with pytest.raises(data.DataError, match=r"holds more than one data set: .*FashionMNIST.*, .*MNIST.raw. Say which"):
        data.read(tmp_path / "root")


def test_the_command_takes_the_folder(folder):
    assert job.load(str(folder), 0).n_inputs == 12


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-labels-idx1-ubyte", None, "there is no train-labels-idx1-ubyte, gzipped or not"),
        ("t10k-images-idx3-ubyte", idx(np.zeros(8, "u1")), r"must hold images of shape \(n, height, width\).*\[8\]"),
        ("t10k-images-idx3-ubyte", idx(np.zeros((8, 3, 5), "u1")), r"for training have shape \[3, 4\].*test \[3, 5\]"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(8, "f4")), r"must hold n whole numbers, and holds float32\[8\]"),
        ("train-labels-idx1-ubyte", idx(np.zeros(39, "u1")), "holds 40 images, and train-labels-idx1-ubyte 39 labels"),
    ],
)
def test_files_that_do_not_fit_each_other(folder, name, content, message):
    (folder / name).unlink(missing_ok=True)
    if content:
        (folder / name).write_bytes(content)
    with pytest.raises(data.DataError, match=message):
        data.read(folder)
