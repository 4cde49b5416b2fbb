"""The house as it stands: which room imports which, read from the sources. `python -m tests.architecture` prints it."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1] / "funcbp"
ORDER = (  # a room imports from the rows above its own, and within a row one way only
    ("_version", "jaxpr"),
    ("cotangents",),
    ("rules",),
    ("remat",),
    ("autodiff",),
    ("control_flow",),
    ("per_example", "curvature", "credit", "inspection", "testing"),
    ("learn",),
    ("cli",),
    ("funcbp",),  # the package's own files: what it shows, and the command
)
FLOORS = 10
UNSTABLE = ("jax._src", "jax.extend", "jax.interpreters")
MAY_BE_UNSTABLE = ("jaxpr/", "autodiff/recording.py", "autodiff/observe.py")  # the last two are traces of JAX's


class Import(NamedTuple):
    """An import statement's name, wherever it stands: at the top, in a function, or for the type checker alone.

    Attributes:
        file, line: where it stands.
        target: the file of the package that it imports; a module of JAX's, for an unstable one.
    """

    file: str
    line: int
    target: str


def sources(package: Path = PACKAGE) -> dict[str, str]:
    """The text of each file, by its path within the package."""
    return {p.relative_to(package).as_posix(): p.read_text() for p in sorted(package.rglob("*.py"))}


def imports(files: Mapping[str, str]) -> tuple[list[Import], list[Import]]:
    """The imports of the package's own files, and those of JAX's unstable modules."""
    own, unstable = [], []
    for file, text in files.items():
        for line, module in _imported(file, text):
            if module == "funcbp" or module.startswith("funcbp."):
                target = _file(module, files)
                if target is not None:
                    own.append(Import(file, line, target))
            elif module.startswith(UNSTABLE):
                unstable.append(Import(file, line, module))
    return own, unstable


@functools.cache
def _imported(file: str, text: str) -> list[tuple[int, str]]:
    """The lines and dotted names of a file's imports."""
    return [(n.lineno, name) for n in ast.walk(ast.parse(text)) for name in _modules(file, n)]  # type: ignore[attr-defined]


def _modules(file: str, node: ast.AST) -> Iterator[str]:
    """The dotted names that a statement imports, a package's names among them, as each may be a file."""
    folder = ["funcbp", *file.split("/")[:-1]]

    def absolute(level: int, name: str | None) -> str:
        return ".".join([*(folder[: len(folder) + 1 - level] if level else []), *([name] if name else [])])

    match node:
        case ast.Import(names):
            yield from (a.name for a in names)
        case ast.ImportFrom(module, names, level):
            yield from (f"{absolute(level, module)}.{a.name}" for a in names)
        case ast.Call(ast.Attribute(attr="import_module") | ast.Name("import_module"), [ast.Constant(str(name)), *_]):
            bare = name.lstrip(".")
            yield absolute(len(name) - len(bare), bare)


def _file(module: str, files: Mapping[str, str]) -> str | None:
    """The file that a dotted name is, or is a name of."""
    parts = module.split(".")[1:]
    for known in (parts, parts[:-1]):
        for candidate in ("/".join(known) + ".py", "/".join([*known, "__init__.py"])):
            if candidate in files:
                return candidate
    return None


def room(file: str) -> str:
    """The folder that a file is in. The version is on the ground, and the package's own files above all."""
    return file.split("/")[0] if "/" in file else "_version" if file == "_version.py" else "funcbp"


def rooms_below(own: list[Import]) -> dict[str, set[str]]:
    """The rooms that each room imports from."""
    below: dict[str, set[str]] = {r: set() for row in ORDER for r in row}
    for i in own:
        if room(i.file) != room(i.target):
            below.setdefault(room(i.file), set()).add(room(i.target))
    return below


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups of more than one that all lead to each other, and what leads to itself."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen, ahead = set(), list(graph[start])
        while ahead:
            node = ahead.pop()
            if node not in seen:
                seen.add(node)
                ahead += graph.get(node, ())
        reached[start] = seen
    groups = {frozenset(b for b in reached[a] if a in reached.get(b, ())) for a in graph if a in reached[a]}
    return sorted(map(sorted, groups))


def floors(below: Mapping[str, set[str]]) -> dict[str, int]:
    """The floor of each room: one above the highest that it imports from. Of rooms without circles."""
    level: dict[str, int] = {}

    def floor(r: str) -> int:
        if r not in level:
            level[r] = 1 + max((floor(b) for b in below.get(r, ())), default=0)
        return level[r]

    for r in below:
        floor(r)
    return level


def violations(files: Mapping[str, str]) -> list[str]:
    """What is not as the house should be, a sentence each."""
    own, unstable = imports(files)
    height = {r: i for i, row in enumerate(ORDER) for r in row}
    found = []
    for r in dict.fromkeys(map(room, files)):
        if r not in height:
            found.append(f"{r}/ is no room of the house: give it a place in ORDER.")
    for i in own:
        here, there = room(i.file), room(i.target)
        if here in height and there in height and height[there] > height[here]:
            found.append(f"{i.file}:{i.line} imports {i.target}, which is above it.")
    graph: dict[str, set[str]] = {file: set() for file in files}
    for i in own:
        graph[i.file].add(i.target)
    found += [f"These files import each other in a circle: {', '.join(c)}." for c in circles(graph)]
    below = rooms_below(own)
    between = circles(below)
    found += [f"These rooms import each other in a circle: {', '.join(c)}." for c in between]
    if not between and max(floors(below).values()) > FLOORS:
        found.append(f"There are {max(floors(below).values())} floors, and {FLOORS} are the most.")
    for i in unstable:
        if not i.file.startswith(MAY_BE_UNSTABLE):
            found.append(f"{i.file}:{i.line} imports {i.target}, which only {', '.join(MAY_BE_UNSTABLE)} may.")
    return found


def table(files: Mapping[str, str]) -> str:
    """The rooms from the top floor down: files, lines, and how many imports from which rooms."""
    own, _ = imports(files)
    below = rooms_below(own)
    level = {} if circles(below) else floors(below)
    rows = [("floor", "room", "files", "lines", "imports from")]
    for r in sorted(below, key=lambda r: (-level.get(r, 0), r)):
        inside = [text for file, text in files.items() if room(file) == r]
        counts = {b: sum((room(i.file), room(i.target)) == (r, b) for i in own) for b in below[r]}
        listed = ", ".join(f"{b} {n}" for b, n in sorted(counts.items(), key=lambda item: -item[1]))
        lines = sum(text.count("\n") for text in inside)
        rows.append((str(level.get(r, "?")), r, str(len(inside)), f"{lines:,}", listed))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    printed = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines = sum(text.count("\n") for text in files.values())
    total = f"{len(files)} files, {lines:,} lines, {len(own)} imports, {max(level.values(), default=0)} floors"
    return "\n".join([printed[0], "-" * len(printed[0]), *printed[1:], total])


if __name__ == "__main__":
    print(table(sources()))
    for sentence in violations(sources()):
        print(sentence)
