"""Processes that own devices, and the shell that drives them."""
