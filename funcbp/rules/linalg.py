"""Linear algebra: factorisations, solves and Fourier transforms.

The derivative of a factorisation is easiest to state along a direction: from dA follow dL, dQ, dR, dw, dV. Each rule
below is such a tangent rule, linear in dA; the backward pass transposes it, as it does the user's own `custom_jvp`
rules. Solves are written backward.

References:
    M. Giles, Collected matrix derivative results for forward and reverse mode algorithmic differentiation (2008);
    I. Murray, Differentiation of the Cholesky decomposition (2016); F. de Hoog, R. Anderssen, M. Lukas, Differentiation
    of matrix functionals using triangular factorization (2011).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from ..cotangents import Cotangent, Zero
from ..jaxpr import aval_of, primitive, primitives
from ..jaxpr.types import Aval, JaxprEqn, PyTree, Value
from .elementwise import is_complex
from .registry import def_linear, def_rule, def_tangent
from .traits import DEAR, Singularity, Traits, def_traits, free, operand


def T(x: jax.Array) -> jax.Array:
    """The transpose of the last two axes."""
    return jnp.swapaxes(x, -1, -2)


def H(x: jax.Array) -> jax.Array:
    """The conjugate transpose of the last two axes."""
    return lax.conj(T(x)) if is_complex(x) else T(x)


def dot(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y, precision=lax.Precision.HIGHEST)


def eye(n: int, x: jax.Array) -> jax.Array:
    """The identity, with the batch axes of x as axes of size 1."""
    return lax.expand_dims(jnp.eye(n, dtype=x.dtype), range(x.ndim - 2))


def diagonal(x: jax.Array) -> jax.Array:
    return jnp.diagonal(x, axis1=-2, axis2=-1)


def as_type(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    return lax.convert_element_type(x, dtype)


def solve_triangular(a: jax.Array, b: jax.Array, **how: Any) -> jax.Array:
    return lax.linalg.triangular_solve(a, b, **how)


def reciprocal_differences(w: jax.Array) -> jax.Array:
    """Fᵢⱼ = 1 / (wⱼ - wᵢ) off the diagonal, 0 on it."""
    one = eye(w.shape[-1], w[..., None])
    return lax.reciprocal(one + (w[..., None, :] - w[..., :, None])) - one


# --- factorisations ---------------------------------------------------------------------------------------------------


def hermitian(a: jax.Array, lower: bool = True) -> jax.Array:
    """The Hermitian matrix with this triangle of a matrix, and of its diagonal the real part: nothing else is read."""
    off = jnp.tril(a, -1) if lower else jnp.triu(a, 1)
    on = as_type(lax.real(diagonal(a)), a.dtype) if is_complex(a) else diagonal(a)
    return off + H(off) + eye(a.shape[-1], a) * on[..., None]


def cholesky_tangent(
    primals: Sequence[jax.Array], tangents: Sequence[jax.Array | Any], **params: Any
) -> tuple[Value, Value]:
    """A = L L*:  dL = L Φ(L⁻¹ dA L⁻*), where Φ takes the lower triangle and halves the diagonal.

    Of A, only the lower triangle is read, and of its diagonal the real part.
    """
    (a,), (da,) = primals, tangents
    out = jnp.tril(primitives.cholesky_p.bind(a, **params))
    inner = solve_triangular(out, hermitian(da), left_side=False, transpose_a=True, conjugate_a=True, lower=True)
    inner = jnp.tril(solve_triangular(out, inner, left_side=True, lower=True))
    return out, dot(out, inner / (1 + eye(a.shape[-1], a)))


def eigh_tangent(
    primals: Sequence[jax.Array],
    tangents: Sequence[jax.Array | Any],
    *,
    lower: bool,
    subset_by_index: tuple[int, int] | None = None,
    **params: Any,
) -> tuple[Value, Value]:
    """A = V diag(w) V*:  with P = V* dA V,  dw = diag P,  dV = V (F ∘ P),  Fᵢⱼ = 1/(wⱼ - wᵢ) off the diagonal.

    Of A, one triangle is read, and of its diagonal the real part.
    """
    (a,), (da,) = primals, tangents
    n = a.shape[-1]
    if not (subset_by_index is None or subset_by_index == (0, n)):
        raise NotImplementedError("The derivative of a partial eigendecomposition is not defined, here as in JAX.")
    v, w = primitives.eigh_p.bind(hermitian(a, lower), lower=lower, subset_by_index=subset_by_index, **params)
    p = dot(dot(H(v), hermitian(da, lower)), v)
    dw = diagonal(lax.real(p) if is_complex(p) else p)
    return [v, w], [dot(v, reciprocal_differences(as_type(w, a.dtype)) * p), dw]


def eig_tangent(
    primals: Sequence[jax.Array], tangents: Sequence[jax.Array | Any], **params: Any
) -> tuple[Value, Value]:
    """A V = V diag(w):  with P = V⁻¹ dA V,  dw = diag P,  dV = V (F ∘ P) + V diag(c).

    The eigenvalue equation leaves each eigenvector a complex factor; LAPACK makes its norm 1 and its largest component
    real, and c keeps it so. Derivatives of eigenvectors exist where the eigenvalues are distinct; JAX gives them on
    request (`enable_eigvec_derivs`), and so do we.
    """
    (a,), (da,) = primals, tangents
    left, right = params["compute_left_eigenvectors"], params["compute_right_eigenvectors"]
    if (left or right) and not params.get("enable_eigvec_derivs", False):
        raise NotImplementedError(
            "Derivatives of non-symmetric eigenvectors hold only under assumptions on the input that cannot be "
            "checked. Pass enable_eigvec_derivs=True to jax.lax.linalg.eig, or differentiate the eigenvalues alone."
        )
    w, *vectors = primitives.eig_p.bind(a, **{**params, "compute_right_eigenvectors": True})
    v = vectors[-1]
    da = as_type(da, v.dtype)
    if not (left or right):
        return [w], [jnp.sum(_solve(v, da) * T(v), -1)]
    dw, dv = _eigenvectors_tangent(w, v, da)
    outs, douts = [w], [dw]
    if left:
        outs.append(vectors[0])
        douts.append(_eigenvectors_tangent(lax.conj(w), vectors[0], H(da))[1])
    if right:
        outs.append(v)
        douts.append(dv)
    return outs, douts


def _solve(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.linalg.solve(a, b)


def _eigenvectors_tangent(w: jax.Array, v: jax.Array, da: jax.Array) -> tuple[jax.Array, jax.Array]:
    p = dot(_solve(v, da), v)
    u = dot(v, reciprocal_differences(w) * p)
    largest = jnp.argmax(lax.abs(v), -2, keepdims=True)
    at_largest = lambda x: jnp.take_along_axis(x, largest, -2)[..., 0, :]
    along = -lax.real(jnp.sum(lax.conj(v) * u, -2))
    turn = -lax.imag(at_largest(u)) / lax.real(at_largest(v))
    return diagonal(p), u + v * lax.complex(along, turn)[..., None, :]


def lu_tangent(primals: Sequence[jax.Array], tangents: Sequence[jax.Array | Any], **params: Any) -> tuple[Value, Value]:
    """P A = L U:  with M = L⁻¹ P dA U⁻¹,  dL = L tril₋₁(M),  dU = triu(M) U. Both are packed into one matrix."""
    (a,), (da,) = primals, tangents
    packed, pivots, permutation = primitives.lu_p.bind(a, **params)
    m, n = a.shape[-2:]
    k = min(m, n)
    batch = [(0, 0)] * (a.ndim - 2)
    lower = jnp.pad(jnp.tril(packed[..., :, :k], -1), [*batch, (0, 0), (0, m - k)]) + eye(m, a)
    upper = jnp.pad(jnp.triu(packed[..., :k, :]), [*batch, (0, n - k), (0, 0)])
    upper = upper + jnp.pad(jnp.zeros((*a.shape[:-2], k, k), a.dtype), [*batch, (0, n - k), (0, n - k)])
    upper = upper + lax.expand_dims(jnp.diag(jnp.arange(n) >= k).astype(a.dtype), range(a.ndim - 2))
    rows = jnp.take_along_axis(da, permutation[..., None], -2)
    inner = solve_triangular(lower, rows, left_side=True, lower=True, unit_diagonal=True)
    inner = solve_triangular(upper, inner, left_side=False, lower=False)
    return [packed, pivots, permutation], [dot(lower, jnp.tril(inner, -1)) + dot(jnp.triu(inner), upper), None, None]


def qr_tangent(
    primals: Sequence[jax.Array],
    tangents: Sequence[jax.Array | Any],
    *,
    pivoting: bool,
    full_matrices: bool,
    **params: Any,
) -> tuple[Value, Value]:
    """A P = Q R, A tall or square:  with M = Q* dA P R⁻¹ and its skew part S made of the lower triangle,

        dQ = Q (S - M) + dA P R⁻¹,    dR = (M - S) R.

    Of a wide A P = (A₁ A₂) the square part is differentiated so, and dR₂ = dQ* A₂ + Q* dA₂. P moves in jumps.
    """
    (a,), (da,) = primals, tangents
    q, r, *order = primitives.qr_p.bind(a, pivoting=pivoting, full_matrices=full_matrices, **params)
    m, n = a.shape[-2:]
    k = min(m, n)
    if pivoting:
        a, da = (jnp.take_along_axis(x, order[0][..., None, :], -1) for x in (a, da))
    dq, dr = _thin_qr_tangent(q[..., :, :k], r[..., :k, :k], da[..., :, :k])
    if m < n:
        dr = jnp.concatenate([dr, dot(H(dq), a[..., :, k:]) + dot(H(q), da[..., :, k:])], -1)
    if full_matrices and m > n:
        dq = jnp.concatenate([dq, _complement_tangent(q, dq)], -1)
        dr = jnp.concatenate([dr, jnp.zeros((*a.shape[:-2], m - n, n), dr.dtype)], -2)
    return [q, r, *order], [dq, dr, *(None for _ in order)]


def _complement_tangent(q: jax.Array, dq: jax.Array) -> jax.Array:
    """The columns that a full Q = (Q₁ Q₂) has beyond the n of the thin one, where both come from n reflections:

    with Q₁ = (B; C), B n by n, and Z = C (B - 1)⁻¹,  dQ₂ = dQ₁ Z* - (Q₁ + Q₂ Z) (dC - Z dB)*.

    References:
        arXiv:2409.13374, equations 32 and 33.
    """
    n = dq.shape[-1]
    thin, rest = q[..., :, :n], q[..., :, n:]
    z_h = _solve(H(thin[..., :n, :] - eye(n, q)), H(thin[..., n:, :]))
    z = H(z_h)
    return dot(dq, z_h) - dot(thin + dot(rest, z), H(dq[..., n:, :] - dot(z, dq[..., :n, :])))


def _thin_qr_tangent(q: jax.Array, r: jax.Array, da: jax.Array) -> tuple[jax.Array, jax.Array]:
    da_r = solve_triangular(r, da, left_side=False, lower=False)
    inner = dot(H(q), da_r)
    lower = jnp.tril(inner, -1)
    skew = lower - H(lower)
    if is_complex(inner):  # the diagonal of R stays real
        skew = skew + eye(inner.shape[-1], inner) * lax.complex(jnp.zeros_like(lax.real(inner)), lax.imag(inner))
    return dot(q, skew - inner) + da_r, dot(inner - skew, r)


def svd_tangent(
    primals: Sequence[jax.Array],
    tangents: Sequence[jax.Array | Any],
    *,
    full_matrices: bool,
    compute_uv: bool,
    **params: Any,
) -> tuple[Value, Value]:
    """A = U diag(s) V*:  with D = U* dA V,  ds = Re diag D,

        dU = U (F ∘ (D S + S D*) + diagonal part) + (1 - U U*) dA V S⁻¹,   dV = V (F ∘ (S D + D* S)) + ...,

    Fᵢⱼ = 1/(sⱼ² - sᵢ²) off the diagonal. It exists where the singular values are distinct.
    """
    (a,), (da,) = primals, tangents
    m, n = a.shape[-2:]
    if compute_uv and full_matrices and m != n:
        raise NotImplementedError(
            "The derivative of the full singular value decomposition is not implemented, here as in JAX: use "
            "full_matrices=False."
        )
    s, u, vt = primitives.svd_p.bind(a, full_matrices=False, compute_uv=True, **params)
    v = H(vt)
    d = dot(dot(H(u), da), v)
    ds = diagonal(lax.real(d) if is_complex(d) else d)
    if not compute_uv:  # the same numbers as without a derivative, to the last bit
        return primitives.svd_p.bind(a, full_matrices=full_matrices, compute_uv=False, **params), [ds]
    wide = as_type(s, a.dtype)[..., None, :]
    tall = T(wide)
    one = eye(s.shape[-1], d)
    f = lax.reciprocal((wide + tall) * (wide - tall) + one) - one
    is_zero = as_type(lax.eq(s, lax.full_like(s, 0)), s.dtype)
    inverse = lax.reciprocal(s + is_zero) - is_zero
    phase = (d - H(d)) / 2 * (one * as_type(inverse, a.dtype)[..., None, :])
    du = dot(u, f * (wide * d + H(wide * d)) + phase)
    dv = dot(v, f * (tall * d + H(tall * d)))
    if m > n:
        rest = dot(da, v)
        du = du + (rest - dot(u, dot(H(u), rest))) / wide
    if n > m:
        rest = dot(H(da), u)
        dv = dv + (rest - dot(v, dot(H(v), rest))) / wide
    return [s, u, vt], [ds, du, H(dv)]


def cubic(times: float, singular: Singularity | None = None) -> Traits:
    """A factorization of (m, n) matrices takes about `times` m n min(m, n) operations."""

    def count(eqn: JaxprEqn) -> int:
        return int(times * operand(eqn) * min(aval_of(eqn.invars[0].aval).shape[-2:]))

    return DEAR.but(flops=count, singular=singular)


# The numbers are those of G. Golub and C. Van Loan, Matrix computations (2013), with the factors made explicitly.
def_tangent(primitives.cholesky_p, cholesky_tangent, traits=cubic(1 / 3, Singularity.MATRIX))
def_tangent(primitives.eigh_p, eigh_tangent, traits=cubic(9, Singularity.SPECTRUM))
def_tangent(primitives.eig_p, eig_tangent, traits=cubic(25, Singularity.SPECTRUM))
def_tangent(primitives.lu_p, lu_tangent, traits=cubic(2 / 3, Singularity.MATRIX))
def_tangent(primitives.qr_p, qr_tangent, traits=cubic(4 / 3, Singularity.MATRIX))
def_tangent(primitives.svd_p, svd_tangent, traits=cubic(21, Singularity.SPECTRUM))
def_traits(cubic(4 / 3), primitives.householder_product_p)
def_traits(DEAR.but(flops=free), primitive("lu_pivots_to_permutation_p"))

# --- solves -----------------------------------------------------------------------------------------------------------


def triangular_solve_bwd(
    res: PyTree,
    ct: jax.Array,
    perturbed: Sequence[bool],
    *,
    left_side: bool,
    lower: bool,
    transpose_a: bool,
    conjugate_a: bool,
    unit_diagonal: bool,
) -> list[Cotangent]:
    """A' X = B, A' being A, its transpose or its conjugate:  B̄ = A'⁻ᵀ X̄,  Ā' = -B̄ Xᵀ on the triangle.

    With A' on the right, X A' = B:  B̄ = X̄ A'⁻ᵀ,  Ā' = -Xᵀ B̄.
    """
    a, x = res
    how = dict(left_side=left_side, lower=lower, conjugate_a=conjugate_a, unit_diagonal=unit_diagonal)
    b_bar = solve_triangular(a, ct, transpose_a=not transpose_a, **how)
    if not perturbed[0]:
        return [Zero, b_bar]
    a_bar = lax.neg(dot(b_bar, T(x)) if left_side else dot(T(x), b_bar))
    a_bar = T(a_bar) if transpose_a else a_bar
    a_bar = lax.conj(a_bar) if conjugate_a and is_complex(a_bar) else a_bar
    off = int(unit_diagonal)
    return [jnp.tril(a_bar, -off) if lower else jnp.triu(a_bar, off), b_bar]


def tridiagonal_solve_bwd(res: PyTree, ct: jax.Array, perturbed: Sequence[bool], **params: Any) -> list[Cotangent]:
    """A X = B, A of three diagonals:  B̄ = A⁻ᵀ X̄;  the diagonals get those of -B̄ Xᵀ."""
    low, mid, up, x = res
    zero = jnp.zeros((*low.shape[:-1], 1), low.dtype)
    low_t = jnp.concatenate([zero, up[..., :-1]], -1)
    up_t = jnp.concatenate([low[..., 1:], zero], -1)
    b_bar = primitives.tridiagonal_solve_p.bind(low_t, mid, up_t, ct, **params)
    row = lambda: jnp.zeros((*x.shape[:-2], 1, x.shape[-1]), x.dtype)
    before = lambda: jnp.concatenate([row(), x[..., :-1, :]], -2)
    after = lambda: jnp.concatenate([x[..., 1:, :], row()], -2)
    met = zip((before, lambda: x, after), perturbed[:3], strict=True)
    return [*(lax.neg(jnp.sum(b_bar * y(), -1)) if p else Zero for y, p in met), b_bar]


def solve_save(primals: Sequence[jax.Array], x: jax.Array, perturbed: Sequence[bool], params: dict[str, Any]) -> PyTree:
    """The matrix (all operands but the last), and the solution where the matrix is perturbed."""
    return *primals[:-1], (x if any(perturbed[:-1]) else None)


def triangular_solve_flops(eqn: JaxprEqn) -> int:
    """Each unknown takes a multiplication and an addition for each one before it, half as many as there are."""
    return operand(eqn, 1) * aval_of(eqn.invars[0].aval).shape[-1]


def tridiagonal_solve_flops(eqn: JaxprEqn) -> int:
    """The Thomas algorithm: eight operations for each unknown."""
    return 8 * operand(eqn, 3)


def_rule(
    primitives.triangular_solve_p,
    triangular_solve_bwd,
    save=solve_save,
    traits=DEAR.but(linear=(1,), flops=triangular_solve_flops, singular=Singularity.MATRIX),
)
def_rule(
    primitives.tridiagonal_solve_p,
    tridiagonal_solve_bwd,
    save=solve_save,
    traits=DEAR.but(linear=(3,), flops=tridiagonal_solve_flops, singular=Singularity.MATRIX),
)

# --- Fourier transforms -----------------------------------------------------------------------------------------------


def fft_back(ct: jax.Array, x: Aval, *, fft_type: lax.FftType, fft_lengths: Sequence[int]) -> jax.Array:
    """The transform's matrix is symmetric, so x̄ is the same transform of z̄.

    Between real and half-spectrum, each inner frequency stands for two: their cotangents are halved going to the half
    spectrum's inverse, or doubled coming back.
    """
    kind = lax.FftType(fft_type) if not isinstance(fft_type, lax.FftType) else fft_type
    size = math.prod(fft_lengths)
    twice = lambda n: np.where(np.isin(np.arange(n), [0, *([n - 1] if fft_lengths[-1] % 2 == 0 else [])]), 1.0, 2.0)
    weights = lambda spectrum: lax.expand_dims(
        jnp.asarray(twice(spectrum.shape[-1]), spectrum.dtype), range(spectrum.ndim - 1)
    )
    if kind == lax.FftType.RFFT:
        return size * lax.fft(lax.conj(ct) / weights(ct), lax.FftType.IRFFT, fft_lengths)
    if kind == lax.FftType.IRFFT:
        spectrum = lax.fft(ct, lax.FftType.RFFT, fft_lengths)
        return lax.conj(weights(spectrum) * spectrum / size)
    return lax.fft(ct, kind, fft_lengths)


def fft_flops(eqn: JaxprEqn) -> int:
    """5 n log₂ n operations for each transform of n numbers, as is the custom."""
    n = math.prod(eqn.params["fft_lengths"])
    longest = max(operand(eqn), math.prod(aval_of(eqn.outvars[0].aval).shape))
    return int(5 * longest * math.log2(n)) if n > 1 else 0


def_linear(primitives.fft_p, fft_back, traits=DEAR.but(flops=fft_flops))
