"""A trace as data: what was written is read back to the last bit, and something else is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp


def loss(w, z, key):
    """A key, half precision, complex and integer numbers, nan and infinities, a branch not taken, an uncounted loop."""
    with jax.named_scope("noise"):
        noise = jax.random.normal(key, w.shape, w.dtype)
    h = bp.name(jnp.tanh(w + noise), "h")
    h = lax.scan(lambda c, _: (lax.cond(c.sum() > 1e9, jnp.sin, jnp.cos, c), None), h, length=2)[0]
    n = lax.while_loop(lambda n: n < 5, lambda n: n + 1, 0)
    low = jnp.sum(jnp.where(h > 2, -jnp.inf, h)).astype(jnp.float32)
    aux = {"n": n, "steps": [1, 2.5, None, "é"], "bad": jnp.array([jnp.nan, -jnp.inf]), "key": key}
    return low * n + jnp.real(z * jnp.conj(z)), aux


@pytest.fixture(scope="module")
def traced():
    args = jnp.array([0.5, -2.0, 3e-40], jnp.bfloat16), jnp.complex64(1 + 2j), jax.random.key(1)
    return bp.trace(loss, has_aux=True)(*args)


def alike(a, b):
    """Whether two things are the same: structure, types, and every bit."""
    if isinstance(a, jax.Array | np.ndarray | np.generic):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            return a.dtype == b.dtype and bool(jnp.all(a == b))
        return a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(alike, a, b))
    return a == b and type(a) is type(b)


@pytest.mark.parametrize("by", ["npz", "json"])
def test_a_trace_is_read_back_to_the_last_bit(traced, by, tmp_path):
    if by == "npz":
        traced.save(tmp_path / "run.npz")
        back = bp.Trace.load(tmp_path / "run.npz")
    else:
        json.loads(traced.to_json(), parse_constant=pytest.fail)  # no NaN, which JSON has not
        back = bp.Trace.from_json(traced.to_json())
    assert alike(traced.value, back.value) and traced.outputs == back.outputs
    for a, b in zip([*traced.inputs, *traced], [*back.inputs, *back], strict=True):
        for field in dataclasses.fields(a):
            of_a, of_b = getattr(a, field.name), getattr(b, field.name)
            assert field.name == "types" or alike(of_a, of_b), (a.primitive, field.name)
    assert str(back) == str(traced) and back._repr_html_() == traced._repr_html_()
    assert {"bfloat16", "complex64", "int64", "bool"} <= {str(v.dtype) for r in back for v in r.values}


def test_what_is_no_trace_is_refused(traced, tmp_path):
    path = tmp_path / "run.npz"
    traced.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"run.npz is no trace that funcbp has saved, or is damaged"):
        bp.Trace.load(path)
    np.savez(path, a=np.array([object()]))
    with pytest.raises(ValueError, match=r"run.npz is no trace"):
        bp.Trace.load(path)
    newer = json.loads(traced.to_json()) | {"format": 2, "funcbp": "9.0"}
    with pytest.raises(ValueError, match=r"written by funcbp 9.0 in format 2; this version, .*, reads 1"):
        bp.Trace.from_json(json.dumps(newer))
    for text in ("[]", "{}", "not JSON"):
        with pytest.raises(ValueError, match="no trace that funcbp has written"):
            bp.Trace.from_json(text)
    with pytest.raises(TypeError, match="holds a PjitFunction, which cannot be written"):
        bp.trace(lambda x: (x, jax.jit(jnp.sin)), has_aux=True)(1.0).to_json()


def test_a_data_frame_has_a_row_for_each_input_and_equation(traced):
    pytest.importorskip("pandas")
    frame = traced.to_pandas()
    assert list(frame.primitive) == ["input"] * 2 + [r.primitive for r in traced]
    row = frame[frame.name == "h"].iloc[0]
    assert row.value_norm == pytest.approx(np.linalg.norm(np.float64(traced["h"].value)))
    assert row.cotangent_max == traced["h"].cotangent.max() and row.type == "bfloat16[3]"
    assert frame.cotangent_norm.isna().sum() == sum(r.cotangent is None for r in traced) > 0


def test_rows_are_chosen_by_what_they_are(traced):
    assert {r.scope.split("/")[0] for r in traced.at(scope="no*")} == {"noise"}
    assert [r.name for r in traced.at(operation="name")] == ["h"]
    assert {r.primitive for r in traced.at(kind="no derivative", operation="while")} == {"while"}
    chosen = traced.at(path="z")
    assert [r.name for r in chosen.inputs] == ["z"] and [r.primitive for r in chosen] == ["conj", "mul"]
    assert len(traced[2:5]) == 3 and str(traced[2:5]).startswith("3 equations")
    for wanted, message in (
        ({"operation": "sin2"}, "no operation 'sin2'; there are '"),
        ({"scope": "block"}, "no scope 'block'; there are 'noise"),
        ({"path": "v"}, "no input 'v'; there are 'w', 'z'"),
    ):
        with pytest.raises(KeyError, match=message):
            traced.at(**wanted)


def test_precision_is_data_too(tmp_path):
    def loss(x, w):
        with jax.named_scope("inner"):
            y = bp.name(jnp.sum(x.astype(jnp.bfloat16).astype(x.dtype) * w), "y")
        return jax.lax.scan(lambda c, _: (c - jnp.cos(c), None), y, None, 3)[0]

    found = bp.precision(loss)(jnp.float32([1e-3, 2.0]), jnp.float32([1.0, -3.0]))
    path = tmp_path / "errors.npz"
    found.save(path)
    for again in (bp.inspection.Precision.load(path), bp.inspection.Precision.from_json(found.to_json())):
        assert [vars(a) == vars(b) for a, b in zip(again, found, strict=True)] == [True] * len(found)
        assert again.worst() == found.worst() and str(again) == str(found)
        assert (again.value, again.value_error) == (found.value, found.value_error)
        assert again.gradient_errors == found.gradient_errors
    inner = found.at(scope="inner", operation="mul")
    assert {(r.primitive, "inner" in r.scope) for r in inner} == {("mul", True)} and len(found[:2]) == 2
    line = int(found["y"].line.split(":")[1])
    assert found["y"] in found.at(line).rows and found.at(f"test_storage.py:{line}").rows == found.at(line).rows
    with pytest.raises(KeyError, match="no operation 'tan'; there are"):
        found.at(operation="tan")
    bp.trace(jnp.sin)(1.0).save(path)
    with pytest.raises(ValueError, match="This is a funcbp trace, and no precision"):
        bp.inspection.Precision.load(path)
