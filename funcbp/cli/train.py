"""`funcbp train`: train a network on real data by a backward pass that has been checked before your eyes."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from ..jaxpr.types import PyTree
from ..learn import data, nets, optim, plot, train
from ..learn.request import RequestError, whole
from ..learn.train import stopping
from ..learn.train.job import (
    ACTIVATIONS,
    Job,
    build,
    judge,
    leave,
    load,
    prepare,
    run_name,
    score_key,
)
from ..learn.train.layout import LAYOUTS, make_placement, to_host
from ..learn.train.loop import MODES
from ..learn.train.records import FILES, tqdm
from ..testing import check
from .parser import INTERRUPTED, HelpFormatter, positive, printable

FAILED = 1
CHECKED_EXAMPLES = 16
SECONDS_WITHOUT_A_SIGN = 15  # from another process, until it is taken for dead
SECONDS_TO_GATHER = 300  # until all processes have begun
Make = Callable[[float], Any]

# --- what there is to choose from, each with the number it takes if none is given -------------------------------------

OPTIMIZERS: dict[str, tuple[Make, float]] = {
    "sgd": (optax.sgd, 0.1),
    "momentum": (lambda rate: optax.sgd(rate, momentum=0.9), 0.02),
    "nesterov": (lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True), 0.02),
    "inertia": (optim.inertia, 0.2),
    "adam": (optax.adam, 0.001),
    "adamw": (optax.adamw, 0.001),
    "rmsprop": (optax.rmsprop, 0.001),
    "adagrad": (optax.adagrad, 0.05),
    "lion": (optax.lion, 0.0003),
}
BATCH_OPTIMIZERS: dict[str, tuple[Make, float]] = {  # they compare the errors and gradients of successive updates
    "lbfgs": (optax.lbfgs, 1.0),
    "rprop": (optax.rprop, 0.01),
    "rprop-plus": (optim.rprop_plus, 0.01),
    "rprop-minus": (optim.rprop_minus, 0.01),
    "irprop-plus": (optim.irprop_plus, 0.01),
    "irprop-minus": (optim.irprop_minus, 0.01),
    "quickprop": (optim.quickprop, 0.05),
    "delta-bar-delta": (optim.delta_bar_delta, 0.05),
    "super-sab": (optim.super_sab, 0.05),
    "silva-almeida": (optim.silva_almeida, 0.005),
    "bold-driver": (optim.bold_driver, 0.05),
    "vogl": (optim.vogl, 0.05),
    "salomon": (optim.salomon, 0.05),
}
STOPS: dict[str, tuple[Make, float]] = {
    "target": (stopping.target_error, 0.01),
    "correct": (stopping.all_correct, 1.0),
    "plateau": (lambda epochs: stopping.plateau(int(epochs), of="validation_loss"), 10),
    "adaptive": (lambda factor: stopping.adaptive_patience(factor, of="validation_loss"), 2.0),
    "gl": (stopping.generalization_loss, 5.0),
    "pq": (stopping.progress_quotient, 1.0),
    "up": (lambda strips: stopping.up_strips(int(strips)), 2),
    "low-progress": (stopping.low_progress, 0.1),
}


def add_train_command(commands: Any) -> None:
    """Add `train` to the commands of `funcbp`."""
    command = commands.add_parser(
        "train",
        help="train a network, its gradient checked first",
        description="Train a network on a data set, after checking its hand-written gradient on a batch of it.",
        formatter_class=HelpFormatter,
    )
    unset: Any = argparse.SUPPRESS
    which = (
        f"{', '.join(data.SETS)}, a table (.csv, .xlsx, ...), an .npz file, a folder with MNIST's four files, or "
        "openml:NAME; or text, a language model with options of its own: funcbp train text --help"
    )
    command.add_argument("set", nargs="?", default="digits", metavar="DATA", help=which)
    command.add_argument("--data", metavar="DATA", help="the same, in the place of DATA", default=unset)
    command.add_argument(
        "--network",
        default="mlp:64,32",
        help="mlp:64,32 (hidden layers; `mlp:` has none), convnet (for images), or autoencoder:32,16 (encoder)",
    )
    command.add_argument(
        "--activation", default="relu", choices=ACTIVATIONS, metavar="NAME", help=", ".join(ACTIVATIONS)
    )
    command.add_argument(
        "--seed", type=whole(0), default=0, metavar="N", help="of the split, the weights and the order"
    )
    command.add_argument("--out", type=Path, metavar="FOLDER", default=unset, help="default: runs/DATA-NETWORK")
    command.add_argument("--no-plots", action="store_true", help="leave no pictures, which need matplotlib")

    own = command.add_argument_group("data of your own")
    own.add_argument(
        "--target", metavar="COLUMN", default=unset, help="what to learn: the column's name, or number from 1"
    )
    own.add_argument("--task", choices=data.TASKS, default=unset, help="where the target does not say it")
    own.add_argument(
        "--missing", choices=data.MISSING, default=unset, help="missing values: their column's mean, or drop the row"
    )
    own.add_argument(
        "--ignore", action="append", metavar="COLUMN", default=unset, help="leave it out; may be given several times"
    )

    learning = command.add_argument_group("learning")
    all_optimizers = OPTIMIZERS | BATCH_OPTIMIZERS
    names = f"{', '.join(OPTIMIZERS)}; best with --mode batch: {', '.join(BATCH_OPTIMIZERS)}"
    learning.add_argument("--optimizer", default="adam", choices=all_optimizers, metavar="NAME", help=names)
    rates = ", ".join(f"{name} {rate:g}" for name, (_, rate) in all_optimizers.items())
    learning.add_argument("--learning-rate", type=positive, metavar="RATE", default=unset, help=f"default: {rates}")
    learning.add_argument(
        "--mode",
        default="stochastic",
        choices=MODES,
        metavar="NAME",
        help="online (an update per example, in their order), batch (one for all), or stochastic (random mini-batches)",
    )
    learning.add_argument("--batch-size", type=whole(1), default=32, metavar="N", help="examples per mini-batch")
    learning.add_argument("--replacement", action="store_true", help="draw mini-batches with replacement")
    learning.add_argument("--epochs", type=whole(1), default=60, metavar="N", help="sweeps over the training set")
    learning.add_argument(
        "--stop",
        action="append",
        type=_stop,
        metavar="RULE",
        default=unset,
        help="stop before the last epoch; may be given several times: "
        + ", ".join(f"{name}:{number:g}" for name, (_, number) in STOPS.items()),
    )
    learning.add_argument(
        "--keep", default="last", choices=("last", "best"), help="the last parameters, or the best by validation loss"
    )

    add_record_arguments(command)
    add_device_arguments(command)
    command.set_defaults(run=run_training)


def add_record_arguments(command: argparse.ArgumentParser, period: str = "epochs") -> None:
    """Add the options of what is kept while a network learns; `period` is what measurements are made after."""
    unset: Any = argparse.SUPPRESS
    record = command.add_argument_group("records")
    record.add_argument(
        "--metrics", action="append", type=_metrics, metavar="FILE", default=unset, help="also into this .jsonl or .csv"
    )
    record.add_argument("--checkpoint", type=Path, metavar="FILE", default=unset, help="keep what is needed to go on")
    record.add_argument(
        "--checkpoint-every", type=whole(1), metavar="N", default=unset, help=f"{period}; default: every half minute"
    )
    record.add_argument("--resume", action="store_true", help="go on from the checkpoint, if there is one")
    record.add_argument(
        "--resume-anyway",
        action="store_const",
        const="anyway",
        dest="resume",
        help="and where it is of other data, another loss or another optimizer",
    )


def add_device_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of meshes and processes."""
    unset: Any = argparse.SUPPRESS
    devices = command.add_argument_group("many devices")
    devices.add_argument("--mesh", type=_mesh, metavar="AXES", default=unset, help="such as data=4,tensor=2")
    devices.add_argument(
        "--layout", choices=LAYOUTS, metavar="NAME", default=unset, help=f"of the parameters: {', '.join(LAYOUTS)}"
    )
    devices.add_argument("--coordinator", metavar="HOST:PORT", default=unset, help="where the first process listens")
    devices.add_argument("--process", type=whole(0), metavar="I", default=unset, help="which process this is, from 0")
    devices.add_argument("--processes", type=whole(1), metavar="N", default=unset, help="how many there are")


