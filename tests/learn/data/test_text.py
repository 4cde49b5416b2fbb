"""Text as whole numbers, and the windows that a network is shown."""

import numpy as np
import pytest

from funcbp import data


def test_there_and_back():
    text = "größer, \U0001f40d and more; " * 10
    t = data.characters(text, "a text", validation_fraction=0.2, test_fraction=0.1)
    assert t.alphabet == "".join(sorted(set(text)))
    assert [len(part) for part in (t.train, t.validation, t.test)] == [140, 40, 20]
    assert t.decode(np.concatenate([t.train, t.validation, t.test])) == text
    assert t.train.dtype == np.int32 and t.encode("").shape == (0,)


def test_a_strange_character_is_named():
    t = data.characters("abc" * 10, "the alphabet")
    with pytest.raises(data.DataError, match="The character 'z', at place 2 of the text, does not occur in the alphab"):
        t.encode("abz")


@pytest.mark.parametrize("text", ["", "abc"])
def test_too_little_text(text):
    with pytest.raises(data.DataError, match=f"has {len(text)} characters, which is too little"):
        data.characters(text)


def test_the_standard_library_is_python():
    t = data.standard_library(60_000)
    assert [len(part) for part in (t.train, t.validation, t.test)] == [48_000, 6_000, 6_000]
    assert t.alphabet.isascii() and len(t.alphabet) <= 100
    assert t.decode(t.train).startswith('"""Record of phased-in incompatible language changes')


def test_the_standard_library_without_sources(monkeypatch, tmp_path):
    monkeypatch.setattr(data.text.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(
        data.DataError, match=r"keeps no sources of its standard library in .*; give a text of your own"
    ):
        data.standard_library()


def test_a_text_file(tmp_path):
    path = tmp_path / "poem.txt"
    path.write_text("\ufeffa rose is a rose is a rose", encoding="utf-8")
    t = data.read_text(path)
    assert (t.name, t.alphabet) == ("poem", " aeiors")
    path.write_bytes(b"caf\xe9 " * 10)
    with pytest.raises(data.DataError, match=r"poem.txt is not a text file in UTF-8: byte 3 begins no character"):
        data.read_text(path)


@pytest.mark.parametrize("stride", [None, 1, 2, 7])
def test_windows(stride):
    codes = np.arange(10, 31)
    x, t = data.windows(codes, 5, stride)
    starts = range(10, 26, stride or 5)
    np.testing.assert_array_equal(x, [range(s, s + 5) for s in starts])
    np.testing.assert_array_equal(t, x + 1)
    assert np.shares_memory(x, codes)


def test_windows_that_do_not_fit():
    with pytest.raises(data.DataError, match="of 5 characters and one more to tell need more than the 5 there are"):
        data.windows(np.arange(5), 5)
    with pytest.raises(data.DataError, match="length and a stride of at least 1, and got 3 and 0"):
        data.windows(np.arange(5), 3, 0)
