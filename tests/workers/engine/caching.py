"""The small model compiled by torch in this process; prints how often the compiler's cache had what it wanted.

The argument stands for the sources of our kernels.
"""

import json
import sys
from dataclasses import replace
from unittest.mock import patch

import torch

from tests.workers.engine import demo
from workers.engine import build, compiling
from workers.engine.config import Speed
from workers.engine.engine import DiffusionEngine


def main(sources: str) -> None:
    torch.set_num_threads(1)
    config = replace(demo.CONFIG, runtime="torch", dtype="float32", slots=1, speed=Speed(compile=True))
    made = build(config, "cpu")
    assert isinstance(made, DiffusionEngine)
    with patch.object(compiling, "digest_of_kernels", lambda: sources):
        made.warm_up()
        assert made.wait_until_compiled(float("inf"))
    assert made.status().fallbacks == ()
    counters = torch._dynamo.utils.counters
    print(json.dumps({kind: counters["inductor"][f"fxgraph_cache_{kind}"] for kind in ("hit", "miss", "bypass")}))


if __name__ == "__main__":
    main(*sys.argv[1:])
