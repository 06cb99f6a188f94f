"""Stable Diffusion without PyTorch."""
