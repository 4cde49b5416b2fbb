"""Benchmarks: funcbp against JAX's own reverse mode. `python -m benchmarks` prints every table."""
