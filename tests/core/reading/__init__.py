"""Tests of reading what an answer used."""
