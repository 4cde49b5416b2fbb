"""npz files: what is understood, and what is said about what is not."""

import zipfile

import numpy as np
import pytest

from funcbp import data
from funcbp.learn.train.job import load


def test_other_things_that_are_no_data(tmp_path):
    with pytest.raises(FileNotFoundError):
        data.read(tmp_path / "missing.csv")
    with pytest.raises(data.DataError, match=r"is none of .csv, .tsv, .* or a folder with the four files of MNIST"):
        data.read(tmp_path / "picture.png")


def save(tmp_path, **arrays):
    path = tmp_path / "arrays.npz"
    np.savez(path, **arrays)
    return path


RNG = np.random.default_rng(0)
LABELS = np.arange(40) % 4


def test_tables_and_images(tmp_path):
    d = data.read(save(tmp_path, x=RNG.normal(size=(40, 3)), y=LABELS))
    assert (d.name, d.classes, d.image_shape, d.n_inputs) == ("arrays", ("0", "1", "2", "3"), None, 3)
    grey = data.read(save(tmp_path, x=RNG.integers(0, 255, (40, 5, 6), np.uint8), y=LABELS.astype(np.uint8)))
    assert (grey.image_shape, grey.n_inputs) == ((5, 6, 1), 30)
    colour = data.read(save(tmp_path, x=RNG.normal(size=(40, 5, 6, 3)), y=LABELS[:, None]))
    assert (colour.image_shape, colour.n_inputs, colour.n_outputs) == ((5, 6, 3), 90, 4)


def test_regression(tmp_path):
    d = data.read(save(tmp_path, x=RNG.normal(size=(40, 3)), y=RNG.normal(size=40)))
    assert d.classes is None and d.y_train.shape[1] == 1
    assert data.read(save(tmp_path, x=RNG.normal(size=(40, 3)), y=RNG.normal(size=(40, 2)))).n_outputs == 2


def test_a_test_part_that_is_given_is_kept(tmp_path):
    x, x_test = RNG.normal(size=(40, 3)), RNG.normal(size=(8, 3))
    d = data.read(save(tmp_path, x_train=x, y_train=LABELS, x_test=x_test, y_test=LABELS[:8]))
    assert (len(d.x_train), len(d.x_validation), len(d.x_test)) == (36, 4, 8)
    np.testing.assert_allclose(d.inputs.undo(d.x_test), x_test, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(d.y_test, LABELS[:8])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": LABELS}, "needs the arrays x and y, or x_train, y_train, x_test and y_test, and holds a"),
        ({}, "and holds none"),
        ({"x": LABELS, "y": LABELS}, r"inputs must be numbers of shape .*, and are int64\[40\]"),
        ({"x": np.zeros((40, 0)), "y": LABELS}, r"inputs must be numbers of shape"),
        ({"x": np.zeros((40, 3)), "y": LABELS[:39]}, r"40 inputs need targets of shape \(40,\).*of shape \(39,\)"),
        (
            {"x": np.full((40, 3), np.nan), "y": LABELS},
            r"the inputs hold nan at \[0, 0\], which is not a finite number",
        ),
        ({"x": np.zeros((40, 3)), "y": np.full(40, np.inf)}, r"the targets' example 1: inf is not a finite number"),
    ],
)
def test_what_is_wrong_with_an_npz_is_said(tmp_path, arrays, message):
    with pytest.raises(data.DataError, match=message):
        data.read(save(tmp_path, **arrays))


def test_what_is_no_npz(tmp_path):
    path = tmp_path / "file.npz"
    np.save(path.with_suffix(".npy"), np.zeros(3))
    path.with_suffix(".npy").rename(path)
    with pytest.raises(data.DataError, match="not an npz file of plain arrays"):
        data.read(path)
    for content in (b"", b"junk", b"PK\x03\x04junk"):
        path.write_bytes(content)
        with pytest.raises(data.DataError, match="not an npz file of plain arrays"):
            data.read(path)
    with pytest.raises(data.DataError, match="not an npz file of plain arrays"):
        data.read(save(tmp_path, x=np.array([[1, "a"]], object), y=LABELS))


