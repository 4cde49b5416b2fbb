"""What a training on text leaves in its folder for whoever wants the network again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...jaxpr.types import PyTree
from .. import data, nets
from ..request import RequestError
from .results import leaf_paths, load_params, read_description, save_params, write_atomically

ABOUT, PARAMS = "text.json", "params.npz"


class LanguageRun(NamedTuple):
    """A trained language model.

    Attributes:
        net: the network, from tokens to logits.
        params: its parameters.
        tokens: what each number stands for.
        context: how many tokens it has learned to read.
        prompt: the piece of held-out text that its samples went on from, tokens.
    """

    net: nets.Net
    params: PyTree
    tokens: data.Tokens
    context: int
    prompt: np.ndarray


def write_language_run(
    folder: Path, params: PyTree, network: Mapping[str, Any], context: int, tokens: data.Tokens, prompt: np.ndarray
) -> list[str]:
    """Write the parameters, and what they are of, as JSON; the names of the two files.

    Args:
        folder: where to.
        params: the parameters.
        network: the arguments of `nets.transformer`, its dtype by name.
        context: how many tokens it has learned to read.
        tokens: what each number stands for.
        prompt: what it is to go on from if nothing else is asked for.
    """
    about = {"network": network, "context": context, "tokens": tokens.kind, "prompt": prompt.tolist()}
    about["pieces"] = [piece.decode("latin-1") for piece in tokens.pieces]
    save_params(folder / PARAMS, params)
    write_atomically(folder / ABOUT, lambda file: file.write(json.dumps(about, indent=1).encode()))
    return [PARAMS, ABOUT]


def read_language_run(folder: Path) -> LanguageRun:
    """Read what `write_language_run` has written.

    Raises:
        RequestError: it is not there, or not whole.
    """

    def described(about: dict[str, Any]) -> LanguageRun:
        net = nets.transformer(**about["network"])
        tokens = data.Tokens(about["tokens"], tuple(piece.encode("latin-1") for piece in about["pieces"]))
        return LanguageRun(net, None, tokens, int(about["context"]), np.array(about["prompt"], np.int32))

    run = read_description(folder / ABOUT, "funcbp train text", described)
    params = load_params(folder / PARAMS)
    wanted = jax.eval_shape(run.net.init, jax.random.key(0), jnp.asarray(run.prompt))
    shapes = [{name: leaf.shape for name, leaf in leaf_paths(tree).items()} for tree in (wanted, params)]
    if shapes[0] != shapes[1]:
        raise RequestError(f"{folder / PARAMS} does not hold the parameters of the network that {ABOUT} describes.")
    return run._replace(params=params)
