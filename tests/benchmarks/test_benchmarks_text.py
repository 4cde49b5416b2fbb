"""The table of the language model on toy sizes: that the peer computes the same, and is missed by name."""

import pytest

from benchmarks import text


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    """Sizes that compile in a moment."""
    sizes = {"vocabulary": 256, "width": 8, "layers": 2, "heads": 2, "key_heads": 1}
    for name, value in {"SIZES": sizes, "CONTEXT": 8, "BATCH": 2, "UPDATES": 3, "CHARACTERS": 50_000}.items():
        monkeypatch.setattr(text, name, value)


@pytest.mark.slow
def test_the_same_model_learns_the_same_in_flax():
    ours, jaxs, peers = text.run(1).rows
    assert [row.refused for row in (ours, jaxs, peers)] == 3 * [False]
    losses = [row.cells[text.LOSS].value for row in (ours, jaxs, peers)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and losses[2] == pytest.approx(losses[0], rel=1e-5)
    assert all(row.cells[text.TIME].value > 0 and row.cells[text.BYTES].value > 0 for row in (ours, jaxs, peers))


@pytest.mark.slow
def test_where_there_is_no_flax(monkeypatch):
    monkeypatch.setattr(text, "installed", lambda module: False)
    assert str(text.run(1).rows[-1].cells["compared"]) == "skipped: flax is not installed"
    assert text.run(1, ["W4"]).rows == []
