"""One lowering pass per engine."""
