"""Tests of llmproxy.config."""
