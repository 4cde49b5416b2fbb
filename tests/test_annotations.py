"""What is public says in its annotations what it takes and returns."""

import importlib.util
import inspect
from pathlib import Path

spec = importlib.util.spec_from_file_location("api_pages", Path(__file__).parent.parent / "docs" / "api_pages.py")
PAGES = importlib.util.module_from_spec(spec)
spec.loader.exec_module(PAGES)

MAY_BE_ANY = {  # and why
    "Backward.replace(changes)": "any of the arguments of Backward",
    "Traits.but(changes)": "any of the fields of Traits",
    "assert_gradients(options)": "any of the options of check",
    "check_rule(params)": "the parameters of an equation, which JAX has as dict[str, Any]",
    "new_axes()": "one axes of any projection, or an array of them; matplotlib's stubs have no word for it either",
}


def said(name, value):
    """The annotations of a function, `name(x)` its argument's, or those of a class's fields and methods."""
    if inspect.isclass(value):
        for field, annotation in inspect.get_annotations(value).items():
            if not field.startswith("_"):
                yield f"{name}.{field}", annotation
        for method, found in vars(value).items():
            f = getattr(found, "fget", None) or getattr(found, "__func__", found)
            own = inspect.isfunction(f) and f.__name__ == method  # not the default of a field
            if own and (not method.startswith("_") or method in ("__init__", "__call__")):
                yield from said(f"{name}.{method}", f)
    elif callable(value):
        signature = inspect.signature(value)
        yield from ((f"{name}({p.name})", p.annotation) for p in signature.parameters.values())
        yield f"{name}()", signature.return_annotation


def is_bare(name, annotation):
    """Whether it says nothing: `Any`, or nothing at all. `PyTree` and its like are words for which any it is."""
    silent = name.endswith(("(self)", "(cls)", ".__init__()"))
    return not silent and getattr(annotation, "__forward_arg__", annotation) in ("Any", inspect.Parameter.empty)


def test_no_public_annotation_is_bare():
    bare = set()
    for where, _ in PAGES.NAMESPACES.values():
        for name, value in PAGES.exports(importlib.import_module(where)).items():
            bare |= {n for n, annotation in said(name, value) if is_bare(n, annotation)}
    assert bare == MAY_BE_ANY.keys()


def test_a_bare_annotation_is_found():
    def f(x: "Any", y: "dict[str, Any]", *, z=1) -> "Any": ...  # noqa: F821

    class C:
        field: "Any"  # noqa: F821

        def __init__(self, x: "Any"): ...  # noqa: F821

    found = [n for name, value in {"f": f, "C": C}.items() for n, a in said(name, value) if is_bare(n, a)]
    assert found == ["f(x)", "f(z)", "f()", "C.field", "C.__init__(x)"]
