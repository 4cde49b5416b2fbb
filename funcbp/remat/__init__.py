"""What is saved between the two passes, and what is recomputed.

A policy of one's own is a function `(forward, needed, available) -> variables to keep`, or a subclass of `Policy`; both
go into `Backward(residuals=...)`. `is_cheap(eqn)` and `read_for(forward, variables, kept)` are what policies are made
of: whether an equation is cheap to run again, and what is read to make these variables of what is kept.
"""

from ..rules.cost import is_cheap as is_cheap
from .budget import Budget as Budget
from .graph import read_for as read_for
from .policies import Policy as Policy
