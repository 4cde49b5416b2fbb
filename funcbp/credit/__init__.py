"""Credit assignment: backward passes other than the true one, and how far they are from it."""

from .schemes import Alignment as Alignment
from .schemes import alignment as alignment
from .schemes import arctan as arctan
from .schemes import batchwise_sign as batchwise_sign
from .schemes import boxcar as boxcar
from .schemes import cosine as cosine
from .schemes import direct_feedback as direct_feedback
from .schemes import exponential as exponential
from .schemes import fast_sigmoid as fast_sigmoid
from .schemes import feedback_alignment as feedback_alignment
from .schemes import fixed_sign as fixed_sign
from .schemes import gaussian as gaussian
from .schemes import kolen_pollack as kolen_pollack
from .schemes import leaky_boxcar as leaky_boxcar
from .schemes import logistic as logistic
from .schemes import multi_gaussian as multi_gaussian
from .schemes import parabolic as parabolic
from .schemes import q_pseudo as q_pseudo
from .schemes import sech as sech
from .schemes import spikes as spikes
from .schemes import straight as straight
from .schemes import straight_through as straight_through
from .schemes import superspike as superspike
from .schemes import triangular as triangular
from .schemes import uniform_sign as uniform_sign
from .schemes import weight_mirror as weight_mirror
