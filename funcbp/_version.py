"""The version, which checkpoints bear too."""

__version__ = "0.3.0"
