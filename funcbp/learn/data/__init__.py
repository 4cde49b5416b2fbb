"""Data to learn from: bundled real sets, classical problems, text, and readers of files."""

from .dataset import DataError as DataError
from .dataset import Dataset as Dataset
from .dataset import Scaling as Scaling
from .dataset import split as split
from .dataset import standardize as standardize
from .files import read as read
from .files import read_csv as read_csv
from .files import read_npz as read_npz
from .idx import read_idx as read_idx
from .idx import read_mnist as read_mnist
from .problems import encoder as encoder
from .problems import parity as parity
from .problems import sinc as sinc
from .problems import sine as sine
from .problems import symmetry as symmetry
from .problems import t_c as t_c
from .problems import two_spirals as two_spirals
from .problems import xor as xor
from .sets import SETS as SETS
from .sets import load as load
from .text import Text as Text
from .text import characters as characters
from .text import read_text as read_text
from .text import standard_library as standard_library
from .text import windows as windows
