"""Accounting: what a call used, read from a copy of its answer; nothing here can hold up or change a byte."""
