"""One request of `funcbp train`: the data and the network that are asked for, how well it did, and what is left."""

from __future__ import annotations

import json
import math
import tempfile
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ...jaxpr.types import PyTree
from .. import data, nets, ops, plot, train
from ..data.dataset import scaled
from ..data.files import is_readable, refuse_options
from ..data.openml import PREFIX
from ..data.reading import SUFFIXES
from ..request import RequestError, whole
from .results import read_description

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUN = "run.json"
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
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


class Job(NamedTuple):
    """A network, what it is to do, and what it is called."""

    net: nets.Net
    task: train.Task
    title: str
    rebuilds: bool  # whether the network gives back its input
    network: str  # as it was asked for
    activation: str


class Result(NamedTuple):
    """How the network did on the test set: the numbers to keep, and how its mistakes are drawn."""

    record: dict[str, Any]
    draw: Callable[[], Figure | Any]


def load(source: str, seed: int, **options: Any) -> data.Dataset:
    """The data set that was asked for; the options are those of `data.read`."""
    if source in data.SETS:
        refuse_options(source, {name: value or None for name, value in options.items()})
        return data.load(source, seed)
    if source.startswith(PREFIX):
        return data.read_openml(source.removeprefix(PREFIX), seed, **options)
    if is_readable(Path(source)) or Path(source).exists():  # what is there is refused with a better reason
        return data.read(source, seed, **options)
    raise RequestError(
        f"There is no data set {source!r}; there are {', '.join(data.SETS)}, and files that end in "
        f"{', '.join((*SUFFIXES, '.npz'))}; {PREFIX}NAME is one that scikit-learn has fetched from OpenML."
    )


class Shape(Protocol):
    """What a network must know of its data: of a data set, or of a run that is over."""

    @property
    def name(self) -> str: ...
    @property
    def n_inputs(self) -> int: ...
    @property
    def n_outputs(self) -> int: ...
    @property
    def classes(self) -> tuple[str, ...] | None: ...
    @property
    def image_shape(self) -> tuple[int, int, int] | None: ...


