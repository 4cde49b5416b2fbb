"""`funcbp play [NAME]`: a page on which a small network learns before your eyes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax

from ..inspection import trace
from ..learn import ops
from ..learn.reproduce import worked_example
from ..learn.request import RequestError
from .parser import Parser, refuse

__all__ = ["run_play_command"]

NAMES = ("worked-example",)


def run_play_command(argv: Sequence[str]) -> int:
    """Run `funcbp play` with these arguments: write the page, and say where it is.

    Args:
        argv: what comes after `play`.

    Returns:
        0 if the page was written, 2 if the request could not be met.

    Example:
        >>> from funcbp.cli.play import run_play_command
        >>> run_play_command(["perpetual-motion"])  # says why on stderr
        2
    """
    parser = Parser(prog="funcbp play", description="Write a page on which a small network learns, step by step.")
    parser.add_argument(
        "name", nargs="?", default=NAMES[0], metavar="NAME", help=f"{', '.join(NAMES)}: the 2-2-2 network"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: NAME.html")
    try:
        request = parser.parse_args(argv)
        if request.name not in NAMES:
            raise RequestError(f"There is nothing called {request.name!r} to play; there is {', '.join(NAMES)}.")
        path = request.out or Path(f"{request.name}.html")
        path.parent.mkdir(parents=True, exist_ok=True)
        _play_worked_example(path)
        print(f"The page is in {path}. Open it in a browser; it needs no network.")
        return 0
    except SystemExit as end:  # --help
        return int(end.code or 0)
    except (OSError, RequestError) as error:
        return refuse(error)


def _play_worked_example(path: Path) -> None:
    def error(params: jax.Array, x: jax.Array, target: jax.Array) -> jax.Array:
        return ops.squared_error(worked_example.NET.apply(params, x), target)

    with jax.enable_x64(True):
        weights = ["dense_0/kernel", "dense_1/kernel"]  # the example keeps its biases
        trace(error)(*worked_example.start()).play(path, update=weights, learning_rate=worked_example.RATE)
