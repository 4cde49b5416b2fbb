"""Where an equation was written: the user's line, that of the library it called, and the name scope.

The user's line is the innermost one that is in no library. What was installed is a library, Python's own modules and
funcbp are, and what is said to be one.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import inspect
import itertools
import os
import re
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any, NamedTuple

import jax
from jax._src import core, source_info_util
from jax._src.api_util import fun_sourceinfo
from jax.tree_util import KeyPath

from .types import SourceInfo

_PACKAGE = os.path.dirname(os.path.dirname(__file__))
_CORE = "jaxpr cotangents rules remat control_flow autodiff per_example curvature credit inspection testing learn/ops"


for _core in _CORE.split():
    source_info_util.register_exclusion(os.path.join(_PACKAGE, _core))


_PLUGIN = os.path.join(os.path.dirname(_PACKAGE), "_funcbp_pytest.py")
_SAID = dict.fromkeys((_PACKAGE, _PLUGIN, os.path.dirname(jax.__file__)), True) | {
    sysconfig.get_path(p): True for p in ("stdlib", "platstdlib", "scripts")
}


def count_as_library(where: str | os.PathLike[str] | ModuleType, library: bool = True) -> None:
    """Say whether the lines of a module, a package or a folder are a library's, and so not shown as the user's.

    What lies in `site-packages` is a library, and so are Python's own modules, JAX and funcbp. All else is the user's:
    scripts, notebooks, packages that were installed editable. Said of a folder, it holds for what is inside.

    Args:
        where: a module or package that was imported, its name, or the path of a file or folder.
        library: False to say that it is the user's own.

    Raises:
        ValueError: `where` is neither an imported module nor a path that exists.

    Example:
        >>> import optax, funcbp as bp
        >>> bp.inspection.count_as_library(optax, False)  # to work on Optax itself
        >>> bp.inspection.count_as_library(optax)
    """
    module = sys.modules.get(where) if isinstance(where, str) else where
    if isinstance(module, ModuleType):
        paths = [module.__file__] if module.__file__ else list(getattr(module, "__path__", ()))
    else:
        paths = [os.fspath(where)]  # type: ignore[arg-type]
    if not all(map(os.path.exists, paths)):
        raise ValueError(f"{where!r} is no module that was imported, and no file or folder that is there.")
    for path in paths:
        whole = os.path.basename(path) == "__init__.py"
        _SAID[os.path.abspath(os.path.dirname(path) if whole else path)] = library
    is_library.cache_clear()
    _frames.cache_clear()
    _calls.cache_clear()


@functools.cache
def is_library(file: str) -> bool:
    """Tell whether this is a file of a library."""
    said = [path for path in _SAID if file == path or file.startswith(path + os.sep)]
    if said:
        return _SAID[max(said, key=len)]
    return bool({"site-packages", "dist-packages"} & set(file.split(os.sep))) or file.startswith("<frozen ")


@functools.lru_cache(maxsize=256)
def _frames(traceback: Any) -> tuple[Any, Any]:
    """The user's frame and the library's inside of it, or None: JAX's own are neither."""
    library = None
    for frame in source_info_util.user_frames(traceback):
        if not is_library(frame.file_name):
            return frame, library
        library = library or frame
    return None, library


def _written(frame: Any) -> str:
    """`file:line:column (function)`, as JAX's own messages write it."""
    if frame is None:
        return ""
    column = f":{frame.start_column}" if frame.start_column else ""
    return f"{frame.file_name}:{frame.start_line}{column} ({frame.function_name})"


class Source(NamedTuple):
    """Where in the user's program an equation was written, and what held there.

    Attributes:
        traceback, name_stack: of the line.
        context: the mesh, the compute type and what else JAX's contexts say of an equation.
        callers: the tracebacks of the calls around it that were gone into, outermost first: JAX cuts the traceback of
            an equation off at a jitted function.
    """

    traceback: Any
    name_stack: Any
    context: Any
    callers: tuple[Any, ...] = ()


def current_source(callers: Sequence[Any] = ()) -> Source:
    """Where in the user's program the equation at hand was written."""
    info = source_info_util.current()
    return Source(info.traceback, info.name_stack, core.JaxprEqnContext(), tuple(callers))


def current_traceback() -> Any:
    """That of the equation at hand."""
    return source_info_util.current().traceback


@contextlib.contextmanager
def written_at(source: Source, rule: str) -> Iterator[None]:
    """Enter a context in which equations bear the line and the name scope of this place, transposed, and the rule's
    name, and in which holds what held there.
    """
    stack = source.name_stack.transform("transpose").extend(rule)
    with source_info_util.user_context(source.traceback, name_stack=stack), source.context.manager:
        yield


def tangent_of(function: str) -> AbstractContextManager[object]:
    """A context in which equations bear in their name scope that they are part of the derivative of a function, written
    along a direction.
    """
    stack = source_info_util.current_name_stack().transform("jvp").extend(f"{function}_tangent")
    return source_info_util.user_context(current_traceback(), name_stack=stack)


@contextlib.contextmanager
def restored(source: Source) -> Iterator[None]:
    """Enter a context in which equations bear this line and name scope, and in which holds what held there."""
    with source_info_util.user_context(source.traceback, name_stack=source.name_stack), source.context.manager:
        yield


def user_line(source: SourceInfo | Source) -> str:
    """`file:line (function)` of the user's line, of the library's where no line is the user's, or ""."""
    user, library = _frames(source.traceback)
    return _written(user or library)


