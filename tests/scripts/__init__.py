"""The Makefile and the scripts behind it, as somebody at a terminal meets them."""
