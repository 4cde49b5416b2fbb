"""Checkpoints: going on to the last bit, after `kill -9` too, and what is said of files that cannot be used."""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcbp as bp
from funcbp import nets, ops, train
from funcbp.learn.train import stopping

X = jax.random.normal(jax.random.key(0), (12, 2))
DATA = X, jnp.sin(X[:, :1])
NET = nets.mlp([2, 3, 1], ops.tanh)
PARAMS = NET.init(jax.random.key(1), X)
NOISE = optax.add_noise(0.01, 0.5, jax.random.key(5))
OPTIMIZER = optax.chain(NOISE, optax.adam(0.03))
STOP = stopping.any_of(stopping.plateau(10**6), stopping.up_strips(10**6))


def loss(params, batch, key=None):
    x, y = batch
    noise = 0.0 if key is None else 0.1 * jax.random.normal(key, x.shape, x.dtype)
    return ops.squared_error(NET.apply(params, x + noise), y, "mean")


def learn(checkpoint=None, epochs=12, **options):
    """Everything that a state can hold: moments, keys in the optimiser and the loss, best parameters, rules."""
    options = {"optimizer": OPTIMIZER, "batch_size": 5, "key": jax.random.key(2), "validation": DATA, **options}
    how, data = options.pop("loss", loss), options.pop("data", DATA)
    return bp.fit(how, PARAMS, data, epochs=epochs, stop=STOP, checkpoint=checkpoint, **options)


def same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


def same_fit(got, want):
    assert (got.reason, got.epochs, got.best_epoch) == (want.reason, want.epochs, want.best_epoch)
    same((got.params, got.best_params), (want.params, want.best_params))
    for name in set(want.history) - {"seconds"}:
        np.testing.assert_array_equal(got.history[name], want.history[name])


def contents(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files if name not in ("about", "history/seconds")}


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_going_on_is_the_same_to_the_last_bit(tmp_path):
    whole = learn(tmp_path / "whole.npz")
    learn(tmp_path / "parts.npz", epochs=5)
    resumed = learn(tmp_path / "parts.npz", resume=True)
    same_fit(resumed, whole)
    same(contents(tmp_path / "parts.npz"), contents(tmp_path / "whole.npz"))
    assert list(resumed.history["seconds"]) == sorted(resumed.history["seconds"])
    same_fit(learn(tmp_path / "parts.npz", resume=True), whole)  # there is nothing left to do
    same_fit(learn(tmp_path / "often.npz", epochs=12, resume=True), whole)  # and nothing to go on from


def test_it_is_written_every_so_many_epochs_and_the_one_before_is_kept(tmp_path, monkeypatch):
    checkpoint, epochs = train.Checkpoint(tmp_path / "run.npz", every=5), []
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda saved: epochs.append(int(saved.state.epoch)) or save(saved))
    learn(checkpoint, epochs=12)
    assert epochs == [0, 5, 10, 12]
    assert {path.name for path in tmp_path.iterdir()} == {"run.npz", "run.npz.previous"}
    assert (contents(checkpoint.path)["state/epoch"], contents(checkpoint.previous)["state/epoch"]) == (12, 10)
    about = json.loads(str(np.load(checkpoint.path)["about"]))
    assert about["jax"] == jax.__version__ and about["funcbp"] == bp.__version__ and about["format"] == 1


def test_a_stream_goes_on_after_what_it_has_learned_from(tmp_path):
    examples = lambda: ((X[i % 12], DATA[1][i % 12]) for i in range(10**9))
    options = dict(optimizer=optax.sgd(0.1), mode="online", updates=7)
    whole = bp.fit(loss, PARAMS, examples(), epochs=4, **options)
    bp.fit(loss, PARAMS, examples(), epochs=2, checkpoint=tmp_path / "run.npz", **options)
    resumed = bp.fit(loss, PARAMS, examples(), epochs=4, checkpoint=tmp_path / "run.npz", resume=True, **options)
    same(resumed.params, whole.params)