def library_line(source: SourceInfo | Source) -> str:
    """The same of the library's line that the user's line has led to, or "" where that is the user's own."""
    return _written(_frames(source.traceback)[1])


class Nearness(enum.IntEnum):
    """Whose line an equation has: nobody's but JAX's, a library's, the user's."""

    NONE, LIBRARY, USER = range(3)


def nearness(source: SourceInfo | Source) -> Nearness:
    """Tell whose line is known. None of the user's is in the body of a loop that a library has written."""
    user, library = _frames(source.traceback)
    return Nearness.USER if user else Nearness.LIBRARY if library else Nearness.NONE


def of_library(jaxpr: Any) -> bool:
    """Tell whether this is the program of a function that a library compiles, which is traced once for all calls."""
    info = jaxpr.debug_info
    file = (info.func_src_info or "").partition(" at ")[2].rpartition(":")[0]
    return info.traced_for == "jit" and is_library(file)


def own_name(fun: Any) -> str:
    """The name of the function behind a `custom_jvp` call or a program if it is one of JAX's own, or nothing."""
    name, _, place = (getattr(fun.debug_info, "func_src_info", "") or "").partition(" at ")
    return name if place.startswith(os.path.dirname(jax.__file__)) else ""


def function_name(program: Any) -> str:
    """The name of the function that a program is of, or "" where it has none."""
    name = program.debug_info.func_name
    return name if name.isidentifier() else ""


def user_called_by(fun: Any, traceback: Any) -> bool:
    """Whether an equation of this function of JAX's own was written in a function of the user's that it called.

    Then a frame of the user's stands inside of the function's own frame. A traceback without that one is of a place
    where the equation was put when the function was first traced, in a backward pass for instance.
    """
    users = False
    file, _, line = fun.debug_info.func_src_info.partition(" at ")[2].rpartition(":")
    for frame in traceback.frames if traceback else ():
        if (frame.file_name, str(frame.function_start_line)) == (file, line):
            return users
        users = users or not is_library(frame.file_name)
    return False


def written_where(fun: Any) -> str:
    """`name at file:line` of a `jax.custom_vjp` or `jax.custom_jvp` function, or of the body of a call of it."""
    return fun_sourceinfo(fun.fun) if hasattr(fun, "fun") else fun.debug_info.func_src_info or ""


def defined_where(f: Any) -> str:
    """`name at file:line` of a function, or of an object that is called as one; "" of what is not written in Python."""
    f = inspect.unwrap(f)
    while isinstance(f, functools.partial):
        f = inspect.unwrap(f.func)
    name = getattr(f, "__name__", type(f).__name__)
    code = getattr(f if hasattr(f, "__code__") else type(f).__call__, "__code__", None)
    return f"{name} at {code.co_filename}:{code.co_firstlineno}" if code else ""


def scope(source: SourceInfo | Source) -> str:
    """The name scope of an equation."""
    return str(source.name_stack)


def user_place(source: SourceInfo | Source) -> tuple[str, int]:
    """The file and the line of the user's program, or ("", 0)."""
    found = re.match(r"(.*?):(\d+)", user_line(source))
    return (found[1], int(found[2])) if found else ("", 0)


def called_through(source: SourceInfo | Source) -> set[str]:
    """The names of the functions, JAX's own included, that an equation was written in."""
    frames = {frame.function_name for frame in source.traceback.frames} if source.traceback else set()
    return frames | set(re.findall(r"\w+", scope(source)))


Calls = tuple[tuple[str, str], ...]
_LOOKING = os.path.join(_PACKAGE, "inspection") + os.sep


@functools.lru_cache(maxsize=256)
def _calls(traceback: Any) -> tuple[Calls, bool]:
    """The user's functions in a traceback, and whether it reaches to the one that is looked at."""
    found: list[tuple[str, str]] = []
    within = ""  # where in what has no name: a lambda, a comprehension
    for code, at in zip(*traceback.raw_frames(), strict=True):
        if code.co_filename.startswith(_LOOKING):
            return tuple(reversed([*found, ("", within)] if within else found)), True
        if source_info_util.is_user_filename(code.co_filename) and not is_library(code.co_filename):
            within = f"{at}/{within}"
            if not code.co_name.startswith("<"):
                found.append((code.co_name, within))
                within = ""
    return tuple(reversed(found)), False


def calls(source: Source, around: Calls = ()) -> Calls:
    """The user's functions that an equation was written in, from the one that is looked at inwards: the name of each,
    and what tells the place in it from others, or "".

    Args:
        source: of the equation.
        around: the same of the loop, branch or other equation that it is inside of.
    """
    chain: list[Calls] = []
    for traceback in filter(None, (source.traceback, *reversed(source.callers))):
        found, whole = _calls(traceback)
        if found not in chain[-1:]:  # what JAX's own functions are made of is at the line of the call
            chain.append(found)
        if whole:
            return tuple(itertools.chain.from_iterable(reversed(chain)))
    return (*around, *itertools.chain.from_iterable(reversed(chain)))


def inside_call(params: dict[str, Any]) -> Any:
    """A context in which equations bear the name of the called function in their name scope, as in JAX's programs."""
    return source_info_util.extend_name_stack(f"jit({params['name']})" if params.get("name") else "call")


def path_name(path: KeyPath) -> str:
    """The path of a leaf, written `dense_0/kernel`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")
