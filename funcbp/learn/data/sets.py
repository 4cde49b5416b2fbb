"""Real data sets that need no download: those that come with scikit-learn."""

from __future__ import annotations

import numpy as np

from ...jaxpr import extras
from .dataset import DataError, Dataset, split

SETS = {
    "digits": "load_digits",
    "breast-cancer": "load_breast_cancer",
    "iris": "load_iris",
    "wine": "load_wine",
    "diabetes": "load_diabetes",
}


def load(name: str, seed: int = 0) -> Dataset:
    """One of scikit-learn's bundled data sets.

    - `digits`: 1797 of 8 x 8 pixels; which of ten handwritten digits.
    - `breast-cancer`: 569 of 30 inputs; malignant or benign.
    - `iris`: 150 of 4 inputs; which of three species.
    - `wine`: 178 of 13 inputs; which of three growers.
    - `diabetes`: 442 of 10 inputs; the disease's progress a year later, a regression.

    Args:
        name: one of these names.
        seed: of the division into training, validation and test.

    Returns:
        A data set.

    Raises:
        DataError: there is no data set of that name.
        ImportError: scikit-learn is not installed.

    Example:
        >>> from funcbp import data
        >>> digits = data.load("digits")
        >>> digits.x_train.shape, digits.image_shape
        ((1257, 64), (8, 8, 1))

    References:
        E. Alpaydin, C. Kaynak, "Optical recognition of handwritten digits", 1998 (digits); W. Wolberg, W. Street,
        O. Mangasarian, "Breast cancer Wisconsin (diagnostic)", 1995; R. Fisher, "The use of multiple measurements in
        taxonomic problems", 1936 (iris); M. Forina et al., "Wine", 1991; B. Efron et al., "Least angle regression",
        2004 (diabetes).
    """
    if name not in SETS:
        raise DataError(f"There is no data set {name!r}; there are {', '.join(SETS)}.")
    datasets = extras.load("sklearn.datasets", f"The data set {name} comes with")
    bunch = getattr(datasets, SETS[name])()
    if name == "diabetes":
        return split(name, bunch.data, bunch.target[:, None], seed=seed)
    classes = tuple(str(c) for c in bunch.target_names)
    image_shape = (8, 8, 1) if name == "digits" else None
    return split(name, bunch.data.astype(np.float64), bunch.target, classes=classes, image_shape=image_shape, seed=seed)
