"""The process around the proxy: what it listens on, which signals it takes, how it stops and takes a new configuration.

Nothing here knows the reactor: what is needed of it is handed in.
"""
