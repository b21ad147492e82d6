"""The networks, one module for each family; `build` makes them from a manifold's config and tensors."""

STRIDE = 16
"""Pixels per latent position of the kind `hific`."""
