"""Engines of a model folder's networks, built by TensorRT or TensorRT for RTX: `safelight build`."""
