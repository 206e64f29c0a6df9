"""Tests of llmproxy.providers."""
