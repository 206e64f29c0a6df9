"""Rate limits, sans-IO: which limits there are, what counts against them, and whether a request may pass."""