def run_training(args: argparse.Namespace) -> int:
    """`funcbp train`: say what will be done, check the gradient, learn, judge, and leave the results."""
    start_processes(args)
    with quiet(jax.process_index() > 0), left_alone(), unheard():
        return _run(args)


class Plan(NamedTuple):
    """What is asked for, read and found possible: what is missing or wrong shall be said before the training."""

    dataset: data.Dataset
    job: Job
    params: PyTree
    optimizer: optax.GradientTransformation
    rate: float
    stops: dict[str, stopping.StoppingRule]
    correct: Callable[..., jax.Array] | None
    mesh: Mesh | None
    layout: str | None
    store: train.Checkpoint | None
    folder: Path
    pictures: bool
    watched: bool


def _run(args: argparse.Namespace) -> int:
    plan = _plan(args)
    dataset = plan.dataset
    _say_what_will_be_done(args, plan)
    few = dataset.x_train[:CHECKED_EXAMPLES], dataset.y_train[:CHECKED_EXAMPLES]
    if not gradient_is_right(plan.job.task.loss, plan.params, few, args.seed):
        print("The gradient is WRONG, so nothing was trained.", file=sys.stderr)
        return FAILED
    first, fit, lost = _learn(args, plan)
    code = _tell_the_end(fit, args.keep) or lost
    best = args.keep == "best" and fit.epochs > 0
    params = jax.tree.map(to_host, fit.best_params if best else fit.params)  # of every process its part
    if jax.process_index() > 0:
        return code
    result = judge(plan.job, params, dataset)
    records = [first, *_records(fit), {"epoch": fit.best_epoch if best else fit.epochs, **result.record}]
    write = lambda folder: leave(folder, plan.job, params, records, result, dataset, plan.pictures)
    return leave_somewhere(plan.folder, write) or code