def test_after_divergence_a_smaller_rate_may_go_on(tmp_path):
    root = lambda w, batch: jnp.sqrt(w) + 0 * jnp.sum(batch)  # a step too far, and it is not a number
    options = dict(mode="batch", epochs=30, checkpoint=tmp_path / "run.npz")
    fit = bp.fit(root, jnp.array(1.0), X, optimizer=optax.sgd(0.4), **options)
    assert (fit.reason, fit.epochs) == ("diverged", 4)
    with np.load(tmp_path / "run.npz") as file:
        assert file["state/params"] == fit.params > 0
    slower = dict(options, optimizer=optax.sgd(0.001))
    with pytest.raises(train.CheckpointError, match=r"its optimizer is 'program .* anyway, say so: resume='anyway'"):
        bp.fit(root, jnp.array(1.0), X, resume=True, **slower)
    again = bp.fit(root, jnp.array(1.0), X, resume="anyway", **slower)
    assert (again.reason, again.epochs) == ("epochs", 30) and 0 < again.params < fit.params < 0.32
    np.testing.assert_array_equal(again.history["loss"][:4], fit.history["loss"])


def test_bfloat16_is_kept_exactly(tmp_path):
    checkpoint, state = train.Checkpoint(tmp_path / "run.npz"), {"w": jnp.array([[1.5, -0.1]], jnp.bfloat16)}
    checkpoint.save(train.Saved(state, {}, {}))
    got = checkpoint.load(train.Saved(state, {}, {})).state["w"]
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, state["w"])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("orbax") is None, reason="orbax-checkpoint is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_orbax(tmp_path):
    whole = learn()
    learn(train.OrbaxCheckpoint(tmp_path / "run"), epochs=5)
    same_fit(learn(train.OrbaxCheckpoint(tmp_path / "run", every=4), resume=True), whole)
    with pytest.raises(train.CheckpointError, match="its batch_size is 5, and this one's is 4"):
        learn(train.OrbaxCheckpoint(tmp_path / "run"), resume=True, batch_size=4)


# --- kill -9 ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_kill_9(tmp_path):
    """A handful of kills; `python tests/learn/train/killed_program.py FOLDER 50` is the whole trial."""
    program = Path(__file__).with_name("killed_program.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(bp.__file__).parent.parent), "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, program, tmp_path, "3"], capture_output=True, text=True, timeout=240, env=environment
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1].startswith("3 kills, equal to the last bit"), run.stdout


# --- files that cannot be used ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "run.npz"
    learn(path, epochs=1)
    return path.read_bytes()


def refusal(path, **options):
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(train.CheckpointError) as error:
        learn(path, resume=True, **options)
    assert before is None or path.read_bytes() == before, "the file is left as it was"
    text = str(error.value)
    assert text.endswith(".") and "\n" not in text
    return text


