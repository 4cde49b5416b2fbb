"""Look inside: what is kept between the passes, and when memory is in use."""

from .residuals import Residual, Residuals, residuals

__all__ = ["Residual", "Residuals", "residuals"]