def _plan(args: argparse.Namespace) -> Plan:
    """Read the data, build the network, and raise if something that is asked for cannot be done."""
    source = getattr(args, "data", args.set)
    if source == "text":
        raise RequestError("What is learned comes first: funcbp train text [FILE|FOLDER], and then the options.")
    pictures = not args.no_plots and can_draw()
    watched = sys.stderr.isatty()
    if watched:
        tqdm()
    options = {name: getattr(args, name) for name in ("target", "task", "missing", "ignore") if hasattr(args, name)}
    dataset = load(source, args.seed, **options)
    job = build(args.network, args.activation, dataset)
    examples = len(dataset.x_train)
    size = {"online": 1, "batch": examples}.get(args.mode, args.batch_size)
    mesh, layout = mesh_and_layout(args, min(size, examples))
    store = checkpoint_of(args)
    stops = dict(getattr(args, "stop", []))
    correct = _right(job) if any(name.startswith("correct") for name in stops) else None
    folder = prepare(getattr(args, "out", Path("runs") / run_name(dataset.name, args.network)))
    make_optimizer, rate = (OPTIMIZERS | BATCH_OPTIMIZERS)[args.optimizer]
    rate = getattr(args, "learning_rate", rate)
    params = job.net.init(jax.random.fold_in(jax.random.key(args.seed), 0), dataset.x_train)
    return Plan(
        dataset=dataset,
        job=job,
        params=params,
        optimizer=make_optimizer(rate),
        rate=rate,
        stops=stops,
        correct=correct,
        mesh=mesh,
        layout=layout,
        store=store,
        folder=folder,
        pictures=pictures,
        watched=watched,
    )


