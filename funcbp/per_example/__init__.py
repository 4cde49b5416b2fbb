"""Per-example gradients, and what can be had of them without making them, in one forward and one backward pass.

Every function takes a loss of one example, `loss(params, example)`, a scalar, and returns a function of `(params,
batch)`: `params` is any pytree of floating-point arrays, and the batch a pytree of arrays with one leading axis, of
examples. W̄_n is the gradient of example n. A batch's gradient is the mean of its examples' gradients.

The backward pass leaves the cotangents of weights as factors: inputs and deltas. Their norms, sums and inner products
follow from those, so private training, weighting or the noise scale cost about as much as one gradient (see `pairs.py`
for the formula, and `methods` for how each parameter is dealt with). That holds for any model: weights used many times,
loops over time or layers, convolutions, lookups; what is no product, like the gradient of a bias, is an array per
example.

Examples that interact have no gradients of their own. What can be found out is refused: a loss that returns more than
one number, a mean over a named axis of examples, and, by `of_batch`, a loss over a batch that is neither the mean nor
the sum of the losses of its examples, as under batch normalisation in training mode. A model that is given one example
and computes statistics over one of the example's own axes cannot be told from one that means to.
"""

from .clipping import Clipping as Clipping
from .clipping import clipped_grad as clipped_grad
from .clipping import norms as norms
from .clipping import weighted_grad as weighted_grad
from .interaction import of_batch as of_batch
from .products import cosines as cosines
from .products import factors as factors
from .products import gram as gram
from .products import methods as methods
from .statistics import Moments as Moments
from .statistics import NoiseScale as NoiseScale
from .statistics import grads as grads
from .statistics import moments as moments
from .statistics import noise_scale as noise_scale
