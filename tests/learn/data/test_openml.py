"""What scikit-learn has fetched from OpenML before: a folder made as it makes it, and no network."""

import gzip
import hashlib
import json

import numpy as np
import pytest

from funcbp import data
from funcbp.learn.train import job

CLASSES = ["cat", "dog"] * 20
ARFF = "@RELATION pets\n@ATTRIBUTE weight REAL\n@ATTRIBUTE indoors {no, yes}\n@ATTRIBUTE kind {cat, dog}\n@DATA\n"
ARFF += "".join(f"{i / 4},{('no', 'yes')[i % 3 == 0]},{kind}\n" for i, kind in enumerate(CLASSES))


def keep(home, number, version=1, name="Pets"):
    """A data set as `fetch_openml` leaves it."""
    features = [
        {"index": str(i), "name": n, "data_type": t, "is_target": str(n == "kind").lower(), "is_ignore": "false"}
        | {"is_row_identifier": "false", "number_of_missing_values": "0"}
        for i, (n, t) in enumerate({"weight": "numeric", "indoors": "nominal", "kind": "nominal"}.items())
    ]
    about = {"id": str(number), "name": name, "version": str(version), "format": "ARFF", "status": "active"}
    about["description"] = "Forty pets."
    about["url"] = f"https://api.openml.org/data/v1/download/{number}/pets.arff"
    about["md5_checksum"] = hashlib.md5(ARFF.encode()).hexdigest()
    qualities = [{"name": "NumberOfInstances", "value": str(len(CLASSES))}]
    parts = {
        f"api/v1/json/data/{number}": json.dumps({"data_set_description": about}),
        f"api/v1/json/data/features/{number}": json.dumps({"data_features": {"feature": features}}),
        f"api/v1/json/data/qualities/{number}": json.dumps({"data_qualities": {"quality": qualities}}),
        f"data/v1/download/{number}/pets.arff": ARFF,
    }
    for path, text in parts.items():
        file = home / "openml" / "openml.org" / f"{path}.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(text.encode()))


@pytest.fixture
def home(tmp_path, monkeypatch):
    def refused(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path))
    monkeypatch.setattr("sklearn.datasets._openml.urlopen", refused)
    return tmp_path


def test_what_was_fetched_is_read(home):
    keep(home, 61)
    pets = job.load("openml:pets", 0)
    assert pets.name == "Pets" and pets.classes == ("cat", "dog") and pets.n_inputs == 3
    assert pets.about == ("Target column 'kind': 2 classes, cat 20, dog 20", "Inputs 'weight', 'indoors' (2 words)")
    every = np.concatenate([pets.x_train, pets.x_validation, pets.x_test])[:, 0] * pets.inputs.scale[0]
    np.testing.assert_allclose(np.sort(every + pets.inputs.shift[0]), np.arange(40) / 4, atol=1e-5)
    assert data.read_openml("61", target="indoors").classes == ("no", "yes")


def test_what_was_not_fetched_is_refused(home):
    with pytest.raises(data.DataError, match="has not fetched 'iris' from OpenML; in its folder there is nothing"):
        data.read_openml("iris")
    keep(home, 61)
    keep(home, 969, version=2)
    with pytest.raises(data.DataError, match=r"2 versions .* openml:61 \(version 1\), openml:969 \(version 2\)"):
        data.read_openml("pets")
    (home / "openml/openml.org/data/v1/download/969/pets.arff.gz").unlink()  # begun, and not finished
    assert data.read_openml("pets").classes == ("cat", "dog")
