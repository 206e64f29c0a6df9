"""HTTP/1.1 on the wire, parsed by llhttp on both sides: the server channel, the client connection, TLS, dialling."""
