"""Learning, beside what a user would pick instead: scikit-learn, a PyTorch loop, Flax NNX with optax.

Digits are learned in a fresh process for each peer, which take turns; small networks in this one. A peer that is not
installed is skipped by name.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcbp as bp
from funcbp import data, nets, ops, optim

from . import digits, measure, workloads
from .report import Cell, Row, Table, Target, spread

TARGET_ACCURACY = 0.97
UPDATES, MEMBERS, EPOCHS = 10_000, 1_000, 1_000
STREAM = 2_000  # gradients for the comparison of rules
XOR_RATE = 0.5
FASTER, AT_ONCE, EQUAL = Target(500, at_least=True), Target(400), Target(0)
WHOLE, LEARNING, SAMPLES, ACCURACY, COMPARED = "whole process, s", "learning, ms", "epochs", "accuracy, %", "compared"
COLUMNS = (WHOLE, LEARNING, SAMPLES, ACCURACY, COMPARED)


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def skipped(name: str, module: str) -> Row:
    return Row(name, {COMPARED: Cell(remark=f"skipped: {module} is not installed")})


# --- digits -----------------------------------------------------------------------------------------------------------


def learn_digits(rounds: int) -> Iterator[Row]:
    """Each peer in a process of its own, in turn, with another seed in each round; medians."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "digits.npz")
        d = data.load("digits")
        np.savez(path, x_train=d.x_train, y_train=d.y_train, x_test=d.x_test, y_test=d.y_test)
        there = [peer for peer, (module, _) in digits.PEERS.items() if installed(module)]
        results: dict[str, list[dict[str, float]]] = {peer: [] for peer in there}
        for seed in range(rounds):
            for peer in there if seed % 2 == 0 else reversed(there):
                results[peer].append(in_a_process(peer, path, seed))
    for peer, (module, _) in digits.PEERS.items():
        name = f"digits to {100 * TARGET_ACCURACY:g} %: {peer}"
        if peer not in there:
            yield skipped(name, module)
            continue
        median = {what: float(np.median([result[what] for result in results[peer]])) for what in results[peer][0]}
        reached = sum(result["accuracy"] >= TARGET_ACCURACY for result in results[peer])
        yield Row(
            name,
            {
                WHOLE: Cell(median["whole"]),
                LEARNING: Cell(1e3 * median["seconds"]),
                SAMPLES: Cell(median["epochs"]),
                ACCURACY: Cell(100 * median["accuracy"]),
                COMPARED: Cell(remark=f"reached in {reached} of {rounds} runs"),
            },
            refused=reached == 0,
        )


def in_a_process(peer: str, path: Path, seed: int) -> dict[str, float]:
    """What it says of itself, and `whole`: the seconds from the start of the process to its end."""
    command = [sys.executable, "-m", "benchmarks.digits", peer, str(path), str(seed), str(TARGET_ACCURACY)]
    start = time.perf_counter()
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    return {"whole": time.perf_counter() - start, **json.loads(printed.stdout.splitlines()[-1])}


# --- W10 --------------------------------------------------------------------------------------------------------------


