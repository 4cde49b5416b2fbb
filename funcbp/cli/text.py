"""`funcbp train text`: a language model learns from a text, and is judged by the bits it needs for another."""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..autodiff.transformations import Backward
from ..inspection.residuals import residuals
from ..learn import data, nets, plot, train
from ..learn.request import RequestError, whole
from ..learn.train import language
from ..learn.train.job import prepare
from ..learn.train.language_run import write_language_run
from ..learn.train.layout import to_host
from ..learn.train.records import tqdm
from .parser import INTERRUPTED, HelpFormatter, Parser, not_negative, positive, printable
from .train import (
    FAILED,
    add_device_arguments,
    add_record_arguments,
    can_draw,
    checkpoint_of,
    gradient_is_right,
    learned,
    leave_somewhere,
    left_alone,
    mesh_and_layout,
    quiet,
    say_where,
    start_processes,
    unheard,
)

CHECKED_TOKENS = 8
SAMPLE, PROMPT = 120, 40  # tokens
SAMPLE_EVERY = 5  # lines
MOST_TEST_WINDOWS = 1024
MEASURED_WINDOWS = 16


def text_parser() -> argparse.ArgumentParser:
    """What the command understands."""
    unset: Any = argparse.SUPPRESS
    command = Parser(
        prog="funcbp train text",
        description="Train a transformer to tell the next token of a text, and judge it by files that were held out, "
        "in bits per byte.",
        formatter_class=HelpFormatter,
    )
    number = whole(1)
    command.add_argument(
        "source", nargs="?", metavar="FILE|FOLDER", default=None, help="text in UTF-8; default: the standard library's"
    )
    command.add_argument("--tokens", default="bytes", help="bytes, characters, or bpe:N, N pieces learnt from the text")
    command.add_argument("--limit", type=number, default=data.corpus.LIMIT, metavar="N", help="characters to read")
    command.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of the weights and the windows")
    command.add_argument("--out", type=Path, metavar="FOLDER", default=unset, help="default: runs/text-NAME")
    command.add_argument("--no-plots", action="store_true", help="leave no picture, which needs matplotlib")

    network = command.add_argument_group("network")
    network.add_argument("--context", type=number, default=256, metavar="N", help="tokens that are read")
    network.add_argument("--width", type=number, default=128, metavar="N", help="numbers for each token")
    network.add_argument("--layers", type=number, default=4, metavar="N", help="blocks")
    network.add_argument("--heads", type=number, default=4, metavar="N", help="of queries")
    network.add_argument("--key-heads", type=number, default=2, metavar="N", help="of keys and values")
    network.add_argument(
        "--hidden", type=number, default=unset, metavar="N", help="of the MLP; default: 8/3 or 4 widths"
    )
    network.add_argument("--mlp", default="swiglu", choices=("swiglu", "gelu"), help="its kind")
    network.add_argument("--bf16", action="store_true", help="compute the blocks in bfloat16, of float32 parameters")

    learning = command.add_argument_group("learning")
    learning.add_argument("--steps", type=number, default=2000, metavar="N", help="updates")
    learning.add_argument("--batch-size", type=number, default=8, metavar="N", help="windows in a batch")
    learning.add_argument("--accumulate", type=number, default=1, metavar="N", help="batches to an update")
    learning.add_argument("--learning-rate", type=positive, default=0.003, metavar="RATE", help="the largest")
    learning.add_argument(
        "--warm-up", type=whole(0), default=100, metavar="N", help="updates to it; then a cosine to 0"
    )
    learning.add_argument("--weight-decay", type=not_negative, default=0.1, metavar="RATE", help="times the rate")
    learning.add_argument("--clip", type=positive, default=1.0, metavar="NORM", help="the largest norm of a gradient")
    learning.add_argument("--evaluate-every", type=number, default=50, metavar="N", help="updates")
    learning.add_argument("--evaluate", type=number, default=32, metavar="N", help="held-out windows, at most")

    look = command.add_argument_group("looking inside")
    look.add_argument("--check", action="store_true", help="compare the gradient with two witnesses first (a minute)")
    look.add_argument("--plan", action="store_true", help="print what is kept between the passes, and why")
    look.add_argument("--noise-scale", action="store_true", help="measure the gradient noise scale as it learns")
    look.add_argument("--cotangents", action="store_true", help="measure the norm of each block's cotangent, likewise")
    look.add_argument(
        "--credit", choices=language.CREDIT, metavar="SCHEME", default=unset,
        help=f"learn a second time, going backward by {' or '.join(language.CREDIT)}, to be compared",
    )  # fmt: skip

    add_record_arguments(command, "evaluations")
    add_device_arguments(command)
    command.set_defaults(run=run_text)
    return command