@pytest.mark.slow
def test_truncated_and_foreign_files(tmp_path, written):
    path = tmp_path / "run.npz"
    for content in (b"", b"hello", written[: len(written) // 2], written[:-10]):
        path.write_bytes(content)
        assert f"{path} is damaged, or is not a checkpoint" in refusal(path)
    np.savez(path, x=np.zeros(3))
    assert refusal(path) == f"{path} is not a checkpoint of funcbp."
    np.savez(path, about=np.array('{"what": "else"}'))
    assert refusal(path) == f"{path} is not a checkpoint of funcbp."
    for about in ("[]", "3", '{"what": "funcbp checkpoint"}', '{"what": "funcbp checkpoint", "format": "x"}'):
        np.savez(path, about=np.array(about))
        assert f"{path} is damaged, or is not a checkpoint" in refusal(path)
    path.write_bytes(written[:-10])
    (tmp_path / "run.npz.previous").write_bytes(written)
    assert refusal(path).endswith(f"The one before it is {path}.previous.")
    path.unlink()
    path.mkdir()
    assert refusal(path) == f"{path} is a folder, and a checkpoint is a file: name one in it."


@pytest.mark.parametrize("change", ["left out", "another shape", "one more", "shorter history", "words in it"])
def test_whole_files_with_other_things_in_them(tmp_path, written, change):
    path = tmp_path / "run.npz"
    with np.load(_file(path, written)) as file:
        arrays = {name: file[name] for name in file.files}
    if change == "left out":
        del arrays["state/epoch"]
    elif change == "another shape":
        arrays["state/epoch"] = np.zeros(3, np.int32)
    elif change == "one more":
        arrays["extra"] = np.zeros(3)
    elif change == "words in it":
        arrays["history/loss"] = arrays["history/loss"].astype(str)
    else:
        arrays["history/loss"] = arrays["history/loss"][1:]
    np.savez(path, **arrays)
    assert f"{path} is damaged, or is not a checkpoint" in refusal(path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("state/epoch", lambda a: a + 100),
        ("state/epoch", lambda a: a - 5),
        ("state/code", lambda a: a + 99),
        ("state/code", lambda a: a - 3),
        ("history/", lambda a: a[:0]),
        ("history/", lambda a: a[:, None]),
    ],
    ids=["a later epoch", "an earlier one", "a rule that is not", "no rule at all", "no history", "a table"],
)
def test_what_was_edited_by_hand_does_not_go_with_the_rest(tmp_path, written, name, change):
    path = tmp_path / "run.npz"
    with np.load(_file(path, written)) as file:
        arrays = {n: change(file[n]) if n.startswith(name) else file[n] for n in file.files}
    np.savez(path, **arrays)
    assert "The checkpoint was changed by somebody, or is damaged: its state is of epoch" in refusal(path)


def test_a_flipped_bit_is_noticed_wherever_it_matters(tmp_path, written):
    """What is read is what was written, or nothing."""
    path, rng, noticed = tmp_path / "run.npz", random.Random(0), 0
    fit = learn(epochs=1)
    with np.load(_file(path, written)) as file:
        like = {name: file[name] for name in file.files}
    for _ in range(200):
        damaged = bytearray(written)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            saved = train.Checkpoint(path).load(_like(fit, like))
        except train.CheckpointError:
            noticed += 1
        else:
            same(jax.tree.map(np.asarray, saved.state), {k[6:]: v for k, v in like.items() if k.startswith("state/")})
    assert noticed > 100


def _file(path, content):
    path.write_bytes(content)
    return path


def _like(fit, like):
    state = {name.removeprefix("state/"): array for name, array in like.items() if name.startswith("state/")}
    return train.Saved(state, {name.removeprefix("history/"): like[name] for name in like if "history" in name}, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 4}, "its batch_size is 5, and this one's is 4. To go on from it anyway, say so:"),
        ({"key": jax.random.key(9)}, "its key is 'key<fry>[], "),
        ({"data": (X + 1, DATA[1])}, "its data is 'float64[12,2] float64[12,1], "),
        ({"validation": (X, X)}, "its validation is 'float64[12,2] float64[12,1], "),
        ({"loss": lambda w, b, key=None: loss(w, b, key) + 1}, "its loss is 'program "),
        ({"optimizer": optax.chain(NOISE, optax.adam(0.02))}, "its optimizer is 'program "),
        ({"backward": bp.Backward(residuals="inputs")}, "its backward is 'Backward()', and this one's is "),
        ({"mode": "batch"}, "its mode is 'stochastic', and this one's is 'batch'."),
        ({"optimizer": optax.sgd(0.1)}, "its memory/0/count is int32[], and this one's is not there."),
    ],
)
def test_checkpoints_of_another_training(tmp_path, written, options, message):
    path = tmp_path / "run.npz"
    path.write_bytes(written)
    text = refusal(path, **options)
    assert text.startswith(f"{path} is of another training: ") and message in text


