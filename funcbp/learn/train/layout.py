"""Many devices: where the parameters live on a mesh, and how a batch is spread over it.

The program stays the one for a single device; XLA's partitioner divides it, and puts in the communication, once it is
told where the arrays live. A layout says that: it maps the path and the shape of a parameter to a `jax.P`. The batch is
always divided over the axes `data` and `fsdp` of the mesh.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import P
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.tree_util import KeyPath

from ...jaxpr.types import PyTree, Value

AXES = ("data", "fsdp", "tensor")
Layout = Callable[[str, tuple[int, ...], Mapping[str, int]], P]


def data_layout(path: str, shape: tuple[int, ...], axes: Mapping[str, int]) -> P:
    """Every device has all parameters, and a part of the batch; the gradients are added up.

    Args:
        path: of the parameter, `dense_0/kernel`.
        shape: of the parameter.
        axes: the sizes of the mesh's axes by name.
    """
    return P()


def fsdp_layout(path: str, shape: tuple[int, ...], axes: Mapping[str, int]) -> P:
    """Every parameter is divided along its longest axis that the devices divide, over `fsdp`, or else over `data`.

    The parts are gathered where they are used, and the gradients are added up and divided again; so parameters and the
    optimiser's state take a part of the memory ("fully sharded data parallel").

    Args:
        path: of the parameter.
        shape: of the parameter.
        axes: the sizes of the mesh's axes by name.
    """
    axis = "fsdp" if "fsdp" in axes else "data"
    possible = [i for i, n in enumerate(shape) if n % axes[axis] == 0 and n > 0]
    return P(*_at(max(possible, key=lambda i: shape[i]), axis)) if possible else P()


def tensor_layout(path: str, shape: tuple[int, ...], axes: Mapping[str, int]) -> P:
    """Layers are divided by turns over `tensor`: one by its units, the next by its inputs.

    In layers with even numbers (`dense_0`) the last axis of the kernel and the bias are divided, so that each device
    computes some of the units; in those with odd numbers the axis of the inputs, so that each device takes in the units
    that it has, and the sums are added up over the devices. What cannot be divided evenly is whole everywhere.

    Args:
        path: of the parameter; the last number in it says which layer it is.
        shape: of the parameter.
        axes: the sizes of the mesh's axes by name.

    References:
        M. Shoeybi et al., "Megatron-LM: training multi-billion parameter language models using model parallelism",
        2019.
    """
    numbers = re.findall(r"\d+", path)
    by_units = not numbers or int(numbers[-1]) % 2 == 0
    if by_units:
        place = len(shape) - 1
    elif len(shape) >= 2:
        place = len(shape) - 2
    else:
        return P()
    return P(*_at(place, "tensor")) if place >= 0 and shape[place] % axes["tensor"] == 0 else P()


def _at(place: int, axis: str) -> list[str | None]:
    return [None] * place + [axis]


LAYOUTS: dict[str, Layout] = {"data": data_layout, "fsdp": fsdp_layout, "tensor": tensor_layout}


def make_mesh(sizes: Mapping[str, int]) -> Mesh:
    """A mesh of all devices, with axes of these sizes.

    Args:
        sizes: the size of each axis by name, out of `data`, `fsdp` and `tensor`; together as many as there are devices.

    Returns:
        The mesh, its axes in the order of `sizes`.

    Raises:
        ValueError: a name is none of these, or there are more or fewer devices.

    Example:
        >>> from funcbp import train
        >>> train.make_mesh({"data": 1}).axis_names
        ('data',)
    """
    if not isinstance(sizes, Mapping):
        raise ValueError(f"A mesh is made of the sizes of its axes, make_mesh({{'data': 4}}), and got {sizes!r}.")
    if unknown := set(sizes) - set(AXES):
        raise ValueError(f"A mesh has the axes {', '.join(AXES)}, and not {', '.join(sorted(unknown))}.")
    wanted, there = math.prod(sizes.values()), jax.device_count()
    if wanted != there:
        shape = " x ".join(f"{name}={n}" for name, n in sizes.items())
        raise ValueError(f"A mesh of {shape} has {wanted} devices, and there {'is' if there == 1 else 'are'} {there}.")
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def from_local(local: PyTree, mesh: Mesh) -> PyTree:
    """The global batch, of which each process has a part: concatenated over the processes, divided over the devices.

    Args:
        local: a pytree of this process's examples, along the leading axis; all processes have equally many.
        mesh: the mesh.

    Returns:
        Global arrays, divided along the leading axis; no process holds more than its part.

    Raises:
        ValueError: the examples cannot be divided evenly over this process's devices.

    Example:
        >>> import numpy as np
        >>> from funcbp import train
        >>> train.from_local(np.ones((4, 2)), train.make_mesh({"data": 1})).shape
        (4, 2)
    """
    sharding = NamedSharding(mesh, batch_spec(mesh))
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)), local)


def batch_spec(mesh: Mesh) -> P:
    """How the leading axis of a batch is divided."""
    axes = tuple(name for name in ("data", "fsdp") if name in mesh.axis_names)
    return P(axes) if axes else P()


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh, and where the parameters live on it.

    Attributes:
        mesh: the mesh.
        layout: from path, shape and the mesh's axes to a `jax.P`; or pairs of a pattern of paths and a `jax.P`.
    """

    mesh: Mesh
    layout: Layout | tuple[tuple[str, P], ...]

    def spec(self, path: str, shape: tuple[int, ...]) -> P:
        """Where the parameter at this path lives."""
        if callable(self.layout):
            return self.layout(path, shape, dict(self.mesh.shape))
        return next((spec for pattern, spec in self.layout if fnmatch.fnmatchcase(path, pattern)), P())

    def shardings(self, tree: PyTree, params: PyTree) -> PyTree:
        """The sharding of every leaf: those of the parameters, what has their path at its end and their shape (as the
        moments of an optimiser have) with them, and the rest on all devices.
        """
        places = {path_of(path): (leaf.shape, self.spec(path_of(path), leaf.shape)) for path, leaf in leaves_of(params)}

        def place(path: KeyPath, leaf: Value) -> NamedSharding:
            whole = path_of(path)
            parts = whole.split("/")
            for i in range(len(parts)):
                shape, spec = places.get("/".join(parts[i:]), (None, P()))
                if shape == leaf.shape:
                    return NamedSharding(self.mesh, spec)
            return NamedSharding(self.mesh, P())

        return jax.tree.map_with_path(place, tree)

    def put(self, state: PyTree) -> PyTree:
        """A state, or whatever has the field `params`, where it lives."""
        return jax.tree.map(to_sharding, state, self.shardings(state, state.params))

    def constrain(self, state: PyTree) -> PyTree:
        """In a program: keep a state where it lives."""
        return jax.lax.with_sharding_constraint(state, self.shardings(state, state.params))

    def spread(self, batch: PyTree) -> PyTree:
        """In a program: divide a batch over the devices."""
        return jax.lax.with_sharding_constraint(batch, NamedSharding(self.mesh, batch_spec(self.mesh)))

    def everywhere(self, data: PyTree) -> PyTree:
        """Data that are whole on every process, whole on every device; what is global already stays as it is."""
        sharding = NamedSharding(self.mesh, P())

        def put(a: Value) -> jax.Array:
            if isinstance(a, jax.Array) and len(a.sharding.device_set) == self.mesh.size:
                return a
            return jax.make_array_from_process_local_data(sharding, np.asarray(a))

        return jax.tree.map(put, data)

    def check_patterns(self, params: PyTree) -> None:
        """Raise if a pattern of the layout matches none of the parameters: they would be whole on every device."""
        paths = [path_of(path) for path, _ in leaves_of(params)]
        for pattern, _ in () if callable(self.layout) else self.layout:
            if not fnmatch.filter(paths, pattern):
                raise ValueError(f"The layout's pattern {pattern!r} matches none of {', '.join(paths)}.")

    def check_batch(self, size: int) -> None:
        """Raise if a batch of this size cannot be divided over the mesh."""
        parts = math.prod(self.mesh.shape[name] for name in ("data", "fsdp") if name in self.mesh.axis_names)
        if size % parts:
            raise ValueError(f"A batch of {size} examples cannot be divided over {parts} devices.")


