"""The options of a backward pass, as a value."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
from jax.typing import ArrayLike

from ..cotangents import Cotangent
from ..jaxpr.types import PyTree, Value

__all__ = ["Observer", "Options"]

Edit = Callable[[jax.Array, Mapping[str, jax.Array]], ArrayLike]


class Observer(Protocol):
    """What looks at each entry, on the way forward and on the way back. It is a value, which jit caches compare.

    What it notes is kept like a residual, and what it makes of an entry comes out of the backward pass: from inside a
    loop stacked over the loop's steps.

    Attributes:
        everything: whether it also looks at equations that no differentiated value enters, or that lead to no output.
    """

    @property
    def everything(self) -> bool: ...

    def forward(self, primitive: str, params: dict[str, Any], values: Sequence[Value], outs: Sequence[Value]) -> PyTree:
        """A pytree of arrays to be kept of an equation that has run on these values, or None."""

    def backward(self, entry: Any, noted: PyTree, ct: Sequence[Cotangent]) -> PyTree:
        """A pytree of arrays to be handed out, of what was noted and the cotangents of the outputs, or None."""


@dataclass(frozen=True, eq=False)
class Options:
    """How to go backward. What `Backward` is made of, and what its methods and the looking functions add to it.

    Attributes:
        rules: rules that replace those of the table, by primitive or by where a function was written.
        edits: functions that replace the cotangents of named values, by name.
        policy: what is kept between the two passes: a `remat.Policy`.
        outside_loops: whether that is planned for what is outside loops, too.
        on_missing: what to do about an equation without a rule: `"error"` or `"jax"`.
        observer: what looks at each entry.
        factored: whether products are left as factors where they leave a loop.
        inline_calls: whether what compiled calls have inside is run one by one.
    """

    rules: Mapping[Any, Any] = field(default_factory=dict)
    edits: Mapping[str, Edit] = field(default_factory=dict)
    policy: Any = None
    outside_loops: bool = False
    on_missing: str = "error"
    observer: Observer | None = None
    factored: bool = False
    inline_calls: bool = False

    @functools.cached_property
    def _key(self) -> tuple[object, ...]:
        rest = (self.policy, self.outside_loops, self.on_missing, self.observer, self.factored, self.inline_calls)
        return (tuple(self.rules.items()), tuple(self.edits.items()), *rest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Options) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def replace(self, **changes: Any) -> Options:
        """The same but for these."""
        return dataclasses.replace(self, **changes)

    @functools.cached_property
    def inlining(self) -> Options:
        """The same for a program that a plan is made of, which looks inside calls."""
        return self if self.inline_calls else self.replace(inline_calls=True)

    @functools.cached_property
    def inlines_calls(self) -> bool:
        """Whether compiled calls are inlined: asked for, or because a boolean's cotangent does not enter programs."""
        return self.inline_calls or any(rule.inlines_calls for rule in self.rules.values())