def test_a_history_of_other_columns(tmp_path, written):
    path = tmp_path / "run.npz"
    with np.load(_file(path, written)) as file:
        arrays = {name: file[name] for name in file.files if name != "history/seconds"}
    np.savez(path, **arrays)
    assert "its history has the columns loss, validation_loss, and this one's loss, validation_loss, sec" in refusal(
        path
    )


def test_a_newer_format(tmp_path):
    path = tmp_path / "run.npz"
    np.savez(path, about=np.array('{"what": "funcbp checkpoint", "format": 2, "funcbp": "9.0"}'))
    assert refusal(path) == f"{path} was written by funcbp 9.0 in format 2; this version reads 1."


# --- what is not its own ----------------------------------------------------------------------------------------------


def test_what_others_keep_beside_it_stays(tmp_path):
    """Names that begin as its own do, and a name that is a pattern."""
    for name in ("run*", "[ab]"):
        others = [tmp_path / each for each in (f".{name}.swp", ".runs.old", ".a.txt", ".run.local/notes")]
        for other in others:
            other.parent.mkdir(exist_ok=True)
            other.write_text("mine")
        left = tmp_path / f".{name}.funcbp-new-abc"  # by a process that was killed
        left.write_text("half")
        checkpoint, state = train.Checkpoint(tmp_path / name), {"w": jnp.zeros(2)}
        for _ in range(3):
            checkpoint.save(train.Saved(state, {}, {}))
        assert all(other.read_text() == "mine" for other in others) and not left.exists()
        assert {p.name for p in tmp_path.iterdir() if name in p.name} == {name, f"{name}.previous", f".{name}.swp"}


