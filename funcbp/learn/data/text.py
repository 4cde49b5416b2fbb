"""Text as whole numbers, in three parts, in windows; and corpora, one of them on every machine."""

from __future__ import annotations

import dataclasses
import sysconfig
import tokenize
from pathlib import Path

import numpy as np

from .dataset import DataError
from .tokens import CHARACTERS, Tokens, learn_tokens


@dataclasses.dataclass(frozen=True)
class Text:
    """A text in three parts, as tokens: whole numbers.

    Attributes:
        name: what to call it.
        tokens: what each number stands for.
        train, validation, test: the parts, int32, shape (tokens,).
        about: what there is to say of how it was read, in sentences.
    """

    name: str
    tokens: Tokens
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    about: tuple[str, ...] = ()

    @property
    def alphabet(self) -> str:
        """Of characters, those that occur, in the order of their code points."""
        return b"".join(self.tokens.pieces).decode(errors="replace")

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text, int32: of characters, their places in the alphabet.

        Returns:
            An array of shape (tokens,), int32.

        Raises:
            DataError: a character is not in the alphabet.
        """
        return self.tokens.encode(text, self.name)

    def decode(self, tokens: np.ndarray) -> str:
        """The text of these tokens."""
        return self.tokens.decode(tokens)


def characters(text: str, name: str = "text", *, validation_fraction: float = 0.1, test_fraction: float = 0.1) -> Text:
    """A text as whole numbers, in three parts: its beginning to learn from, then validation, then test.

    Args:
        text: the text.
        name: what to call it.
        validation_fraction: how much of it is for validation.
        test_fraction: how much of it, at its end, is for the test.

    Returns:
        A text whose alphabet is the characters of all three parts.

    Raises:
        DataError: there is too little text for three parts.

    Example:
        >>> from funcbp import data
        >>> text = data.characters("to be or not to be, ")
        >>> text.alphabet, text.decode(text.test)
        (' ,benort', ', ')
        >>> text.encode("bee")
        array([2, 3, 3], dtype=int32)
    """
    sizes = [round(fraction * len(text)) for fraction in (validation_fraction, test_fraction)]
    end = len(text) - sum(sizes)
    if min(end, *sizes) < 1:
        raise DataError(f"{name} has {len(text)} characters, which is too little for training, validation and test.")
    tokens = learn_tokens(CHARACTERS, text)
    train, validation, test = np.split(tokens.encode(text), [end, end + sizes[0]])
    return Text(name, tokens, train, validation, test)


def read_text(path: str | Path) -> Text:
    """A text file in UTF-8 as characters.

    Args:
        path: where the file is.

    Returns:
        A text named after the file.

    Raises:
        DataError: the file is not UTF-8, or too short.
        OSError: the file cannot be read.

    Example:
        >>> import pathlib, tempfile
        >>> from funcbp import data
        >>> path = pathlib.Path(tempfile.mkdtemp(), "poem.txt")
        >>> _ = path.write_text("a rose is a rose is a rose")
        >>> data.read_text(path).alphabet
        ' aeiors'
    """
    path = Path(path)
    try:
        return characters(path.read_text(encoding="utf-8-sig"), path.stem)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file in UTF-8: byte {error.start} begins no character.") from error


def standard_library(limit: int | None = None) -> Text:
    """The sources of Python's own standard library: a corpus of some 4.7 million characters that needs no download.

    They are the modules that are one file, in the order of their names, so the text depends on Python's version. About
    90 characters that are not ASCII are left out, to keep the alphabet to a hundred.

    Args:
        limit: how many characters to take; all, if it is not given.

    Returns:
        A text.

    Raises:
        DataError: this Python has no sources.

    Example:
        >>> from funcbp import data
        >>> text = data.standard_library(10_000)
        >>> len(text.train), len(text.validation), len(text.test)
        (8000, 1000, 1000)
    """
    folder = Path(sysconfig.get_path("stdlib"))
    pieces, size = [], 0
    for path in sorted(folder.glob("*.py")):
        if limit is not None and size >= limit:
            break
        with tokenize.open(path) as file:  # in the coding that the file declares
            pieces.append(file.read().encode("ascii", "ignore").decode())
        size += len(pieces[-1])
    if not pieces:
        raise DataError(f"This Python keeps no sources of its standard library in {folder}; give a text of your own.")
    return characters("".join(pieces)[:limit], "the standard library")


def windows(codes: np.ndarray, length: int, stride: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of a text, and as their targets the same pieces one character later.

    Args:
        codes: shape (characters,).
        length: of a piece.
        stride: from the beginning of one piece to that of the next; `length`, if it is not given.

    Returns:
        Inputs and targets, both of shape (pieces, length): views of `codes`, which cannot be written to.

    Raises:
        DataError: the text is shorter than a piece and its target.

    Example:
        >>> import numpy as np
        >>> from funcbp import data
        >>> x, t = data.windows(np.arange(8), 3)
        >>> x.tolist(), t.tolist()
        ([[0, 1, 2], [3, 4, 5]], [[1, 2, 3], [4, 5, 6]])
    """
    stride = length if stride is None else stride
    if length < 1 or stride < 1:
        raise DataError(f"Windows need a length and a stride of at least 1, and got {length} and {stride}.")
    if len(codes) <= length:
        raise DataError(
            f"Windows of {length} characters and one more to tell need more than the {len(codes)} there are."
        )
    pieces = np.lib.stride_tricks.sliding_window_view(codes, length + 1)[::stride]
    return pieces[:, :-1], pieces[:, 1:]
