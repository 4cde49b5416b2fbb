"""Curvature: products with the Gauss-Newton matrix, its diagonal and Kronecker factors, and the tangent kernel.

A model and a loss are functions of one example: z = model(params, x), a loss E = loss(z, y), a scalar. The objective is
the mean of E over a batch, x and y with a leading axis of examples. With J the Jacobian of z and H the Hessian of the
loss in z, the generalised Gauss-Newton matrix is

    G = Σ_n J_n' H_n J_n / N.

It is the Hessian with the model taken as linear; where the residuals vanish, or the model is linear, it is the Hessian.
Products with the Hessian itself are `funcbp.hvp`.

The loss supplies H: `OUTPUT_HESSIANS` has squared error and cross-entropy, and takes others; for a loss that is not in
it, H is had by the forward derivative of its gradient. Solvers are not here: a product with G is a function, which
`jax.scipy.sparse.linalg.cg` takes, or `lineax.FunctionLinearOperator`.
"""

from .factored import diag_ggn as diag_ggn
from .factored import kfac_factors as kfac_factors
from .gauss_newton import GaussNewton as GaussNewton
from .gauss_newton import ggn as ggn
from .gauss_newton import ggn_vp as ggn_vp
from .linear_map import Linearised as Linearised
from .linear_map import linearise as linearise
from .output_hessian import OUTPUT_HESSIANS as OUTPUT_HESSIANS
from .output_hessian import OutputHessian as OutputHessian
from .tangent_kernel import ntk as ntk
