"""What is saved between the two passes, and what is recomputed."""

from .budget import Budget as Budget
from .policies import Policy as Policy