def run_text(args: argparse.Namespace) -> int:
    """`funcbp train text`: say what will be done, learn, judge, and leave the results."""
    start_processes(args)
    with quiet(jax.process_index() > 0), left_alone(), unheard():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    pictures = not args.no_plots and can_draw()
    scheme = getattr(args, "credit", None)
    _refuse_contradictions(args)
    if sys.stderr.isatty():
        tqdm()
    text = data.read_corpus(args.source, tokens=args.tokens, limit=args.limit)
    learning = Learning(args, text)
    _say_what_will_be_done(args, text, learning.params, learning.mesh)
    if args.check and not learning.gradient_is_right():
        print("The gradient is WRONG, so nothing was trained.", file=sys.stderr)
        return FAILED
    if args.plan:
        print(f"{residuals(learning.loss)(learning.params, jnp.asarray(learning.example))}\n")

    print(f"It goes on from     {printable(repr(text.decode(learning.prompt)))}")
    first = learning.run(None)
    code, records, result = first.code, first.records, first.result
    curves = {"backpropagation": first.bits}
    if scheme and not code:
        print(f"\nOnce more, by {scheme}")
        other = learning.run(language.other_backward(scheme, jax.random.fold_in(learning.key, 2), learning.params))
        code, curves[scheme] = other.code, other.bits
        result |= {f"{scheme}_{name}": v for name, v in other.result.items()}
        _print_side_by_side(records, curves)
        records = [{**r, f"{scheme}_validation_bits_per_byte": v} for r, v in zip(records, other.bits, strict=False)]
    if jax.process_index() > 0:
        return code

    def leave(place: Path) -> list[str]:
        files = learning.leave(place, first.params)
        files += _leave(
            place, [*records, {"update": reached(first.fit, learning.every, args.steps), **result}], first.fit, text
        )
        if pictures and records:
            updates = [r["update"] for r in records]
            draw = plot.curves(curves, "updates", "bits per byte", text.name, log=False, at=updates)
            train.write_atomically(place / "curves.png", partial(draw.savefig, format="png", dpi=150))
            files.append("curves.png")
        return files

    return leave_somewhere(learning.folder, leave) or code


def _refuse_contradictions(args: argparse.Namespace) -> None:
    if hasattr(args, "credit") and hasattr(args, "checkpoint"):
        raise RequestError("--credit learns twice, and keeps no checkpoint: leave out one of the two.")
    if args.noise_scale and min(args.evaluate, MEASURED_WINDOWS) < 2:
        raise RequestError("--noise-scale compares windows with each other: it needs --evaluate of at least 2.")


class Learned(NamedTuple):
    """What came of one training.

    Attributes:
        fit: what `funcbp.fit` returned.
        params: the best parameters, on this host.
        records: its evaluations, as lines of metrics.jsonl.
        result: how it did on the test.
        code: the exit code.
    """

    fit: train.Fit
    params: Any
    records: list[dict[str, Any]]
    result: dict[str, float]
    code: int

    @property
    def bits(self) -> list[float]:
        return [r["validation_bits_per_byte"] for r in self.records]


