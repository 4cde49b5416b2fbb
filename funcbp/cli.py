"""The command `funcbp`: train a network on real data by a backward pass that has been checked before your eyes.

`funcbp train digits` says what it will do, compares its gradient with two witnesses, learns, and leaves the results in
a folder. Whatever is wrong with the request is said in a sentence, with exit code 2; a gradient that fails its check,
or learning that diverges, ends with exit code 1; Ctrl-C keeps what was reached, with exit code 130.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import data, nets, ops, plot, train
from .jaxpr import public_names
from .reproduce.command import run_reproduce_command
from .rules import coverage
from .testing.command import run_check_command
from .testing.gradients import compare_gradients

ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "identity": ops.identity,
    "logistic": ops.logistic,
    "tanh": ops.tanh,
    "relu": ops.relu,
    "leaky_relu": ops.leaky_relu,
    "elu": ops.elu,
    "softplus": ops.softplus,
    "swish": ops.swish,
    "mish": ops.mish,
    "gelu": ops.gelu,
    "gaussian": ops.gaussian,
}
OPTIMIZERS: dict[str, tuple[Callable[[float], optax.GradientTransformation], float]] = {
    "sgd": (optax.sgd, 0.1),
    "momentum": (lambda rate: optax.sgd(rate, momentum=0.9), 0.02),
    "nesterov": (lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True), 0.02),
    "adam": (optax.adam, 0.001),
}
FAILED, REFUSED, INTERRUPTED = 1, 2, 130
CHECKED_EXAMPLES = 16


class RequestError(ValueError):
    """What was asked for cannot be done; the message says why."""


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are raised, so that there is one place that prints them."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message[0].upper()}{message[1:]}. See {self.prog} --help.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments, without the command's own name; those of the process if not given.

    Returns:
        The exit code: 0 if all went well, 1 if a gradient or the learning failed, 2 if the request could not be met,
        130 after Ctrl-C.

    Example:
        >>> from funcbp.cli import main
        >>> main(["train", "no-such-data"])  # says why on stderr
        2
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["check"]:
        return run_check_command(argv[1:])
    if argv[:1] == ["reproduce"]:
        return run_reproduce_command(argv[1:])
    try:
        args = parser().parse_args(argv)
        return args.run(args)
    except OSError as error:
        message = f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror or error}."
    except (RequestError, data.DataError, ImportError) as error:
        message = str(error)
    except KeyboardInterrupt:
        print("\nInterrupted before there was anything to keep.", file=sys.stderr)
        return INTERRUPTED
    print(f"funcbp: {message}", file=sys.stderr)
    return REFUSED


def parser() -> argparse.ArgumentParser:
    """What the command understands."""
    top = Parser(prog="funcbp", description="Backpropagation you can open.")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "train",
        help="train a network, its gradient checked first",
        description="Train a network on a data set, after checking its hand-written gradient on a batch of it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    which = f"{', '.join(data.SETS)}, or a .csv or .npz file"
    command.add_argument("set", nargs="?", default="digits", metavar="DATA", help=which)
    command.add_argument("--data", metavar="DATA", help="the same, and it goes before", default=argparse.SUPPRESS)
    command.add_argument(
        "--network",
        default="mlp:64,32",
        help="mlp:64,32 (hidden layers; `mlp:` has none), convnet (for images), or autoencoder:32,16 (encoder)",
    )
    command.add_argument(
        "--activation", default="relu", choices=ACTIVATIONS, metavar="NAME", help=", ".join(ACTIVATIONS)
    )
    command.add_argument("--optimizer", default="adam", choices=OPTIMIZERS, metavar="NAME", help=", ".join(OPTIMIZERS))
    rates = ", ".join(f"{name} {rate:g}" for name, (_, rate) in OPTIMIZERS.items())
    command.add_argument(
        "--learning-rate", type=_rate, metavar="RATE", default=argparse.SUPPRESS, help=f"default: {rates}"
    )
    command.add_argument("--batch-size", type=_whole(1), default=32, metavar="N", help="examples per update")
    command.add_argument("--epochs", type=_whole(1), default=60, metavar="N", help="sweeps over the training set")
    command.add_argument(
        "--seed", type=_whole(0), default=0, metavar="N", help="of the split, the weights and the order"
    )
    command.add_argument(
        "--out", type=Path, metavar="FOLDER", default=argparse.SUPPRESS, help="default: runs/DATA-NETWORK"
    )
    command.set_defaults(run=run_training)
    command = commands.add_parser(
        "coverage",
        help="list every primitive and how it is differentiated",
        description="List JAX's primitives and how each is accounted for.",
    )
    command.set_defaults(run=run_coverage)
    commands.add_parser("check", help="is a function's derivative right? (see `funcbp check --help`)", add_help=False)
    commands.add_parser(
        "reproduce", help="published results, looked for again (see `funcbp reproduce --help`)", add_help=False
    )
    return top


def run_coverage(args: argparse.Namespace) -> int:
    """Print the table of primitives; exit code 1 if a public one is in none of its columns."""
    table = coverage()
    counts = collections.Counter(how.split(":")[0] for how in table.values())
    for name, how in table.items():
        print(f"{name:<28}{how}")
    missing = sorted(set(public_names()) - table.keys())
    print(f"\n{jax.__version__}: " + ", ".join(f"{n} {how}" for how, n in counts.most_common()), end="; ")
    print(f"missing: {', '.join(missing)}" if missing else "nothing missing")
    return FAILED if missing else 0


def _whole(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < least or int(text) >= 2**31:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return whole


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return rate


# --- the parts of a run -----------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """A network, what it is to do, and what it is called."""

    net: nets.Net
    task: train.Task
    title: str
    rebuilds: bool  # whether the network gives back its input


class Learned(NamedTuple):
    """How the learning ended: the last good epoch, one record per epoch, and the exit code that says why it ended."""

    last: train.Epoch
    records: list[dict[str, Any]]
    code: int


def run_training(args: argparse.Namespace) -> int:
    """`funcbp train`: say what will be done, check the gradient, learn, judge, and leave the results."""
    source = getattr(args, "data", args.set)
    plot.new_axes()  # a missing library shall be missed now, not after the training
    bar = _progress_bar()
    dataset = _load(source, args.seed)
    job = _build(args.network, args.activation, dataset)
    folder = _prepare(getattr(args, "out", Path("runs") / _run_name(dataset.name, args.network)))
    make_optimizer, rate = OPTIMIZERS[args.optimizer]
    rate = getattr(args, "learning_rate", rate)
    key = jax.random.key(args.seed)
    params = job.net.init(jax.random.fold_in(key, 0), dataset.x_train)

    device = jax.devices()[0]
    kind = "regression" if dataset.classes is None else f"{len(dataset.classes)} classes"
    sizes = f"{len(dataset.x_train)} training, {len(dataset.x_validation)} validation, {len(dataset.x_test)} test"
    print(f"Data        {dataset.name}: {dataset.n_inputs} inputs, {kind}; {sizes} examples")
    print(f"Network     {job.title}, {nets.count(params):,} parameters")
    print(f"Learning    {args.optimizer}, rate {rate:g}, batches of {args.batch_size}, {args.epochs} epochs")
    print(f"Device      {device.platform} ({device.device_kind}), jax {jax.__version__}")
    print()
    if not _gradient_is_right(job.task, params, dataset, args.seed):
        print("The gradient is WRONG, so nothing was trained.", file=sys.stderr)
        return FAILED

    loop = train.epochs(
        job.task,
        params,
        (dataset.x_train, dataset.y_train),
        (dataset.x_validation, dataset.y_validation),
        make_optimizer(rate),
        key=jax.random.fold_in(key, 1),
        batch_size=args.batch_size,
        count=args.epochs,
    )
    learned = _learn(loop, args.epochs, job.task.score_name, bar)
    result = _judge(job, learned.last.params, dataset)
    try:
        _leave(folder, job, learned, result, dataset)
    except OSError as error:
        raise RequestError(f"The results could not be written to {folder}: {error.strerror or error}.") from error
    print(f"\nResults in {folder}: metrics.jsonl, params.npz, curves.png, weights.png, mistakes.png")
    return learned.code


def _progress_bar() -> Callable[..., Any]:
    try:
        return importlib.import_module("tqdm").tqdm
    except ImportError as error:
        raise ImportError(
            'The progress bar needs tqdm, which is not installed: pip install "funcbp[progress]".'
        ) from error


def _load(source: str, seed: int) -> data.Dataset:
    if source in data.SETS:
        return data.load(source, seed)
    if Path(source).suffix.lower() in (".csv", ".npz"):
        return data.read(source, seed)
    raise RequestError(f"There is no data set {source!r}; there are {', '.join(data.SETS)}, and .csv and .npz files.")


def _build(network: str, activation_name: str, dataset: data.Dataset) -> Job:
    """The network that was asked for, on these data."""
    activation = ACTIVATIONS[activation_name]
    kind, _, sizes = network.partition(":")
    try:
        hidden = [_whole(1)(size.strip()) for size in sizes.split(",")] if sizes else []
    except argparse.ArgumentTypeError as error:
        raise RequestError(f"The sizes in --network {network} are wrong: {error}.") from error
    n_in, n_out = dataset.n_inputs, dataset.n_outputs
    if kind == "autoencoder":
        encoder = [n_in, *(hidden or [max(n_in // 2, 1), max(n_in // 4, 1)])]
        net = nets.autoencoder(encoder, activation)
        title = f"autoencoder {'-'.join(map(str, [*encoder, *encoder[-2::-1]]))}, {activation_name}"
        return Job(net, train.reconstruction(net), title, True)
    if kind == "mlp":
        layers = [n_in, *([64, 32] if network == "mlp" else hidden), n_out]
        net, title = nets.mlp(layers, activation), "mlp " + "-".join(map(str, layers))
        title += f", {activation_name}" if len(layers) > 2 else " (the delta rule)"
    elif network == "convnet":
        if dataset.image_shape is None:
            raise RequestError(f"A convnet reads images, and {dataset.name} has none; try --network mlp:64,32.")
        try:
            net = nets.convnet(dataset.image_shape, n_out, activation=activation)
        except ValueError as error:
            raise RequestError(str(error)) from error
        height, width, channels = dataset.image_shape
        title = f"convnet for images of {height}x{width}x{channels}, {activation_name}"
    else:
        raise RequestError(f"--network is mlp:SIZES, convnet or autoencoder:SIZES, and was {network!r}.")
    task = train.regression if dataset.classes is None else train.classification
    return Job(net, task(net), title, False)


def _run_name(name: str, network: str) -> str:
    return f"{name}-{network}".replace(":", "-").replace(",", "-").strip("-")


def _prepare(folder: Path) -> Path:
    """Make the folder, and be sure that it can be written to before any work is done."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return folder


