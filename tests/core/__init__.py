"""Tests of llmproxy.core."""
