"""`funcbp predict`: what a network that `funcbp train` has trained says of new examples."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from pathlib import Path

from ..learn import train
from ..learn.train.job import predict


def add_predict_command(commands: argparse._SubParsersAction) -> None:
    """Add `predict` to the commands of `funcbp`."""
    command = commands.add_parser(
        "predict",
        help="what a trained network says of the examples in a file",
        description="Write, as CSV, what a trained network says of the examples in a file: for classes, the likeliest "
        "one and the probability of each; otherwise the numbers, in the target's own unit.",
    )
    command.add_argument("run_folder", type=Path, metavar="RUN", help="the folder that `funcbp train` left")
    command.add_argument("file", type=Path, metavar="FILE", help="a table with the columns of the training, or an .npz")
    command.add_argument("--out", type=Path, metavar="FILE", help="where to; default: the standard output")
    command.set_defaults(run=run_prediction)


def run_prediction(args: argparse.Namespace) -> int:
    """`funcbp predict`: a line for each example, in their order."""
    names, rows = predict(args.run_folder, args.file)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([names, *rows])
    if args.out is None:
        sys.stdout.write(text.getvalue())
    else:
        train.write_atomically(args.out, lambda file: file.write(text.getvalue().encode()))
    return 0
