"""Looking into the two passes: cotangents by name, the first number that is not finite, the ledger, the summary."""

from .ledger import trace as trace
from .named import cotangents as cotangents
from .nan import find_nan as find_nan
from .summary import summary as summary
