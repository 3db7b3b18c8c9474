"""Interfaces that others have made popular: each a thin layer over the same service."""
