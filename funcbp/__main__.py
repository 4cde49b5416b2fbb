"""`python -m funcbp` is the command `funcbp`."""

import sys

from .cli.main import main

sys.exit(main())
