"""Looking into the two passes: cotangents by name, the first number that is not finite, what is kept, the ledger."""

from .named import cotangents as cotangents
from .residuals import Residual as Residual
from .residuals import Residuals as Residuals
from .residuals import residuals as residuals
