"""HTTP: bytes in, bytes out."""

__version__ = "0.1.0"  # of the whole: pyproject.toml takes it from here
