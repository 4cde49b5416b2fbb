"""Opacus and BackPACK on an MLP in PyTorch: what their quantities cost in plain gradients of their own."""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from . import measure
from .report import Cell, Row

SIZES: dict[str, tuple[Sequence[int], int]] = {
    "W1 MLP": ((784, 1000, 500, 100, 10), 128),
    "W3 wide MLP": ((5120, 2560, 1280), 32),
}


def absent(*modules: str) -> str:
    """Which of these are not installed, as a remark; empty if all are."""
    gone = [m for m in modules if importlib.util.find_spec(m) is None]
    return f"skipped: {', '.join(gone)} not installed" if gone else ""


def network(sizes: Sequence[int], batch: int) -> tuple[Any, Any, Any]:
    """A network with relu layers, inputs and classes."""
    import torch

    torch.manual_seed(1)
    layers: list[Any] = []
    for i, o in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(i, o), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1]), torch.randn(batch, sizes[0]), torch.randint(sizes[-1], (batch,))


def plain(sizes: Sequence[int], batch: int) -> Callable[[], Any]:
    """The plain gradient."""
    import torch

    model, x, y = network(sizes, batch)
    loss = torch.nn.CrossEntropyLoss()

    def run() -> None:
        model.zero_grad()
        loss(model(x), y).backward()

    return run


def backpack(extension: str, sizes: Sequence[int], batch: int) -> Callable[[], Any]:
    """The gradient with one of BackPACK's extensions."""
    import torch
    from backpack import backpack, extend, extensions

    model, x, y = network(sizes, batch)
    model, loss = extend(model), extend(torch.nn.CrossEntropyLoss())

    def run() -> None:
        model.zero_grad()
        with backpack(getattr(extensions, extension)()):
            loss(model(x), y).backward()

    return run


def opacus(mode: str, sizes: Sequence[int], batch: int) -> Callable[[], Any]:
    """A clipped gradient by Opacus, `"hooks"` or `"ghost"`, noise left out."""
    import torch
    from opacus import PrivacyEngine

    model, x, y = network(sizes, batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=batch)
    options = dict(criterion=torch.nn.CrossEntropyLoss(), grad_sample_mode="ghost") if mode == "ghost" else {}
    made = PrivacyEngine().make_private(
        module=model,
        optimizer=optimizer,
        data_loader=data,
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
        **options,
    )
    private, private_optimizer = made[0], made[1]
    loss = made[2] if mode == "ghost" else torch.nn.CrossEntropyLoss()

    def run() -> None:
        private_optimizer.zero_grad()
        loss(private(x), y).backward()
        private_optimizer.step()

    return run


PER_EXAMPLE: dict[str, tuple[tuple[str, ...], Callable[[Sequence[int], int], Callable[[], Any]]]] = {
    "norms, BackPACK BatchL2Grad": (("torch", "backpack"), lambda *net: backpack("BatchL2Grad", *net)),
    "gradients, BackPACK BatchGrad": (("torch", "backpack"), lambda *net: backpack("BatchGrad", *net)),
    "clipping, Opacus": (("torch", "opacus"), lambda *net: opacus("hooks", *net)),
    "clipping, Opacus ghost": (("torch", "opacus"), lambda *net: opacus("ghost", *net)),
}
CURVATURE: dict[str, tuple[tuple[str, ...], Callable[[Sequence[int], int], Callable[[], Any]]]] = {
    "Kronecker factors, BackPACK KFLR": (("torch", "backpack"), lambda *net: backpack("KFLR", *net)),
    "Kronecker factors by draws, BackPACK KFAC": (("torch", "backpack"), lambda *net: backpack("KFAC", *net)),
    "diagonal, BackPACK DiagGGNExact": (("torch", "backpack"), lambda *net: backpack("DiagGGNExact", *net)),
    "diagonal by draws, BackPACK DiagGGNMC": (("torch", "backpack"), lambda *net: backpack("DiagGGNMC", *net)),
}


def peer_rows(name: str, sizes: Sequence[int], batch: int, which: Any = PER_EXAMPLE) -> list[Row]:
    """A row for each peer's quantity: its time in plain gradients, or why there is none."""
    rows = []
    for what, (modules, make) in which.items():
        remark = absent(*modules)
        if remark:
            cell = Cell(remark=remark)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                net = sizes, batch
                cell = Cell(measure.alone(make(*net)) / measure.alone(plain(*net)))
        rows.append(Row(f"{name}: {what}, to torch's gradient", {"time": cell}))
    return rows
