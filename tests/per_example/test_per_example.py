"""Per-example quantities against `vmap(jax.grad)`, in float64, on models and on each way a weight can be used."""

import contextlib
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp
from funcbp.per_example import examples
from funcbp.per_example import leaf as leaves

from ..models.zoo import FAMILIES

TOLERANCE = 1e-10
N = 3


def key(i):
    return jax.random.key(i)


def normal(i, *shape):
    return jax.random.normal(key(i), shape)


def assert_close(ours, theirs, tolerance=TOLERANCE):
    ours, theirs = jax.tree.map(np.asarray, (ours, theirs))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        assert np.max(np.abs(a - b), initial=0) <= tolerance * max(np.max(np.abs(b), initial=0), 1e-3)


def flat(gradients):
    """J: one row per example."""
    leaves = jax.tree.leaves(gradients)
    return jnp.concatenate([g.reshape(g.shape[0], g.size // g.shape[0]) for g in leaves], 1)


@contextlib.contextmanager
def preferring(method):
    """Choose one of the methods, whatever it costs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaves, "cheapest", lambda *_: method)
        patch.setattr(leaves, "cost_between", lambda *_: 0 if method == "factors" else np.inf)
        yield


def everything(loss, params, batch, by=("factors", "products")):
    """All that a leaf can be asked, by each method; and the same from `vmap(jax.grad)`."""
    c = jnp.arange(1.0, examples.batch_size(batch) + 1)

    def asked(leaf, method):
        with preferring(method):
            again = leaves.Leaf(leaf.path, leaf.aval, leaf.ct, leaf.n)
            first = again.inner_products(again), again.weighted_sum(c), again.squared_norms()
            return *first, again.weighted_sum(c), again.sum_of_squares(), again.arrays()

    def ours(params, batch):
        found = examples.backpropagate(loss, params, batch, backward=bp.Backward())
        return [[asked(leaf, method) for leaf in found.leaves] for method in by]

    def theirs(params, batch):
        out = []
        for g in jax.tree.leaves(jax.vmap(jax.grad(loss), (None, 0))(params, batch)):
            rows = g.reshape(g.shape[0], g.size // g.shape[0])
            weighted = jnp.tensordot(c, g, 1)
            out.append((rows @ rows.T, weighted, jnp.sum(rows**2, 1), weighted, jnp.sum(g**2, 0), g))
        return [out] * len(by)

    return jax.jit(lambda *args: (ours(*args), theirs(*args)))(params, batch)


# --- models -----------------------------------------------------------------------------------------------------------

MODELS = {
    "lenet-plain": ["products", "factors"],
    "lstm-plain": ["factors"],
    "transformer-plain": ["factors"],
    "resnet-plain": ["products"],
    "lenet-linen": [],
    "transformer-eqx": [],
    "lstm-hk": [],
}


@pytest.fixture
def libraries():
    """JAX's usual promotion, which the libraries' layers rely on."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", MODELS)
def test_models(name, libraries):
    architecture, family = name.split("-")
    pytest.importorskip(FAMILIES[family])
    model = getattr(importlib.import_module(f"..models.zoo.{family}", __package__), architecture)()
    loss = lambda params, example: model.loss(params, *(a[None] for a in example))
    batch = model.problem.data(1)
    assert_close(*everything(loss, model.params, batch))
    methods = bp.per_example.methods(loss)(model.params, batch).values()
    assert set(MODELS[name]) <= set(methods)
    assert not any(":" in method for method in methods)  # nothing had to be made for want of a better one


def test_our_own_networks_keep_their_factors():
    """The layers' pairs are carried by custom_vjp: their backward rules are inlined."""
    net = bp.nets.mlp([3, 4, 2], activation=bp.ops.tanh)
    params = net.init(key(0), jnp.zeros(3))
    loss = lambda params, example: bp.ops.squared_error(net.apply(params, example[0]), example[1])
    batch = normal(1, N, 3), normal(2, N, 2)
    assert_close(*everything(loss, params, batch))
    methods = bp.per_example.methods(loss)(params, batch)
    assert methods == {
        "dense_0/bias": "array",
        "dense_0/kernel": "factors",
        "dense_1/bias": "array",
        "dense_1/kernel": "factors",
    }


# --- the ways a weight can be used ------------------------------------------------------------------------------------

W = normal(10, 4, 4)


def tied(w, x):
    return jnp.sum(jnp.tanh(x @ w) @ w.T)


def used_as_it_is_and_in_a_product(w, x):
    return jnp.sum(jnp.tanh(x @ w)) + jnp.sum(w**2)


def used_twice_in_ways_that_do_not_meet(w, x):
    return jnp.sum(jnp.tanh(x @ w)) + jnp.sum(jnp.sin(x @ w.reshape(2, 8)[:, :4].T.reshape(4, 2)))


def transposed(w, x):
    return jnp.sum(jnp.tanh(jnp.einsum("ij,pj->ip", w, x)) ** 2)


def sliced(w, x):
    return jnp.sum(jnp.tanh(x @ w[:, 1:3]) ** 2)


def scaled(w, x):
    return jnp.sum(jnp.tanh(x @ (w * jnp.exp(w))))


def sum_of_products(w, x):
    return jnp.sum(jnp.tanh(x @ w)) + jnp.sum(jnp.sin(2 * x @ w))


def heads(w, x):
    return jnp.sum(jnp.einsum("pi,ihk->hpk", x, w.reshape(4, 2, 2)) ** 3)


def batched(w, x):
    return jnp.sum(jnp.tanh(jnp.einsum("pi,pij->pj", x[:, :2], jnp.stack([w[:2], w[2:], w[1:3]]))))


def loop(w, x):
    return jnp.sum(lax.scan(lambda h, x: (jnp.tanh(h @ w + x), h @ w.T), x[0], x)[0] ** 2)


def loop_within_a_loop(w, x):
    inner = lambda h, w: (jnp.tanh(w.reshape(2, 2) @ h.reshape(2, 2)).reshape(4), None)
    return jnp.sum(lax.scan(lambda h, x: (lax.scan(inner, h + x, w)[0], None), x[0], x)[0] ** 2)


def branch(w, x):
    return lax.cond(x[0, 0] > 0, lambda: jnp.sum(jnp.tanh(x @ w)), lambda: jnp.sum(x @ w.T) ** 2)


def compiled_and_computed_again(w, x):
    return jnp.sum(jax.checkpoint(jax.jit(lambda w, x: jnp.tanh(x @ w) @ w))(w, x) ** 2)


def mapped(w, x):
    return jnp.sum(jnp.tanh(jax.vmap(lambda x: w @ x)(x)) ** 2)


@jax.custom_vjp
def own(w, x):
    return x @ w


own.defvjp(lambda w, x: (x @ w, (w, x)), lambda res, ct: (0.5 * (res[1].T @ ct), ct @ res[0].T))


def user_rule(w, x):
    """Half the true gradient: the user's rule is honoured."""
    return jnp.sum(own(w, jnp.tanh(own(w, x))) ** 2)


def layers_in_a_loop(w, x):
    return jnp.sum(lax.scan(lambda h, x: (bp.ops.tanh(bp.ops.dense(h, w) + x), None), x[0], x)[0] ** 2)


def layer_norm(w, x):
    x = x - jnp.mean(x, -1, keepdims=True)
    return jnp.sum(jnp.tanh(x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5) * w[:1] + w[1:2]))


def group_norm(w, x):
    x = x.reshape(3, 2, 2) - jnp.mean(x.reshape(3, 2, 2), (0, 2), keepdims=True)
    x = (x * lax.rsqrt(jnp.mean(x**2, (0, 2), keepdims=True) + 1e-5)).reshape(3, 4)
    return jnp.sum(jnp.tanh(x * w[:1] + w[1:2]) @ w)


WAYS = {
    tied: "factors",
    used_as_it_is_and_in_a_product: "no product",
    used_twice_in_ways_that_do_not_meet: "do not meet",
    transposed: "factors",
    sliced: "factors",
    scaled: "array",
    sum_of_products: "factors",
    heads: "factors",
    batched: None,
    loop: "factors",
    loop_within_a_loop: "factors",
    branch: "array",
    compiled_and_computed_again: "factors",
    mapped: "factors",
    layers_in_a_loop: "factors",
    user_rule: None,
    layer_norm: "array",
    group_norm: None,
}


@pytest.mark.parametrize("loss", WAYS, ids=lambda f: f.__name__)
def test_ways_of_using_a_weight(loss):
    x = normal(11, N, 3, 4)
    assert_close(*everything(loss, W, x))
    if WAYS[loss]:
        with preferring("factors"):
            assert WAYS[loss] in bp.per_example.methods(loss)(W, x)[""]


CONVOLUTIONS = {
    "plain": ((2, 3, 3, 2), dict(window_strides=(1, 1), padding="SAME")),
    "strided": ((2, 3, 3, 2), dict(window_strides=(2, 1), padding=((1, 0), (2, -1)))),
    "dilated": ((2, 2, 3, 2), dict(window_strides=(1, 1), padding="VALID", rhs_dilation=(2, 1))),
    "transposed": ((2, 2, 3, 2), dict(window_strides=(1, 2), padding=((1, 1), (1, 1)), lhs_dilation=(2, 2))),
    "in groups": ((3, 2, 2, 2), dict(window_strides=(1, 1), padding="SAME", feature_group_count=2)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name):
    shape, how = CONVOLUTIONS[name]
    groups = how.get("feature_group_count", 1)
    w = normal(12, *shape[:2], 4 // groups, shape[3])

    def loss(w, x):
        run = lambda x: lax.conv_general_dilated(x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **how)
        return jnp.sum(jnp.tanh(run(x))) + jnp.sum(jnp.sin(run(x[:, ::-1])))

    assert_close(*everything(loss, w, normal(13, N, 2, 5, 6, 4), by=("factors", "products", "direct")))


def convolved(w, x):
    z = lax.conv_general_dilated(x[None], w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.sum(jnp.tanh(z))


def test_a_convolution_goes_by_the_method_that_costs_less():
    """Patches are many bytes for few operations with few units; but the direct method is slow with few channels."""
    method = lambda size, inputs, units, kernel=3, dtype=jnp.float32: bp.per_example.methods(convolved)(
        jax.ShapeDtypeStruct((kernel, kernel, inputs, units), dtype),
        jax.ShapeDtypeStruct((8, size, size, inputs), dtype),
    )[""]
    assert method(32, 16, 16, 9) == method(16, 16, 16) == "direct"
    assert method(28, 1, 6, 5) == method(32, 3, 8) == "products"  # few channels
    assert method(32, 3, 32) == method(16, 32, 64) == "products"  # many units
    assert method(16, 64, 64, 1) == "products"  # no more in patches than in the image
    assert method(2, 256, 256) == "factors"
    assert method(32, 16, 16, 9, jnp.float64) == "products"


def test_a_direct_convolution_cuts_no_patches():
    """Norms and clipping make the kernels' gradients without them; gradients that are handed out come from patches."""
    w, x = normal(12, 5, 5, 2, 3), normal(13, N, 8, 8, 2)
    with preferring("direct"):
        counts = []
        for f in (bp.per_example.clipped_grad(convolved, 1.0), bp.per_example.grads(convolved)):
            compiled = jax.jit(f).lower(w, x).compile()
            counts.append(compiled.as_text().count("convolution("))
        assert counts == [2, 1]  # forward, and backward in groups of examples
        rows = jax.vmap(jax.grad(convolved), (None, 0))(w, x)
        assert_close(bp.per_example.grads(convolved)(w, x), rows)


@pytest.mark.parametrize("how", ["rows", "columns", "in a loop", "tied"])
def test_lookups_of_the_same_row(how):
    tokens = jnp.array([[0, 2, 2], [1, 1, 1], [3, 0, 3]])

    def loss(w, tokens):
        if how == "rows":
            return jnp.sum(jnp.tanh(w[tokens]) ** 2)
        if how == "columns":
            return jnp.sum(jnp.tanh(w[:, tokens]) ** 3)
        if how == "in a loop":
            return jnp.sum(lax.scan(lambda h, t: (jnp.tanh(h + w[t]), None), jnp.ones(4), tokens)[0])
        return jnp.sum(jnp.tanh(w[tokens] @ w.T) ** 2)

    assert_close(*everything(loss, W, tokens))
    with preferring("factors"):
        assert bp.per_example.methods(loss)(W, tokens)[""] == "factors"


def test_a_row_that_does_not_exist_has_no_gradient():
    loss = lambda w, tokens: jnp.sum(w.at[tokens].get(mode="fill", fill_value=0) ** 2)
    assert_close(*everything(loss, W, jnp.array([[0, 4], [9, 9]])))


def test_leaves_without_gradient():
    """Frozen, unused, empty and absent leaves; a batch of one."""
    params = {"w": W, "frozen": W, "unused": jnp.ones(2), "empty": jnp.ones((0, 4)), "none": None}

    def loss(p, x):
        return jnp.sum(jnp.tanh(x @ p["w"]) @ lax.stop_gradient(p["frozen"])) + jnp.sum(p["empty"] @ x.T)

    batch = normal(14, 1, 3, 4)
    assert_close(*everything(loss, params, batch))
    norms = bp.per_example.norms(loss, per_leaf=True)(params, batch)
    assert norms["frozen"] == norms["unused"] == norms["empty"] == 0 and norms["none"] is None


def test_bfloat16_adds_up_in_float32():
    w, x = W.astype(jnp.bfloat16), normal(11, N, 3, 4).astype(jnp.bfloat16)
    rows = flat(jax.vmap(jax.grad(transposed), (None, 0))(w, x)).astype(jnp.float32)
    expected = jnp.linalg.norm(rows, axis=1)
    norms, gradient = jax.jit(bp.per_example.norms(transposed, with_grad=True))(w, x)
    assert norms.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    assert_close(norms, expected, 2**-7)
    assert_close(gradient.astype(jnp.float32), jnp.mean(rows, 0).reshape(4, 4), 2**-5)


# --- the functions ----------------------------------------------------------------------------------------------------


@functools.cache
def problem():
    net = bp.nets.mlp([3, 4, 2])
    params = net.init(key(0), jnp.zeros(3))
    loss = lambda params, example: bp.ops.squared_error(net.apply(params, example[0]), example[1])
    batch = normal(1, 5, 3), normal(2, 5, 2)
    return loss, params, batch, jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, batch)


def test_norms():
    loss, params, batch, gradients = problem()
    expected = jnp.linalg.norm(flat(gradients), axis=1)
    norms, mean = jax.jit(bp.per_example.norms(loss, with_grad=True))(params, batch)
    assert_close((norms, mean), (expected, jax.tree.map(lambda g: g.mean(0), gradients)))
    assert_close(jax.jit(bp.per_example.norms(loss, squared=True))(params, batch), expected**2)
    per_leaf = jax.tree.map(lambda g: jnp.sqrt(jnp.sum(g.reshape(5, -1) ** 2, 1)), gradients)
    assert_close(jax.jit(bp.per_example.norms(loss, per_leaf=True))(params, batch), per_leaf)


@pytest.mark.parametrize("masked", [False, True])
def test_clipping(masked):
    loss, params, batch, gradients = problem()
    n = jnp.linalg.norm(flat(gradients), axis=1)
    bound = float(jnp.sort(n)[2]) * 1.001  # two of five are above
    mask = jnp.array([1.0, 1, 0, 1, 1]) if masked else jnp.ones(5)
    c = jnp.minimum(1, bound / n)
    args = (mask,) if masked else ()
    ours, found = jax.jit(bp.per_example.clipped_grad(loss, bound, divide_by=4))(params, batch, *args)
    assert_close(ours, jax.tree.map(lambda g: jnp.tensordot(c * mask / 4, g, 1), gradients))
    assert_close(found.losses, jax.vmap(loss, (None, 0))(params, batch))
    assert_close((found.norms, found.scales), (n, c))
    assert_close(found.clipped, jnp.sum(jnp.where(c < 1, mask, 0)) / jnp.sum(mask))


@pytest.mark.parametrize("bounds", ["one", "a tree"])
def test_clipping_by_leaf(bounds):
    loss, params, batch, gradients = problem()
    bound = 0.1 if bounds == "one" else jax.tree.map(lambda p: 0.01 * p.size, params)
    ours, found = bp.per_example.clipped_grad(loss, bound, per_leaf=True)(params, batch)
    tree = bound if bounds == "a tree" else jax.tree.map(lambda p: bound, params)

    def clipped(g, bound):
        n = jnp.sqrt(jnp.sum(g.reshape(5, -1) ** 2, 1))
        return jnp.tensordot(jnp.minimum(1, bound / n) / 5, g, 1)

    assert_close(ours, jax.tree.map(clipped, gradients, tree))
    assert jax.tree.structure(found.norms) == jax.tree.structure(params)


def test_a_gradient_of_zero_is_not_divided_by_its_norm():
    gradient, found = bp.per_example.clipped_grad(lambda w, x: w * x, 1.0)(jnp.array(1.0), jnp.array([0.0, 3.0]))
    assert_close((gradient, found.scales), (jnp.array(0.5), jnp.array([1.0, 1 / 3])))


def test_grads_in_chunks():
    loss, params, batch, gradients = problem()
    one = sum(p.size for p in jax.tree.leaves(params)) * 8
    assert_close(jax.jit(bp.per_example.grads(loss, max_bytes=2 * 3 * one))(params, batch), gradients)
    assert_close(jax.jit(bp.per_example.grads(loss, max_bytes=1))(params, batch), gradients)


def test_moments_and_noise_scale():
    loss, params, batch, gradients = problem()
    found = jax.jit(bp.per_example.moments(loss))(params, batch)
    mean, variance = (
        jax.tree.map(lambda g, f=f: f(g), gradients) for f in (lambda g: g.mean(0), lambda g: g.var(0, ddof=1))
    )
    snr = jax.tree.map(lambda m, v: jnp.abs(m) / jnp.sqrt(v), mean, variance)
    assert_close(tuple(found), (mean, variance, snr))
    scale = jax.jit(bp.per_example.noise_scale(loss))(params, batch)
    rows = flat(gradients)
    trace = jnp.trace(jnp.cov(rows.T))
    squared_norm = jnp.sum(rows.mean(0) ** 2) - trace / 5
    assert_close(tuple(scale), (trace / squared_norm, trace, squared_norm))


def test_factors_multiply_to_the_gradients():
    loss, params, batch, gradients = problem()
    found = jax.jit(bp.per_example.factors(loss))(params, batch)
    assert set(found) == {"dense_0/kernel", "dense_1/kernel"}
    for path, (x, deltas) in found.items():
        layer, name = path.split("/")
        assert_close(jnp.einsum("npi,npo->nio", x, deltas), gradients[layer][name])
    assert_close(found["dense_0/kernel"][0][:, 0], batch[0])


def test_gram_and_cosines():
    loss, params, batch, gradients = problem()
    rows = flat(gradients)
    assert_close(bp.per_example.gram(lambda params, x: jnp.sum(x))({}, batch[0]), jnp.zeros((5, 5)))
    assert_close(jax.jit(bp.per_example.gram(loss))(params, batch), rows @ rows.T)
    unit = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    assert_close(jax.jit(bp.per_example.cosines(loss))(params, batch), unit @ unit.T)
    outputs = lambda params, x: bp.nets.mlp([3, 4, 2]).apply(params, x)
    jacobian = flat(
        jax.tree.map(lambda j: j.reshape(10, -1), jax.jit(jax.vmap(jax.jacrev(outputs), (None, 0)))(params, batch[0]))
    )
    assert_close(jax.jit(bp.per_example.gram(outputs))(params, batch[0]).reshape(10, 10), jacobian @ jacobian.T)


def test_the_size_of_the_program_does_not_grow_with_the_batch():
    loss, params, _, _ = problem()
    sizes = []
    for n in (4, 64):
        batch = jax.ShapeDtypeStruct((n, 3), jnp.float64), jax.ShapeDtypeStruct((n, 2), jnp.float64)
        sizes.append(len(jax.make_jaxpr(bp.per_example.clipped_grad(loss, 1.0))(params, batch).eqns))
    assert sizes[0] == sizes[1]


def test_clipping_costs_about_one_gradient():
    """In operations, whatever the number of examples."""
    net = bp.nets.mlp([64, 64, 64, 8], activation=bp.ops.relu)
    params = net.init(key(0), jnp.zeros(64))
    loss = lambda params, example: bp.ops.squared_error(net.apply(params, example[0]), example[1])
    batch = jnp.ones((128, 64)), jnp.ones((128, 8))
    flops = lambda f: jax.jit(f).lower(params, batch).cost_analysis()["flops"]
    plain = flops(jax.grad(lambda params, batch: jnp.mean(jax.vmap(loss, (None, 0))(params, batch))))
    assert flops(bp.per_example.clipped_grad(loss, 1.0)) < 1.1 * plain
    assert flops(bp.per_example.norms(loss)) < 0.8 * plain  # weight gradients are not made at all


# --- what is refused --------------------------------------------------------------------------------------------------


def test_refusals():
    x = jnp.ones((2, 3))
    with pytest.raises(TypeError, match=r"must return one number, the loss of one example .* returned shape \[3\]"):
        bp.per_example.norms(lambda w, x: w * x)(jnp.array(1.0), x)
    with pytest.raises(TypeError, match=r"must return one number"):
        bp.per_example.norms(lambda w, x: (w, x))(jnp.array(1.0), x)
    with pytest.raises(TypeError, match=r"must be real floating-point arrays, and this one is int64. What is not"):
        bp.per_example.norms(lambda w, x: jnp.sum(w * x))(jnp.array(1), x)
    with pytest.raises(ValueError, match=r"one leading axis, of examples; here are 0 \[2, 3\], 1 \[3\]"):
        bp.per_example.norms(lambda w, x: jnp.sum(w * x[0]))(jnp.array(1.0), (x, jnp.ones(3)))
    with pytest.raises(ValueError, match="at least two"):
        bp.per_example.noise_scale(lambda w, x: jnp.sum(w * x))(jnp.array(1.0), x[:1])


def test_examples_that_interact_are_refused():
    """Whether what is averaged are the data, or depends on the parameters."""
    for normalised in (lambda w, x: (x - lax.pmean(x, "batch")) * w, lambda w, x: x * w - lax.pmean(x * w, "batch")):
        with pytest.raises(ValueError, match=r"average over a named axis of examples .* running averages"):
            bp.per_example.norms(lambda w, x, f=normalised: jnp.sum(f(w, x)))(jnp.ones(3), jnp.ones((2, 3)))

    def batch_norm(w, x):
        x = (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0, keepdims=True) + 1e-5)
        return jnp.mean(jnp.tanh(x @ w))

    with pytest.raises(ValueError, match="The examples interact: the loss of the batch is"):
        bp.per_example.of_batch(batch_norm, W, normal(15, 5, 4))


@pytest.mark.parametrize("reduce", [jnp.mean, jnp.sum])
def test_a_loss_written_for_a_batch(reduce):
    batch_loss = lambda w, x: reduce(jnp.sum(jnp.tanh(x @ w), -1))
    x = normal(15, 5, 4)
    loss = bp.per_example.of_batch(batch_loss, W, x)
    single = lambda w, x: jnp.sum(jnp.tanh(x @ w))
    assert_close(bp.per_example.grads(loss)(W, x), jax.vmap(jax.grad(single), (None, 0))(W, x))
