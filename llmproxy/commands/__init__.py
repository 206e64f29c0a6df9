"""What `llmproxy usage` and `llmproxy reprice` do: they read the ledger, and the second one corrects its prices."""
