"""Published results, looked for again: `funcbp reproduce [NAME]`.

Each entry is a file here and yields the rows of a table and its pictures. A number of the literature stands there with
how sure it is; only what was read in the paper or in its author's program is called published.
"""

from . import alignment, encoder, glorot, largest_rate, mathworks, spirals, symmetry, worked_example, xor
from .table import MEANING as MEANING
from .table import Comparison as Comparison
from .table import Picture as Picture
from .table import Reproduction as Reproduction
from .table import format_table as format_table
from .trials import Outcome as Outcome
from .trials import run_trials as run_trials
from .trials import uniform_weights as uniform_weights

REPRODUCTIONS: dict[str, Reproduction] = {
    entry.name: entry
    for entry in (
        worked_example.REPRODUCTION,
        symmetry.REPRODUCTION,
        encoder.REPRODUCTION,
        encoder.SCALING,
        xor.REPRODUCTION,
        spirals.REPRODUCTION,
        glorot.REPRODUCTION,
        largest_rate.REPRODUCTION,
        alignment.REPRODUCTION,
        mathworks.REPRODUCTION,
    )
}
