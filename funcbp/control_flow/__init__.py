"""Programs inside programs: as rules that are handed the options: loops, branches, calls, regions, maps."""

from . import calls as calls
from . import checkpoint as checkpoint
from . import cond as cond
from . import linear_call as linear_call
from . import linear_solve as linear_solve
from . import mapped as mapped
from . import operations as operations
from . import revolve as revolve
from . import scan as scan
from . import while_loop as while_loop