class MemberPlacement(Placement):
    """Many networks: each device has some of the members, whole."""

    def shardings(self, tree: PyTree, params: PyTree) -> PyTree:
        """Everything is divided along its leading axis, over all axes of the mesh."""
        return jax.tree.map(lambda leaf: NamedSharding(self.mesh, P(self.mesh.axis_names)), tree)

    def spread(self, batch: PyTree) -> PyTree:
        """Every device has the whole batch."""
        return batch

    def check_batch(self, size: int) -> None:
        """There is nothing to check: batches are whole."""


def make_placement(mesh: Mesh | None, layout: str | Layout | Mapping[str, P] | None) -> Placement | None:
    """A mesh and a layout as they are given to `fit`, put together.

    Raises:
        ValueError: there is no layout of that name, it needs an axis that the mesh does not have, or there is no mesh.
    """
    if mesh is None:
        if layout is not None:
            raise ValueError(
                "A layout says where the parameters live on a mesh, and there is no mesh: give --mesh (mesh=)."
            )
        return None
    if not isinstance(mesh, Mesh) or not set(mesh.axis_names) & set(AXES):
        given = f"one with {', '.join(map(str, mesh.axis_names))}" if isinstance(mesh, Mesh) else repr(mesh)
        raise ValueError(f"mesh has axes out of {', '.join(AXES)}, as train.make_mesh makes it, and was {given}.")
    if layout is None:
        layout = "tensor" if "tensor" in mesh.axis_names else "fsdp" if "fsdp" in mesh.axis_names else "data"
    if isinstance(layout, str):
        if layout not in LAYOUTS:
            raise ValueError(f"There is no layout {layout!r}; there are {', '.join(LAYOUTS)}.")
        needs = {"data": (), "fsdp": ("fsdp", "data"), "tensor": ("tensor",)}[layout]
        if needs and not set(needs) & set(mesh.axis_names):
            raise ValueError(
                f"The layout {layout!r} needs a mesh with the axis {' or '.join(needs)}, and this one has "
                f"{', '.join(map(str, mesh.axis_names))}."
            )
        return Placement(mesh, LAYOUTS[layout])
    return Placement(mesh, tuple(layout.items()) if isinstance(layout, Mapping) else layout)


