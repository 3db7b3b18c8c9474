"""The commands of `python -m app`, one module each. A module is imported only when its command is run."""
