"""Six small models, written in plain JAX and in four libraries: `FAMILIES` says what a library's models need."""

ARCHITECTURES = ["mlp", "lenet", "resnet", "lstm", "transformer", "autoencoder"]
FAMILIES = {"plain": "jax", "linen": "flax", "nnx": "flax", "eqx": "equinox", "hk": "haiku"}
