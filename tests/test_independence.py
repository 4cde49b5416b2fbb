"""funcbp's numbers are its own: JAX's reverse mode is not called anywhere that could compute one of them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import funcbp

PACKAGE = Path(funcbp.__file__).parent
REVERSE = {"grad", "value_and_grad", "vjp", "linearize", "linear_transpose", "jacrev", "jacobian", "hessian", "vjp3"}


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def reverse_mode_uses(source: str) -> list[tuple[str, str]]:
    """(function around it, name) of each use of JAX's reverse mode in this source, however it is imported."""
    tree = ast.parse(source)
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for a in node.names:
                aliases[a.asname or a.name.split(".")[0]] = a.name if a.asname else a.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for a in node.names:
                aliases[a.asname or a.name] = f"{node.module}.{a.name}"
    uses = []

    def visit(node: ast.AST, inside: str) -> None:
        for child in ast.iter_child_nodes(node):
            here = child.name if isinstance(child, ast.FunctionDef) else inside
            name = dotted(child)
            root, _, rest = name.partition(".")
            full = f"{aliases[root]}.{rest}" if rest and root in aliases else aliases.get(root, "")
            parts = full.split(".")
            if parts[0] == "jax" and (parts[-1] in REVERSE or "ad" in parts[1:] or "api" in parts[1:]):
                uses.append((inside, full))
            visit(child, here)

    visit(tree, "")
    return uses


SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if "testing" not in p.relative_to(PACKAGE).parts)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_reverse_mode_of_jax(path):
    uses = reverse_mode_uses(path.read_text())
    allowed = {
        "rules/fallback.py": [("borrowed_bwd", "jax.vjp")],  # the one fallback, on_missing="jax"
        "jaxpr/values.py": [("", "jax._src.interpreters.ad.JVPTracer")],  # a mark that is never run
        "jaxpr/authors.py": [  # the rules of primitives that are not JAX's, and what JAX hands those
            ("has_authors_jvp", "jax._src.interpreters.ad.primitive_jvps"),
            ("has_authors_transpose", "jax._src.interpreters.ad.primitive_transposes"),
            ("authors_primitives", "jax._src.interpreters.ad.primitive_jvps"),
            ("authors_jvp", "jax._src.interpreters.ad.primitive_jvps"),
            ("authors_transpose", "jax._src.interpreters.ad.UndefinedPrimal"),
            ("authors_transpose", "jax._src.interpreters.ad.primitive_transposes"),
        ],
        "jaxpr/operations.py": [  # what an operation's own backward rule, its author's, adds its cotangents to
            ("_accumulators", "jax._src.interpreters.ad.ValAccum"),
            ("_accumulators", "jax._src.interpreters.ad.NullAccum"),
            ("collects", "jax._src.interpreters.ad.GradAccum"),
            ("add_into", "jax._src.interpreters.ad.ValAccum"),
            ("add_into", "jax._src.interpreters.ad.NullAccum"),
            ("add_into", "jax._src.api.DidntWant"),  # marks, of no content
            ("add_into", "jax._src.api.GradRef"),
            ("_found", "jax._src.interpreters.ad.ValAccum"),
        ],
        "jaxpr/attached.py": [("", "jax._src.interpreters.ad.primitive_jvps")],  # our own primitive's forward mode
        "jaxpr/barrier.py": [("", "jax._src.interpreters.ad.primitive_jvps")],  # our own primitive's forward mode
        "jaxpr/marks.py": [("", "jax._src.interpreters.ad.primitive_jvps")],  # our own primitive's forward mode
        "jaxpr/elementwise.py": [("elementwise_primitive", "jax._src.interpreters.ad.primitive_jvps")],  # and of more
        "jaxpr/snapshots.py": [  # our own primitives' forward mode, and the way back that JAX takes through them
            ("", "jax._src.interpreters.ad.primitive_jvps"),
            ("def_loop_transpose", "jax._src.interpreters.ad.primitive_transposes"),
            ("def_reversal_transpose", "jax._src.interpreters.ad.primitive_transposes"),  # where it is refused
        ],
    }.get(path.relative_to(PACKAGE).as_posix(), [])
    assert [u for u in uses if u not in allowed] == []


@pytest.mark.parametrize(
    "source",
    [
        "import jax\ndef f(): return jax.grad(g)",
        "import jax as j\nj.vjp(f, x)",
        "from jax import value_and_grad\nvalue_and_grad(f)",
        "from jax import grad as forward\nforward(f)",
        "import jax\nh = jax.linear_transpose",
        "from jax._src.interpreters import ad\nad.backward_pass(1)",
        "import jax.interpreters.ad as quiet\nquiet.vjp",
    ],
)
def test_the_test_finds_it(source):
    assert reverse_mode_uses(source)