def _gradient_is_right(task: train.Task, params: Any, dataset: data.Dataset, seed: int) -> bool:
    """Compare the gradient of this very network on a real batch, and print a line per leaf.

    It is compared a little away from the initial parameters: there biases are 0, where a rectifier has its kink.
    """
    x, y = dataset.x_train[:CHECKED_EXAMPLES], dataset.y_train[:CHECKED_EXAMPLES]
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda p: p + 0.05 * rng.standard_normal(p.shape).astype(p.dtype), params)
    print(f"Checking the backward pass on {len(x)} examples, in float64: largest relative difference")
    checks = compare_gradients(task.loss, params, x, y, seed=seed)
    width = max(len(check.path) for check in checks)
    print(f"  {'':{width}}  {'':16}  {'to jax.grad':>12}  {'to finite differences':>21}")
    for c in checks:
        verdict = "ok" if c.ok else "WRONG"
        print(f"  {c.path:{width}}  {c.shape!s:16}  {c.against_jax:12.1e}  {c.against_differences:21.1e}  {verdict}")
    print()
    return all(check.ok for check in checks)


def _learn(loop: Iterator[train.Epoch], count: int, score: str, bar: Callable[..., Any]) -> Learned:
    """Run the epochs under a progress bar, up to the end, Ctrl-C, or a loss that is no longer a number."""
    last, records, code = next(loop), [], 0
    records.append(_record(last, score))
    start = time.perf_counter()
    try:
        with bar(total=count, desc="Training", unit="epoch") as progress:
            for epoch in loop:
                if not math.isfinite(epoch.loss) or not math.isfinite(epoch.validation_loss):
                    code = FAILED
                    break
                last = epoch
                records.append(_record(last, score))
                progress.set_postfix_str(
                    f"loss {last.loss:.4f}, validation {score} {last.validation_score:.4f}", refresh=False
                )
                progress.update()
    except KeyboardInterrupt:
        code = INTERRUPTED
        print(f"\nInterrupted: the parameters of epoch {last.number} are kept.", file=sys.stderr)
    if code == FAILED:
        print(
            f"Learning diverged: after epoch {last.number} the loss is no longer a finite number. The parameters of "
            f"epoch {last.number} are kept. A smaller --learning-rate may help.",
            file=sys.stderr,
        )
    print(f"{last.number} epochs in {time.perf_counter() - start:.1f} s")
    return Learned(last, records, code)


