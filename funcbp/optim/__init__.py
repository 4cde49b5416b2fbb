"""Learning rules that optax lacks, each an optax transformation with its equation and its source."""

from .gauss_newton import gauss_newton as gauss_newton
from .levenberg_marquardt import LevenbergMarquardtState as LevenbergMarquardtState
from .levenberg_marquardt import levenberg_marquardt as levenberg_marquardt
