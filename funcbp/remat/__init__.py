"""What is kept between the two passes, and what is computed again."""

from .budget import Budget as Budget
from .policies import Policy as Policy
