"""Curvature: Hessian and Gauss-Newton products, diagonals, Kronecker factors, the tangent kernel."""

from .quantities import OUTPUT_HESSIANS as OUTPUT_HESSIANS
from .quantities import GaussNewton as GaussNewton
from .quantities import Linearised as Linearised
from .quantities import OutputHessian as OutputHessian
from .quantities import diag_ggn as diag_ggn
from .quantities import ggn as ggn
from .quantities import ggn_vp as ggn_vp
from .quantities import hvp as hvp
from .quantities import kfac_factors as kfac_factors
from .quantities import linearise as linearise
from .quantities import ntk as ntk
