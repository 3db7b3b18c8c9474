"""What an image in few steps takes at full size on a CPU: a step without guidance, and two VAEs, taking turns.

    python -m tests.bench.few_steps [--sides 256,512] [--rounds 7] [--folder DIR] [--out FILE]

The weights are random, in the number format that is fastest on this CPU. The files of the networks take 5.3 GB, which
are deleted at the end unless there is a `--folder` for them.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tests.bench.contenders import _compiled
from tests.bench.cpu import PAUSE_S, spread
from tests.bench.environment import environment
from tests.bench.report import Report, lines
from tests.workers.engine import full_size
from workers.engine.model import Parts, decode
from workers.engine.runtimes.export import Graph, graphs
from workers.engine.runtimes.openvino_files import _write
from workers.machine import available_cores, computes_in_bfloat16

VAES = ("AutoencoderKL", "AutoencoderTiny")
_EXAMPLE = {2: 1, 16: 0, 24: 0}  # the batch and the sides of an exported graph's example, by what they become here


def main() -> int:
    options = _options()
    torch.set_grad_enabled(False)
    torch.set_num_threads(available_cores())
    dtype = "bfloat16" if computes_in_bfloat16() else "float32"
    head = {"unit": "milliseconds", "environment": environment(), "dtype": dtype, "load before": os.getloadavg()}
    report = Report(options.out, head)
    with TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "step.bin").is_file():
            maker = multiprocessing.get_context("spawn").Process(target=_convert, args=(folder,))
            maker.start()
            maker.join()  # it gives the memory back
        for side in options.sides:
            for work, seconds in _timed(_works(folder, side // 8, dtype), options.rounds).items():
                report.enter(f"{side} px", work, spread(seconds))
    report.enter("end", "load after", os.getloadavg())
    print(*lines(report.content), sep="\n")
    return 0


def _works(folder: Path, side: int, dtype: str) -> Mapping[str, Callable[[], object]]:
    graph = _graph("step", full_size.architecture())
    shapes = tuple(tuple(_EXAMPLE.get(n, n) or side for n in tensor.shape) for tensor in graph.inputs.values())
    latents = torch.randn(4, side, side)
    works = {"step": partial(_compiled(folder / "step.xml", dtype, shapes), *map(torch.randn, shapes))}
    for name in VAES:
        vae = _vae(name, getattr(torch, dtype)).to(memory_format=torch.channels_last)
        works[f"{name}, torch"] = partial(decode, vae, latents)
        works[f"{name}, OpenVINO"] = partial(_compiled(folder / f"{name}.xml", dtype, ((4, side, side),)), latents)
    return works


def _timed(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    times = defaultdict[str, list[float]](list)
    for _ in range(rounds):
        for name, work in works.items():
            work()  # after the others' turns
            began = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - began)
            time.sleep(PAUSE_S)
    return times


# ------------------------------------------------------------------------------------------------------------- weights


def _convert(folder: Path) -> None:
    """Write the networks as the service converts them; the step for an image without guidance."""
    empty = full_size.architecture()
    networks = replace(empty, unet=_filled(empty.unet), controlnet=_filled(empty.controlnet))
    _write(_graph("step", networks), folder / "step.xml")
    for name in VAES:
        parts = replace(full_size.architecture(), vae=_vae(name, torch.float32))
        _write(_graph("vae", parts), folder / f"{name}.xml")


def _graph(wanted: str, parts: Parts) -> Graph:
    """One of the graphs of an image without guidance."""
    return next(graph for name, graph in graphs(parts, rows=1) if name == wanted)


def _filled(part: Any, dtype: torch.dtype = torch.float32) -> Any:
    return full_size._filled(part, "cpu", dtype, torch.Generator().manual_seed(0))


def _vae(name: str, dtype: torch.dtype) -> Any:
    """Stable Diffusion 1.5's own VAE, or TAESD, which is diffusers' default of its class."""
    from diffusers import AutoencoderTiny

    if name == VAES[0]:
        return _filled(full_size.architecture().vae, dtype)
    with torch.device("meta"):
        tiny = AutoencoderTiny()
    return _filled(tiny, dtype)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=lambda text: [int(side) for side in text.split(",")], default=[256, 512])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="keep the files here for the next run")
    parser.add_argument("--out", type=Path, default=Path("build/few_steps.json"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
