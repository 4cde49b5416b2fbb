"""The bundled sets."""

import numpy as np
import pytest

from funcbp import data


@pytest.mark.parametrize(
    ("name", "examples", "inputs", "classes"),
    [
        ("digits", 1797, 64, 10),
        ("breast-cancer", 569, 30, 2),
        ("iris", 150, 4, 3),
        ("wine", 178, 13, 3),
        ("diabetes", 442, 10, None),
    ],
)
def test_sizes(name, examples, inputs, classes):
    d = data.load(name)
    assert len(d.x_train) + len(d.x_validation) + len(d.x_test) == examples
    assert d.name == name and d.n_inputs == inputs
    assert (d.classes is None) if classes is None else (len(d.classes) == d.n_outputs == classes)
    assert d.image_shape == ((8, 8, 1) if name == "digits" else None)
    for part in (d.x_train, d.x_validation, d.x_test):
        assert part.dtype == np.float32 and np.all(np.isfinite(part))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        data.DataError, match="no data set 'mnist'; there are digits, breast-cancer, iris, wine, diabetes"
    ):
        data.load("mnist")
