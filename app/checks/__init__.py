"""The checks of `python -m app doctor`: functions that take a `Subject` and yield findings."""
