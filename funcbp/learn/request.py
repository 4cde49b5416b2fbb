"""What is said when a request cannot be met."""

__all__ = ["RequestError"]


class RequestError(ValueError):
    """What was asked for cannot be done; the message says why."""
