"""What stops a command before it has made anything."""


class CommandError(Exception):
    """The command, or the configuration, is wrong; the message says why, and what to do."""
