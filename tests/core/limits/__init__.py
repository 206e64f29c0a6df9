"""Tests of rate limits: who may pass, and when."""
