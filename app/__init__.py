"""HTTP: bytes in, bytes out."""
