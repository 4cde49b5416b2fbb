"""Names for annotations: JAX's types for programs, and words for what it has no type for.

`PyTree`, `Value` and `Aval` are `Any` to a type checker; to a reader they say which. `X | Any` is an X, or what is told
from it by `is`: `Zero`, or None where the caller knows better.
"""

from __future__ import annotations

from typing import Any, ParamSpec, TypeAlias, TypeVar

from jax._src.linear_util import WrappedFun as WrappedFun
from jax._src.source_info_util import SourceInfo as SourceInfo
from jax.extend.core import ClosedJaxpr as ClosedJaxpr
from jax.extend.core import Jaxpr as Jaxpr
from jax.extend.core import JaxprEqn as JaxprEqn
from jax.extend.core import Literal as Literal
from jax.extend.core import Primitive as Primitive
from jax.extend.core import Var as Var

T = TypeVar("T")
P = ParamSpec("P")

PyTree: TypeAlias = Any  # containers registered with JAX, and their leaves: arrays, where nothing else is said
Value: TypeAlias = Any  # what a program runs on: an array or a tracer, a Python number, a reference, a token
Aval: TypeAlias = Any  # the type of a value: of an array a `ShapedArray`, with shape, dtype and sharding
Atom: TypeAlias = Var | Literal
AnyJaxpr: TypeAlias = Jaxpr | ClosedJaxpr  # without or with its constants, which newer JAX does not tell apart