def build(network: str, activation_name: str, dataset: Shape) -> Job:
    """The network that was asked for, on these data."""
    activation = ACTIVATIONS[activation_name]
    kind, _, sizes = network.partition(":")
    try:
        hidden = [whole(1)(size.strip()) for size in sizes.split(",")] if sizes else []
    except ArgumentTypeError as error:
        raise RequestError(f"The sizes in --network {network} are wrong: {error}.") from error
    n_in, n_out = dataset.n_inputs, dataset.n_outputs
    if kind == "autoencoder":
        encoder = [n_in, *(hidden or [max(n_in // 2, 1), max(n_in // 4, 1)])]
        net = nets.autoencoder(encoder, activation)
        title = f"autoencoder {'-'.join(map(str, [*encoder, *encoder[-2::-1]]))}, {activation_name}"
        return Job(net, train.reconstruction(net), title, True, network, activation_name)
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
    return Job(net, task(net), title, False, network, activation_name)


def run_name(name: str, network: str) -> str:
    """The name of the folder for the results."""
    return f"{name}-{network}".replace(":", "-").replace(",", "-").strip("-")


def prepare(folder: Path) -> Path:
    """Make the folder, and be sure that it can be written to before any work is done."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return folder


def judge(job: Job, params: PyTree, dataset: data.Dataset) -> Result:
    """Try the network on the test set, and print how it did."""
    x, y = jnp.asarray(dataset.x_test), jnp.asarray(dataset.y_test)
    tried = jax.jit(lambda *args: (job.net.apply(*args[:2]), job.task.loss(*args), job.task.score(*args)))
    output, loss, score = (np.asarray(v) for v in tried(params, x, y))
    record = {"test_loss": float(loss), f"test_{score_key(job.task.score_name)}": float(score)}
    if job.rebuilds:
        print(f"Test R² {score:.4f} of the inputs, loss {loss:.4f}")
        if dataset.image_shape:
            return Result(record, partial(plot.reconstructions, dataset.x_test, output, dataset.image_shape))
        return Result(record, partial(plot.predictions, dataset.x_test, output))
    if dataset.classes is None:
        assert dataset.targets is not None
        true, predicted = dataset.targets.undo(dataset.y_test), dataset.targets.undo(output)
        error = math.sqrt(np.mean(np.square(true - predicted)))
        print(f"Test R² {score:.4f}, root mean squared error {error:.4g}, in the target's own unit")
        return Result({**record, "test_rmse": error}, partial(plot.predictions, true, predicted))
    predicted = np.argmax(output, -1)
    table = np.zeros((len(dataset.classes),) * 2, int)
    np.add.at(table, (dataset.y_test, predicted), 1)
    print(f"Test accuracy {100 * score:.2f} % ({np.trace(table)} of {table.sum()})\n")
    _print_confusion(table, dataset.classes)
    if dataset.image_shape:
        of = dataset.x_test, dataset.y_test, predicted, dataset.classes, dataset.image_shape
        return Result(record, partial(plot.mistakes, *of))
    return Result(record, partial(plot.confusion, table, dataset.classes))


def _print_confusion(table: np.ndarray, classes: Sequence[str]) -> None:
    """True classes down, predicted ones across; zeros are dots."""
    if len(classes) > 20:
        return
    names = [name[:10] for name in classes]
    width = max(4, *(len(name) + 1 for name in names))
    print("true \\ predicted".ljust(18) + "".join(name.rjust(width) for name in names))
    for name, row in zip(names, table, strict=True):
        print(name.rjust(16) + "  " + "".join((str(n) if n else "·").rjust(width) for n in row))


def score_key(score: str) -> str:
    """What a score is called in records."""
    return score.replace("²", "2").lower()


def leave(
    folder: Path,
    job: Job,
    params: PyTree,
    records: Sequence[Mapping[str, float]],
    result: Result,
    dataset: data.Dataset,
    pictures: bool = True,
) -> list[str]:
    """Write the measurements, the parameters, what the network was trained on, and the pictures; the files' names."""
    train.save_params(folder / "params.npz", params)  # the dearest first
    write_run(folder, job, dataset)
    train.write_metrics(folder / "metrics.jsonl", records)
    names = ["params.npz", RUN, "metrics.jsonl"]
    if not pictures:
        return names
    name = next(iter(params))
    kernel = params[name]["kernel"]
    drawn = {
        "curves.png": plot.learning_curves(records[:-1], score_key(job.task.score_name)),
        "weights.png": plot.weights(kernel, dataset.image_shape, f"Weights of the {kernel.shape[-1]} units of {name}"),
        "mistakes.png": result.draw(),
    }
    for file_name, figure in drawn.items():
        train.write_atomically(folder / file_name, partial(figure.savefig, format="png", dpi=150))
    return [*names, *drawn]


# --- a run that is over -----------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """What a run has left in its folder beside the parameters: the network, and how its data were read and scaled."""

    name: str
    network: str
    activation: str
    n_inputs: int
    n_outputs: int
    classes: tuple[str, ...] | None
    image_shape: tuple[int, int, int] | None
    columns: tuple[data.Input, ...] | None
    fills: bool
    inputs: data.Scaling
    targets: data.Scaling | None


def write_run(folder: Path, job: Job, dataset: data.Dataset) -> None:
    """Write down what `predict` needs, as JSON."""
    shared = {name: getattr(dataset, name) for name in Run._fields if name not in ("network", "activation")}
    content = shared | {"network": job.network, "activation": job.activation}
    plain = lambda a: a.tolist()  # of scalings, numpy's arrays and numbers
    text = json.dumps(content, default=plain, ensure_ascii=False, indent=1)
    train.write_atomically(folder / RUN, lambda file: file.write(text.encode()))


def read_run(folder: Path) -> Run:
    """What `write_run` has written.

    Raises:
        RequestError: it is not there, or not whole.
    """

    def described(content: dict[str, Any]) -> Run:
        run = Run(**content)
        if run.activation not in ACTIVATIONS or (run.classes and len(run.classes) != run.n_outputs):
            raise ValueError("no network for these classes, or none with that activation")
        scaling = lambda pair: pair and data.Scaling(*(np.asarray(part, float) for part in pair))
        columns = run.columns and tuple(data.Input(n, tuple(values) if values else None) for n, values in run.columns)
        return run._replace(
            classes=run.classes and tuple(run.classes),
            image_shape=run.image_shape and (*run.image_shape[:2], run.image_shape[2]),
            columns=columns,
            inputs=scaling(run.inputs),
            targets=scaling(run.targets),
        )

    return read_description(folder / RUN, "funcbp train", described)


def predict(folder: Path, source: Path) -> tuple[list[str], list[list[object]]]:
    """What a trained network says of the examples in a file: the columns' names, and a row for each example.

    For classes, the likeliest one and the probability of each; otherwise the numbers, in the target's own unit.

    Raises:
        RequestError: the folder is not that of a run, or its network predicts nothing.
        DataError: the file does not hold such examples as the network was trained on.
    """
    run = read_run(folder)
    job = build(run.network, run.activation, run)
    if job.rebuilds:
        raise RequestError(f"{folder} holds an autoencoder, which gives back its input and predicts nothing.")
    x = data.read_inputs(source, run.columns, run.n_inputs, run.fills)
    params = train.load_params(folder / "params.npz")
    made = jax.eval_shape(job.net.init, jax.random.key(0), jax.ShapeDtypeStruct((1, run.n_inputs), jnp.float32))
    if jax.tree.map(np.shape, params) != jax.tree.map(np.shape, made):
        raise RequestError(f"{folder}: params.npz holds other parameters than those of the network in {RUN}.")
    output = jax.jit(job.net.apply)(params, jnp.asarray(scaled(x, run.inputs, run.fills)))
    if run.classes is None:
        assert run.targets is not None
        predicted = run.targets.undo(np.asarray(output, float))
        names = (
            ["prediction"] if predicted.shape[1] == 1 else [f"prediction {i + 1}" for i in range(predicted.shape[1])]
        )
        return names, predicted.tolist()
    probability = np.asarray(jax.nn.softmax(output, -1), float)
    rows = [[run.classes[p.argmax()], *(round(float(v), 6) for v in p)] for p in probability]
    return ["prediction", *(f"probability of {name}" for name in run.classes)], rows
