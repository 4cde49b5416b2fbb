"""Cotangents: what travels backward. Their zero, their sum, and their types.

The cotangent x̄ of a value x has x's shape and dtype. Three things are told apart everywhere:

- `Zero`: the cotangent is zero; nothing was computed and nothing need be.
- `None`, from a rule: no derivative exists (an integer or boolean operand).
- an error: nobody has written the derivative.

The cotangent of a factor of a product is itself a product: W̄ = x' δ. It travels as `Factored`, the product not yet
contracted, until somebody needs the array. So sums of them, linear maps on them and whole loops can be gone through
first, and whoever wants the factors finds them.
"""

from .accumulate import Cotangents as Cotangents
from .products import ABSORB as ABSORB
from .products import NARROW as NARROW
from .products import STACKED as STACKED
from .products import SUMMED as SUMMED
from .products import TURN as TURN
from .products import Cotangent as Cotangent
from .products import Factored as Factored
from .products import Linear as Linear
from .products import Moves as Moves
from .products import Product as Product
from .products import instantiate as instantiate
from .products import materialize as materialize
from .products import weak_as as weak_as
from .zero import Zero as Zero
from .zero import float0_zeros as float0_zeros
from .zero import is_differentiable as is_differentiable
from .zero import is_inexact as is_inexact
from .zero import unbroadcast as unbroadcast
