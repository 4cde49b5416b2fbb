"""Many devices: the same losses as on one, each layout's own communication, and two processes, one of them killed."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax import P

import funcbp as bp
from funcbp import train
from funcbp.cli.main import main
from funcbp.learn.train import layout
from tests.devices import environment

# --- eight devices ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    program, folder = Path(__file__).with_name("devices_program.py"), tmp_path_factory.mktemp("devices")
    run = subprocess.run(
        [sys.executable, program, folder], capture_output=True, text=True, env=environment(8), timeout=300
    )
    assert run.returncode == 0, run.stderr
    return {each["name"]: each for each in map(json.loads, run.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.long
def test_the_same_losses_as_on_one_device(trainings):
    """Data of which every device has a part, a stream, checkpoints that change meshes, and many networks are there."""
    wanted = {"data", "fsdp", "tensor", "patterns", "resumed", "orbax", "stream", "many"}
    assert trainings.keys() == wanted
    for each in trainings.values():
        assert all(difference < 2e-6 for difference in each["losses"].values()), each
        assert each["params"] < 1e-6, each
    assert trainings["resumed"]["local"] == "P('data',)"


@pytest.mark.slow
@pytest.mark.long
def test_parameters_and_moments_are_where_the_layout_says(trainings):
    whole, parts = [[8, 16], [16, 8]], {name: trainings[name]["shards"] for name in trainings}
    assert parts["data"] == parts["stream"] == whole
    assert parts["fsdp"] == parts["orbax"] == [[8, 2], [2, 8]]
    assert parts["tensor"] == parts["resumed"] == [[8, 8], [8, 8]]
    assert parts["patterns"] == [[8, 8], [16, 8]]
    assert parts["many"] == [[2, 8, 16]]
    for name in ("data", "fsdp", "tensor"):
        assert trainings[name]["moments"] == parts[name]


@pytest.mark.slow
@pytest.mark.long
def test_each_layout_has_its_own_communication(trainings):
    """In the compiled text of an epoch, which is a loop: what is counted is per update."""
    counts = {name: each["collectives"] for name, each in trainings.items() if "collectives" in each}
    assert set(counts["data"]) == {"all-reduce"}  # the gradients
    assert set(counts["tensor"]) == {"all-reduce"}  # and the sums over the hidden units
    assert counts["tensor"]["all-reduce"] > counts["data"]["all-reduce"]
    assert counts["fsdp"]["all-gather"] >= 2  # each kernel, where it is used


# --- two processes ----------------------------------------------------------------------------------------------------


class Pair:
    """Two processes with two devices each, which talk over the loopback."""

    def __init__(self, command):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.processes = [
            subprocess.Popen(
                [sys.executable, *command(address, str(process))],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(2),
            )
            for process in range(2)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def wait(self, seconds):
        end = time.monotonic() + seconds
        return [process.communicate(timeout=max(end - time.monotonic(), 0.1)) for process in self.processes]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_two_processes_one_of_them_killed(tmp_path, monkeypatch, capfd):
    """The limit is hard: a process that waits for a dead one is not waited for."""
    monkeypatch.chdir(tmp_path)
    limit = 120
    command = ["train", "iris", "--network", "mlp:", "--no-plots"]

    def train_iris(*more):
        where = lambda address, process: ["--coordinator", address, "--processes", "2", "--process", process]
        argv = ["-m", "funcbp", *command, "--out", "out", "--checkpoint", "run.npz", "--checkpoint-every", "2"]
        return lambda *who: [*argv, *more, *where(*who)]

    def epoch():
        with contextlib.suppress(FileNotFoundError), np.load("run.npz") as file:
            return int(file["state/epoch"])
        return 0

    with Pair(train_iris("--epochs", "1000000")) as pair:
        end = time.monotonic() + limit
        while epoch() < 4:
            assert time.monotonic() < end and pair.processes[0].poll() is None, pair.wait(1)
            time.sleep(0.05)
        pair.processes[1].send_signal(signal.SIGKILL)
        assert pair.processes[1].wait(10) == -signal.SIGKILL
    reached = epoch()
    total = str(reached + 6)
    with Pair(train_iris("--epochs", total, "--resume")) as pair:
        (out, err), (silent, _) = pair.wait(limit)
        assert [process.returncode for process in pair.processes] == [0, 0], err
    assert "Mesh        data=4 of 4 devices in 2 processes" in out and "Test accuracy" in out
    assert "Mesh" not in silent and "Test accuracy" not in silent
    assert epoch() == reached + 6
    assert main([*command, "--out", "alone", "--epochs", total]) == 0
    both, alone = (
        [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
        for folder in ("out", "alone")
    )
    for name in ("loss", "validation_loss"):
        got, want = ([row[name] for row in rows[:-1]] for rows in (both, alone))
        assert len(got) == reached + 7
        np.testing.assert_allclose(got, want, rtol=2e-4)


@pytest.mark.slow
def test_each_process_has_a_part_of_the_data():
    program = str(Path(__file__).with_name("processes_program.py"))
    with Pair(lambda *who: [program, *who]) as pair:
        outputs = pair.wait(120)
    for process, (out, err) in zip(pair.processes, outputs, strict=True):
        assert process.returncode == 0, err
        results = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        assert [each["name"] for each in results] == ["from_local", "stream"]
        assert all(each["params"] < 1e-6 and each["losses"] < 1e-6 for each in results)
        assert [each["shard"] for each in results] == [[1, 2], [4, 2]]


# --- what makes no sense ----------------------------------------------------------------------------------------------


def test_presets():
    axes = {"data": 2, "tensor": 4}
    assert layout.data_layout("dense_0/kernel", (8, 16), axes) == P()
    assert layout.fsdp_layout("dense_0/kernel", (8, 16), axes) == P(None, "data")
    assert layout.fsdp_layout("dense_0/kernel", (8, 15), {**axes, "fsdp": 4}) == P("fsdp")
    assert layout.fsdp_layout("dense_0/bias", (15,), axes) == P()
    assert layout.tensor_layout("dense_0/kernel", (3, 16), axes) == P(None, "tensor")
    assert layout.tensor_layout("dense_0/bias", (16,), axes) == P("tensor")
    assert layout.tensor_layout("dense_1/kernel", (16, 3), axes) == P("tensor")
    assert layout.tensor_layout("dense_1/bias", (3,), axes) == P()
    assert layout.tensor_layout("dense_2/kernel", (16, 3), axes) == P()
    assert layout.tensor_layout("conv_1/kernel", (3, 3, 4, 6), axes) == P(None, None, "tensor")


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="has the axes data, fsdp, tensor, and not model"):
        train.make_mesh({"model": 1})
    with pytest.raises(ValueError, match=r"A mesh of data=4 x tensor=2 has 8 devices, and there (is|are) \d"):
        train.make_mesh({"data": 4, "tensor": 2})
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    data = np.ones((6, 1))
    options = dict(optimizer=optax.sgd(0.1), mesh=mesh)
    for name, message in (
        ("model", "no layout 'model'"),
        ("tensor", "needs a mesh with the axis tensor, and this one"),
        ({"w*": P(), "v/*": P()}, r"The layout's pattern 'v/\*' matches none of b, w\."),
    ):
        with pytest.raises(ValueError, match=message):
            bp.fit(lambda w, x: w, {"w": 1.0, "b": 1.0}, data, layout=name, **options)
    with pytest.raises(ValueError, match="A batch of 6 examples cannot be divided over 4 devices"):
        layout.Placement(jax.sharding.AbstractMesh((4,), ("data",)), ()).check_batch(6)
