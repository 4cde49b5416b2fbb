"""A corpus of files, of which whole files are held out: nothing that a network is judged by was learned from."""

from __future__ import annotations

import sysconfig
import tokenize
import zlib
from collections.abc import Iterator
from pathlib import Path

from .dataset import DataError
from .text import Text
from .tokens import learn_tokens

LIMIT = 20_000_000
LEFT_OUT = frozenset(  # folders of the standard library: not everywhere there, or tables more than programs
    "test tests idle_test site-packages dist-packages lib2to3 ensurepip encodings pydoc_data".split()
)


def read_corpus(
    source: str | Path | None = None, *, tokens: str = "bytes", limit: int = LIMIT, held_out: float = 0.05
) -> Text:
    """A corpus to learn a language from: a file, the text files of a folder, or the sources of Python's own library.

    Of several files, whole ones are held out, for validation and for the test; which, is drawn by their names, always
    the same. Files with the same content count once. A single file is parted by place: its beginning is learned from.

    Args:
        source: a file in UTF-8, or a folder, whose files in UTF-8 are read with those of the folders in it (those whose
            names begin with a dot are left out); None: the standard library's sources without its tests and tables.
        tokens: `"bytes"`, `"characters"`, or `"bpe:N"` for N pieces learnt from what is learned from; see
            `learn_tokens`.
        limit: how many characters to take. Of several files, those come first that the draw puts first.
        held_out: how much is for validation, and how much again for the test.

    Returns:
        A text, with what was read in `about`.

    Raises:
        DataError: there is no text, or too little for three parts.
        OSError: a file cannot be read.

    Example:
        >>> from funcbp import data
        >>> text = data.read_corpus(limit=300_000)
        >>> text.name, len(text.tokens.pieces)
        ('the standard library', 256)
    """
    if source is None:
        root, name = Path(sysconfig.get_path("stdlib")), "the standard library"
        files = [f for f in root.rglob("*.py") if not LEFT_OUT.intersection(f.relative_to(root).parts[:-1])]
        if not files:
            raise DataError(f"This Python keeps no sources of its library in {root}; give a file or folder of text.")
    else:
        root = Path(source)
        name = root.stem or root.resolve().name
        if not root.exists():
            raise DataError(f"There is no file or folder {root}.")
        inside = [f for f in root.rglob("*") if not any(p.startswith(".") for p in f.relative_to(root).parts)]
        files = [f for f in inside if f.is_file()] if root.is_dir() else [root]
        if not files:
            raise DataError(f"The folder {root} has no files in it.")
    drawn = sorted(files, key=lambda f: (zlib.crc32(f.relative_to(root).as_posix().encode()), str(f)))
    texts, left_out = _read_all(drawn, limit, alone=root.is_file())
    if not texts:
        raise DataError(f"{root} holds no text in UTF-8 with something in it.")
    parts = _by_file(texts, held_out) if len(texts) > 2 else _by_place("".join(texts), held_out)
    if min(map(len, parts)) < 1:
        raise DataError(f"{name} has {sum(map(len, texts))} characters, too little to learn from and to be judged by.")
    kind = learn_tokens(tokens, parts[0], "".join(parts[1:]))
    about = [f"{len(texts)} files, {sum(map(len, texts)):,} characters"] if root.is_dir() else []
    if left_out:
        about.append(f"left out: {left_out} files that are no text in UTF-8, empty, or the same as another")
    if len(texts) > 2:
        about.append("whole files are held out")
    train, validation, test = (kind.encode(part, name) for part in parts)
    return Text(name, kind, train, validation, test, tuple(about))


def _read_all(files: list[Path], limit: int, alone: bool) -> tuple[list[str], int]:
    """The texts of the files, up to a limit, and how many were left out."""
    texts: dict[str, None] = {}
    size = left_out = 0
    for text in (_read(f, alone) for f in files):
        if not text or text in texts:
            left_out += 1
            continue
        texts[text[: limit - size]] = None
        size += len(text)
        if size >= limit:
            break
    return list(texts), left_out


def _read(path: Path, alone: bool) -> str | None:
    """The text of a file; None if it is none, or if it alone was asked for, a sentence that says so."""
    try:
        if path.suffix == ".py":
            with tokenize.open(path) as file:  # in the coding that the file declares
                return file.read()
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, SyntaxError) as error:
        if alone:
            where = f": byte {error.start} begins no character" if isinstance(error, UnicodeDecodeError) else ""
            raise DataError(f"{path} is not a text file in UTF-8{where}.") from error
        return None
    if "\0" in text:
        if alone:
            raise DataError(f"{path} is not a text file: there is a zero byte in it.")
        return None
    return text


def _by_file(texts: list[str], held_out: float) -> list[str]:
    """Training, validation and test: whole files, in their order, for the test first, at least one."""
    rest: Iterator[str] = iter(texts)
    total, last = sum(map(len, texts)), len(texts) - 2
    held: list[list[str]] = [[], []]
    taken = 0
    for part in held:
        while not part or (sum(map(len, part)) < held_out * total and taken < last):
            part.append(next(rest))
            taken += 1
        last += 1
    test, validation = held
    return ["".join(rest), "".join(validation), "".join(test)]


def _by_place(text: str, held_out: float) -> list[str]:
    size = round(held_out * len(text))
    end = len(text) - 2 * size
    return [text[:end], text[end : end + size], text[end + size :]]
