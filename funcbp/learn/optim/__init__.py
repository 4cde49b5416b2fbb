"""Learning rules that optax lacks, each an optax transformation with its equation and its source.

They chain with optax's own and go with any gradient, ours or another. What optax has is used as it is: `optax.sgd` with
momentum and Nesterov's, `optax.adam` and the rest; `inertia` is momentum by another convention. Most of these are batch
rules: they compare the gradients and errors of successive updates, which must then be those of the same examples.

Some need to know more than the gradient. Pass it to `update` by keyword, as optax does; the others ignore it:

    updates, state = optimizer.update(gradient, state, params, value=loss, value_fn=loss_function)
"""

from .bold_driver import BoldDriverState as BoldDriverState
from .bold_driver import bold_driver as bold_driver
from .bold_driver import vogl as vogl
from .by_path import by_path as by_path
from .delta_bar_delta import DeltaBarDeltaState as DeltaBarDeltaState
from .delta_bar_delta import delta_bar_delta as delta_bar_delta
from .gauss_newton import gauss_newton as gauss_newton
from .inertia import InertiaState as InertiaState
from .inertia import inertia as inertia
from .levenberg_marquardt import LevenbergMarquardtState as LevenbergMarquardtState
from .levenberg_marquardt import levenberg_marquardt as levenberg_marquardt
from .quickprop import QuickpropState as QuickpropState
from .quickprop import quickprop as quickprop
from .quickprop import sigmoid_prime_offset as sigmoid_prime_offset
from .rprop import RpropState as RpropState
from .rprop import irprop_minus as irprop_minus
from .rprop import irprop_plus as irprop_plus
from .rprop import rprop_minus as rprop_minus
from .rprop import rprop_plus as rprop_plus
from .salomon import SalomonState as SalomonState
from .salomon import salomon as salomon
from .silva_almeida import SilvaAlmeidaState as SilvaAlmeidaState
from .silva_almeida import silva_almeida as silva_almeida
from .super_sab import SuperSabState as SuperSabState
from .super_sab import super_sab as super_sab
