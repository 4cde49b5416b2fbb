"""Backpropagation you can open: JAX's `vjp` and `grad`, with a backward pass made of hand-written rules."""

from . import rules
from .backward import Backward, MissingRuleError, grad, hvp, jacrev, value_and_grad, vjp
from .rules import coverage, rule

__version__ = "0.1.0"

__all__ = [
    "Backward",
    "MissingRuleError",
    "coverage",
    "grad",
    "hvp",
    "jacrev",
    "rule",
    "rules",
    "value_and_grad",
    "vjp",
]
