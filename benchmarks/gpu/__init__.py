"""The GPU's backends, beside diffusers and `torch.compile` on the same machine."""
