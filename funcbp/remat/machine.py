"""The machine that a program is traced for: how many operations it does while it moves a byte.

A plan weighs bytes kept against operations done again. What converts one into the other is the machine's balance, in
operations per byte (S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model", 2009):
its rate of products over its bandwidth. Nothing is measured when a program is traced: the numbers stand in a table.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from jax.typing import DTypeLike

from ..jaxpr import device_here

__all__ = ["MACHINES", "Machine", "machine_here"]


@dataclass(frozen=True)
class Machine:
    """What a kind of device does in a second.

    Attributes:
        wide, single, half: products, in 10¹² operations a second, of float64, of float32 and of what is narrower, as
            JAX multiplies them by default: float32 as TF32 where there is such a thing, on a TPU as bfloat16.
        bandwidth: of memory, in 10¹² bytes a second.
        cache: what is no wider, in bytes, does not go through memory when it is made and read.
        near: how many times faster what all steps of a loop keep is moved, if together it is no wider than the cache.
        fuses: whether a reduction takes its operand as it is made, without going through memory.
        launch: seconds that a product takes at least.
        packs: up to how many rows a matrix has whose product with another one is faster where that lies with its
            contracted axis first, because it is copied into that order otherwise.
    """

    wide: float
    single: float
    half: float
    bandwidth: float
    cache: int = 2**25
    fuses: bool = True
    near: float = 1.0
    launch: float = 1e-6
    packs: int = 0

    def balance(self, dtype: DTypeLike) -> float:
        """Return the operations of products of this type that are done while a byte is moved."""
        width = np.finfo(dtype).bits // 8 if np.issubdtype(dtype, np.inexact) else np.dtype(dtype).itemsize
        return {8: self.wide, 4: self.single}.get(width, self.half) / self.bandwidth

    def with_balance(self, balance: float) -> Machine:
        """Return the machine whose balance in float32 is this one, and whose other balances are as much higher."""
        return dataclasses.replace(self, bandwidth=self.bandwidth * self.balance(np.float32) / balance, near=1.0)

    @property
    def idle(self) -> float:
        """The bytes that are moved while a product is launched."""
        return self.launch * self.bandwidth * 1e12


# Of data sheets, per chip: dense rates (half of what a sheet gives "with sparsity"), and bytes of the last cache.
# Compared in November 2026 with the makers' pages where these could be had, else with pages that quote them:
#   GB200, B200       NVIDIA, "Individual Blackwell GPU Specifications", of GB200 NVL72 and HGX B200
#   H200, H100, A100  https://glennklockwood.com/garden/processors/h100 and .../A100, which name NVIDIA's sheets;
#                     PCIe and caches: https://archive-lib.hpctech.co.jp/gpuproduct/nvidia-h100.html
#   L4, T4, V100      https://hmc-tech.com, https://fpsbench.com, https://sysrqmts.com; V100's products:
#                     https://developer.nvidia.com/programming-tensor-cores-cuda-9-0
#   MI300X            bfloat16, bandwidth: https://github.com/alpharomercoma/MI300X-vs-H200; cache: servethehome.com
#   TPUs              https://cloud.google.com/tpu/docs/v3, v5e, v6e; v4, v5p as glennklockwood.com, aiwiki.ai quote
# Not compared: A10, L40S, the RTX cards, MI250X, the MI300X in float32 and float64, the caches of Blackwell and TPUs.
# The CPU's are of one core and were measured (`docs/decisions/a-price.md`): what a loop keeps is written to pages
# that are fresh at each call, and is copied out of its stack, at a byte a nanosecond.
CPU = Machine(0.05, 0.1, 0.1, 0.001, cache=2**22, near=5.0, fuses=False, packs=48)
GPU = Machine(10.0, 150.0, 300.0, 2.0)
MACHINES: dict[str, Machine] = {
    "cpu": CPU,
    "gb200": Machine(40.0, 1250.0, 2500.0, 8.0, 126 * 2**20),  # NVIDIA, GB200 NVL72 datasheet (2025)
    "b200": Machine(37.0, 1100.0, 2250.0, 7.7, 126 * 2**20),  # NVIDIA, HGX B200, the same
    "h200": Machine(67.0, 494.0, 989.0, 4.8, 50 * 2**20),  # NVIDIA, H200 Tensor Core GPU datasheet (2024)
    "h100 pcie": Machine(51.0, 378.0, 756.0, 2.0, 50 * 2**20),  # NVIDIA, H100 Tensor Core GPU datasheet (2023)
    "h100": Machine(67.0, 494.0, 989.0, 3.35, 50 * 2**20),  # the same, SXM
    "a100": Machine(19.5, 156.0, 312.0, 2.04, 40 * 2**20),  # NVIDIA, A100 80GB datasheet, SXM (2021)
    "a10": Machine(0.49, 62.5, 125.0, 0.6, 6 * 2**20),  # NVIDIA, A10 datasheet (2021)
    "l40s": Machine(1.4, 183.0, 362.0, 0.864, 96 * 2**20),  # NVIDIA, L40S datasheet (2023)
    "l4": Machine(0.47, 60.0, 121.0, 0.3, 48 * 2**20),  # NVIDIA, L4 datasheet (2023)
    "v100": Machine(7.8, 15.7, 125.0, 0.9, 6 * 2**20),  # NVIDIA, V100 datasheet, SXM2 (2020)
    "t4": Machine(0.25, 8.1, 65.0, 0.32, 4 * 2**20),  # NVIDIA, T4 datasheet (2019)
    "rtx 4090": Machine(1.3, 82.6, 165.0, 1.008, 72 * 2**20),  # NVIDIA, Ada GPU architecture (2022)
    "rtx 3090": Machine(0.56, 35.6, 71.0, 0.936, 6 * 2**20),  # NVIDIA, Ampere GA102 GPU architecture (2021)
    "mi300x": Machine(163.0, 653.0, 1307.0, 5.3, 256 * 2**20),  # AMD, Instinct MI300X data sheet (2023)
    "mi250x": Machine(95.7, 95.7, 383.0, 3.2, 8 * 2**20),  # AMD, Instinct MI250X data sheet (2021)
    "tpu v3": Machine(1.0, 123.0, 123.0, 0.9),  # Google Cloud, TPU v3, system architecture
    "tpu v4": Machine(1.0, 275.0, 275.0, 1.228, 2**27),  # Google Cloud, TPU v4
    "tpu v5 lite": Machine(1.0, 197.0, 197.0, 0.819, 2**27),  # Google Cloud, TPU v5e
    "tpu v5p": Machine(1.0, 459.0, 459.0, 2.765, 2**27),  # Google Cloud, TPU v5p
    "tpu v5": Machine(1.0, 459.0, 459.0, 2.765, 2**27),
    "tpu v6": Machine(1.0, 918.0, 918.0, 1.638, 2**27),  # Google Cloud, TPU v6e
    "gpu": GPU,
    "tpu": Machine(1.0, 275.0, 275.0, 1.228),
}


def machine_here(balance: float | None = None) -> Machine:
    """Return the machine that is traced for: JAX's default device, and where none is set, its first one.

    Args:
        balance: operations in float32 per byte, in the place of the table's.
    """
    device = device_here()
    machine = machine_of(device.device_kind, device.platform)
    return machine if balance is None else machine.with_balance(balance)


def machine_of(kind: str, platform: str) -> Machine:
    """Look a device up by what it calls itself; one that is not in the table counts as a usual one of its platform."""
    said = kind.lower().replace("-", " ").replace("geforce ", "")
    by_kind = (m for name, m in MACHINES.items() if f" {name} " in f" {said} " or said.startswith(name + " "))
    family = {"cuda": "gpu", "rocm": "gpu"}.get(platform, platform)
    return CPU if family == "cpu" else next(by_kind, MACHINES.get(family, GPU))
