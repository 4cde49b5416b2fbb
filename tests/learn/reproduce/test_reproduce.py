"""Published results, quickly: few trials, and bands only where they are safe with so few."""

import re

import jax
import numpy as np
import pytest

from funcbp import cli, reproduce
from funcbp.cli import reproduce as command
from funcbp.learn.reproduce import (
    alignment,
    encoder,
    glorot,
    mathworks,
    spirals,
    symmetry,
    table,
    worked_example,
    xor,
)


@pytest.fixture(autouse=True)
def as_the_command_runs():
    """In float32, unless the entry says otherwise."""
    with jax.enable_x64(False):
        yield


def parts(entry, quick=True, seed=0):
    found = list(entry.run(quick, seed))
    assert all(isinstance(part, table.Comparison | table.Picture) for part in found)
    assert all(row.sure in table.MEANING for row in rows(found))
    return found


def rows(found):
    return [part for part in found if isinstance(part, table.Comparison)]


@pytest.mark.slow
def test_worked_example():
    """To all printed digits, but for the misprint."""
    found = parts(worked_example.REPRODUCTION)
    assert len(found) == worked_example.REPRODUCTION.parts
    for row in rows(found):
        if row.reference == "0.0000351085":
            assert row.ours.startswith("0.000035084786") and "misprint" in row.note
            continue
        assert row.ours == row.reference or row.ours.startswith(row.reference), row


@pytest.mark.slow
def test_encoder():
    """Few trials of two rules: within four of the known deviations of such a mean."""
    descent, quickprop = (encoder.RULES[name][0] for name in list(encoder.RULES)[1:3])
    for setting, mean, deviation in ((descent, 126.7, 43.2), (quickprop, 21.2, 5.5)):
        outcome = encoder.learn(10, 5, setting, 16, 500, seed=1)
        assert outcome.solved.all()
        assert abs(outcome.epochs.mean() - mean) < 4 * deviation / np.sqrt(16)


@pytest.mark.slow
def test_rprop_learns_the_encoder():
    setting = encoder.RULES["iRPROP+"][0]
    outcome = encoder.learn(10, 5, setting, 16, 500, seed=1)
    assert np.sum(outcome.solved) >= 15 and 20 < np.median(outcome.epochs) < 28


@pytest.mark.slow
def test_symmetry():
    """The sizes of the weights go to 1 : 2 : 4, most of them, and those of mirror inputs cancel."""
    outcome = symmetry.learn(20, 2000, 0)
    assert 5 <= np.sum(outcome.solved) < 18  # the others rest on the plateau
    kernels = symmetry.go_on(outcome.params, 4000)["dense_0"]["kernel"][outcome.solved]
    found = [symmetry.structure(kernel) for kernel in kernels]
    np.testing.assert_allclose(np.median([sizes for sizes, _ in found], axis=0), [1, 2, 4], rtol=0.05)
    assert max(mirrored for _, mirrored in found) < 0.01
    wrong = np.array(kernels[0])
    wrong[0] *= 1.5
    assert symmetry.structure(wrong)[1] > 0.1


@pytest.mark.slow
def test_xor():
    outcome = xor.learn(32, 1000, 0)
    assert outcome.solved.all() and 15 < outcome.epochs.mean() < 40
    assert 0 < np.sum(outcome.restarts) < 16
    assert (outcome.epochs[outcome.restarts > 0] > xor.RESTART).all()


@pytest.mark.slow
def test_glorot():
    """Of small inputs the units pass all on, and the mean singular value is that of the weights: 8 / 3π times σ √n."""
    for initializer, expected in ((glorot.standard, 8 / (3 * np.pi) / np.sqrt(3)), (glorot.METHODS, 8 / (3 * np.pi))):
        if initializer is glorot.METHODS:
            initializer = list(glorot.METHODS.values())[1][0]
        values = glorot.singular_values(initializer, 64, 0.01, 0)
        assert values.shape == (glorot.LAYERS, 64)
        np.testing.assert_allclose(values.mean(), expected, rtol=0.03)


def test_alignment():
    """The error goes down, and the angles as well, the one to the pseudoinverse further."""
    tasks = alignment.draw(3, 300, 0)
    with jax.enable_x64(True):
        seen = alignment.measure(tasks, jax.jit(jax.vmap(lambda task: alignment.learn(task, True)))(tasks), 0)
    assert (seen.error[:, -1] < 0.05).all() and (seen.to_backprop[:, 0] > 60).all()
    assert (seen.to_backprop[:, -1] < 45).all() and (seen.to_pseudoinverse[:, -1] < seen.to_backprop[:, -1]).all()


@pytest.mark.slow
def test_spirals():
    """A part of them, which is easy."""
    outcome = spirals.learn(spirals.METHODS["quickprop, hyper-error"], 8, 2, 400, 0)
    assert outcome.solved.all()