def _key(score: str) -> str:
    return score.replace("²", "2").lower()


def _record(epoch: train.Epoch, score: str) -> dict[str, Any]:
    """An epoch as a line of metrics.jsonl."""
    return {
        "epoch": epoch.number,
        "loss": epoch.loss,
        "validation_loss": epoch.validation_loss,
        f"validation_{_key(score)}": epoch.validation_score,
        "seconds": round(epoch.seconds, 3),
    }


class Result(NamedTuple):
    """How the network did on the test set: the numbers to keep, and a picture of its mistakes."""

    record: dict[str, Any]
    picture: Any


def _judge(job: Job, params: Any, dataset: data.Dataset) -> Result:
    """Try the network on the test set, and print how it did."""
    x, y = jnp.asarray(dataset.x_test), jnp.asarray(dataset.y_test)
    output = np.asarray(jax.jit(job.net.apply)(params, x))
    loss, score = (float(v) for v in (job.task.loss(params, x, y), job.task.score(params, x, y)))
    record = {"test_loss": loss, f"test_{_key(job.task.score_name)}": score}
    if job.rebuilds:
        print(f"Test R² {score:.4f} of the inputs, loss {loss:.4f}")
        if dataset.image_shape:
            return Result(record, plot.reconstructions(dataset.x_test, output, dataset.image_shape))
        return Result(record, plot.predictions(dataset.x_test, output))
    if dataset.classes is None:
        assert dataset.targets is not None
        true, predicted = dataset.targets.undo(dataset.y_test), dataset.targets.undo(output)
        error = math.sqrt(np.mean(np.square(true - predicted)))
        print(f"Test R² {score:.4f}, root mean squared error {error:.4g}, in the target's own unit")
        return Result({**record, "test_rmse": error}, plot.predictions(true, predicted))
    predicted = np.argmax(output, -1)
    table = np.zeros((len(dataset.classes),) * 2, int)
    np.add.at(table, (dataset.y_test, predicted), 1)
    print(f"Test accuracy {100 * score:.2f} % ({np.trace(table)} of {table.sum()})\n")
    _print_confusion(table, dataset.classes)
    if dataset.image_shape:
        picture = plot.mistakes(dataset.x_test, dataset.y_test, predicted, dataset.classes, dataset.image_shape)
        return Result(record, picture)
    return Result(record, plot.confusion(table, dataset.classes))


