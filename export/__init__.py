"""Checkpoint to model folder: runs once, may import torch."""
