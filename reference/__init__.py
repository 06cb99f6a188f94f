"""The PyTorch networks that every export is checked against."""
