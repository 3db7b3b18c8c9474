"""Weights: fetched from the hub, a cache or a folder, checked and converted; whole or not at all."""
