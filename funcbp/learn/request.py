"""What is asked for in words: numbers in it, and what is said when it cannot be met."""

from argparse import ArgumentTypeError
from collections.abc import Callable

__all__ = ["RequestError", "whole"]

MOST = 2**31 - 1


class RequestError(ValueError):
    """What was asked for cannot be done; the message says why."""


def whole(least: int) -> Callable[[str], int]:
    """A type of arguments: a whole number of at least so much."""

    def whole(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        if int(text) > MOST:
            raise ArgumentTypeError(f"{text!r} is more than {MOST:,}")
        return int(text)

    return whole
