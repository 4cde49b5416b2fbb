"""The command `funcbp`."""

from .main import main as main
