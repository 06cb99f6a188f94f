"""A checkpoint in a single file, in the layout of the original code: what it holds, and its folder for diffusers."""

from .unpack import identify, open_file, unpack

__all__ = ["identify", "open_file", "unpack"]
