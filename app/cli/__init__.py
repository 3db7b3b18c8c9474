"""What `python -m app` can do besides serving: a module a command. Nothing here is imported before it is asked for."""
