"""The part of the latency benchmark that goes through the real service."""

import base64
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from tests.bench.latency_parts import CONFIGS, TEXT, Bench
from tests.service.running import ROOT, Service, png


def http(bench: Bench) -> dict[str, Any]:
    """Through the real service, with CUDA_VISIBLE_DEVICES set and unset, by one client and by eight."""
    with tempfile.TemporaryDirectory() as folder:
        model = _saved(bench, Path(folder))
        cuda = torch.device(bench.device).type == "cuda"
        return {
            f"CUDA_VISIBLE_DEVICES {'unset' if devices is None else repr(devices)}": _served(bench, model, devices)
            for devices in (("0", None) if cuda else ("",))
        }


def _saved(bench: Bench, folder: Path) -> Path:
    if bench.model == "demo":
        return ROOT / "configs" / "demo"
    parts = bench.fresh_parts()
    for name in ("unet", "controlnet", "vae", "text_encoder", "tokenizer"):
        getattr(parts, name).save_pretrained(folder / name)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(parts.scheduler))
    return folder


def _served(bench: Bench, model: Path, devices: str | None) -> dict[str, Any]:
    began = time.monotonic()
    encoded = base64.b64encode(png(bench.side, bench.side)).decode()
    overrides: dict[str, object] = {
        "ENGINE__MODEL": f"{{path: {model}}}",
        "ENGINE__CONTROLNET": f"{{path: {model / 'controlnet'}}}",
        "ENGINE__SAMPLER__STEPS": bench.steps,
        "ENGINE__SIZE__SHORT_SIDE": bench.side,
    }
    with Service(CONFIGS[bench.model], devices, **overrides) as service:
        service.wait_until_ready()
        ready = time.monotonic() - began
        seeds = iter(range(10**6))

        def post() -> None:
            body = {
                "request_id": 1,
                "text": TEXT,
                "random_seed": next(seeds),
                "input_image_base64": encoded,
            }
            answer = service.client.post("/generation/", json=body)
            assert answer.status_code == 200, answer.text

        post()
        first = time.monotonic() - began
        one = bench.times(post)
        with ThreadPoolExecutor(8) as clients:
            began = time.monotonic()
            list(clients.map(lambda _: post(), range(8 * bench.repeats)))
            rate = 8 * bench.repeats / (time.monotonic() - began)
        return {
            "ready, s": round(ready, 1),
            "first picture, s": round(first, 1),
            "one client": one,
            "eight clients, images/s": round(rate, 3),
        }
