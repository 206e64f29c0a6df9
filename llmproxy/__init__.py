"""llmproxy: a faithful, streaming reverse proxy between applications and LLM providers."""
