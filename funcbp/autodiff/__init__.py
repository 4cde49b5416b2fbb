"""Recording, going backward, and the transformations. `backward_pass.py` is the file to open first."""
