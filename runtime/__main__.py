"""`python -m safelight.runtime VERB ...` is the `safelight` command."""

import sys

from .cli import main

sys.exit(main())
