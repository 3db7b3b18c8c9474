"""`python -m app --config configs/demo.yaml`: the one entry point of the service, and of `generate` and `doctor`."""

import os
import signal
import sys

if __name__ == "__main__":
    # The first process of a container is sent no signal that it has no handler for, and until the server has its own
    # there is nothing to finish.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

    # Inside the guard: a spawned worker runs this file's top level as well, and needs nothing of the front end.
    from app.cli.dispatch import dispatch

    sys.exit(dispatch(sys.argv[1:]))
