"""The proxy under a mix of everything for minutes: what only shows after many requests, such as leaks."""