@pytest.mark.slow
def test_mathworks():
    """Parity, and Levenberg-Marquardt in far fewer epochs than the others."""
    net, x, t = mathworks.problem("SIN 1-5-1")
    assert net.apply(net.init(jax.random.key(0), x), x).shape == t.shape == (41, 1)
    rules = mathworks.rules(*mathworks.problem("PARITY 3-10-10-1"))
    epochs = {}
    for name in ("LM", "RP"):
        outcome, seconds = mathworks.learn("PARITY 3-10-10-1", rules[name], 2, 500, 0)
        assert outcome.solved.all() and (seconds > 0).all()
        epochs[name] = outcome.epochs.max()
    assert epochs["LM"] <= 6 and 8 < epochs["RP"] < 60


def test_why_gdx_is_not_the_last():
    """Last by epochs, as in the reference; in time it is Levenberg-Marquardt, whose epochs are 50 times as long."""
    references = mathworks.PROBLEMS["PARITY 3-10-10-1"][2]
    epochs = {"LM": 4.0, "RP": 16.0, "GDX": 40.0, "GDX, 1 - α": 72.0}
    means = {"LM": 4 * 50.0, "RP": 16.0, "GDX": 40.0, "GDX, 1 - α": 72.0}
    row = mathworks.place_of_gdx("PARITY", means, epochs, references)
    assert row.reference == "in time 3 of 3" and row.ours == "in time 2 of 3, in epochs 3 of 3"
    assert "takes 50 times as long as one of RP" in row.note and "14 times would make" in row.note
    assert "GDX needs 2.5, with 1 - α 4.5, and the reference's ratio of times is 7.3" in row.note


def test_every_entry_has_a_name_a_source_and_what_it_yields():
    assert list(reproduce.REPRODUCTIONS) == [entry.name for entry in reproduce.REPRODUCTIONS.values()]
    assert all(entry.title and entry.source and entry.parts > 1 for entry in reproduce.REPRODUCTIONS.values())


def test_only_what_was_read_is_called_published():
    assert [sure for sure, meaning in table.MEANING.items() if meaning.startswith("published")] == [table.READ]


@pytest.mark.slow
def test_the_command_and_the_largest_rate(tmp_path, capsys):
    """Tables on the screen and in the folder, pictures beside them; divergence just above 2 / λmax."""
    folder = tmp_path / "new"
    assert command.run_reproduce_command(["largest-rate", "--quick", "--out", str(folder)]) == 0
    out, err = capsys.readouterr()
    parts = reproduce.REPRODUCTIONS["largest-rate"].parts
    assert f"100%|██████████| {parts}/{parts} [" in err and "quick: few trials, no result" in out
    written = (folder / "tables.md").read_text()
    for row in (
        r"λmax of the Hessian \[1\] +\| 0.84 +\| memory, agrees \| 0.8360 ",
        r"λmin of the Hessian \[1\] +\| 0.036 +\| memory, agrees \| 0.0360 ",
        r"largest stable rate \[2\] .* 2.393 diverges, 2.392 does not ",
        r"factor per update at rate 1 \[3\] +\| 0.964000 +\| computed +\| 0.964000 ",
        "- memory: what people who know the paper remember",
    ):
        assert re.search(row, out) and re.search(row, written)
    assert sorted(path.name for path in folder.iterdir()) == ["largest-rate.png", "tables.md"]
    assert (folder / "largest-rate.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["perpetual-motion"], "There is no reproduction 'perpetual-motion'; there are worked-example, symmetry, "),
        (["xor", "--seed", "x"], "Argument --seed: 'x' is not a whole number of at least 0. See funcbp reproduce"),
        (["xor", "--out", "/dev/null/here"], "/dev/null/here: Not a directory."),
    ],
)
def test_refused(argv, message, capsys):
    assert command.run_reproduce_command(argv) == 2
    assert message in capsys.readouterr().err


def test_list(capsys):
    assert cli.main(["reproduce", "--list"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == list(reproduce.REPRODUCTIONS)


def test_interrupted(tmp_path, monkeypatch, capsys):
    def run(quick, seed):
        yield table.Comparison("a", "1", table.READ, "1")
        raise KeyboardInterrupt

    entries = {
        "first": reproduce.REPRODUCTIONS["xor"]._replace(
            run=lambda quick, seed: iter([table.Comparison("b", "2", table.READ, "2")])
        ),
        "second": reproduce.REPRODUCTIONS["xor"]._replace(run=run),
    }
    monkeypatch.setattr(command, "REPRODUCTIONS", entries)
    assert command.run_reproduce_command(["--out", str(tmp_path)]) == 130
    assert "the tables that were finished are kept" in capsys.readouterr().err
    assert "| b " in (tmp_path / "tables.md").read_text() and "| a " not in (tmp_path / "tables.md").read_text()
