"""Tokens: the pieces that a text is cut into, each a whole number. Bytes, characters, or pairs learnt from a corpus."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable

import numpy as np

from .dataset import DataError

BYTES, CHARACTERS, PAIRS = "bytes", "characters", "bpe"
DEFAULT_PIECES = 1024
SAMPLE = 1_000_000  # characters of a corpus that pairs are learnt from
WORD = re.compile(r"\n *| ?\w+| ?[^\w\s]+|\s+")  # no piece goes beyond one of these; every character is in one


@dataclasses.dataclass(frozen=True)
class Tokens:
    """What a text is cut into, and back.

    Attributes:
        kind: `"bytes"`, `"characters"` or `"bpe"`.
        pieces: what each token stands for, as UTF-8: a token is a place in this.
    """

    kind: str
    pieces: tuple[bytes, ...]

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """How many bytes each token stands for, int32."""
        return np.array([len(piece) for piece in self.pieces], np.int32)

    def encode(self, text: str, name: str = "the alphabet") -> np.ndarray:
        """The tokens of a text, int32.

        Args:
            text: any text; as characters, of those that there are.
            name: what the characters are of, for the error.

        Returns:
            An array of shape (tokens,), int32.

        Raises:
            DataError: a character is not in the alphabet.
        """
        if self.kind == CHARACTERS:
            return self._places(text, name)
        if self.kind == BYTES:
            return np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        tokens: list[int] = []
        for word in WORD.findall(text):
            tokens += self._pieces_of(word)
        return np.array(tokens, np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of these tokens; bytes that are no UTF-8 become the replacement character."""
        return b"".join(self.pieces[int(token)] for token in tokens).decode(errors="replace")

    def _places(self, text: str, name: str) -> np.ndarray:
        codes, places = _code_points(text), _code_points(b"".join(self.pieces).decode())
        found = np.searchsorted(places, codes)
        strange = places[np.minimum(found, len(places) - 1)] != codes
        if np.any(strange):
            where = int(np.argmax(strange))
            raise DataError(f"The character {text[where]!r}, at place {where} of the text, does not occur in {name}.")
        return found.astype(np.int32)

    @functools.cached_property
    def _ranks(self) -> dict[bytes, int]:
        return {piece: i for i, piece in enumerate(self.pieces)}

    @functools.cached_property
    def _known(self) -> dict[str, list[int]]:
        return {}

    def _pieces_of(self, word: str) -> list[int]:
        """A word, joined pair by pair, the pair that was learnt first before the others."""
        if word in self._known:
            return self._known[word]
        ranks, parts = self._ranks, [bytes([b]) for b in word.encode()]
        while len(parts) > 1:
            joined = [ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts)]
            best = min(joined)
            if best == len(ranks):
                break
            i = joined.index(best)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return self._known.setdefault(word, [ranks[part] for part in parts])


def learn_tokens(kind: str, text: str, alphabet_of: str = "") -> Tokens:
    """The tokens of this kind for a corpus.

    Args:
        kind: `"bytes"`, `"characters"`, or `"bpe:N"`, N pieces: the 256 bytes, and pairs of pieces, the most frequent
            one first, each joined before the next is looked for (`"bpe"` has 1024).
        text: what pairs are learnt from, of which the first million characters are looked at.
        alphabet_of: more text, whose characters are in the alphabet of `"characters"`.

    Returns:
        What turns text into numbers and back.

    Raises:
        DataError: there is no such kind.

    Example:
        >>> from funcbp.learn.data.tokens import learn_tokens
        >>> tokens = learn_tokens("bpe:258", "the other, then the others")
        >>> tokens.pieces[256:], tokens.encode("the theme").tolist()
        ((b'th', b'the'), [257, 32, 257, 109, 101])

    References:
        P. Gage, "A new algorithm for data compression", 1994; R. Sennrich, B. Haddow, A. Birch, "Neural machine
        translation of rare words with subword units", 2016.
    """
    every_byte = tuple(bytes([b]) for b in range(256))
    if kind == BYTES:
        return Tokens(BYTES, every_byte)
    if kind == CHARACTERS:
        return Tokens(CHARACTERS, tuple(c.encode() for c in sorted(set(text) | set(alphabet_of))))
    name, colon, number = kind.partition(":")
    if name != PAIRS or (colon and not (number.isascii() and number.isdigit() and 256 <= int(number) <= 65_536)):
        raise DataError(f"Tokens are bytes, characters, or bpe:N with N from 256 to 65536, and not {kind!r}.")
    pieces = [*every_byte, *_pairs(text[:SAMPLE], int(number or DEFAULT_PIECES) - 256)]
    return Tokens(PAIRS, tuple(pieces))


def _pairs(text: str, count: int) -> list[bytes]:
    """The pairs to join, in their order; fewer, if no pair is there twice."""
    words = collections.Counter(WORD.findall(text))
    cut = [[bytes([b]) for b in word.encode()] for word in words]
    times = list(words.values())
    counts: collections.Counter[tuple[bytes, bytes]] = collections.Counter()
    where: dict[tuple[bytes, bytes], set[int]] = collections.defaultdict(set)

    def enter(i: int, sign: int) -> None:
        for pair in itertools.pairwise(cut[i]):
            counts[pair] += sign * times[i]
            where[pair].add(i)

    for i in range(len(cut)):
        enter(i, 1)
    found: dict[bytes, None] = {}
    while len(found) < count and counts:
        pair = max(counts, key=counts.__getitem__)  # of several, the first that was seen
        if counts[pair] < 2:
            break
        a, b = pair
        found[a + b] = None
        for i in where.pop(pair):
            enter(i, -1)
            joined: list[bytes] = []
            for part in cut[i]:
                if joined and part == b and joined[-1] == a:
                    joined[-1] = a + b
                else:
                    joined.append(part)
            cut[i] = joined
            enter(i, 1)
        del counts[pair]
    return list(found)


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
