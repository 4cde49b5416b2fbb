"""Operations of networks, forward and backward written side by side."""

from . import output_hessians as _output_hessians  # noqa: F401  enters the losses' Hessians
from .activations import elu as elu
from .activations import gaussian as gaussian
from .activations import gelu as gelu
from .activations import identity as identity
from .activations import leaky_relu as leaky_relu
from .activations import logistic as logistic
from .activations import mish as mish
from .activations import relu as relu
from .activations import softmax as softmax
from .activations import softplus as softplus
from .activations import swish as swish
from .activations import tanh as tanh
from .attention import attention as attention
from .cells import gru_cell as gru_cell
from .cells import lstm_cell as lstm_cell
from .dense import dense as dense
from .dropout import dropout as dropout
from .fahlman import dead_zone_error as dead_zone_error
from .fahlman import hyper_error as hyper_error
from .losses import logistic_cross_entropy as logistic_cross_entropy
from .losses import softmax_cross_entropy as softmax_cross_entropy
from .losses import softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels
from .losses import squared_error as squared_error
from .norms import group_norm as group_norm
from .norms import layer_norm as layer_norm
from .norms import rms_norm as rms_norm
from .rotary import rotary as rotary
from .vocabulary import cross_entropy_of_logits as cross_entropy_of_logits
