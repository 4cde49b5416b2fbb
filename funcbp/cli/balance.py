"""`funcbp balance`: what one operation weighs beside one byte on this machine."""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp

from ..jaxpr import device_here
from ..learn.request import RequestError, whole
from ..remat.machine import machine_here
from ..remat.measured import measure_balance

__all__ = ["add_balance_command"]


def add_balance_command(commands: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    """Add the command to those that the parser understands."""
    command = commands.add_parser(
        "balance",
        help="measure this machine's balance, for Backward(balance=...)",
        description="Measure how many operations of products JAX's default device does while it keeps a byte.",
    )
    command.add_argument("--size", type=whole(64), default=1024, metavar="N", help="of the square matrices (1024)")
    command.set_defaults(run=run_balance)


def run_balance(args: argparse.Namespace) -> int:
    """Measure, and print the balance beside the table's."""
    device = device_here()
    try:
        measured = measure_balance(args.size)
    except jax.errors.JaxRuntimeError as error:
        raise RequestError(f"The device has no memory for --size {args.size}: take a smaller one.") from error
    if measured.balance < 1:
        raise RequestError(f"With --size {args.size}, keeping takes no time that can be measured: take a larger one.")
    print(f"{device.device_kind} ({device.platform})")
    print(f"products           {measured.products / 1e9:10.1f} Gflop/s in float32")
    print(f"keeping            {measured.kept / 1e9:10.2f} GB/s, written and read")
    print(f"balance            {measured.balance:10.0f} operations per byte: Backward(balance={measured.balance:.0f})")
    print(f"taken otherwise    {machine_here().balance(jnp.float32):10.0f} operations per byte, from the table")
    return 0
