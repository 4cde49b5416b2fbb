"""Small programs as the users of a package write them: their gradients by ours, and by JAX's."""

from __future__ import annotations

import importlib.metadata
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import core
from jax.interpreters import xla

import funcbp as bp

from .report import Row

PROGRAMS: dict[str, list[Callable[[], tuple[Any, Any]]]] = defaultdict(list)  # by the name of the distribution
WAYS = {
    "jit": lambda grad, f, x: jax.jit(grad(f))(x),
    "vmap": lambda grad, f, x: jax.jit(jax.vmap(lambda s: grad(f)(jax.tree.map(lambda v: s * v, x))))(
        np.array([1, 1.1], np.float32)
    ),
}


def program(package: str) -> Callable[[Any], Any]:
    """Enter a program: a function that imports the package, and returns a function and the tree to differentiate at."""

    def entered(make: Callable[[], tuple[Any, Any]]) -> Callable[[], tuple[Any, Any]]:
        PROGRAMS[package].append(make)
        return make

    return entered


def rows(names: list[str]) -> Iterator[Row]:
    """Run the programs of these packages; of all, if none is named."""
    # the last release of TensorFlow Probability reads a name that JAX has given up
    vars(xla).setdefault("pytype_aval_mappings", core.pytype_aval_mappings)
    for name in names or PROGRAMS:
        try:
            version = importlib.metadata.version(name)
            made = [(make.__name__, *make()) for make in PROGRAMS[name]]
        except (ImportError, AttributeError) as error:
            yield Row(name, "", note=f"NOT RUN: {type(error).__name__}: {error}")
            continue
        yield _row(name, version, made)
        jax.clear_caches()


def _row(name: str, version: str, made: list[tuple[str, Any, Any]]) -> Row:
    n_stock, n_ours, failures, on_jax = 0, 0, {}, ""
    for program, f, x in made:
        for way, run in WAYS.items():
            try:
                want = run(jax.grad, f, x)
            except Exception as error:  # the package and this version of JAX do not go together
                on_jax = f"NOT RUN: fails with JAX's own: {type(error).__name__}: {error}"
                continue
            for whose, grad in {"grad": bp.grad, "attach": lambda f: jax.grad(bp.Backward().attach(f))}.items():
                n_stock += 1
                try:
                    _compare(run(grad, f, x), want)
                    n_ours += 1
                except Exception as error:
                    failures[f"{program}, {way}, {whose}"] = f"{type(error).__name__}: {error}"
    return Row(name, version, n_stock, n_ours, n_stock, failures, note="" if n_stock else on_jax)


