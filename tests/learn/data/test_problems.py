"""The classical problems: counted and described by hand, never by the code that makes them."""

import math

import numpy as np
import pytest

from funcbp import data

PROBLEMS = {
    "encoder": (lambda: data.encoder(10), (10, 10), (10, 10)),
    "parity": (lambda: data.parity(4), (16, 4), (16, 1)),
    "xor": (data.xor, (4, 2), (4, 1)),
    "symmetry": (data.symmetry, (64, 6), (64, 1)),
    "t_c": (data.t_c, (40, 16), (40, 1)),
    "two_spirals": (data.two_spirals, (194, 2), (194, 1)),
    "sine": (lambda: data.sine(40), (40, 1), (40, 1)),
    "sinc": (lambda: data.sinc(11, 2), (121, 2), (121, 1)),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_shapes_and_types(name):
    make, inputs, targets = PROBLEMS[name]
    x, t = make()
    assert (x.shape, t.shape, x.dtype, t.dtype) == (inputs, targets, np.float32, np.float32)
    assert len(np.unique(x, axis=0)) == len(x)


@pytest.mark.parametrize("name", ["encoder", "parity", "xor", "symmetry", "t_c"])
def test_values_can_be_chosen(name):
    n = {"encoder": (6,), "parity": (3,)}.get(name, ())
    x, t = getattr(data, name)(*n)
    x_symmetric, t_hot = getattr(data, name)(*n, inputs=(-0.5, 0.5), targets=(0.1, 0.9))
    assert set(np.unique(x)) == set(np.unique(t)) == {0, 1}
    np.testing.assert_array_equal(x_symmetric, x - 0.5)
    np.testing.assert_array_equal(t_hot, np.where(t == 1, np.float32(0.9), np.float32(0.1)))


def test_the_encoder_gives_back_its_input():
    x, t = data.encoder(5)
    np.testing.assert_array_equal(x, t)
    np.testing.assert_array_equal(x.sum(0), np.ones(5))


def test_parity_and_xor():
    x, t = data.parity(5)
    assert all(bool(target) == bool(row.sum() % 2) for row, target in zip(x, t[:, 0], strict=True))
    np.testing.assert_array_equal(x @ [16, 8, 4, 2, 1], range(32))
    np.testing.assert_array_equal(data.xor()[1].ravel(), [0, 1, 1, 0])


@pytest.mark.parametrize(("n", "symmetric"), [(1, 2), (5, 8), (6, 8), (7, 16)])
def test_symmetry(n, symmetric):
    x, t = data.symmetry(n)
    for row, target in zip(x, t[:, 0], strict=True):
        text = "".join(map(str, row.astype(int)))
        assert bool(target) == (text == "".join(reversed(text)))
    assert t.sum() == symmetric


def test_t_or_c():
    x, t = data.t_c()
    assert (t.sum(), (1 - t).sum()) == (16, 24)
    np.testing.assert_array_equal(x.sum(1), np.full(40, 5))
    pictures = {("".join(map(str, row.astype(int))), int(target)) for row, target in zip(x, t[:, 0], strict=True)}
    assert {("1110010001000000", 1), ("0000000101110001", 1), ("0000001011100010", 1)} <= pictures
    assert {("1100100011000000", 0), ("0000000011101010", 0), ("0000101011100000", 0)} <= pictures


def test_two_spirals():
    x, t = data.two_spirals()
    np.testing.assert_array_equal(x[0::2], -x[1::2])
    np.testing.assert_array_equal(t.ravel(), [1, 0] * 97)
    radius = np.hypot(*x[0::2].T)
    np.testing.assert_allclose(radius, np.linspace(6.5, 0.5, 97), rtol=1e-6)  # 6.5 · 8/104 is a half
    turns = np.unwrap(np.arctan2(*x[0::2].T)) / (2 * math.pi)
    np.testing.assert_allclose(turns, np.linspace(0, 3, 97), atol=1e-6)
    assert set(data.two_spirals(targets=(-1, 1))[1].ravel()) == {-1, 1}


def test_curves():
    x, t = data.sine(40, periods=3, amplitude=0.25, offset=0.5)
    np.testing.assert_allclose(t, 0.5 + 0.25 * np.sin(3 * np.pi * x), atol=1e-6)
    x, t = data.sinc(21)
    np.testing.assert_allclose(t[x != 0], np.sin(x[x != 0]) / x[x != 0], atol=1e-6)
    assert t[x == 0] == 1
    x, t = data.sinc(4, 2)
    np.testing.assert_allclose(t, np.prod(np.sin(x) / x, axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(x[:2], np.array([[-10, -10], [-10, -10 / 3]], np.float32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: data.encoder(0), "An encoder needs at least 1 units, and 0 were asked for"),
        (lambda: data.parity(0), "Parity needs at least 1 inputs, and 0 were"),
        (lambda: data.two_spirals(105), "A spiral has 1 to 104 points, after which its radius is 0, and 105 were"),
        (lambda: data.sine(1), "A curve needs at least 2 points, and 1 were"),
        (lambda: data.sinc(3, 0), "A curve or surface needs at least 1 dimensions, and 0 were"),
    ],
)
def test_too_small_or_too_large(make, message):
    with pytest.raises(data.DataError, match=message):
        make()
