"""`funcbp sample`: what a network that `funcbp train text` has trained writes."""

from __future__ import annotations

import argparse
from pathlib import Path

import jax

from ..learn.request import RequestError, whole
from ..learn.train import language
from ..learn.train.language_run import read_language_run
from .parser import HelpFormatter, not_negative, printable


def add_sample_command(commands: argparse._SubParsersAction) -> None:
    """Add `sample` to the commands of `funcbp`."""
    command = commands.add_parser(
        "sample",
        help="what a network trained on text writes",
        description="Let a network that `funcbp train text` has trained go on from a text, token by token.",
        formatter_class=HelpFormatter,
    )
    unset = argparse.SUPPRESS
    command.add_argument("run_folder", type=Path, metavar="RUN", help="the folder that `funcbp train text` left")
    command.add_argument(
        "--prompt", metavar="TEXT", default=unset, help="what it goes on from; default: the beginning of the samples"
    )
    command.add_argument("--length", type=whole(1), default=400, metavar="N", help="tokens to write")
    command.add_argument(
        "--temperature",
        type=not_negative,
        default=0.8,
        metavar="T",
        help="what logits are divided by; 0: the likeliest",
    )
    command.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of the draw")
    command.set_defaults(run=run_sample)


def run_sample(args: argparse.Namespace) -> int:
    """`funcbp sample`: the prompt and what comes after it, control characters but tabs and ends of lines escaped."""
    run = read_language_run(args.run_folder)
    prompt = run.tokens.encode(args.prompt, "what it was trained on") if hasattr(args, "prompt") else run.prompt
    if not len(prompt):
        raise RequestError("--prompt is empty, and a network that tells the next token needs one to go on from.")
    sample = language.sampler(run.net, prompt, args.length, run.context, args.seed, args.temperature)
    text = run.tokens.decode([*prompt, *jax.jit(sample)(run.params, None).tolist()])
    print("".join(c if c in "\n\t" else printable(c) for c in text))
    return 0
