"""Hostile and broken bytes for both parsers, and other readers' opinion of what was made of them."""
