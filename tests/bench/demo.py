"""How long the small model takes on this machine, from start to image and image by image, through HTTP.

python -m tests.bench.demo [--images 10]
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from example.demo_model.scenes import flat_scenes
from tests.bench.environment import environment
from tests.demo.test_quality import post
from tests.service.running import Service


def main() -> None:
    """Measure, and print JSON; all times in seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    options = parser.parse_args()
    began = time.perf_counter()
    with Service("demo") as service:
        bound = time.perf_counter() - began
        service.wait_until_ready()
        ready = time.perf_counter() - began
        seconds = [_timed(service, seed) for seed in range(options.images)]
    result = {
        "start to bound port": round(bound, 2),
        "start to ready": round(ready, 2),
        "image, median": round(statistics.median(seconds), 3),
        "image, slowest": round(max(seconds), 3),
        "environment": environment(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def _timed(service: Service, seed: int) -> float:
    scene = flat_scenes(1, seed)[0]
    began = time.perf_counter()
    assert post(service, scene, seed).status_code == 200
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
