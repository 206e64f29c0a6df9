"""Tests of llmproxy.lifecycle."""
