"""The ledger: one row for each request, kept in a file, and the sums of each day, kept for ever."""
