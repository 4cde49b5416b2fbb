"""Runs suites that nobody here wrote with our reverse mode in JAX's place, and prints a table.

    python -m tests.outside harnesses                          JAX's own examples of each primitive, from its wheel
    python -m tests.outside packages optax lineax=../lineax    tests from a source distribution, or a repository
    python -m tests.outside programs [flowjax tinygp ...]      small programs that use packages, written here
    python -m tests.outside jax --jax-repo ../jax              JAX's own tests, from a copy of its repository

The packages must be installed; so must what their tests import. None of their code enters this repository.
"""

from __future__ import annotations

import argparse
import sys

from . import report, suites


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.outside", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--module", default="funcbp", help="whose grad, vjp, ... take the place of JAX's (default: funcbp)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    harnesses = commands.add_parser("harnesses")
    harnesses.add_argument("--only", nargs="+", default=[], metavar="GROUP", help="of these primitives")
    harnesses.add_argument("--per-primitive", type=int, default=0, metavar="N", help="so many of each (default: all)")
    harnesses.add_argument("--jit", action="store_true", help="both passes compiled")
    harnesses.add_argument("--x64", action="store_true", help="those in 64 bits, in place of those in 32 or 16")
    harnesses.add_argument("--complex", action="store_true", help="the complex ones, in place of the real ones")
    packages = commands.add_parser("packages")
    packages.add_argument("names", nargs="+", metavar="NAME[=DIR]", help="a package; where its repository is")
    programs = commands.add_parser("programs")
    programs.add_argument("names", nargs="*", metavar="NAME", help="a package (default: all there are programs for)")
    jax = commands.add_parser("jax")
    jax.add_argument("files", nargs="*", metavar="FILE", help="test files (default: a list of them)")
    jax.add_argument(
        "--jax-repo", required=True, metavar="DIR", help="a copy of JAX's repository at the version installed"
    )
    for command in (packages, jax):
        command.add_argument("--tests", default="", metavar="EXPR", help="those of these names, as pytest -k has it")
        command.add_argument(
            "--per-test", type=int, default=0, metavar="N", help="so many of a test's parametrisations"
        )
        command.add_argument("--seconds", type=float, default=60, help="of the processor, for one test")
        command.add_argument(
            "--minutes",
            type=float,
            default=60,
            help="of the processor, for a suite with ours; what failed is then run on JAX's",
        )
        command.add_argument(
            "--records", default="", metavar="DIR", help="keeps what became of each test: a run ended early goes on"
        )
    options = vars(parser.parse_args(argv))

    match options.pop("command"):
        case "harnesses":
            from .harnesses import harness_suite  # JAX's module reads the command line when it is imported

            rows = iter([harness_suite(**options)])
        case "programs":
            from .programs import rows as rows_of_programs  # which imports ours, as the suites' processes do

            options.pop("module")
            rows = rows_of_programs(**options)
        case "packages":
            rows = suites.packages(**options)
        case "jax":
            rows = suites.jax_files(options.pop("jax_repo"), **options)
    failures = []
    print(report.HEADER)
    for row in rows:
        print(row.line(), flush=True)
        failures += [f"\n{row.suite}\n{row.details()}"] if row.failures else []
    print(*failures, sep="\n")
    return len(failures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
