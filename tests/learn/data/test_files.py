"""Readers of files: what they understand, and what they say about what they do not."""

import numpy as np
import pytest

from funcbp import data


def write(tmp_path, text, name="table.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_text(text, encoding=encoding)
    return path


def table(rows, header=None):
    lines = [",".join(map(str, row)) for row in rows]
    return "\n".join(([header] if header else []) + lines) + "\n"


ROWS = [(i, 0.5 * i, i % 3) for i in range(30)]


@pytest.mark.parametrize("header", [None, "a,b,species"])
def test_the_last_column_is_the_target(tmp_path, header):
    d = data.read(write(tmp_path, table(ROWS, header)))
    assert (d.name, d.classes, d.n_inputs) == ("table", ("0", "1", "2"), 2)
    labels = np.concatenate([d.y_train, d.y_validation, d.y_test])
    inputs = d.inputs.undo(np.concatenate([d.x_train, d.x_validation, d.x_test]))
    np.testing.assert_array_equal(labels, np.rint(inputs[:, 0]).astype(int) % 3)


@pytest.mark.parametrize("name", ["target", "label", "y", "Target", " LABEL "])
def test_or_the_column_of_that_name(tmp_path, name):
    rows = [(i % 3, i, 0.5 * i) for i in range(30)]
    assert data.read(write(tmp_path, table(rows, f"{name},a,b"))).classes == ("0", "1", "2")


def test_labels_need_not_begin_at_zero(tmp_path):
    rows = [(i, [-7, 3, 12][i % 3]) for i in range(30)]
    d = data.read(write(tmp_path, table(rows)))
    assert d.classes == ("-7", "3", "12")
    assert set(d.y_train) == {0, 1, 2}


@pytest.mark.parametrize(
    "target",
    [lambda i: 0.5 + i % 2, lambda i: f"{i % 2}.0", lambda i: i],
    ids=["fractions", "decimal points", "a number of its own for each example"],
)
def test_otherwise_it_is_a_regression(tmp_path, target):
    d = data.read(write(tmp_path, table([(i, i * i, target(i)) for i in range(30)])))
    assert d.classes is None and d.targets is not None and d.y_train.shape[1] == 1


def test_what_spreadsheets_write(tmp_path):
    text = "\ufeff" + table(ROWS, '"a, in cm",b,target').replace("\n", "\r\n") + "\r\n\r\n"
    d = data.read(write(tmp_path, text))
    assert d.classes == ("0", "1", "2") and d.n_inputs == 2
    indexed = table([(i, *row) for i, row in enumerate(ROWS)], ",a,b,target")
    assert data.read(write(tmp_path, indexed)).n_inputs == 3


def test_space_around_a_cell_is_nothing(tmp_path):
    d = data.read(write(tmp_path, table([(f" {i}", f"{i}.\x1c", f"\t{i % 3} ") for i in range(30)], " a ,b , y")))
    assert d.classes == ("0", "1", "2") and d.n_inputs == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"table.csv is empty"),
        ("\n\n , \n", r"table.csv is empty"),
        ("1,2,0\n3,4,1\n5,6\n", r"table.csv, line 3: 2 values, where line 1 has 3"),
        ("a,b,y\n1,2,0\n\n3,4,1,9\n", r"table.csv, line 4: 4 values, where line 1 has 3"),
        ("a,b,y\n1,2,0\n3,nan,1\n", r"table.csv, line 3, column 'b': 'nan' is not a finite number"),
        ("1,2,0\n3,inf,1\n", r"table.csv, line 2, column 2: 'inf' is not a finite number"),
        ("a,b,y\n1,,0\n", r"table.csv, line 2, column 'b': the value is missing"),
        ("a,b,y\n1,2,0\n1,2,\n", r"table.csv, line 3, column 'y': the value is missing"),
        ("a,b,y\n1,2,0\n1,red,0\n", r"table.csv, line 3, column 'b': 'red' is not a number"),
        ("a,b,y\n1,2,cat\n3,4,dog\n", r"line 2: the target, column 'y', is text \('cat'\). Write the classes as whole"),
        ("5.1,1.4,setosa\n4.9,1.3,virginica\n", r"line 1: the target, column 3, is text \('setosa'\)"),
        ("1;2;0\n3;4;1\n", r"one column, and needs inputs and a target, separated by commas"),
        ("a,b,y\n", r"table has 0 examples"),
        ('1,2\n1,"2\n', r"table.csv, line 2: this is not CSV \(unexpected end of data\)"),
    ],
)
def test_what_is_wrong_with_a_csv_is_said(tmp_path, text, message):
    with pytest.raises(data.DataError, match=message):
        data.read(write(tmp_path, text))


def test_other_things_that_are_no_data(tmp_path):
    with pytest.raises(FileNotFoundError):
        data.read(tmp_path / "missing.csv")
    with pytest.raises(data.DataError, match="not a text file in UTF-8"):
        data.read(write(tmp_path, "é,1\n", encoding="latin-1"))
    with pytest.raises(data.DataError, match=r"neither a .csv nor a .npz file, nor a folder with the four files"):
        data.read(write(tmp_path, "", "table.txt"))


# --- npz --------------------------------------------------------------------------------------------------------------


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
        ({"x": np.zeros((40, 3)), "y": LABELS.astype(str)}, r"targets must be numbers, and are <U"),
        (
            {"x": np.full((40, 3), np.nan), "y": LABELS},
            r"the inputs hold nan at \[0, 0\], which is not a finite number",
        ),
        ({"x": np.zeros((40, 3)), "y": np.full(40, np.inf)}, r"the targets hold inf at \[0\]"),
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


def test_parts_of_different_kinds(tmp_path):
    x = RNG.normal(size=(40, 3))
    with pytest.raises(data.DataError, match=r"must be of one kind, and are int64\[40\] and float64\[40\]"):
        data.read(save(tmp_path, x_train=x, y_train=LABELS, x_test=x, y_test=LABELS + 0.5))
    with pytest.raises(data.DataError, match=r"must be of one kind, and are float64\[40, 3\] and float64\[40, 2\]"):
        data.read(save(tmp_path, x_train=x, y_train=x, x_test=x, y_test=x[:, :2]))
