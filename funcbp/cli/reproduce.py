"""`funcbp reproduce [NAME]`: published results beside what is found here, as tables and pictures."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..learn import plot
from ..learn.reproduce import MEANING, REPRODUCTIONS
from ..learn.reproduce.table import Comparison, Picture, Reproduction, format_table
from ..learn.request import RequestError, whole
from ..learn.train import write_atomically
from ..learn.train.records import tqdm
from .parser import INTERRUPTED, Parser, refuse

DONE = 0


def run_reproduce_command(argv: Sequence[str]) -> int:
    """Run `funcbp reproduce` with these arguments: print the tables, and write them and the pictures to a folder.

    Args:
        argv: what comes after `reproduce`: names of reproductions, or none for all of them, and options.

    Returns:
        0 if all were run, 2 if the request could not be met, 130 after Ctrl-C; then the tables so far are kept.

    Example:
        >>> from funcbp.cli.reproduce import run_reproduce_command
        >>> run_reproduce_command(["perpetual-motion"])  # says why on stderr
        2
    """
    try:
        request = _parser().parse_args(argv)
        unknown = [name for name in request.names if name not in REPRODUCTIONS]
        if unknown:
            raise RequestError(f"There is no reproduction {unknown[0]!r}; there are {', '.join(REPRODUCTIONS)}.")
        if request.list:
            for entry in REPRODUCTIONS.values():
                print(f"{entry.name:<16}{entry.title}")
            return DONE
        plot.new_axes()  # a missing library shall be missed now
        bar = tqdm()
        request.out.mkdir(parents=True, exist_ok=True)
        chosen = [REPRODUCTIONS[name] for name in dict.fromkeys(request.names or REPRODUCTIONS)]
        return _run(chosen, request, bar)
    except SystemExit as end:  # --help
        return int(end.code or 0)
    except (OSError, RequestError, ImportError) as error:
        return refuse(error)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="funcbp reproduce", description="Published results beside what is found here.")
    names = f"{', '.join(REPRODUCTIONS)}; all of them if none is given"
    parser.add_argument("names", nargs="*", metavar="NAME", help=names)
    parser.add_argument("--quick", action="store_true", help="few trials, to see that it works; no result")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of the initial weights (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/reproduce"), metavar="FOLDER", help="default: runs/reproduce"
    )
    parser.add_argument("--list", action="store_true", help="list the reproductions")
    return parser


def _run(chosen: Sequence[Reproduction], request: argparse.Namespace, bar: Any) -> int:
    sections: list[str] = []
    begin = time.perf_counter()
    try:
        with bar(total=sum(entry.parts for entry in chosen), desc="Reproducing", unit="result") as progress:
            for entry in chosen:
                progress.set_postfix_str(entry.name)
                since, rows = time.perf_counter(), []
                for part in entry.run(request.quick, request.seed):
                    if isinstance(part, Picture):
                        _save(request.out / f"{part.name}.png", part)
                    else:
                        rows.append(part)
                    progress.update()
                section = _section(entry, rows, request, time.perf_counter() - since)
                sections.append(section)
                progress.write(section, file=sys.stdout)
    except KeyboardInterrupt:
        print("\nInterrupted: the tables that were finished are kept.", file=sys.stderr)
        code = INTERRUPTED
    else:
        code = DONE
    if sections:
        legend = "How sure the references are:\n\n" + "\n".join(f"- {sure}: {what}" for sure, what in MEANING.items())
        path = request.out / "tables.md"
        write_atomically(path, lambda file: file.write("\n".join([*sections, legend, ""]).encode()))
        print(
            f"{legend}\n\n{time.perf_counter() - begin:.0f} s. The tables are in {path}, with the pictures beside it."
        )
    return code


def _section(entry: Reproduction, rows: Sequence[Comparison], request: argparse.Namespace, seconds: float) -> str:
    quick = ", quick: few trials, no result" if request.quick else ""
    head = f"## {entry.title}\n\n{entry.source}. Seed {request.seed}, {seconds:.1f} s{quick}."
    return f"{head}\n\n{format_table(rows)}\n"


def _save(path: Path, picture: Picture) -> None:
    write_atomically(path, partial(picture.figure.savefig, format="png", dpi=120))
