"""Noise schedulers in NumPy, with the names and numbers of diffusers."""
