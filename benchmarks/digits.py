"""Digits to a test accuracy, by what a user would pick: `python -m benchmarks.digits PEER FILE.npz SEED TARGET`.

Every peer gets the same arrays, the same network 64-64-10 with relu, Adam at its usual rate, batches of 32 in a random
order, and looks at the test examples after every epoch until the target is reached. It prints, as JSON, the seconds
from the arrays to there, compilation included, the epochs, and the accuracy.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

BATCH, RATE, MOST_EPOCHS = 32, 1e-3, 200
Arrays = dict[str, np.ndarray]


def funcbp(a: Arrays, seed: int, target: float) -> tuple[int, float]:
    """`bp.fit`: the loop, with the judging in it, is one compiled program."""
    import jax
    import jax.numpy as jnp
    import optax

    import funcbp as bp
    from funcbp.learn.train import stopping

    net = bp.nets.mlp([64, 64, 10], activation=bp.ops.relu)
    x_test, y_test = jnp.asarray(a["x_test"]), jnp.asarray(a["y_test"])

    def loss(params, batch):
        x, y = batch
        return jnp.mean(bp.ops.softmax_cross_entropy_with_integer_labels(net.apply(params, x), y))

    learned = bp.fit(
        loss,
        net.init(jax.random.key(seed), a["x_train"]),
        (a["x_train"], a["y_train"]),
        optimizer=optax.adam(RATE),
        batch_size=BATCH,
        epochs=MOST_EPOCHS,
        key=jax.random.key(seed),
        correct=lambda params, _: stopping.right_class(net.apply(params, x_test), y_test),  # of the test examples
        stop=stopping.all_correct(target),
    )
    return learned.epochs, float(learned.history["correct"][-1])


def scikit_learn(a: Arrays, seed: int, target: float) -> tuple[int, float]:
    """`MLPClassifier`, an epoch per call of `partial_fit`."""
    from sklearn.neural_network import MLPClassifier

    net = MLPClassifier((64,), batch_size=BATCH, learning_rate_init=RATE, alpha=0.0, random_state=seed)

    def epoch() -> float:
        net.partial_fit(a["x_train"], a["y_train"], classes=np.arange(10))
        return float(net.score(a["x_test"], a["y_test"]))

    return until(target, epoch)


def pytorch(a: Arrays, seed: int, target: float) -> tuple[int, float]:
    """The usual loop."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer, criterion = torch.optim.Adam(net.parameters(), lr=RATE), torch.nn.CrossEntropyLoss()
    x, y, x_test, y_test = (torch.from_numpy(a[n]) for n in ("x_train", "y_train", "x_test", "y_test"))
    y, y_test = y.long(), y_test.long()

    def epoch() -> float:
        for batch in torch.randperm(len(x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            criterion(net(x[batch]), y[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            return float((net(x_test).argmax(1) == y_test).float().mean())

    return until(target, epoch)


def flax(a: Arrays, seed: int, target: float) -> tuple[int, float]:
    """NNX with optax, a jitted step per batch, as in its tutorials."""
    import jax.numpy as jnp
    import optax
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.hidden, self.out = nnx.Linear(64, 64, rngs=rngs), nnx.Linear(64, 10, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.out(nnx.relu(self.hidden(x)))

    net = Net(nnx.Rngs(seed))
    optimizer = nnx.Optimizer(net, optax.adam(RATE), wrt=nnx.Param)
    rng = np.random.default_rng(seed)
    x_test, y_test = jnp.asarray(a["x_test"]), jnp.asarray(a["y_test"])

    @nnx.jit
    def step(net, optimizer, x, y):
        def loss(net):
            return optax.softmax_cross_entropy_with_integer_labels(net(x), y).mean()

        optimizer.update(net, nnx.grad(loss)(net))

    @nnx.jit
    def accuracy(net):
        return jnp.mean(jnp.argmax(net(x_test), -1) == y_test)

    def epoch() -> float:
        order = rng.permutation(len(a["x_train"]))
        for i in range(0, len(order) - BATCH + 1, BATCH):
            batch = order[i : i + BATCH]
            step(net, optimizer, a["x_train"][batch], a["y_train"][batch])
        return float(accuracy(net))

    return until(target, epoch)


def until(target: float, epoch: Callable[[], float]) -> tuple[int, float]:
    """How many epochs until the target, and the accuracy then."""
    accuracy = 0.0
    for number in range(1, MOST_EPOCHS + 1):
        accuracy = epoch()
        if accuracy >= target:
            return number, accuracy
    return MOST_EPOCHS, accuracy


# the module that must be there, and how
PEERS: dict[str, tuple[str, Callable[[Arrays, int, float], tuple[int, float]]]] = {
    "funcbp": ("funcbp", funcbp),
    "scikit-learn": ("sklearn", scikit_learn),
    "PyTorch": ("torch", pytorch),
    "Flax NNX + optax": ("flax", flax),
}


def main(peer: str, path: str, seed: str, target: str) -> None:
    """Learn, and print what it took. The library is imported before the clock runs, as are the arrays read."""
    module, learn = PEERS[peer]
    __import__({"sklearn": "sklearn.neural_network", "flax": "flax.nnx"}.get(module, module))
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    start = time.perf_counter()
    epochs, accuracy = learn(arrays, int(seed), float(target))
    print(json.dumps({"seconds": time.perf_counter() - start, "epochs": epochs, "accuracy": accuracy}))


if __name__ == "__main__":
    main(*sys.argv[1:])
