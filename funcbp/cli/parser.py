"""The one parser of the commands, and what they say where a request cannot be met."""

from __future__ import annotations

import argparse
import math
import sys
from typing import NoReturn

from ..learn.request import RequestError

__all__ = ["INTERRUPTED", "REFUSED", "HelpFormatter", "Parser", "not_negative", "positive", "printable", "refuse"]

REFUSED, INTERRUPTED = 2, 130


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help with the defaults, where they say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        quiet = action.default is None or action.default is False
        return action.help if quiet else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are raised, so that there is one place that prints them."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message[0].upper()}{message[1:]}. See {self.prog} --help.")


def positive(text: str) -> float:
    """Read a positive number."""
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return rate


def not_negative(text: str) -> float:
    """Read a positive number, or 0."""
    try:
        return 0.0 if text[:1] == "0" and text.strip("0.") == "" else positive(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor 0") from error


def printable(text: str) -> str:
    """A text in which what would steer a terminal is escaped: a file may have such a name."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def refuse(error: Exception | str) -> int:
    """Say on stderr why a request cannot be met, and return the exit code."""
    if isinstance(error, OSError):
        error = f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror or error}."
    print(f"funcbp: {printable(str(error))}", file=sys.stderr)
    return REFUSED
