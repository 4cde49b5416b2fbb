"""The table of learning on toy sizes: that it compares the same things, and says so when they differ."""

import numpy as np
import pytest

from benchmarks import digits, learning


@pytest.fixture(scope="module", autouse=True)
def toys(usual_jax):
    """Small sizes, and no torch."""
    for name, value in {"UPDATES": 5, "MEMBERS": 3, "EPOCHS": 4, "STREAM": 20}.items():
        usual_jax.setattr(learning, name, value)
    usual_jax.setattr(learning, "installed", lambda module: module != "torch")


@pytest.mark.slow
def test_small_networks_are_compared_where_there_is_no_torch():
    rows = learning.run(1, ["W10", "W11", "IRPROP"]).rows
    assert [row.name.split()[0] for row in rows] == 3 * ["W10"] + 4 * ["W11"] + 2 * ["IRPROP"]
    assert not any(row.refused for row in rows)
    skipped = [row for row in rows if "PyTorch" in row.name or "torch.optim" in row.name]
    assert {str(row.cells["compared"]) for row in skipped} == {"skipped: torch is not installed"} and len(skipped) == 3
    many = [row.cells["compared"] for row in rows if "XOR networks:" in row.name]
    assert [str(cell.target) for cell in many] == ["≤ 400", "≤ 400"] and all(cell.value > 0 for cell in many)


def test_weights_that_come_out_differently_are_refused(monkeypatch):
    monkeypatch.setattr(learning, "furthest", lambda a, b: float("nan"))
    assert {row.name.split()[0] for row in learning.run(1, ["W10", "W11"]).rows if row.refused} == {"W10", "W11"}


def test_a_step_that_differs_in_its_last_bit_is_counted(monkeypatch):
    irprop_minus = learning.optim.irprop_minus
    monkeypatch.setattr(learning.optim, "irprop_minus", lambda rate: irprop_minus(np.nextafter(np.float32(rate), 1)))
    ours = next(iter(learning.equal_steps()))
    assert ours.refused and ours.cells["compared"].value > 0 and str(ours.cells["compared"]).endswith("missed)")


def test_digits_are_learned_in_processes_that_take_turns(monkeypatch):
    calls = []

    def in_a_process(peer, path, seed):
        with np.load(path) as file:
            assert sorted(file.files) == ["x_test", "x_train", "y_test", "y_train"]
        calls.append((seed, peer))
        return {"whole": 2.0 + seed, "seconds": 0.5, "epochs": 3, "accuracy": 0.98 if peer == "funcbp" else 0.5}

    monkeypatch.setattr(learning, "in_a_process", in_a_process)
    ours, *others = learning.run(12, ["DIGITS"]).rows
    there = ["funcbp", "scikit-learn", "Flax NNX + optax"]
    assert calls == [*((0, p) for p in there), *((1, p) for p in reversed(there)), *((2, p) for p in there)]
    assert ours.name == "digits to 97 %: funcbp" and not ours.refused
    assert [cell.value for cell in list(ours.cells.values())[:4]] == [3.0, 500, 3, 98]
    assert str(ours.cells["compared"]) == "reached in 3 of 3 runs"
    assert [row.refused for row in others] == [True, False, True]
    assert str(others[1].cells["compared"]) == "skipped: torch is not installed"


def arrays():
    rng = np.random.default_rng(0)
    labels = np.arange(60, dtype=np.int32) % 10
    images = np.float32(3 * np.eye(64)[labels] + 0.1 * rng.normal(size=(60, 64)))
    return {"x_train": images, "y_train": labels, "x_test": images[:20], "y_test": labels[:20]}


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["funcbp", "scikit-learn", "Flax NNX + optax"])
def test_a_peer_learns_until_the_target(peer):
    epochs, accuracy = digits.PEERS[peer][1](arrays(), 0, 0.5)
    assert 1 <= epochs < digits.MOST_EPOCHS and 0.5 <= accuracy <= 1


@pytest.mark.slow
def test_a_process_says_what_it_took(monkeypatch, tmp_path):
    monkeypatch.setattr(learning, "TARGET_ACCURACY", 0.5)
    np.savez(tmp_path / "digits.npz", **arrays())
    said = learning.in_a_process("scikit-learn", tmp_path / "digits.npz", 0)
    assert said["accuracy"] >= 0.5 and said["epochs"] >= 1 and 0 < said["seconds"] < said["whole"]
