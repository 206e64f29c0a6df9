"""The Resource tree towards the caller, and the Exchange: one request from admission to settlement."""
