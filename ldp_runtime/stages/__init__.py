"""The stages of the chain as pure functions over NumPy arrays."""