def _say_what_will_be_done(args: argparse.Namespace, plan: Plan) -> None:
    """Print what is learned from, by which network, how and where."""
    dataset = plan.dataset
    kind = "regression" if dataset.classes is None else f"{len(dataset.classes)} classes"
    parts = {"training": dataset.x_train, "validation": dataset.x_validation, "test": dataset.x_test}
    sizes = ", ".join(f"{len(x):,} {name}" for name, x in parts.items())
    how = {"online": "example by example", "batch": "all examples at once"}
    batches = how.get(args.mode, f"batches of {args.batch_size}{' with replacement' * args.replacement}")
    print(f"Data        {printable(dataset.name)}: {dataset.n_inputs:,} inputs, {kind}; {sizes} examples")
    for line in dataset.about:
        print(f"            {printable(line)}")
    print(f"Network     {plan.job.title}, {nets.count(plan.params):,} parameters")
    print(f"Learning    {args.optimizer}, rate {plan.rate:g}, {batches}, {args.epochs} epochs")
    say_where(plan.mesh)


def _learn(args: argparse.Namespace, plan: Plan) -> tuple[dict[str, float], train.Fit, int]:
    """Train the network: the record of epoch 0, before any update, how it ended, and the exit code."""
    dataset, task = plan.dataset, plan.job.task
    x, y = jnp.asarray(dataset.x_train), jnp.asarray(dataset.y_train)
    held_out = jnp.asarray(dataset.x_validation), jnp.asarray(dataset.y_validation)
    score = score_key(task.score_name)
    before = jax.jit(
        lambda params: (task.loss(params, x, y), task.loss(params, *held_out), task.score(params, *held_out))
    )
    names = "loss", "validation_loss", f"validation_{score}"
    first = {"epoch": 0, **dict(zip(names, map(float, before(plan.params)), strict=True)), "seconds": 0.0}
    fit, lost = learned(
        lambda params, batch: task.loss(params, *batch),
        plan.params,
        (x, y),
        optimizer=plan.optimizer,
        mode=args.mode,
        epochs=args.epochs,
        batch_size=args.batch_size,
        replacement=args.replacement,
        key=jax.random.fold_in(jax.random.key(args.seed), 1),
        validation=held_out,
        score={score: lambda params, batch: task.score(params, *batch)},
        correct=plan.correct,
        stop=plan.stops,
        progress=plan.watched,
        log=[plan.folder / "metrics.jsonl", *getattr(args, "metrics", [])],
        checkpoint=plan.store,
        resume=args.resume,
        mesh=plan.mesh,
        layout=plan.layout,
    )
    return first, fit, lost


def learned(*args: Any, **options: Any) -> tuple[train.Fit, int]:
    """What `fit` returns, and the exit code: where measurements could not be written, it is said, and not lost."""
    try:
        return train.fit(*args, **options), 0
    except train.LogError as error:
        print(f"funcbp: {printable(str(error))}", file=sys.stderr)
        return error.fit, FAILED


def leave_somewhere(folder: Path, write: Callable[[Path], list[str]]) -> int:
    """Write the results into a folder, or where that is full into a temporary one, and say where; the exit code.

    Raises:
        RequestError: they cannot be written there either.
    """
    place, code = folder, 0
    try:
        files = write(folder)
    except OSError as error:
        why = f"The results could not be written to {folder}: {error.strerror or error}."
        try:
            place, code = Path(tempfile.mkdtemp(prefix="funcbp-")), FAILED
            files = write(place)
        except OSError as second:
            raise RequestError(f"{why} Nor to {place}: {second.strerror or second}.") from error
        print(f"funcbp: {printable(why)} They are in {place}.", file=sys.stderr)
    print(f"\nResults in {printable(str(place))}: {', '.join(files)}")
    return code


def say_where(mesh: Any) -> None:
    """Print on which devices it learns."""
    device = jax.devices()[0]
    print(f"Device      {device.platform} ({device.device_kind}), jax {jax.__version__}")
    if mesh is not None:
        axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
        print(f"Mesh        {axes} of {mesh.size} devices in {jax.process_count()} processes")
    print()


