"""Corpora of files, and the tokens they are cut into."""

import numpy as np
import pytest

from funcbp import data
from funcbp.learn.data import corpus


@pytest.fixture
def folder(tmp_path):
    for i in range(20):
        path = tmp_path / f"part_{i % 3}" / f"{i}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"File {i} tells of {i * i}, größer than {i}.\n" * 3, encoding="utf-8")
    (tmp_path / "copy.txt").write_text((tmp_path / "part_0/0.txt").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (tmp_path / "zeros.txt").write_bytes(b"a\0b")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden/secret.txt").write_text("hidden")
    return tmp_path


@pytest.mark.parametrize("tokens", ["bytes", "characters", "bpe:300"])
def test_whole_files_are_held_out(folder, tokens):
    text = data.read_corpus(folder, tokens=tokens, held_out=0.12)
    parts = [text.decode(part) for part in (text.train, text.validation, text.test)]
    told = [{int(line.split()[1]) for line in part.splitlines()} for part in parts]
    assert [len(t) for t in told] == [14, 3, 3] and set.union(*told) == set(range(20))
    assert all(part.count("\n") == 3 * len(t) for part, t in zip(parts, told, strict=True))
    assert text.about[0].startswith("20 files") and "left out: 3 files" in text.about[1]
    for part, tokens_of in zip(parts, (text.train, text.validation, text.test), strict=True):
        assert text.tokens.lengths[tokens_of].sum() == len(part.encode())


def test_the_limit_and_the_standard_library():
    text = data.read_corpus(limit=50_000)
    assert len(text.train) + len(text.validation) + len(text.test) == pytest.approx(50_000, rel=0.01)
    assert "import" in text.decode(text.train) and text.tokens.kind == "bytes"


def test_a_file_is_parted_by_place(tmp_path):
    path = tmp_path / "abc.txt"
    path.write_text("".join(map(chr, range(200, 300))), encoding="utf-8")
    text = data.read_corpus(path, tokens="characters", held_out=0.1)
    assert [part.tolist() for part in (text.validation, text.test)] == [list(range(80, 90)), list(range(90, 100))]


def test_pairs_in_the_order_of_their_number():
    tokens = data.learn_tokens("bpe:300", "ab ab ab abc")
    assert tokens.pieces[256:] == (b"ab", b" ab")  # no other pair is there twice
    assert tokens.encode("ab abc").tolist() == [256, 257, ord("c")]
    rng = np.random.default_rng(0)
    text = "".join(chr(c) for c in rng.integers(32, 1000, 200)) + "\n\n    ab \U0001f40d\r\n\t"
    assert tokens.decode(tokens.encode(text)) == text


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p / "no", "There is no file or folder"),
        (lambda p: p, "has no files in it"),
        (lambda p: (p / "a.bin").write_bytes(b"\xff\0") and p, "holds no text in UTF-8"),
        (lambda p: (p / "a.bin").write_bytes(b"ab\xff") and p / "a.bin", "byte 2 begins no character"),
        (lambda p: (p / "a.bin").write_bytes(b"ab\0") and p / "a.bin", "there is a zero byte"),
        (lambda p: (p / "a.txt").write_text("abc") and p / "a.txt", "has 3 characters, too little"),
    ],
    ids=["nothing", "empty folder", "binary folder", "not UTF-8", "zero byte", "short"],
)
def test_what_is_no_corpus(tmp_path, make, says):
    with pytest.raises(data.DataError, match=says):
        data.read_corpus(make(tmp_path))


@pytest.mark.parametrize("tokens", ["words", "bpe:12", "bpe:", "bpe:many"])
def test_there_are_no_such_tokens(tokens):
    with pytest.raises(data.DataError, match="Tokens are bytes, characters, or bpe:N"):
        data.learn_tokens(tokens, "abc")


def test_a_python_without_sources(monkeypatch, tmp_path):
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(data.DataError, match="keeps no sources of its library"):
        data.read_corpus()
