"""`python -m app`, but its workers answer twice by chance: `python -m tests.chaos.server` takes the same options."""

import sys
from unittest.mock import patch

from app.cli.serve import run
from tests.chaos import late

if __name__ == "__main__":
    with patch("workers.worker_main.main", late.main):
        sys.exit(run(sys.argv[1:]))
