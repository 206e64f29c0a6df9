"""Tests of llmproxy.wire."""
