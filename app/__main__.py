"""`python -m app --config configs/demo.yaml`: the one entry point of the service."""

import sys

if __name__ == "__main__":
    # Inside the guard: a spawned worker runs this file's top level as well, and needs nothing of the front end.
    from app.command import run

    sys.exit(run(sys.argv[1:]))
