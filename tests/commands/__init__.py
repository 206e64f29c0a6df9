"""Tests of llmproxy.commands."""