class Learning:
    """A network, the text it learns from, and how: trained by `run`, once for each way of going backward."""

    def __init__(self, args: argparse.Namespace, text: data.Text):
        self.args, self.text = args, text
        self.mesh, self.layout = mesh_and_layout(args, args.batch_size)
        self.store = checkpoint_of(args)
        self.folder = prepare(getattr(args, "out", Path("runs") / f"text-{text.name.replace(' ', '-')}"))
        self.network = {name: getattr(args, name) for name in ("width", "layers", "heads", "key_heads", "mlp")}
        self.network |= {"vocabulary": len(text.tokens.pieces), "hidden": getattr(args, "hidden", None)}
        self.network |= {"dtype": "bfloat16" if args.bf16 else None}
        try:
            self.net = nets.transformer(**self.network)
        except ValueError as error:
            raise RequestError(f"{error} See --width, --heads, --key-heads.") from error
        self.loss = language.language(self.net)
        self.validation = language.held_out(text.validation, args.context, args.evaluate)
        self.test = language.held_out(text.test, args.context, MOST_TEST_WINDOWS)
        self.key = jax.random.key(args.seed)
        self.params = jax.jit(self.net.init)(jax.random.fold_in(self.key, 0), self.validation[:, :-1])
        self.example = next(language.batches(text.train, args.context, args.batch_size, args.seed))
        self.prompt = self.validation[0, : min(PROMPT, args.context)]
        self.every = min(args.evaluate_every, args.steps)

    def gradient_is_right(self) -> bool:
        """Compare the gradient of a few tokens with that by two witnesses."""
        few = (self.example[:2, : CHECKED_TOKENS + 1],)
        return gradient_is_right(self.loss, self.params, few, self.args.seed)

    def measurements(self, backward: Backward | None) -> dict[str, Any]:
        """The scores that are measured at each evaluation: a sample, and what was asked for."""
        args = self.args
        scores = {"sample": language.sampler(self.net, self.prompt, SAMPLE, args.context, args.seed)}
        if args.noise_scale:
            scores["noise_scale"] = language.noise(self.loss, MEASURED_WINDOWS)
        if args.cotangents:
            scores["cotangents"] = language.cotangent_norms(self.loss, MEASURED_WINDOWS, backward)
        return scores

    def run(self, backward: Backward | None) -> Learned:
        """Train, going backward in this way; say how that ended, and judge it by the test."""
        args, text, every = self.args, self.text, self.every
        stream = language.batches(text.train, args.context, args.batch_size, args.seed, self.mesh)
        teller = Teller(text, self.validation, every, args.steps)
        fit, lost = learned(
            self.loss,
            self.params,
            itertools.islice(stream, args.steps * args.accumulate),
            optimizer=language.adamw(
                args.learning_rate, args.steps, args.warm_up, args.weight_decay, args.clip, args.accumulate
            ),  # of the whole run, so a run that is resumed has the same --steps
            epochs=math.ceil(args.steps / every),
            updates=every * args.accumulate,
            key=jax.random.fold_in(self.key, 1),
            validation=jnp.asarray(self.validation),
            score=self.measurements(backward),
            progress=sys.stderr.isatty(),
            log=[self.folder / "metrics.jsonl", *getattr(args, "metrics", []), teller],
            checkpoint=self.store,
            resume=args.resume,
            mesh=self.mesh,
            layout=self.layout or (language.transformer_layout if self.mesh is not None else None),
            backward=backward,
        )
        records = _records(fit, text, self.validation, every, args.steps)
        code = _tell_the_end(fit, every, args.steps) or lost
        best = jax.tree.map(to_host, fit.best_params)
        return Learned(fit, best, records, _judge(self.loss, best, self.test, text), code)

    def leave(self, place: Path, params: Any) -> list[str]:
        """Write the network that learned; the files' names."""
        return write_language_run(place, params, self.network, self.args.context, self.text.tokens, self.prompt)


class Teller:
    """Says how far it is after each evaluation, and now and then what the network writes."""

    def __init__(self, text: data.Text, validation: np.ndarray, every: int, steps: int):
        self.text, self.validation, self.every, self.steps = text, validation, every, steps

    def log(self, metrics: Mapping[str, Any], *, step: int) -> None:
        """Print a line, or two."""
        update = min(step * self.every, self.steps)
        bits = language.bits_per_byte(metrics["validation_loss"], self.validation, self.text.tokens)
        line = f"update {update:>6,}  loss {metrics['loss']:.4f}  held out {bits:.3f} bits per byte"
        if "validation_noise_scale" in metrics:
            line += f"  noise scale {metrics['validation_noise_scale']:,.1f} windows"
        print(f"{line}  {metrics['seconds']:.0f} s", flush=True)
        if "validation_cotangents" in metrics:
            embedding, *blocks = metrics["validation_cotangents"]
            print(f"               cotangents: embedding {embedding:.2e}, blocks", *(f"{norm:.2e}" for norm in blocks))
        if step % SAMPLE_EVERY == 0 or update == self.steps:
            print(f"               it writes {self.text.decode(metrics['validation_sample'])!r}", flush=True)


