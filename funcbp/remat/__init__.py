"""What is saved between the two passes, and what is recomputed.

A policy of one's own is a function `(forward, needed, available) -> variables to keep`, or a subclass of `Policy`; both
go into `Backward(residuals=...)`. They are made of `bytes_of(variables)`, `is_cheap(eqn)`, whether an equation is cheap
to run again, and `read_for(forward, variables, saved)`, what is read to make these variables of what is saved.
"""

from ..rules.cost import is_cheap as is_cheap
from .budget import Budget as Budget
from .graph import bytes_of as bytes_of
from .graph import read_for as read_for
from .policies import Policy as Policy