def many_updates(pairs: int) -> Iterator[Row]:
    """The 2-2-2 network: one compiled scan, `bp.fit`, and a loop in PyTorch, to the same weights."""
    workload = workloads.worked_example(UPDATES)
    weights, x, target = workload.args
    scan = jax.jit(workload.program(bp)).lower(*workload.args).compile()

    def loss(weights, batch):
        y, t = batch
        for w, b in zip(weights, workloads.BIASES, strict=True):
            y = jax.nn.sigmoid(y @ w + b)
        return 0.5 * jnp.sum((t - y) ** 2)

    example, optimizer = (x[None], target[None]), optax.sgd(workloads.LEARNING_RATE)
    fit = lambda: bp.fit(loss, weights, example, optimizer=optimizer, mode="batch", epochs=UPDATES).params
    times = measure.take_turns(lambda: scan(*workload.args), fit, pairs)
    scan_seconds, fit_seconds = np.median(times.ours), np.median(times.theirs)
    name = f"W10 {UPDATES:,} updates"
    yield Row(f"{name}: funcbp, one scan", {LEARNING: Cell(1e3 * scan_seconds)})
    apart = furthest(fit(), scan(*workload.args))
    yield Row(
        f"{name}: bp.fit, compiled before",
        {LEARNING: Cell(1e3 * fit_seconds), COMPARED: Cell(fit_seconds / scan_seconds)},
        refused=not apart <= 1e-5,
    )
    if not installed("torch"):
        yield skipped(f"{name}: PyTorch loop", "torch")
        return
    run = workloads.worked_example_in_torch(UPDATES)
    apart = furthest([w.detach().numpy() for w in run()], scan(*workload.args))
    torch_seconds = measure.alone(run)
    cells = {LEARNING: Cell(1e3 * torch_seconds), COMPARED: Cell(torch_seconds / scan_seconds, target=FASTER)}
    yield Row(f"{name}: PyTorch loop, times as long as the scan", cells, refused=not apart <= 1e-5)


