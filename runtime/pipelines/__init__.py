"""One torch-free pipeline per task."""