def gradient_is_right(loss: Callable[..., Any], params: Any, batch: tuple[Any, ...], seed: int) -> bool:
    """Check the gradient of this very network on a real batch, and print a line per leaf, and whose fault it is.

    It is compared a little away from the initial parameters: there biases are 0, where a rectifier has its kink.
    """
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda p: np.asarray(p) + 0.05 * rng.standard_normal(p.shape).astype(p.dtype), params)
    print(f"Checking the backward pass on {len(batch[0])} examples, in float64: largest relative difference")
    report = check(jax.jit(loss), params, *batch, argnums=0, seed=seed)  # compiled, as it is learned with
    width = max(len(leaf.path) for leaf in report.leaves)
    print(f"  {'':{width}}  {'':16}  {'to jax.grad':>12}  {'to finite differences':>21}  {'± their error':>13}")
    for leaf in report.leaves:
        found = ("-" if d is None else f"{d:.1e}" for d in (leaf.against_jax, leaf.error, leaf.reference_error))
        row = "{:>12}  {:>21}  {:>13}".format(*found)
        print(f"  {leaf.path:{width}}  {leaf.shape!s:16}  {row}  {leaf.verdict}")
    print(f"The culprit: {report.culprit}\n" if report.culprit else "")
    return report.ok


def _right(job: Job) -> Callable[..., Any]:
    """Which examples a classifier tells right."""
    if job.task.score_name != "accuracy":
        raise RequestError("--stop correct is for classes, and this network predicts numbers.")
    return lambda params, batch: stopping.right_class(job.net.apply(params, batch[0]), batch[1])


def _records(fit: train.Fit) -> list[dict[str, Any]]:
    """The epochs as lines of metrics.jsonl."""
    columns = {name: np.round(column, 3) if name == "seconds" else column for name, column in fit.history.items()}
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [{"epoch": epoch, **dict(zip(columns, row, strict=True))} for epoch, row in enumerate(rows, 1)]


def _tell_the_end(fit: train.Fit, keep: str) -> int:
    """Say how learning ended; the exit code."""
    print(f"{fit.epochs} epochs in {fit.seconds:.1f} s")
    epoch = fit.best_epoch if keep == "best" else fit.epochs
    if fit.reason == "interrupted":
        print(f"\nInterrupted: the parameters of epoch {epoch} are kept.", file=sys.stderr)
        return INTERRUPTED
    if fit.reason == "diverged":
        text = str(fit.divergence)
        kept = f"The parameters of epoch {epoch} are kept. A smaller --learning-rate may help."
        print(f"{text[0].upper()}{text[1:]}. {kept}", file=sys.stderr)
        return FAILED
    if fit.reason == "unwritten":
        print(f"The parameters of epoch {epoch} are kept.", file=sys.stderr)
        return FAILED
    if fit.reason != "epochs":
        print(f"Stopped by {fit.reason}")
    if keep == "best":
        print(f"The parameters of epoch {epoch} are kept, the best by validation loss.")
    return 0


def can_draw() -> bool:
    try:
        plot.new_axes()
    except ImportError as error:
        print(f"There will be no pictures. {error}")
        return False
    return True


# --- arguments --------------------------------------------------------------------------------------------------------


def _stop(text: str) -> tuple[str, stopping.StoppingRule]:
    name, _, number = text.partition(":")
    if name not in STOPS:
        raise argparse.ArgumentTypeError(f"there is no rule {name!r}; there are {', '.join(STOPS)}")
    make, default = STOPS[name]
    try:
        return text, make(positive(number) if number else default)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from error


def _metrics(text: str) -> Path:
    if Path(text).suffix.lower() not in FILES:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a .jsonl nor a .csv file")
    return Path(text)


def _mesh(text: str) -> dict[str, int]:
    sizes = {}
    for part in text.split(","):
        name, given, size = part.partition("=")
        if not given:
            raise argparse.ArgumentTypeError(f"{name.strip()!r} has no size; say how many devices, as in data=4")
        sizes[name.strip()] = whole(1)(size.strip())
    return sizes


def checkpoint_of(args: argparse.Namespace) -> train.Checkpoint | None:
    path = getattr(args, "checkpoint", None)
    if path is None:
        if args.resume or hasattr(args, "checkpoint_every"):
            raise RequestError("--resume and --checkpoint-every need --checkpoint FILE.")
        return None
    store = train.Checkpoint(path, getattr(args, "checkpoint_every", None))
    if store.exists() and not args.resume:
        raise RequestError(f"{path} is there already, and would be lost: go on from it by --resume, or move it away.")
    return store


