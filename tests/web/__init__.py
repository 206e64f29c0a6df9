"""Tests of llmproxy.web."""