def _print_confusion(table: np.ndarray, classes: Sequence[str]) -> None:
    """True classes down, predicted ones across; zeros are dots."""
    if len(classes) > 20:
        return
    names = [name[:10] for name in classes]
    width = max(4, *(len(name) + 1 for name in names))
    print("true \\ predicted".ljust(18) + "".join(name.rjust(width) for name in names))
    for name, row in zip(names, table, strict=True):
        print(name.rjust(16) + "  " + "".join((str(n) if n else "·").rjust(width) for n in row))


def _leave(folder: Path, job: Job, learned: Learned, result: Result, dataset: data.Dataset) -> None:
    """Write the measurements, the parameters and the pictures."""
    last = {"epoch": learned.last.number, **result.record}
    train.write_metrics(folder / "metrics.jsonl", [*learned.records, last])
    train.save_params(folder / "params.npz", learned.last.params)
    name = next(iter(learned.last.params))
    kernel = learned.last.params[name]["kernel"]
    pictures = {
        "curves.png": plot.learning_curves(learned.records, _key(job.task.score_name)),
        "weights.png": plot.weights(kernel, dataset.image_shape, f"Weights of the {kernel.shape[-1]} units of {name}"),
        "mistakes.png": result.picture,
    }
    for file_name, figure in pictures.items():
        train.write_atomically(folder / file_name, partial(figure.savefig, format="png", dpi=150))
