"""The packages that funcbp runs without, and the extra that each comes with."""

from __future__ import annotations

import importlib
from typing import Any

EXTRAS = {
    "matplotlib": "plots",
    "orbax": "orbax",
    "pandas": "data",
    "sklearn": "data",
    "tqdm": "progress",
}
NAMES = {"orbax": "orbax-checkpoint", "sklearn": "scikit-learn"}


def load(module: str, who: str) -> Any:
    """Import a module of a package that comes with an extra.

    Args:
        module: its name, such as `"sklearn.datasets"`.
        who: the beginning of what is said if it cannot be had, up to the package's name: `"Tables are read by"`.

    Raises:
        ImportError: the package is not installed; the message names the extra. One that is, and fails to import, says
            so itself.

    Example:
        >>> from funcbp.jaxpr import extras
        >>> extras.load("pandas", "Tables are read by").__name__
        'pandas'
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != package:
            raise
        name, extra = NAMES.get(package, package), EXTRAS[package]
        raise ImportError(f'{who} {name}, which is not installed: pip install "funcbp[{extra}]".') from error
