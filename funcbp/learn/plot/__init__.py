"""Pictures of learning. Each function draws on the axes it is given, or on a figure of its own, and returns the figure.

Nothing is shown and no global state is touched, so it works without a screen; `figure.savefig(path)` writes a file.
"""

from .canvas import INK as INK
from .canvas import SIGNED as SIGNED
from .canvas import TRAINING as TRAINING
from .canvas import VALIDATION as VALIDATION
from .canvas import new_axes as new_axes
from .curves import curves as curves
from .curves import learning_curves as learning_curves
from .diagram import network as network
from .images import mistakes as mistakes
from .images import reconstructions as reconstructions
from .images import tile as tile
from .images import weights as weights
from .judgement import confusion as confusion
from .judgement import decision_boundaries as decision_boundaries
from .judgement import predictions as predictions
from .memory import memory as memory
from .surface import error_curve as error_curve
from .surface import error_surface as error_surface
from .surface import loss_slice as loss_slice
from .surface import principal_directions as principal_directions
from .surface import random_directions as random_directions
from .traces import gradient_flow as gradient_flow
from .traces import graph as graph
from .traces import histograms as histograms
from .traces import saturation as saturation
