"""The rules of the proxy without I/O: standard library and msgspec only, no clock, no socket, no state."""