def test_an_npz_that_was_damaged_is_a_sentence_and_never_another_error(tmp_path):
    path = tmp_path / "arrays.npz"
    np.savez_compressed(path, x=RNG.normal(size=(40, 3)), y=LABELS)
    whole, rng, said = path.read_bytes(), np.random.default_rng(0), 0
    for trial in range(200):
        damaged = bytearray(whole[: rng.integers(len(whole))] if trial % 4 == 0 else whole)
        for _ in range(3 if len(damaged) else 0):
            damaged[rng.integers(len(damaged))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            data.read(path)
        except data.DataError as error:
            assert str(path) in str(error)
            said += 1
    assert said > 150


def test_a_damaged_header_is_a_sentence(tmp_path):
    path, header = tmp_path / "arrays.npz", b"(" * 100 + b"\n"
    with zipfile.ZipFile(path, "w") as file:
        for name in "xy":
            file.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(data.DataError, match="not an npz file of plain arrays"):
        data.read(path)


@pytest.mark.parametrize(
    "arrays",
    [
        {"X": "x", "Y": "y"},
        {"images": "x", "labels": "y"},
        {"Data": "x", "target": "y"},
        {"train_images": "x", "train_labels": "y", "val_images": "x", "val_labels": "y"},
    ],
)
@pytest.mark.parametrize("y", [LABELS, np.eye(4)[LABELS], np.array(["a", "b", "c", "d"])[LABELS], LABELS * 1.0])
def test_the_usual_names_and_the_usual_targets(tmp_path, arrays, y):
    x = np.arange(80.0).reshape(40, 2)
    d = data.read(save(tmp_path, **{name: {"x": x, "y": y}[role] for name, role in arrays.items()}))
    assert d.classes in (("0", "1", "2", "3"), ("a", "b", "c", "d"))
    assert len(d.x_train) + len(d.x_validation) + len(d.x_test) == 20 * len(arrays)
    np.testing.assert_array_equal(d.y_train, np.rint(d.inputs.undo(d.x_train)[:, 0] / 2).astype(int) % 4)


def test_parts_of_different_kinds(tmp_path):
    x = RNG.normal(size=(40, 3))
    with pytest.raises(data.DataError, match=r"must be of one kind, and are int64\[40\] and float64\[40\]"):
        data.read(save(tmp_path, x_train=x, y_train=LABELS, x_test=x, y_test=LABELS + 0.5))
    with pytest.raises(data.DataError, match=r"must be of one kind, and are float64\[40, 3\] and float64\[40, 2\]"):
        data.read(save(tmp_path, x_train=x, y_train=x, x_test=x, y_test=x[:, :2]))


@pytest.mark.parametrize("option", [{"target": "y"}, {"missing": "drop"}, {"ignore": ["a"]}], ids=str)
def test_what_only_tables_have_is_not_ignored_in_silence(tmp_path, option):
    for source in (save(tmp_path, x=np.ones((20, 2)), y=LABELS[:20]), tmp_path):
        with pytest.raises(data.DataError, match=f"has no use for {next(iter(option))}"):
            data.read(source, **option)
    with pytest.raises(data.DataError, match="digits has no use for"):
        load("digits", 0, **option)


def test_pictures_as_pytorch_and_folders_have_them(tmp_path):
    np.savez(tmp_path / "first.npz", x=np.zeros((4, 3, 8, 8)), y=[0, 1, 0, 1])
    with pytest.raises(data.DataError, match=r"channels first, .* numpy.moveaxis\(x, 1, 3\)"):
        data.read(tmp_path / "first.npz")
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "1.jpg").touch()
    with pytest.raises(data.DataError, match=r"holds pictures, such as cats.1.jpg, .* put them into an npz file"):
        data.read(tmp_path)
