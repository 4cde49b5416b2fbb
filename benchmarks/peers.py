"""Opacus and BackPACK on networks in PyTorch: what their quantities cost in plain gradients of their own."""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from . import measure
from .report import Cell, Row


def absent(*modules: str) -> str:
    """Which of these are not installed, as a remark; empty if all are."""
    gone = [m for m in modules if importlib.util.find_spec(m) is None]
    return f"skipped: {', '.join(gone)} not installed" if gone else ""


def mlp(sizes: Sequence[int], batch: int) -> tuple[Any, Any, Any]:
    """A network with relu layers, inputs and classes."""
    import torch

    torch.manual_seed(1)
    return _dense(sizes), torch.randn(batch, sizes[0]), torch.randint(sizes[-1], (batch,))


def convnet(size: int, channels: Sequence[int], dense: Sequence[int], batch: int) -> tuple[Any, Any, Any]:
    """Convolutions, each with relu and 2x2 max pooling, then dense layers; inputs and classes."""
    import torch
    from torch import nn

    torch.manual_seed(1)
    layers: list[Any] = []
    for i, o in itertools.pairwise(channels):
        layers += [nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    flat = (size // 2 ** (len(channels) - 1)) ** 2 * channels[-1]
    model = nn.Sequential(*layers, nn.Flatten(), *_dense((flat, *dense)))
    return model, torch.randn(batch, channels[0], size, size), torch.randint(dense[-1], (batch,))


def _dense(sizes: Sequence[int]) -> Any:
    from torch import nn

    layers = [part for i, o in itertools.pairwise(sizes) for part in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


Network = Callable[[], tuple[Any, Any, Any]]
NETWORKS: dict[str, Network] = {
    "W1 MLP": lambda: mlp((784, 1000, 500, 100, 10), 128),
    "W2 convnet": lambda: convnet(32, (3, 32, 64, 64), (256, 64, 10), 64),
    "W3 wide MLP": lambda: mlp((5120, 2560, 1280), 32),
}


def plain(network: Network) -> Callable[[], Any]:
    """The plain gradient."""
    import torch

    model, x, y = network()
    loss = torch.nn.CrossEntropyLoss()

    def run() -> None:
        model.zero_grad()
        loss(model(x), y).backward()

    return run


def backpack(extension: str, network: Network) -> Callable[[], Any]:
    """The gradient with one of BackPACK's extensions."""
    import torch
    from backpack import backpack, extend, extensions

    model, x, y = network()
    model, loss = extend(model), extend(torch.nn.CrossEntropyLoss())

    def run() -> None:
        model.zero_grad()
        with backpack(getattr(extensions, extension)()):
            loss(model(x), y).backward()

    return run


def opacus(mode: str, network: Network) -> Callable[[], Any]:
    """A clipped gradient by Opacus, `"hooks"` or `"ghost"`, noise left out."""
    import torch
    from opacus import PrivacyEngine

    model, x, y = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=len(x))
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


PER_EXAMPLE: dict[str, tuple[tuple[str, ...], Callable[[Network], Callable[[], Any]]]] = {
    "norms, BackPACK BatchL2Grad": (("torch", "backpack"), lambda net: backpack("BatchL2Grad", net)),
    "gradients, BackPACK BatchGrad": (("torch", "backpack"), lambda net: backpack("BatchGrad", net)),
    "clipping, Opacus": (("torch", "opacus"), lambda net: opacus("hooks", net)),
    "clipping, Opacus ghost": (("torch", "opacus"), lambda net: opacus("ghost", net)),
}
CURVATURE: dict[str, tuple[tuple[str, ...], Callable[[Network], Callable[[], Any]]]] = {
    "Kronecker factors, BackPACK KFLR": (("torch", "backpack"), lambda net: backpack("KFLR", net)),
    "Kronecker factors by draws, BackPACK KFAC": (("torch", "backpack"), lambda net: backpack("KFAC", net)),
    "diagonal, BackPACK DiagGGNExact": (("torch", "backpack"), lambda net: backpack("DiagGGNExact", net)),
    "diagonal by draws, BackPACK DiagGGNMC": (("torch", "backpack"), lambda net: backpack("DiagGGNMC", net)),
}


def peer_rows(name: str, network: Network, which: Any = PER_EXAMPLE) -> list[Row]:
    """A row for each peer's quantity: its time in plain gradients, or why there is none."""
    rows = []
    for what, (modules, make) in which.items():
        remark = absent(*modules)
        if remark:
            cell = Cell(remark=remark)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                cell = Cell(measure.alone(make(network)) / measure.alone(plain(network)))
        rows.append(Row(f"{name}: {what}, to torch's gradient", {"time": cell}))
    return rows


def gpt(
    budget: float, blocks: int, d: int, heads: int, time: int, batch: int, vocabulary: int
) -> tuple[Callable[[], Any], Callable[[], int]]:
    """W4 by `torch.compile` in bfloat16, on a GPU if there is one: its gradient, and the peak of its memory in bytes.

    `budget` is the partitioner's `activation_memory_budget`: 1 is its minimum cut, less recomputes more.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch._functorch.config.activation_memory_budget = budget
    torch._dynamo.reset()
    torch.manual_seed(4)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nn.LayerNorm(d, bias=False) for _ in range(2))
            self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
            self.up, self.down = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)

        def forward(self, x: Any) -> Any:
            split = lambda a: a.reshape(batch, time, heads, d // heads).transpose(1, 2)
            q, k, v = map(split, self.qkv(self.norms[0](x)).chunk(3, -1))
            scores = q @ k.transpose(-1, -2) / (d // heads) ** 0.5
            sees = torch.tril(torch.ones(time, time, dtype=torch.bool, device=x.device))
            weights = scores.masked_fill(~sees, -1e9).softmax(-1)
            x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, time, d))
            return x + self.down(F.gelu(self.up(self.norms[1](x)), approximate="tanh"))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(vocabulary, d)
            self.blocks = nn.ModuleList(Block() for _ in range(blocks))

        def forward(self, tokens: Any) -> Any:
            x = self.embedding(tokens)
            for block in self.blocks:
                x = block(x)
            logits = (x @ self.embedding.weight.T).float()
            return F.cross_entropy(logits.reshape(-1, vocabulary), tokens.roll(-1, 1).reshape(-1))

    model = torch.compile(Model().to(device))
    tokens = torch.randint(vocabulary, (batch, time), device=device)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            loss = model(tokens)
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()

    def peak() -> int:
        if device == "cpu":
            return 0
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before

    return run, peak
