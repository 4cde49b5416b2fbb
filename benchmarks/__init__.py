"""Benchmarks: funcbp against JAX's own reverse mode and other libraries. `python -m benchmarks` prints every table."""
