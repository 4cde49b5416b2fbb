"""The command `funcbp`: outside the package, so that Ctrl-C is no traceback while the package and JAX are imported."""

import sys


def main() -> int:
    """Run the command; the exit code."""
    try:
        from funcbp.cli import main
    except KeyboardInterrupt:
        print("\nInterrupted before there was anything to keep.", file=sys.stderr)
        return 130
    return main()
