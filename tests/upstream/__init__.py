"""Tests of llmproxy.upstream."""
