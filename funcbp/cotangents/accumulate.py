"""The environment of the backward pass: the cotangent of each value so far, added up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax import lax

from .products import Factored
from .zero import Zero


class Cotangents:
    """The reverse walk's environment: the cotangent of each value so far. An absent one is zero."""

    def __init__(self) -> None:
        self._of: dict[int, Any] = {}

    def add(self, slots: Sequence[int | None], cts: Sequence[Any]) -> None:
        for slot, ct in zip(slots, cts, strict=True):
            if slot is not None and ct is not None and ct is not Zero:
                self._of[slot] = _sum(self._of[slot], ct) if slot in self._of else ct

    def take(self, slots: Sequence[int | None]) -> list[Any]:
        """The cotangents of these values, which nothing will ask for again."""
        return [Zero if slot is None else self._of.pop(slot, Zero) for slot in slots]

    def read(self, slots: Sequence[int | None]) -> list[Any]:
        return [Zero if slot is None else self._of.get(slot, Zero) for slot in slots]


def _sum(a: Any, b: Any) -> Any:
    if type(a) is Factored:
        return a.plus(b)
    return b.plus(a) if type(b) is Factored else lax.add(a, b)
