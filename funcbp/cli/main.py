"""The command `funcbp`: train a network on real data by a backward pass that has been checked before your eyes.

`funcbp train digits` says what it will do, compares its gradient with two witnesses, learns, and leaves the results in
a folder. Whatever is wrong with the request is said in a sentence, with exit code 2; a gradient that fails its check,
or learning that diverges, ends with exit code 1; Ctrl-C keeps what was reached, with exit code 130.
"""

from __future__ import annotations

import argparse
import collections
import sys
from collections.abc import Sequence

import jax

from .._version import __version__
from ..jaxpr import public_names
from ..learn.request import RequestError
from ..rules import coverage
from .parser import INTERRUPTED, Parser, refuse

FAILED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments, without the command's own name; those of the process if not given.

    Returns:
        The exit code: 0 if all went well, 1 if a gradient or the learning failed, 2 if the request could not be met,
        130 after Ctrl-C.

    Example:
        >>> from funcbp.cli import main
        >>> main(["train", "no-such-data"])  # says why on stderr
        2
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["check"]:
        from .check import run_check_command

        return run_check_command(argv[1:])
    if argv[:1] == ["reproduce"]:
        from .reproduce import run_reproduce_command

        return run_reproduce_command(argv[1:])
    if argv[:1] == ["play"]:
        from .play import run_play_command

        return run_play_command(argv[1:])
    from ..learn import data, train

    try:
        if argv[:2] == ["train", "text"]:
            from .text import text_parser

            args = text_parser().parse_args(argv[2:])
        else:
            args = parser().parse_args(argv)
        return args.run(args)
    except (OSError, RequestError, data.DataError, train.CheckpointError, ImportError) as error:
        return refuse(error)
    except KeyboardInterrupt:
        print("\nInterrupted before there was anything to keep.", file=sys.stderr)
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """What the command understands."""
    from .balance import add_balance_command
    from .predict import add_predict_command
    from .sample import add_sample_command
    from .train import add_train_command

    top = Parser(prog="funcbp", description="Backpropagation you can open.")
    top.add_argument("--version", action="version", version=f"funcbp {__version__}, jax {jax.__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_train_command(commands)
    add_predict_command(commands)
    add_sample_command(commands)
    command = commands.add_parser(
        "coverage",
        help="list every primitive and how it is differentiated",
        description="List JAX's primitives and how each is accounted for.",
    )
    command.set_defaults(run=run_coverage)
    add_balance_command(commands)
    commands.add_parser("check", help="is a function's derivative right? (see `funcbp check --help`)", add_help=False)
    commands.add_parser(
        "reproduce", help="published results, looked for again (see `funcbp reproduce --help`)", add_help=False
    )
    commands.add_parser("play", help="a small network that learns on a page (see `funcbp play --help`)", add_help=False)
    return top


def run_coverage(args: argparse.Namespace) -> int:
    """Print the table of primitives; exit code 1 if a public one is in none of its columns."""
    table = coverage()
    counts = collections.Counter(how.split(":")[0] for how in table.values())
    width = max(map(len, table)) + 2
    for name, how in table.items():
        print(f"{name:<{width}}{how}")
    missing = sorted(set(public_names()) - table.keys())
    print(f"\n{jax.__version__}: " + ", ".join(f"{n} {how}" for how, n in counts.most_common()), end="; ")
    print(f"missing: {', '.join(missing)}" if missing else "nothing missing")
    return FAILED if missing else 0
