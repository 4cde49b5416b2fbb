"""Looking into the two passes: cotangents by name, the first number that is not finite, what is kept, the ledger."""

from ..jaxpr import count_as_library as count_as_library
from .difference import Difference as Difference
from .difference import Match as Match
from .difference import diff as diff
from .ledger import Trace as Trace
from .ledger import trace as trace
from .named import cotangents as cotangents
from .nan import find_nan as find_nan
from .precision import Errors as Errors
from .precision import Precision as Precision
from .precision import precision as precision
from .residuals import Residual as Residual
from .residuals import Residuals as Residuals
from .residuals import residuals as residuals
from .rows import Row as Row
from .shadow import Rounding as Rounding
from .summary import summary as summary
