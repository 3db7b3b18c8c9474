"""How every process of the service logs: lines on standard error."""

import logging


def configure(level: str) -> None:
    """Set up logging in this process; `level` is a name such as "info"."""
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    # Its news is ours as well, and said once.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
