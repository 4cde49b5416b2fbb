"""The environment of the backward pass: the cotangent of each value so far, added up."""

from __future__ import annotations

from collections.abc import Sequence

from .. import jaxpr as jx
from .products import Cotangent, Factored
from .zero import Zero


class Cotangents:
    """The environment of the backward pass: the cotangent of each value so far. An absent one is zero."""

    def __init__(self) -> None:
        self._of: dict[int, Cotangent] = {}

    def add(self, indices: Sequence[int | None], cts: Sequence[Cotangent]) -> None:
        for index, ct in zip(indices, cts, strict=True):
            if index is not None and ct is not None and ct is not Zero:
                self._of[index] = _sum(self._of[index], ct) if index in self._of else ct

    def take(self, indices: Sequence[int | None]) -> list[Cotangent]:
        """Remove the cotangents of these values, which nothing asks for any more, and return them."""
        return [Zero if index is None else self._of.pop(index, Zero) for index in indices]

    def read(self, indices: Sequence[int | None]) -> list[Cotangent]:
        return [Zero if index is None else self._of.get(index, Zero) for index in indices]


def _sum(a: Cotangent, b: Cotangent) -> Cotangent:
    if type(a) is Factored:
        return a.plus(b)
    return b.plus(a) if type(b) is Factored else jx.add(a, b)
