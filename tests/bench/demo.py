"""How long the small model takes on this machine, from start to image and image by image, through HTTP.

Once with an empty cache, where OpenVINO converts the networks first, and once more.

python -m tests.bench.demo [--images 10]
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

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
    with TemporaryDirectory() as cache:
        first, second = (_started(cache, options.images) for _ in range(2))
    result = {"with an empty cache": first, "the next start": second, "environment": environment()}
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def _started(cache: str, images: int) -> dict[str, float]:
    """Start the service as it is shipped, wait until it is at full speed, and time single images."""
    began = time.perf_counter()

    def passed() -> float:
        return round(time.perf_counter() - began, 2)

    with Service("demo", WORKERS__CACHE=cache, ENGINE__RUNTIME="auto") as service:
        figures = {"start to bound port": passed()}
        service.wait_until_ready()
        figures["start to ready"] = passed()
        while not _is_compiled(service):
            time.sleep(0.05)
        figures["start to full speed"] = passed()
        seconds = [_timed(service, seed) for seed in range(images)]
    return figures | {"image, median": round(median(seconds), 3), "image, slowest": round(max(seconds), 3)}


def _is_compiled(service: Service) -> bool:
    """Whether the networks of a single image are compiled, or are faster as they are."""
    worker = service.readiness()["workers"][0]
    if worker["fallbacks"]:
        sys.exit(f"Not at full speed: {worker['fallbacks']}")
    graphs = worker["graphs"]
    return all(graphs[f"{part} compiled"] or graphs[f"{part} kept uncompiled"] for part in ("steps", "VAE"))


def _timed(service: Service, seed: int) -> float:
    scene = flat_scenes(1, seed)[0]
    began = time.perf_counter()
    assert post(service, scene, seed).status_code == 200
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