# --- arrays and paths -------------------------------------------------------------------------------------------------


def leaves_of(tree: PyTree) -> list[tuple[KeyPath, Value]]:
    """The leaves of a pytree with their paths."""
    return jax.tree.leaves_with_path(tree)


def path_of(path: KeyPath) -> str:
    """A path of JAX's as ours: `dense_0/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_key(a: Value) -> bool:
    """Whether an array holds typed keys."""
    return jnp.issubdtype(a.dtype, jax.dtypes.prng_key)


def to_host(a: jax.Array) -> np.ndarray:
    """The whole of an array, wherever its parts live; keys as the numbers they are made of."""
    if is_key(a):
        a = jax.random.key_data(a)
    if not a.is_fully_addressable and not a.is_fully_replicated:
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(a, tiled=True)
    return np.asarray(a.addressable_data(0) if a.is_fully_replicated else a)


def to_sharding(a: Value, sharding: jax.sharding.Sharding) -> jax.Array:
    """A whole array, the same on every process, where its parts shall live."""
    if is_key(a):
        return jax.random.wrap_key_data(to_sharding(jax.random.key_data(a), sharding), impl=jax.random.key_impl(a))
    values = to_host(a) if isinstance(a, jax.Array) else np.asarray(a)
    return jax.make_array_from_callback(values.shape, sharding, lambda part: values[part])
