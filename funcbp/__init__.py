"""Backpropagation you can open: JAX's `vjp` and `grad`, with a backward pass made of hand-written rules."""

from . import control_flow as _control_flow  # noqa: F401  enters its rules into the table
from . import credit, curvature, inspection, per_example, rules, testing
from .autodiff.marks import feedback, name
from .autodiff.transformations import Backward, grad, hessian, hvp, jacrev, value_and_grad, vjp
from .control_flow.loops import scan, while_loop
from .inspection import cotangents, find_nan, residuals, summary, trace
from .learn import data, nets, ops, optim, plot, reproduce, train
from .learn.train import fit, fit_many
from .remat.budget import Budget
from .rules import MissingRuleError, coverage, rule
from .testing import check

__version__ = "0.2.0"

__all__ = [
    "Backward",
    "Budget",
    "MissingRuleError",
    "check",
    "cotangents",
    "coverage",
    "credit",
    "curvature",
    "data",
    "feedback",
    "find_nan",
    "fit",
    "fit_many",
    "grad",
    "hessian",
    "hvp",
    "inspection",
    "jacrev",
    "name",
    "nets",
    "ops",
    "optim",
    "per_example",
    "plot",
    "reproduce",
    "residuals",
    "rule",
    "rules",
    "scan",
    "summary",
    "testing",
    "trace",
    "train",
    "value_and_grad",
    "vjp",
    "while_loop",
]
