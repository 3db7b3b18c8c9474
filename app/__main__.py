"""`python -m app --config configs/demo.yaml`: the one entry point of the service and of all commands."""

import gc
import os
import signal

if __name__ == "__main__":
    # Until a command has its own handlers, nothing needs to be finished. SIGTERM needs a handler, as the kernel sends
    # the first process of a container no signal without one; SIGINT would end in a traceback of half-imported modules.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))

    # Nothing that is imported is garbage, and looking takes a tenth of the start. `Pool.run` turns it on again.
    gc.disable()

    # Inside the guard: a spawned worker runs this file's top level as well, and needs nothing of the front end.
    from app.cli.dispatch import dispatch
    from workers.console import leave

    leave(dispatch)
