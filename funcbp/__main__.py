"""`python -m funcbp` is the command `funcbp`."""

import sys

from .cli import main

sys.exit(main())
