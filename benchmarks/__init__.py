"""Backends and peers, measured side by side."""
