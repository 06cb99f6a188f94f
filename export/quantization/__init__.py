"""A model folder with weights in 8 bits: what is quantized, how, and whether the result is worth keeping."""
