"""Credit assignment: backward passes other than the true one, and how far they are from it.

Each scheme is a `funcbp.Backward`, so it differentiates, is traced, checked and trained with as any other, and two of
them join by `|`. It replaces rules, the cotangents of named values, or the weights that deltas go through.
"""

from .angles import Alignment as Alignment
from .angles import alignment as alignment
from .feedback import batchwise_sign as batchwise_sign
from .feedback import direct_feedback as direct_feedback
from .feedback import feedback_alignment as feedback_alignment
from .feedback import feedback_weights as feedback_weights
from .feedback import fixed_sign as fixed_sign
from .feedback import kolen_pollack as kolen_pollack
from .feedback import uniform_sign as uniform_sign
from .feedback import weight_mirror as weight_mirror
from .surrogate import arctan as arctan
from .surrogate import boxcar as boxcar
from .surrogate import cosine as cosine
from .surrogate import exponential as exponential
from .surrogate import fast_sigmoid as fast_sigmoid
from .surrogate import gaussian as gaussian
from .surrogate import leaky_boxcar as leaky_boxcar
from .surrogate import logistic as logistic
from .surrogate import multi_gaussian as multi_gaussian
from .surrogate import parabolic as parabolic
from .surrogate import q_pseudo as q_pseudo
from .surrogate import sech as sech
from .surrogate import spikes as spikes
from .surrogate import straight as straight
from .surrogate import straight_through as straight_through
from .surrogate import superspike as superspike
from .surrogate import triangular as triangular
