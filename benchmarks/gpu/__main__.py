"""`python -m safelight.benchmarks.gpu`; see docs/gpu.md."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
