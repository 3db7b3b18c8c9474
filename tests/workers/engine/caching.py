"""The small model compiled by torch in this process; prints how often the compiler's cache had what it wanted."""

import json
from dataclasses import replace

import torch

from tests.workers.engine import demo
from workers.engine import build
from workers.engine.config import Speed
from workers.engine.engine import DiffusionEngine


def main() -> None:
    torch.set_num_threads(1)
    config = replace(demo.CONFIG, runtime="torch", dtype="float32", slots=1, speed=Speed(compile=True))
    made = build(config, "cpu")
    assert isinstance(made, DiffusionEngine)
    made.warm_up()
    assert made.wait_until_compiled(float("inf"))
    assert made.status().fallbacks == ()
    counters = torch._dynamo.utils.counters
    print(json.dumps({kind: counters["inductor"][f"fxgraph_cache_{kind}"] for kind in ("hit", "miss", "bypass")}))


if __name__ == "__main__":
    main()
