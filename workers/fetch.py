"""python -m workers.fetch CONFIG: see `workers.weights.fetch`."""

import os
import signal

if __name__ == "__main__":  # Ctrl-C during the imports below shows no traceback
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))

from workers.console import leave
from workers.weights.fetch import interrupted, main

if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupted)
    leave(main)
