"""Results on disk: round trips, and files that are whole or absent."""

import errno
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcbp import nets, train


def test_params_round_trip(tmp_path):
    params = nets.convnet((4, 4, 1), 3, channels=(2,)).init(jax.random.key(0), jnp.zeros((4, 4, 1), jnp.float32))
    train.save_params(tmp_path / "params.npz", params)
    with np.load(tmp_path / "params.npz") as file:
        assert set(file.files) == set(train.leaf_paths(params))
        assert "dense_0/kernel" in file.files
    loaded = train.load_params(tmp_path / "params.npz")
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for got, want in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


def test_bfloat16_is_stored_as_float32(tmp_path):
    weights = jnp.array([1.5, -0.1], jnp.bfloat16)
    train.save_params(tmp_path / "params.npz", {"w": weights})
    loaded = train.load_params(tmp_path / "params.npz")["w"]
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, np.asarray(weights, np.float32))


@pytest.mark.parametrize("params", [{"a/b": 1.0}, [1.0], {"a": [1.0]}, {1: 1.0}, 1.0], ids=str)
def test_other_trees_are_refused(tmp_path, params):
    with pytest.raises(ValueError, match="nested dicts whose keys are strings without a slash"):
        train.save_params(tmp_path / "params.npz", params)
    assert not list(tmp_path.iterdir())


def test_metrics_are_json(tmp_path):
    records = [{"epoch": 0, "loss": 1.5, "R²": float("nan")}, {"epoch": 1, "loss": float("inf"), "name": "é"}]
    train.write_metrics(tmp_path / "metrics.jsonl", records)
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"epoch": 0, "loss": 1.5, "R²": None},
        {"epoch": 1, "loss": None, "name": "é"},
    ]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def full(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        train.write_atomically(path, full)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    train.write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_text() == "new"


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX files")
def test_the_umask_is_respected(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    train.write_atomically(tmp_path / "atomic", lambda file: None)
    assert (tmp_path / "atomic").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"text", None], ids=["empty", "cut", "text", "one array"])
def test_damaged_parameters_are_a_sentence(tmp_path, content):
    path = tmp_path / "params.npz"
    np.save(path.with_suffix(".npy"), np.ones(3))
    path.write_bytes(path.with_suffix(".npy").read_bytes() if content is None else content)
    with pytest.raises(ValueError, match=r"params.npz is damaged, or is no file of parameters"):
        train.load_params(path)
    with pytest.raises(FileNotFoundError):
        train.load_params(tmp_path / "none.npz")


def test_a_link_stays_one(tmp_path):
    path, place = tmp_path / "link", tmp_path / "elsewhere" / "file"
    place.parent.mkdir()
    path.symlink_to(place)
    for content in (b"once", b"again"):
        train.write_atomically(path, lambda file, content=content: file.write(content))
        assert path.is_symlink() and place.read_bytes() == content
    assert [p.name for p in place.parent.iterdir()] == ["file"] and len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name are Unix's")
def test_a_pipe_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    train.write_atomically(pipe, lambda file: file.write(b"whole"))
    assert os.read(reader, 10) == b"whole" and pipe.is_fifo()
    os.close(reader)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("kind", [train.JsonLines, train.Csv])
def test_a_full_disk_is_named(kind):
    tracker = kind("/dev/full")
    for attempt in (lambda: tracker.log({"loss": 0.5}, step=1), tracker.close):
        with pytest.raises(OSError) as error:
            attempt()
        assert error.value.filename == "/dev/full"
