"""Where an equation was written: the user's line, and the name scope."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax._src import core, source_info_util
from jax._src.api_util import fun_sourceinfo

_PACKAGE = os.path.dirname(os.path.dirname(__file__))
_CORE = "jaxpr cotangents rules remat control_flow autodiff per_example curvature credit inspection testing learn/ops"


for _core in _CORE.split():
    source_info_util.register_exclusion(os.path.join(_PACKAGE, _core))


class Source(NamedTuple):
    """Where in the user's program an equation was written, and what held there.

    Attributes:
        traceback, name_stack: of the line.
        context: the mesh, the compute type and what else JAX's contexts say of an equation.
    """

    traceback: Any
    name_stack: Any
    context: Any


def current_source() -> Source:
    """Where in the user's program the equation at hand was written."""
    info = source_info_util.current()
    return Source(info.traceback, info.name_stack, core.JaxprEqnContext())


@contextlib.contextmanager
def written_at(source: Source, rule: str) -> Iterator[None]:
    """Enter a context in which equations bear the line and the name scope of this place, transposed, and the rule's
    name, and in which holds what held there.
    """
    stack = source.name_stack.transform("transpose").extend(rule)
    with source_info_util.user_context(source.traceback, name_stack=stack), source.context.manager:
        yield


@contextlib.contextmanager
def restored(source: Source) -> Iterator[None]:
    """Enter a context in which equations bear this line and name scope, and in which holds what held there."""
    with source_info_util.user_context(source.traceback, name_stack=source.name_stack), source.context.manager:
        yield


def user_line(source: Any) -> str:
    """`file:line (function)` of the user's line, as JAX's own messages write it."""
    return source_info_util.summarize(source)


def own_name(fun: Any) -> str:
    """The name of the function behind a `custom_jvp` call or a program if it is one of JAX's own, or nothing."""
    name, _, place = (getattr(fun.debug_info, "func_src_info", "") or "").partition(" at ")
    return name if place.startswith(os.path.dirname(jax.__file__)) else ""


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
        users = users or source_info_util.is_user_filename(frame.file_name)
    return False


def written_where(fun: Any) -> str:
    """`name at file:line` of a `jax.custom_vjp` or `jax.custom_jvp` function, or of the body of a call of it."""
    return fun_sourceinfo(fun.fun) if hasattr(fun, "fun") else fun.debug_info.func_src_info or ""


def scope(source: Any) -> str:
    """The name scope of an equation."""
    return str(source.name_stack)


def user_place(source: Any) -> tuple[str, int]:
    """The file and the line of the user's program, or ("", 0)."""
    found = re.match(r"(.*?):(\d+)", user_line(source))
    return (found[1], int(found[2])) if found else ("", 0)


def called_through(source: Any) -> set[str]:
    """The names of the functions, JAX's own included, that an equation was written in."""
    frames = {frame.function_name for frame in source.traceback.frames} if source.traceback else set()
    return frames | set(re.findall(r"\w+", scope(source)))


def inside_call(params: dict[str, Any]) -> Any:
    """A context in which equations bear the name of the called function in their name scope, as in JAX's programs."""
    return source_info_util.extend_name_stack(f"jit({params['name']})" if params.get("name") else "call")


def path_name(path: Any) -> str:
    """The path of a leaf, written `dense_0/kernel`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")
