"""Tests of llmproxy.observe."""
