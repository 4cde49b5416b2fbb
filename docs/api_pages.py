"""The pages of the API: for each namespace, what it exports."""

import importlib
import inspect
import types
from pathlib import Path
from typing import Any

import funcbp

NAMESPACES = {  # by the name it is used under; where it is; what it is for
    "bp": ("funcbp", "Differentiate, look and plan"),
    "bp.inspection": ("funcbp.inspection", "Both passes, looked at"),
    "bp.testing": ("funcbp.testing", "Is a gradient right?"),
    "bp.rules": ("funcbp.rules", "The rules of backpropagation"),
    "bp.remat": ("funcbp.remat", "What is saved between the two passes"),
    "bp.per_example": ("funcbp.per_example", "A gradient for each example"),
    "bp.curvature": ("funcbp.curvature", "Curvature"),
    "bp.credit": ("funcbp.credit", "Other backward passes"),
    "bp.ops": ("funcbp.learn.ops", "Operations and losses"),
    "bp.nets": ("funcbp.learn.nets", "Networks"),
    "bp.data": ("funcbp.learn.data", "Data"),
    "bp.optim": ("funcbp.learn.optim", "Optimisers that optax lacks"),
    "bp.train": ("funcbp.learn.train", "Training"),
    "bp.train.stopping": ("funcbp.learn.train.stopping", "When to stop"),
    "bp.plot": ("funcbp.learn.plot", "Pictures"),
    "bp.reproduce": ("funcbp.learn.reproduce", "Published results"),
}


def exports(module: types.ModuleType) -> dict[str, Any]:
    """What a module makes public, by name: its `__all__`, else what it defines or imports by that name; no modules."""
    names = getattr(module, "__all__", None)
    if names is None:
        ours = lambda x: getattr(x, "__module__", "funcbp").startswith("funcbp")
        names = [n for n in vars(module) if not n.startswith("_") and ours(getattr(module, n))]
    found = {n: getattr(module, n) for n in names}
    return {n: x for n, x in found.items() if not isinstance(x, types.ModuleType) and x is not None}


def page(title: str, where: str, purpose: str) -> str:
    """The page of one namespace, in MyST."""
    module = importlib.import_module(where)
    lines = [f"# `{title}`: {purpose}", "", "```{eval-rst}", f".. automodule:: {where}", "   :no-members:", ""]
    for name, value in exports(module).items():
        again = ["   :no-index:"] if where != "funcbp" and any(value is x for x in exports(funcbp).values()) else []
        if inspect.isclass(value):
            members = [] if hasattr(value, "_fields") else ["   :members:"]  # fields are said in the docstring
            members += ["   :inherited-members:"] if value.__base__.__module__.startswith("funcbp") else []
            lines += [f".. autoclass:: {where}.{name}", *members, *again, ""]
        elif inspect.isroutine(value):
            lines += [f".. autofunction:: {where}.{name}", *again, ""]
        else:
            lines += [f".. py:data:: {where}.{name}", "", f"   {said_of(value)}", ""]
    return "\n".join([*lines, "```", ""])


def said_of(value: Any) -> str:
    """What there is to say of a value that has no docstring of its own."""
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return f"A dict with the keys {', '.join(f'``{k}``' for k in value)}."
    return f"``{value}``" if isinstance(value, str | int | float) else f"Of type ``{type(value).__name__}``."


def write_pages(folder: Path) -> None:
    """Write a page for each namespace, and their index."""
    folder.mkdir(exist_ok=True)
    for title, (where, purpose) in NAMESPACES.items():
        (folder / f"{title}.md").write_text(page(title, where, purpose))
    entries = "\n".join(NAMESPACES)
    (folder / "index.md").write_text(
        "# The API\n\nBy the names under which it is used: `import funcbp as bp`.\n\n"
        f"```{{toctree}}\n:maxdepth: 1\n\n{entries}\n```\n"
    )