def _compare(got: Any, want: Any) -> None:
    """Compare each array within 2e-4 of its entries, and 4e-6 of the largest of all: some are zero but for rounding."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    largest = max(np.max(np.abs(w), initial=0.0) for w in jax.tree.leaves(want))
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (g.dtype, g.shape) == (w.dtype, w.shape)
        np.testing.assert_allclose(g, w, rtol=2e-4, atol=4e-6 * largest)


def normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(sum(shape)), shape)


def of_arrays(model: Any, f: Callable[[Any], Any]) -> tuple[Any, Any]:
    """A function of an Equinox model as one of its arrays."""
    import equinox as eqx

    arrays, rest = eqx.partition(model, eqx.is_inexact_array)
    return lambda arrays: f(eqx.combine(arrays, rest)), arrays


@program("blackjax")
def through_a_step_of_hmc() -> tuple[Any, Any]:
    import blackjax

    hmc = blackjax.hmc(lambda x: -jnp.sum(x**2) - 0.1 * jnp.sum(x) ** 4, 0.1, jnp.ones(2), 3)
    return lambda x: jnp.sum(hmc.step(jax.random.key(0), hmc.init(x))[0].position ** 2), normal(2)


@program("diffrax")
def an_adaptive_and_an_implicit_solver() -> tuple[Any, Any]:
    import diffrax

    def f(a: Any) -> Any:
        term, tolerance = diffrax.ODETerm(lambda t, y, a: jnp.sin(t) - a * y), diffrax.PIDController(1e-4, 1e-4)
        solve = lambda solver: diffrax.diffeqsolve(
            term, solver, 0.0, 1.0, 0.1, jnp.ones(2), args=a, stepsize_controller=tolerance, max_steps=256
        )
        return sum(jnp.sum(solve(solver).ys ** 2) for solver in (diffrax.Tsit5(), diffrax.Kvaerno3()))

    return f, jnp.array([0.5, 1.5])


@program("diffrax")
def the_time_of_an_event() -> tuple[Any, Any]:
    import diffrax
    import optimistix as optx

    def f(p: Any) -> Any:
        fall = diffrax.ODETerm(lambda t, y, p: jnp.array([y[1], -p["gravity"] - 0.1 * y[1]]))
        event = diffrax.Event(lambda t, y, args, **_: y[0], optx.Newton(1e-5, 1e-5, optx.rms_norm))
        start = jnp.array([p["height"], 0.0])
        solved = diffrax.diffeqsolve(fall, diffrax.Tsit5(), 0, 9, 0.05, start, args=p, event=event, max_steps=256)
        return solved.ts[-1] ** 2 + solved.ys[-1, 1]

    return f, {"gravity": jnp.float32(8.0), "height": jnp.float32(3.0)}


@program("distrax")
def a_flow() -> tuple[Any, Any]:
    import distrax

    def f(p: Any) -> Any:
        spline = distrax.RationalQuadraticSpline(p["spline"], -1.0, 1.0)
        bijector = distrax.Chain([distrax.ScalarAffine(p["shift"], jnp.exp(p["scale"])), distrax.Tanh(), spline])
        flow = distrax.Transformed(distrax.Normal(0.0, 1.0), bijector)
        return -jnp.mean(flow.log_prob(jnp.linspace(-0.5, 0.5, 7)))

    return f, {"shift": jnp.float32(0.1), "scale": jnp.float32(-0.2), "spline": normal(13)}


@program("distrax")
def a_hidden_markov_model() -> tuple[Any, Any]:
    import distrax

    def f(p: Any) -> Any:
        first, then = distrax.Categorical(logits=p["first"]), distrax.Categorical(logits=p["then"])
        model = distrax.HMM(first, then, distrax.Normal(p["mean"], jnp.ones(3)))
        _, _, posterior, log_likelihood = model.forward_backward(normal(6))
        return jnp.sum(posterior**2) - log_likelihood

    return f, {"first": normal(3), "then": normal(3, 3), "mean": 3 * normal(3)}


@program("dm-pix")
def augmentations() -> tuple[Any, Any]:
    import dm_pix

    def f(image: Any) -> Any:
        image = dm_pix.adjust_hue(jax.nn.sigmoid(dm_pix.gaussian_blur(image, 1.0, kernel_size=3)), 0.1)
        turn = jnp.array([[0.9, 0.1, 0.0], [-0.1, 0.9, 0.0], [0.0, 0.0, 1.0]])
        turned = dm_pix.affine_transform(image, turn, mode="nearest")
        return jnp.sum(turned**2) + jnp.mean(dm_pix.ssim(image[None], jnp.full_like(image, 0.5)[None], filter_size=3))

    return f, normal(8, 8, 3)


@program("dynamax")
def a_linear_state_space() -> tuple[Any, Any]:
    from dynamax.linear_gaussian_ssm import LinearGaussianSSM

    model = LinearGaussianSSM(2, 2)
    return lambda p: -model.marginal_log_prob(p, normal(6, 2)), model.initialize(jax.random.key(0))[0]


@program("e3nn-jax")
def equivariant_layers() -> tuple[Any, Any]:
    import e3nn_jax as e3nn

    with_gates = e3nn.Irreps("2x0e + 1x1o")

    def f(p: Any) -> Any:
        directions = e3nn.spherical_harmonics("1o + 2e", p["positions"], normalize=True, normalization="component")
        product = e3nn.tensor_product(directions, e3nn.IrrepsArray("1x0e + 1x1o", normal(4, 4)))
        linear = e3nn.FunctionalLinear(product.irreps, with_gates)
        mixed = jax.vmap(lambda x: linear(p["weights"], x))(product)
        pooled = e3nn.scatter_sum(e3nn.gate(mixed), dst=jnp.array([0, 1, 1, 0]), output_size=2)
        return jnp.sum(e3nn.norm(pooled).array ** 2) + jnp.sum(e3nn.bessel(mixed.array[:, 0] ** 2 + 0.1, 3))

    return f, {"positions": normal(4, 3), "weights": [normal(1, 2), normal(2, 1)]}


@program("equinox")
def layers() -> tuple[Any, Any]:
    import equinox as eqx

    key = jax.random.key(0)
    attention = eqx.nn.MultiheadAttention(2, 4, key=key)
    model = attention, eqx.nn.LayerNorm(4), eqx.nn.RotaryPositionalEmbedding(4), eqx.nn.GRUCell(4, 4, key=key)

    def f(model: Any) -> Any:
        attention, norm, rotate, cell = model
        x = rotate(jax.vmap(norm)(normal(5, 4)))
        return jnp.sum(jax.lax.scan(lambda h, x: (cell(x, h), None), jnp.zeros(4), attention(x, x, x))[0] ** 2)

    return of_arrays(model, f)


@program("equinox")
def loops_with_checkpoints() -> tuple[Any, Any]:
    import equinox.internal as eqxi

    def f(w: Any) -> Any:
        step = lambda c: (c[0] + 1, jnp.tanh(w @ c[1]))
        loop = lambda **how: eqxi.while_loop(lambda c: c[0] < 6, step, (0, jnp.ones(3)), **how)[1]
        return jnp.sum(loop(kind="checkpointed", max_steps=None, checkpoints=2) * loop(kind="bounded", max_steps=8))

    return f, 0.5 * normal(3, 3)


@program("flowjax")
def an_autoregressive_flow() -> tuple[Any, Any]:
    import paramax
    from flowjax import distributions, flows

    base = distributions.Normal(jnp.zeros(2))
    how = dict(base_dist=base, flow_layers=2, nn_width=6, nn_depth=1)
    flow = flows.masked_autoregressive_flow(jax.random.key(0), **how)
    return of_arrays(flow, lambda flow: -jnp.mean(paramax.unwrap(flow).log_prob(normal(5, 2))))


@program("gpjax")
def the_marginal_likelihood_of_a_process() -> tuple[Any, Any]:
    import gpjax
    from flax import nnx

    x = jnp.linspace(0, 1, 8)[:, None]
    prior = gpjax.gps.Prior(kernel=gpjax.kernels.RBF(), mean_function=gpjax.mean_functions.Constant())
    graph, p = nnx.split(prior * gpjax.likelihoods.Gaussian(8))
    data = gpjax.Dataset(x, jnp.sin(x))
    return lambda p: -gpjax.objectives.conjugate_mll(nnx.merge(graph, p), data), p


@program("interpax")
def interpolations() -> tuple[Any, Any]:
    import interpax

    x, at = jnp.linspace(0, 1, 7), jnp.linspace(0.05, 0.95, 9)
    methods = "nearest linear cubic cubic2 cardinal catmull-rom monotonic akima".split()
    return lambda y: sum(jnp.sum(interpax.interp1d(at, x, y, method=m) ** 2) for m in methods), normal(7)


@program("jax-md")
def through_a_simulation() -> tuple[Any, Any]:
    from jax_md import energy, simulate, space

    displacement, shift = space.periodic(4.0)

    def f(p: Any) -> Any:
        potential = energy.soft_sphere_pair(displacement, sigma=p["sigma"])
        start, step = simulate.nve(potential, shift, 1e-2)
        begin = start(jax.random.key(1), p["positions"], kT=0.1)
        return jnp.sum(jax.lax.fori_loop(0, 4, lambda i, s: step(s), begin).position ** 2)

    return f, {"sigma": jnp.float32(1.1), "positions": 4 * jax.random.uniform(jax.random.key(0), (5, 2))}


@program("jaxopt")
def implicit_and_unrolled_optima() -> tuple[Any, Any]:
    import jaxopt

    x, y = normal(6, 3), normal(6)
    loss = lambda w, l2: jnp.mean((x @ w - y) ** 2) + l2 @ w**2

    def f(p: Any) -> Any:
        start = jnp.zeros(3)
        implicit = jaxopt.LBFGS(loss, maxiter=100).run(start, p["l2"]).params
        unrolled = jaxopt.GradientDescent(loss, stepsize=0.1, maxiter=5, implicit_diff=False)
        on_simplex = jaxopt.ProjectedGradient(loss, jaxopt.projection.projection_simplex, stepsize=0.1, maxiter=200)
        lasso = jaxopt.ProximalGradient(
            lambda w: loss(w, jnp.ones(3)), jaxopt.prox.prox_lasso, stepsize=0.1, maxiter=200
        )
        found = implicit, unrolled.run(start, p["l2"]).params, on_simplex.run(jnp.ones(3) / 3, 1.0, p["l2"]).params
        return sum(jnp.sum(w**2) for w in (*found, lasso.run(start, p["l1"]).params))

    return f, {"l1": jnp.float32(0.05), "l2": jnp.array([0.1, 0.2, 0.3])}


@program("jaxlie")
def motions() -> tuple[Any, Any]:
    import jaxlie

    def f(x: Any) -> Any:
        motion = jaxlie.SE3.exp(x[0]) @ jaxlie.SE3.exp(x[1]).inverse()
        return jnp.sum(motion.log() ** 2) + jnp.sum(motion.apply(jnp.arange(3.0)) ** 2)

    return f, normal(2, 6)


@program("jraph")
def graph_attention() -> tuple[Any, Any]:
    import jraph

    senders, receivers, n_edge = jnp.array([0, 1, 2, 3, 0]), jnp.array([1, 2, 3, 0, 2]), jnp.array([5])

    def f(w: Any) -> Any:
        graph = jraph.GraphsTuple(
            normal(4, 3), None, senders=senders, receivers=receivers, globals=None, n_node=jnp.array([4]), n_edge=n_edge
        )
        nodes = jraph.GraphConvolution(lambda n: n @ w, add_self_edges=True)(graph).nodes
        return jraph.segment_softmax(nodes[:, 0], jnp.array([0, 0, 1, 1]), 2) @ jnp.arange(4.0)

    return f, normal(3, 3)


@program("lineax")
def linear_solvers() -> tuple[Any, Any]:
    import lineax

    def f(a: Any) -> Any:
        definite = lineax.MatrixLinearOperator(a @ a.T + jnp.eye(3), lineax.positive_semidefinite_tag)
        solve = lambda operator, solver: jnp.sum(lineax.linear_solve(operator, a[0], solver).value ** 2)
        tall = lineax.MatrixLinearOperator(a[:, :2])
        return sum(solve(definite, s) for s in (lineax.CG(1e-6, 1e-6), lineax.Cholesky())) + solve(tall, lineax.QR())

    return f, normal(3, 3)


@program("lineax")
def operators_that_are_functions() -> tuple[Any, Any]:
    import lineax

    def f(p: Any) -> Any:
        like, rhs = jax.ShapeDtypeStruct((3,), jnp.float32), p["rhs"]
        times = lambda v: p["matrix"] @ v + 4 * v + jnp.roll(p["scale"] * v, 1)
        operator = lineax.FunctionLinearOperator(times, like)
        definite = lineax.FunctionLinearOperator(
            lambda v: p["scale"] ** 2 * v + jnp.sum(v) * rhs[0] ** 2, like, lineax.positive_semidefinite_tag
        )
        at = lineax.JacobianLinearOperator(lambda v, scale: jnp.sin(v) * scale + times(v), rhs, p["scale"])
        solve = lambda operator, solver: lineax.linear_solve(operator, rhs, solver).value
        solved = [solve(o, lineax.GMRES(1e-6, 1e-6)) for o in (operator, operator.T, at)]
        solved += [solve(definite, lineax.CG(1e-6, 1e-6)), solve(operator + definite, lineax.LU())]
        return sum(jnp.sum(s**2) for s in solved)

    return f, {"matrix": normal(3, 3), "scale": jnp.array([0.5, 1.5, -1.0]), "rhs": normal(3)}


@program("mctx")
def the_policy_loss_of_a_search() -> tuple[Any, Any]:
    import mctx

    def f(w: Any) -> Any:
        root = mctx.RootFnOutput(prior_logits=normal(2, 3) @ w, value=jnp.zeros(2), embedding=jnp.zeros(2))

        def recurrent(params: Any, key: Any, action: Any, state: Any) -> Any:
            reward, discount, logits = 0.1 * action, jnp.full(2, 0.9), jnp.zeros((2, 3))
            return mctx.RecurrentFnOutput(reward, discount, logits, state), state + action

        found = mctx.gumbel_muzero_policy(None, jax.random.key(0), root, recurrent, num_simulations=4)
        return -jnp.sum(jax.lax.stop_gradient(found.action_weights) * jax.nn.log_softmax(root.prior_logits))

    return f, normal(3, 3)


@program("numpyro")
def a_variational_bound() -> tuple[Any, Any]:
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI, Trace_ELBO, autoguide

    def model(y: Any) -> None:
        mean, scale = numpyro.sample("mean", dist.Normal(0, 1)), numpyro.sample("scale", dist.HalfNormal(1.0))
        numpyro.sample("y", dist.StudentT(4.0, mean, scale), obs=y)

    guide, key, y = autoguide.AutoMultivariateNormal(model), jax.random.key(0), normal(5)
    svi = SVI(model, guide, numpyro.optim.Adam(0.1), Trace_ELBO())
    return lambda p: Trace_ELBO().loss(key, p, model, guide, y), svi.get_params(svi.init(key, y))


@program("optimistix")
def roots_and_minima() -> tuple[Any, Any]:
    import optimistix as optx

    def f(a: Any) -> Any:
        how = dict(rtol=1e-5, atol=1e-5)
        root = optx.root_find(lambda y, a: y - jnp.cos(a * y), optx.Newton(**how), jnp.ones(2), a)
        fitted = optx.least_squares(lambda y, a: (y - a, 0.1 * y**2), optx.LevenbergMarquardt(**how), jnp.ones(2), a)
        least = optx.minimise(lambda y, a: jnp.sum((y - a) ** 4 + (y - a) ** 2), optx.BFGS(**how), jnp.ones(2), a)
        return sum(jnp.sum(solution.value**2) for solution in (root, fitted, least))

    return f, jnp.array([0.6, 0.8])


@program("optax")
def losses() -> tuple[Any, Any]:
    import optax

    def f(x: Any) -> Any:
        labels, n = jnp.array([0, 1, 2, 0]), jnp.arange(3.0)
        y = jax.nn.one_hot(labels, 3)
        each = [
            optax.softmax_cross_entropy(x, y),
            optax.losses.poly_loss_cross_entropy(x, y),
            optax.cosine_distance(x, y),
        ]
        each += [optax.sigmoid_focal_loss(x, y), optax.huber_loss(x, y), optax.ntxent(x, labels)]
        each += [optax.ctc_loss(x[None], jnp.zeros((1, 4)), jnp.array([[1, 2]]), jnp.zeros((1, 2)))]
        return sum(map(jnp.sum, each)) + optax.projections.projection_simplex(x[0]) @ n

    return f, normal(4, 3)


@program("ott-jax")
def the_cost_of_a_transport() -> tuple[Any, Any]:
    from ott.geometry import pointcloud
    from ott.solvers import linear

    def f(x: Any) -> Any:
        return linear.solve(pointcloud.PointCloud(x, normal(4, 2), epsilon=0.5)).reg_ot_cost

    return f, normal(5, 2)


@program("penzai")
def a_network_with_named_axes() -> tuple[Any, Any]:
    from penzai import pz

    affine = pz.nn.Affine.from_config("affine", jax.random.key(0), {"in": 3}, {"out": 4})
    model, p = pz.unbind_params(pz.nn.Sequential([affine, pz.nn.Elementwise(jax.nn.gelu)]), freeze=True)
    x = pz.nx.wrap(normal(3)).tag("in")
    return lambda p: jnp.sum(pz.bind_variables(model, p)(x).unwrap("out") ** 2), p


@program("quax")
def low_rank_adapters() -> tuple[Any, Any]:
    import equinox as eqx
    import quax
    from quax.examples import lora

    key = jax.random.key(0)
    model = lora.loraify(eqx.nn.MLP(3, 3, 4, 1, key=key), rank=2, key=key)
    return of_arrays(model, lambda model: jnp.sum(quax.quaxify(model)(normal(3)) ** 2))


@program("rlax")
def actor_and_critic() -> tuple[Any, Any]:
    import rlax

    def f(p: Any) -> Any:
        v, actions = p["values"], jnp.array([0, 1, 2, 0, 1])
        ratios = jnp.exp(0.1 * jax.nn.softmax(p["logits"])[:, 0])
        found = rlax.vtrace_td_error_and_advantage(v[:-1], v[1:], normal(5), jnp.full(5, 0.9), ratios)
        actor = rlax.policy_gradient_loss(p["logits"], actions, found.pg_advantage, jnp.ones(5))
        return jnp.sum(found.errors**2) + actor

    return f, {"values": normal(6), "logits": normal(5, 3)}


@program("sympy2jax")
def a_formula() -> tuple[Any, Any]:
    import sympy
    import sympy2jax

    x = sympy.symbols("x")
    formula = sympy2jax.SymbolicModule([2.5 * sympy.sin(x) + x**3 / 3, sympy.exp(-x) * x**1.5])
    return of_arrays(formula, lambda formula: sum(formula(x=0.7)))


@program("tinygp")
def a_process_in_linear_time() -> tuple[Any, Any]:
    import tinygp

    x = jnp.sort(normal(8))

    def f(p: Any) -> Any:
        kernel = tinygp.kernels.quasisep.Matern32(jnp.exp(p["scale"])) + tinygp.kernels.quasisep.SHO(
            jnp.exp(p["omega"]), jnp.float32(0.8)
        )
        process = tinygp.GaussianProcess(kernel, x, diag=jnp.exp(p["noise"]) + 0.1)
        return -process.log_probability(jnp.sin(x))

    return f, {"scale": jnp.float32(0.2), "omega": jnp.float32(0.1), "noise": jnp.float32(-1.0)}
