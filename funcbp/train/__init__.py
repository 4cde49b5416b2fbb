"""Learning, and what it leaves behind."""

from . import stopping as stopping
from .results import leaf_paths as leaf_paths
from .results import load_params as load_params
from .results import save_params as save_params
from .results import write_atomically as write_atomically
from .results import write_metrics as write_metrics
from .supervised import Epoch as Epoch
from .supervised import Task as Task
from .supervised import classification as classification
from .supervised import epochs as epochs
from .supervised import reconstruction as reconstruction
from .supervised import regression as regression
