"""What a reproduction says: rows that put a number of the literature beside ours, and how sure the former is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

READ = "read"
SECONDARY = "secondary"
MEMORY = "memory"
AGREES = "memory, agrees"
COMPUTED = "computed"
NONE = "-"
MEANING = {
    READ: "published, and read in the paper's own text, in a transcription of it, or in the author's own program",
    SECONDARY: "read in another work that reports it; the paper itself was not at hand",
    MEMORY: "what people who know the paper remember; not confirmed by any page, so no published number",
    AGREES: "as memory, and an independent computation with the same settings came to it within its noise",
    COMPUTED: "not published: an independent computation, or algebra, with the same settings",
    NONE: "there is no number to compare with",
}


class Comparison(NamedTuple):
    """One line of a reproduction's table.

    Attributes:
        setting: what was done.
        reference: the number of the literature.
        sure: how sure that is, a key of `MEANING`.
        ours: the number found here.
        trials: how many trials, and how many of them succeeded.
        note: what a reader must know to compare the two.
    """

    setting: str
    reference: str
    sure: str
    ours: str
    trials: str = "1"
    note: str = ""


class Picture(NamedTuple):
    """A picture that belongs to a reproduction.

    Attributes:
        name: of its file, without `.png`.
        figure: a matplotlib figure.
    """

    name: str
    figure: Figure


class Reproduction(NamedTuple):
    """A published result, and the program that looks for it again.

    Attributes:
        name: what the command calls it.
        title: a line about it.
        source: author, title, year.
        parts: how many rows and pictures `run` yields, for a progress bar.
        run: `run(quick, seed)` yields rows and pictures as they are found; `quick` means few trials.
    """

    name: str
    title: str
    source: str
    parts: int
    run: Callable[[bool, int], Iterator[Comparison | Picture]]


def format_table(rows: Sequence[Comparison]) -> str:
    """The rows as a table in Markdown, their notes below it.

    Args:
        rows: at least one.

    Returns:
        The text, of several lines.

    Example:
        >>> from funcbp.learn.reproduce import table
        >>> row = table.Comparison("encoder 4-2-4", "15.8", table.AGREES, "16.3", "100 of 100")
        >>> print(table.format_table([row]))
        | setting       | reference | how sure       | ours | trials     |
        |---------------|-----------|----------------|------|------------|
        | encoder 4-2-4 | 15.8      | memory, agrees | 16.3 | 100 of 100 |
    """
    notes = [row.note for row in rows if row.note]
    marks = {note: f" [{i}]" for i, note in enumerate(dict.fromkeys(notes), 1)}
    cells = [("setting", "reference", "how sure", "ours", "trials")]
    cells += [(row.setting + marks.get(row.note, ""), *row[1:5]) for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(5)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    below = [f"{mark.strip()} {note}" for note, mark in marks.items()]
    return "\n".join([*lines, *([""] if below else []), *below])
