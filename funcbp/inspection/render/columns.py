"""Tables as text: cells in columns, of a hundred characters in all."""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["WIDTH", "columns", "shortened"]

WIDTH = 100
BETWEEN = "  "
LEAST = 4  # characters that tell something of a part of a path


def columns(
    rows: Sequence[Sequence[str]], names: Collection[int], right: Collection[int] = (), indent: str = ""
) -> list[str]:
    """Lay out rows of cells in columns; where they are too wide, columns of nothing but dashes are left out, and the
    longest names are shortened in the middle.

    Args:
        rows: the cells, the titles first.
        names: which columns may be shortened.
        right: which columns are put to the right, as numbers are.
        indent: what each line begins with.

    Example:
        >>> from funcbp.inspection.render.columns import columns
        >>> print(*columns([("value", "bytes"), ("a" * 100 + "b", "1,024")], names=[0], right=[1]), sep="\\n")
        value                                                                                          bytes
        aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab  1,024
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if len(indent) + sum(widths) + len(BETWEEN) * (len(widths) - 1) > WIDTH:
        told = [i for i, column in enumerate(zip(*rows[1:], strict=True)) if set(column) != {"-"}]
        if len(told) < len(widths):
            placed = lambda which: [place for place, i in enumerate(told) if i in which]
            return columns([[row[i] for i in told] for row in rows], placed(names), placed(right), indent)
    room = WIDTH - len(indent) - len(BETWEEN) * (len(widths) - 1)
    for _ in range(sum(widths) - room):
        widest = max(names, key=widths.__getitem__)
        widths[widest] = max(widths[widest] - 1, 1)
    lines = []
    for row in rows:
        cells = map(shortened, row, widths)
        put = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        lines.append((indent + BETWEEN.join(put)).rstrip())
    return lines


def shortened(text: str, width: int) -> str:
    """A text of at most so many characters: its beginning and its end, which together tell which it is.

    Of a path each part keeps these, the longest losing the most and the last losing last, as far as there is room.
    """
    parts = text.split("/")
    room = width - (len(parts) - 1)
    if len(parts) > 1 and room >= LEAST * len(parts) and len(text) > width:
        lengths = [len(p) for p in parts]
        for _ in range(sum(lengths) - room):
            inner = max(range(len(parts) - 1), key=lengths.__getitem__)
            lengths[inner if lengths[inner] > LEAST else -1] -= 1
        return "/".join(map(shortened, parts, lengths))
    return text if len(text) <= width else text[: width // 3] + "…" + text[len(text) + width // 3 + 1 - width :]
