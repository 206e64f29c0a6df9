"""Price data: what is shipped, what people write, what is imported, and what is shown."""