def furthest(a: Any, b: Any) -> float:
    """The largest difference between two pytrees' leaves, relative to a leaf's largest element."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.max(np.abs(np.asarray(u) - v)) / np.max(np.abs(v))) for u, v in pairs)


# --- W11 --------------------------------------------------------------------------------------------------------------


def many_networks(pairs: int) -> Iterator[Row]:
    """XOR networks 2-2-1 by the batch: many in one call against one, by hand and by `bp.fit_many`; PyTorch."""
    net = nets.mlp([2, 2, 1], activation=ops.logistic, output=ops.logistic, initializer=nets.uniform(-1, 1))
    x, t = (jnp.asarray(a) for a in data.xor())
    keys = jax.random.split(jax.random.key(0), MEMBERS)

    def loss(params, batch):
        return ops.squared_error(net.apply(params, batch[0]), batch[1])

    def train(params):
        def step(params, _):
            gradient = bp.grad(loss)(params, (x, t))
            return jax.tree.map(lambda w, g: w - XOR_RATE * g, params, gradient), None

        return jax.lax.scan(step, params, length=EPOCHS)[0]

    params = jax.vmap(lambda key: net.init(key, x))(keys)
    first = jax.tree.map(lambda leaf: leaf[0], params)
    all_at_once = jax.jit(jax.vmap(train)).lower(params).compile()
    one = jax.jit(train).lower(first).compile()
    times = measure.take_turns(lambda: all_at_once(params), lambda: one(first), pairs)

    def at_once(how: str, times: measure.Times, apart: float) -> Row:
        name = f"W11 {MEMBERS:,} XOR networks: {how}, times as long as one network"
        compared = spread(times.ratios, AT_ONCE)
        cells = {LEARNING: Cell(1e3 * np.median(times.ours)), SAMPLES: Cell(EPOCHS), COMPARED: compared}
        return Row(name, cells, refused=not apart <= 1e-3)

    apart = furthest(jax.tree.map(lambda leaf: leaf[0], all_at_once(params)), one(first))
    yield Row(
        "W11 one XOR network: funcbp, one scan", {LEARNING: Cell(1e3 * np.median(times.theirs)), SAMPLES: Cell(EPOCHS)}
    )
    yield at_once("one scan, vmapped", times, apart)
    optimizer = optax.sgd(XOR_RATE)

    def fit_many() -> Any:
        options = {"optimizer": optimizer, "key": keys, "mode": "batch", "epochs": EPOCHS}
        return bp.fit_many(loss, params, (x, t), **options).params

    fits = measure.take_turns(fit_many, lambda: one(first), pairs)
    apart = furthest(jax.tree.map(lambda leaf: leaf[0], fit_many()), one(first))
    yield at_once("bp.fit_many, compiled before", fits, apart)
    if not installed("torch"):
        yield skipped("W11 one XOR network: PyTorch loop", "torch")
        return
    run = xor_in_torch(first, x, t)
    apart = furthest(run(), one(first))
    torch_seconds = measure.alone(run)
    yield Row(
        "W11 one XOR network: PyTorch loop, times as long as one of ours",
        {LEARNING: Cell(1e3 * torch_seconds), COMPARED: Cell(torch_seconds / np.median(times.theirs))},
        refused=not apart <= 1e-3,
    )


def xor_in_torch(params: Any, x: Any, t: Any) -> Callable[[], Any]:
    """One network as a loop in PyTorch, the usual way: a function that runs it and returns the parameters."""
    import torch

    x, t = (torch.from_numpy(np.array(a)) for a in (x, t))

    def run():
        ws = jax.tree.map(lambda a: torch.from_numpy(np.array(a)).requires_grad_(), params)
        optimizer = torch.optim.SGD(jax.tree.leaves(ws), lr=XOR_RATE)
        for _ in range(EPOCHS):
            y = x
            for layer in ws.values():
                y = torch.sigmoid(y @ layer["kernel"] + layer["bias"])
            optimizer.zero_grad()
            (0.5 * ((t - y) ** 2).sum()).backward()
            optimizer.step()
        return jax.tree.map(lambda w: w.detach().numpy(), ws)

    return run


# --- iRprop− ----------------------------------------------------------------------------------------------------------


def equal_steps() -> Iterator[Row]:
    """Updates of 100 weights for a stream of gradients of all sizes, zeros among them, in float32."""
    rng = np.random.default_rng(0)
    stream = np.float32(rng.normal(size=(STREAM, 100)) * 10.0 ** rng.integers(-6, 3, (STREAM, 100)))
    stream[rng.uniform(size=stream.shape) < 0.05] = 0
    optimizers = optim.irprop_minus(0.1), optax.rprop(0.1)

    @jax.jit
    def step(states: Any, gradient: jax.Array) -> Any:
        updates, states = zip(*(o.update(gradient, s) for o, s in zip(optimizers, states, strict=True)), strict=True)
        return states, (updates[0], -states[1][0].prev_updates)  # optax hands these out late, some never

    init = tuple(o.init(jnp.zeros(100)) for o in optimizers)
    ours, theirs = (np.asarray(updates) for updates in jax.lax.scan(step, init, jnp.asarray(stream))[1])
    name = f"IRPROP {STREAM:,} updates of 100 weights"
    different = int(np.sum(ours != theirs))
    cells = {COMPARED: Cell(different, target=EQUAL)}
    yield Row(f"{name}: steps that differ from those that optax.rprop computes", cells, different > 0)
    if not installed("torch"):
        yield skipped(f"{name}: torch.optim.Rprop", "torch")
        return
    import torch

    w = torch.zeros(100, requires_grad=True)
    optimizer, path = torch.optim.Rprop([w], lr=0.1), []
    for gradient in stream:
        w.grad = torch.from_numpy(gradient)
        optimizer.step()
        path.append(w.detach().numpy().copy())
    different = int(np.sum(np.cumsum(ours, axis=0, dtype=np.float32) != np.array(path)))
    cells = {COMPARED: Cell(different, target=EQUAL)}
    yield Row(f"{name}: weights that differ from those of torch.optim.Rprop", cells, different > 0)


def run(pairs: int, only: Collection[str] = ()) -> Table:
    """Measure.

    Args:
        pairs: how often two sides are timed against each other; a quarter of that are the rounds of learning digits.
        only: which of DIGITS, W10, W11 and IRPROP to measure, all of them if empty.
    """
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "DIGITS": lambda: learn_digits(max(1, pairs // 4)),
        "W10": lambda: many_updates(pairs),
        "W11": lambda: many_networks(pairs),
        "IRPROP": equal_steps,
    }
    rows = []
    for name, measured in parts.items():
        if not only or name in only:
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows.append(measured())
    return Table("Learning, beside what a user would pick instead", COLUMNS, list(itertools.chain(*rows)))
