"""Run by `test_checkpoint.py`, in a process of its own: `python killed_program.py FOLDER KILLS [SEED]`.

A training that writes a checkpoint after every epoch is killed by SIGKILL at random moments and started again, over and
over, and then left to end; a second one is never stopped. Both must leave the same checkpoint, to the last bit.

Importing JAX takes longer than learning, so it is imported once, and each training is a fork of this process, which
starts no thread and computes nothing itself; the compiled program is kept in JAX's cache on disk.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcbp as bp
from funcbp import nets, ops, train

NET = nets.mlp([2, 3, 1], ops.tanh)


def learn(path: Path, epochs: int, pipe: int | None = None) -> None:
    """A training; every epoch is told through the pipe."""
    x = jax.random.normal(jax.random.key(0), (40, 2))
    data = x, jnp.sin(x[:, :1])

    def loss(params, batch, key=None):
        x, y = batch
        noise = 0.0 if key is None else 0.1 * jax.random.normal(key, x.shape)
        return ops.squared_error(NET.apply(params, x + noise), y, "mean")

    class Pipe:
        def log(self, metrics, *, step):
            if pipe is not None:
                os.write(pipe, b".")

    bp.fit(
        loss,
        NET.init(jax.random.key(1), x),
        data,
        optimizer=optax.adam(0.01),
        epochs=epochs,
        batch_size=8,
        key=jax.random.key(2),
        validation=data,
        stop=train.stopping.plateau(10**6),
        log=Pipe(),
        checkpoint=train.Checkpoint(path, every=1),
        resume=True,
    )


def fork(path: Path, epochs: int, pipe: int | None = None) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of forks; its threads start with the first computation
        child = os.fork()
    if child:
        return child
    try:
        learn(path, epochs, pipe)
        os._exit(0)
    finally:
        os._exit(1)


def contents(path: Path) -> dict[str, bytes]:
    with np.load(path) as file:
        return {name: file[name].tobytes() for name in file.files if name not in ("about", "history/seconds")}


def epoch_of(path: Path) -> int:
    """That the file can be read is tested, too."""
    with np.load(path) as file:
        return int(file["state/epoch"]) if all(file[name] is not None for name in file.files) else -1


def main(folder: str, kills: str, seed: str = "0") -> None:
    rng, killed, whole = random.Random(int(seed)), Path(folder, "killed.npz"), Path(folder, "whole.npz")
    jax.config.update("jax_compilation_cache_dir", str(Path(folder, "cache")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    length = 40 + 200 * int(kills)  # epochs: more than a fast machine learns until the last kill
    assert os.waitpid(fork(whole, length), 0)[1] == 0
    in_writing, epochs = 0, []
    for _ in range(int(kills)):
        reader, writer = os.pipe()
        child = fork(killed, length, writer)
        os.close(writer)
        if rng.random() < 0.9:  # it has begun to learn
            assert select.select([reader], [], [], 60)[0], "a training did not begin"
        time.sleep(rng.uniform(0, 0.15))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(reader)
        assert os.WIFSIGNALED(status), "a training ended before it was killed"
        epochs.append(epoch_of(killed) if killed.exists() else 0)
        in_writing += any(path.name.startswith(".killed.npz.") for path in Path(folder).iterdir())
    assert epochs == sorted(epochs), f"a checkpoint went back: {epochs}"
    assert os.waitpid(fork(killed, length), 0)[1] == 0
    assert contents(killed) == contents(whole), "not the same as if it had never stopped"
    print(f"after the kills, the checkpoints were of the epochs {epochs}")
    print(f"{kills} kills, equal to the last bit; {in_writing} of them while a checkpoint was written")


if __name__ == "__main__":
    main(*sys.argv[1:])
