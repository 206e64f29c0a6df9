"""Tests of llmproxy.state."""