def mesh_and_layout(args: argparse.Namespace, size: int) -> tuple[Any, str | None]:
    """The mesh and the layout, and be sure that the batches can be divided."""
    layout, sizes = getattr(args, "layout", None), getattr(args, "mesh", None)
    if sizes is None and jax.process_count() > 1:
        sizes = {"data": jax.device_count()}
    try:
        mesh = None if sizes is None else train.make_mesh(sizes)
        if placement := make_placement(mesh, layout):
            placement.check_batch(size)
    except ValueError as error:
        raise RequestError(str(error)) from error
    return mesh, layout


# --- several processes ------------------------------------------------------------------------------------------------


def start_processes(args: argparse.Namespace) -> None:
    """Join the other processes, if there are any."""
    given = {name: getattr(args, name) for name in ("coordinator", "process", "processes") if hasattr(args, name)}
    if not given:
        return
    if len(given) < 3:
        raise RequestError("Several processes need all of --coordinator HOST:PORT, --process I and --processes N.")
    if args.process >= args.processes:
        raise RequestError(f"--process counts from 0, so with --processes {args.processes} it is not {args.process}.")
    check_address(args.coordinator)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    missing = "the others" if args.process == 0 else "the first one"
    give_up = threading.Timer(SECONDS_TO_GATHER, _end_alone, (args.coordinator, missing))
    give_up.daemon = True
    give_up.start()
    try:
        jax.distributed.initialize(
            args.coordinator,
            args.processes,
            args.process,
            initialization_timeout=2 * SECONDS_TO_GATHER,  # at which JAX aborts, with a dump of its stack
            heartbeat_timeout_seconds=SECONDS_WITHOUT_A_SIGN,
        )
    except jax.errors.JaxRuntimeError as error:
        raise RequestError(
            f"The processes could not meet at {args.coordinator}: is the port taken by another program? "
            f"({str(error).splitlines()[0]})"
        ) from error
    finally:
        give_up.cancel()


def check_address(address: str) -> None:
    """Raise if an address is not HOST:PORT of a host that is known."""
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
        raise RequestError(f"--coordinator is HOST:PORT, as in 10.0.0.1:9000, and was {address!r}.")
    try:
        socket.getaddrinfo(host.strip("[]"), port)
    except OSError as error:
        raise RequestError(f"The host of --coordinator {address} is not known ({error.strerror or error}).") from error


def _end_alone(address: str, missing: str) -> None:
    text = f"funcbp: Of the processes that should meet at {address}, {missing} did not come in {SECONDS_TO_GATHER} s."
    print(text, file=sys.stderr, flush=True)
    os._exit(FAILED)  # the call that waits for them cannot be interrupted


@contextlib.contextmanager
def left_alone() -> Iterator[None]:
    """Where another process has ended, say so and end, without the wait for it at which JAX would end this one."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).splitlines()[0]
        print(
            f"funcbp: Another of the {jax.process_count()} processes has ended or cannot be reached, so the training "
            f"stops. Start all of them again, with --resume if there is a checkpoint. ({reason})",
            file=sys.stderr,
            flush=True,
        )
        os._exit(FAILED)


class Output:
    """The standard output, which goes nowhere from when its reader has gone away, as `head` does: nothing is lost."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text."""
        return self._heard_or_not(lambda: self._stream.write(text), len(text))

    def flush(self) -> None:
        """Write what is kept back."""
        self._heard_or_not(self._stream.flush, 0)

    def _heard_or_not(self, write: Callable[[], Any], done: int) -> Any:
        try:
            return write()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # where what the stream keeps back goes, too
            os.close(nowhere)
        with contextlib.suppress(OSError):
            print("funcbp: Nobody reads the output any more. The training goes on.", file=sys.stderr)
        return done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Go on where nobody reads the output any more."""
    output: Any = Output(sys.stdout)
    with contextlib.redirect_stdout(output):
        yield
        sys.stdout.flush()


@contextlib.contextmanager
def quiet(wanted: bool) -> Iterator[None]:
    """One process speaks, and the others do the same in silence."""
    if not wanted:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
