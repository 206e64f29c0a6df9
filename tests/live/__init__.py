"""Conversations over real sockets: a raw caller on one side of a running proxy, a raw upstream on the other."""