HOLD = """
import pathlib, sys
from funcbp import train
with train.Checkpoint(sys.argv[1]).claim():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="locks and signals of POSIX")
def test_a_second_training_is_refused_until_the_first_has_ended_however_it_does(tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    monkeypatch.setenv("PYTHONPATH", str(Path(bp.__file__).parent.parent))
    for end in ("killed", "ended"):
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdout.readline() == "held\n"
            with pytest.raises(train.CheckpointError, match=f"Another training is running with {path}: wait"):
                learn(path)
            if end == "killed":
                other.kill()
            else:
                other.stdin.close()
            other.wait()
        assert [p.name for p in tmp_path.iterdir()] == ([".run.npz.funcbp-lock"] if end == "killed" else [])
        with train.Checkpoint(path).claim(), pytest.raises(train.CheckpointError, match="Another training is running"):
            learn(path)  # in the same process
        assert list(tmp_path.iterdir()) == []


class Broken:
    def log(self, metrics, *, step):
        if step == 7:
            raise RuntimeError("offline")


def test_what_a_tracker_or_a_stream_raises_loses_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="offline"):
        learn(train.Checkpoint(tmp_path / "run.npz", every=10), log=Broken())
    assert contents(tmp_path / "run.npz")["state/epoch"] == 10  # the tracker hears of them when they are learned
    same_fit(learn(tmp_path / "run.npz", resume=True), learn())

    def items():
        yield from [np.ones(3)] * 10
        raise OSError("the network went away")

    mean = lambda w, b: jnp.mean(b - w) ** 2
    with pytest.raises(OSError, match="went away"):
        path = tmp_path / "stream.npz"
        bp.fit(mean, jnp.zeros(()), items(), optimizer=optax.sgd(0.1), updates=3, checkpoint=path)
    assert contents(path)["state/epoch"] == 3  # the tenth item was never in a whole epoch


class Full:
    """A tracker whose disk is full from the third epoch on."""

    def log(self, metrics, *, step):
        if step >= 3:
            raise OSError(28, "No space left on device", "metrics")


@pytest.mark.parametrize("store", [None, "run.npz"])
def test_measurements_that_cannot_be_written_lose_nothing(tmp_path, store):
    """What was reached is in the exception and in the checkpoint, from which it goes on as if nothing had been."""
    path = store and tmp_path / store
    with pytest.raises(train.LogError, match=r"not be written to metrics \(No space left on device\), so") as error:
        learn(path and train.Checkpoint(path, every=1), log=Full())
    assert isinstance(error.value, OSError) and ("by resume=True" in str(error.value)) == (store is not None)
    reached = error.value.fit
    assert (reached.reason, reached.epochs, len(reached.history["loss"])) == ("unwritten", 3, 3) or not store
    assert 3 <= reached.epochs <= learn().epochs
    if path:
        assert contents(path)["state/epoch"] == 3
        same_fit(learn(path, resume=True), learn())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full is Linux's")
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_file_of_measurements_on_a_full_disk(tmp_path, suffix):
    path = tmp_path / f"metrics{suffix}"
    path.symlink_to("/dev/full")
    with pytest.raises(train.LogError, match=f"to {path} .*begin again: no checkpoint has it") as error:
        learn(log=[path, Noted()])
    assert error.value.fit.params is not None and error.value.__notes__


class Noted:
    def log(self, metrics, *, step):
        pass


@pytest.mark.parametrize(
    "end", [lambda: (signal.raise_signal(2), signal.raise_signal(2)), lambda: sys.exit(3)], ids=["Ctrl-C", "exit"]
)
def test_what_ends_the_process_loses_nothing(tmp_path, end):
    def items():
        yield from [np.ones(3)] * 10
        end()

    path = tmp_path / "stream.npz"
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        mean = lambda w, b: jnp.mean(b - w) ** 2
        bp.fit(mean, jnp.zeros(()), items(), optimizer=optax.sgd(0.1), updates=3, checkpoint=path)
    assert contents(path)["state/epoch"] == 3


def test_a_link_stays_one(tmp_path):
    path, place = tmp_path / "run.npz", tmp_path / "disk" / "large.npz"
    place.parent.mkdir()
    path.symlink_to(place)
    state = {"w": jnp.zeros(2)}
    for _ in range(2):
        train.Checkpoint(path).save(train.Saved(state, {}, {}))
    assert path.is_symlink() and {p.name for p in place.parent.iterdir()} == {"large.npz", "large.npz.previous"}
    with train.Checkpoint(place).claim(), pytest.raises(train.CheckpointError, match="Another training is running"):
        train.Checkpoint(path).claim().__enter__()


# --- places that cannot be written to ---------------------------------------------------------------------------------


def test_a_checkpoint_is_not_overwritten_by_mistake(tmp_path, written):
    path = tmp_path / "run.npz"
    path.write_bytes(written)
    with pytest.raises(train.CheckpointError, match="There is a checkpoint already, and it would be lost"):
        learn(path)
    assert path.read_bytes() == written


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full is Linux's")
def test_a_full_disk_leaves_the_last_good_file(tmp_path, monkeypatch):
    path, write = tmp_path / "run.npz", np.savez

    def full(file, **arrays):
        if arrays["state/epoch"] < 4:
            return write(file, **arrays)
        file.write(b"half")
        with open("/dev/full", "wb", buffering=0) as device:
            device.write(b"the other half")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(train.CheckpointError) as error:
        learn(train.Checkpoint(path, every=2))
    assert str(error.value) == (
        f"The checkpoint {path} could not be written: No space left on device. What was there is as it was."
    )
    assert {each.name for each in tmp_path.iterdir()} == {"run.npz", "run.npz.previous"}
    assert contents(path)["state/epoch"] == 2
    monkeypatch.undo()
    same_fit(learn(path, resume=True), learn())


def test_a_folder_that_is_not_there_is_noticed_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr("funcbp.learn.train.loop.Learner.advance", None)
    with pytest.raises(train.CheckpointError, match="could not be written: No such file or directory"):
        learn(tmp_path / "missing" / "run.npz")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(train.CheckpointError, match="could not be written: Permission denied"):
        learn(tmp_path / "run.npz")


def test_nonsense_is_refused(tmp_path):
    with pytest.raises(ValueError, match="every=0 was given"):
        train.Checkpoint(tmp_path / "run.npz", every=0)
