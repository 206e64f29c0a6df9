"""One origin per provider: its pool, its TLS policy, and the client and relay that requests go through."""
