"""Data to learn from: bundled real sets, and readers of files."""

from .dataset import DataError as DataError
from .dataset import Dataset as Dataset
from .dataset import Scaling as Scaling
from .dataset import split as split
from .dataset import standardize as standardize
from .files import read as read
from .files import read_csv as read_csv
from .files import read_npz as read_npz
from .sets import SETS as SETS
from .sets import load as load
