"""Backpropagation you can open: JAX's `vjp` and `grad`, with a backward pass made of hand-written rules."""

from . import credit, data, nets, ops, plot, rules, testing, train
from .backward import Backward, MissingRuleError, grad, hvp, jacrev, value_and_grad, vjp
from .inspection import cotangents, find_nan, summary, trace
from .ops.marks import feedback, name
from .rules import coverage, rule
from .testing import check

__version__ = "0.1.0"

__all__ = [
    "Backward",
    "MissingRuleError",
    "check",
    "cotangents",
    "coverage",
    "credit",
    "data",
    "feedback",
    "find_nan",
    "grad",
    "hvp",
    "jacrev",
    "name",
    "nets",
    "ops",
    "plot",
    "rule",
    "rules",
    "summary",
    "testing",
    "trace",
    "train",
    "value_and_grad",
    "vjp",
]