def _say_what_will_be_done(args: argparse.Namespace, text: data.Text, params: Any, mesh: Any) -> None:
    tokens = text.tokens
    unit = "bytes" if tokens.kind == "bytes" else f"tokens ({tokens.kind}, {len(tokens.pieces):,} of them)"
    print(f"Data        {printable(text.name)}: {len(text.train):,} {unit} to learn from,")
    print(f"            {len(text.validation):,} held out for validation, {len(text.test):,} for the test")
    for line in text.about:
        print(f"            {printable(line)}")
    print(
        f"Network     transformer, {args.layers} blocks of width {args.width}, {args.heads} heads on {args.key_heads}, "
        f"context {args.context}{', bfloat16' * args.bf16}, {nets.count(params):,} parameters"
    )
    batches = f"batches of {args.batch_size} windows" + f", {args.accumulate} to an update" * (args.accumulate > 1)
    print(f"Learning    adamw, rate {args.learning_rate:g}, {batches}, {args.steps:,} updates")
    say_where(mesh)


def _records(fit: train.Fit, text: data.Text, validation: np.ndarray, every: int, steps: int) -> list[dict[str, Any]]:
    """The evaluations as lines of metrics.jsonl."""
    plain = {name: column.tolist() for name, column in fit.history.items() if name != "validation_sample"}
    bits = lambda nats: language.bits_per_byte(nats, validation, text.tokens)
    rows = [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]
    return [
        {"update": min(i * every, steps), **row, "validation_bits_per_byte": bits(row["validation_loss"])}
        for i, row in enumerate(rows, 1)
    ]


def reached(fit: train.Fit, every: int, steps: int) -> int:
    """How many updates there were."""
    return min(fit.epochs * every, steps)


def _tell_the_end(fit: train.Fit, every: int, steps: int) -> int:
    """Say how learning ended; the exit code."""
    done = reached(fit, every, steps)
    print(f"{done:,} updates in {fit.seconds:.1f} s")
    if fit.reason == "interrupted":
        print(f"\nInterrupted: what was reached after {done:,} updates is kept.", file=sys.stderr)
        return INTERRUPTED
    if fit.reason == "unwritten":
        print(f"What was reached after {done:,} updates is kept.", file=sys.stderr)
        return FAILED
    if fit.reason == "diverged":
        words = str(fit.divergence).replace("learning diverged in epoch", "Learning diverged in evaluation period")
        print(f"{words}. A smaller --learning-rate may help.", file=sys.stderr)
        return FAILED
    return 0


def _judge(loss: language.Loss, params: Any, test: np.ndarray, text: data.Text) -> dict[str, float]:
    """Bits per byte on the text held out for the test, printed."""
    total, compiled = 0.0, jax.jit(loss)
    for part in np.array_split(test, math.ceil(len(test) / MEASURED_WINDOWS)):
        total += len(part) * float(compiled(params, part))
    bits = language.bits_per_byte(total / len(test), test, text.tokens)
    print(f"Test {bits:.4f} bits per byte, on {len(test):,} windows that were held out")
    return {"test_bits_per_byte": bits}


def _print_side_by_side(records: list[dict[str, Any]], curves: Mapping[str, list[float]]) -> None:
    print("\nheld out, bits per byte\n update  " + "  ".join(curves))
    for record, *row in zip(records, *curves.values(), strict=False):
        cells = (f"{value:.3f}".rjust(len(name)) for name, value in zip(curves, row, strict=True))
        print(f"{record['update']:>7,}  " + "  ".join(cells))


def _leave(folder: Path, records: list[dict[str, Any]], fit: train.Fit, text: data.Text) -> list[str]:
    """Write the measurements, and what the network wrote as it learned; the files' names."""
    train.write_metrics(folder / "metrics.jsonl", records)
    samples = [
        f"--- after {record['update']:,} updates\n{text.decode(sample)}\n"
        for record, sample in zip(records, fit.history.get("validation_sample", []), strict=False)
    ]
    train.write_atomically(folder / "samples.txt", lambda file: file.write("".join(samples).encode()))
    return ["metrics.jsonl", "samples.txt"]
