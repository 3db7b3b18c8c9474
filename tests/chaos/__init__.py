"""The real server under faults of every kind, for as long as wanted: `python -m tests.chaos --help`."""
