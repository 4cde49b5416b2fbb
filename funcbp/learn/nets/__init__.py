"""Networks as pairs of pure functions, and their initial weights."""

from .convnet import convnet as convnet
from .initializers import fans as fans
from .initializers import he_normal as he_normal
from .initializers import he_uniform as he_uniform
from .initializers import lecun_normal as lecun_normal
from .initializers import lecun_uniform as lecun_uniform
from .initializers import uniform as uniform
from .initializers import xavier_normal as xavier_normal
from .initializers import xavier_uniform as xavier_uniform
from .mlp import autoencoder as autoencoder
from .mlp import mlp as mlp
from .net import Net as Net
from .net import count as count
from .shortcut import shortcut_mlp as shortcut_mlp
from .transformer import transformer as transformer
