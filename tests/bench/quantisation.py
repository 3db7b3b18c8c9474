"""What 8-bit floats do to images: the small model as it is, and with layers that round as a GPU does, on the CPU.

    python -m tests.bench.quantisation [--dtype float32] [--out FILE]

For each group of layers: PSNR of images of six prompts to the same without quantisation, and the relative error of the
guided noise at each step, on the inputs of the run without. Groups in brackets are not quantised by default.
"""

import argparse
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from tests.workers.engine import demo
from workers.convert import read_engine
from workers.engine import quantisation
from workers.engine.codec import Pixels
from workers.engine.config import EngineConfig
from workers.engine.contract import Task
from workers.engine.denoiser import Predict, StepInputs
from workers.engine.engine import DiffusionEngine
from workers.engine.model import Model, assemble, read
from workers.engine.networks import Attend, attention
from workers.engine.runtime import ModelFunctions
from workers.engine.streams import SideStream

Row: TypeAlias = dict[str, Any]

ROOT = Path(__file__).parents[2]
DEFAULT = "all by default"
GROUPS = {
    DEFAULT: quantisation.QUANTISED.pattern,
    "queries, keys and values of self-attention": r".*attn1\.to_qkv",
    "output of self-attention": r".*attn1\.to_out\.0",
    "queries of cross-attention": r".*attn2\.to_q",
    "output of cross-attention": r".*attn2\.to_out\.0",
    "feed-forward, wide": r".*ff\.net\.0\.proj",
    "feed-forward, narrow": r".*ff\.net\.2",
    "into a transformer": r".*proj_in",
    "out of a transformer": r".*proj_out",
    "(shortcut of a ResNet)": r".*conv_shortcut",
    "(zero convolutions of the ControlNet)": r"controlnet_(down_blocks\.\d+|mid_block)",
    "(keys and values of the text)": r".*attn2\.to_[kv]",
    "(time)": r"time_embedding\..*|.*time_emb_proj",
}


@dataclass(frozen=True, eq=False)
class Recorded(Model):
    """A model that keeps the inputs and the result of each step."""

    steps: list[tuple[StepInputs, Tensor]] = field(default_factory=list)

    def functions(self, attend: Attend, mode: str | None) -> ModelFunctions:
        plain = super().functions(attend, mode)

        def predict(side_stream: SideStream) -> Predict:
            run = plain.predict(side_stream)

            def recorded(inputs: StepInputs) -> Tensor:
                noise = run(inputs)
                self.steps.append((inputs, noise))
                return noise

            return recorded

        return replace(plain, predict=predict)


def model_of(config: EngineConfig) -> Recorded:
    model = assemble(config, read(config, getattr(torch, config.dtype)), "cpu")
    return Recorded(**vars(model))


def images(config: EngineConfig, model: Model, together: int = 1) -> list[Pixels]:
    """One image of each prompt that comes with the model, some of them at the same time."""
    assert config.model is not None
    prompts = json.loads((Path(config.model.path) / "about.json").read_text())["prompts"]
    engine, photo = DiffusionEngine(config, model), (ROOT / "example" / "input.png").read_bytes()
    made = []
    for first in range(0, len(prompts), together):
        slots = range(min(together, len(prompts) - first))
        for slot in slots:
            engine.admit(slot, engine.prepare(Task(photo, prompts[first + slot], seed=first + slot)))
        demo.run(engine, 0)
        made += [engine.collect(engine.finish(slot)) for slot in slots]
    return made


def model_with(config: EngineConfig, layers: str) -> Recorded:
    """The model whose layers of these names are quantised."""
    with patch.object(quantisation, "QUANTISED", re.compile(layers)):
        return model_of(replace(config, quantisation="fp8-emulated"))


def compare(made: list[Pixels], plain: list[Pixels], model: Model, steps: list[tuple[StepInputs, Tensor]]) -> Row:
    """Figures of images, and of a quantised model that has made them."""
    psnr = [demo.psnr(*pair) for pair in zip(made, plain, strict=True)]
    predict = model.functions(attention, None).predict(SideStream(None))
    with torch.no_grad():
        errors = [demo.relative_error(predict(inputs), noise) for inputs, noise in steps]
    by_step = np.reshape(errors, (len(plain), -1)).mean(0)
    networks = (model.unet, model.controlnet)
    return {
        "layers": sum(isinstance(each, quantisation.Float8Linear) for net in networks for each in net.modules()),
        "PSNR": [round(each, 1) for each in psnr],
        "error": round(float(by_step.mean()), 5),
        "error by step": [round(float(each), 5) for each in by_step],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--out", type=Path, help="write JSON here as well")
    options = parser.parse_args()
    torch.set_num_threads(1)  # more gain nothing with this model, and lose much on a busy machine
    shipped = read_engine(ROOT / "configs" / "demo.yaml")
    config = replace(shipped, dtype=options.dtype, runtime="torch", speed=replace(shipped.speed, compile=False))
    reference = model_of(config)
    plain, steps = images(config, reference), list(reference.steps)
    print(f"{'layers quantised':<45}{'layers':>7}{'PSNR: least':>13}{'median':>8}{'error of a step':>17}")
    results = {}
    for name, layers in GROUPS.items():
        model = model_with(config, layers)
        made = images(config, model)
        results[name] = compare(made, plain, model, steps)
        show(name, results[name])
        if name == DEFAULT:
            psnr = [demo.psnr(*pair) for pair in zip(images(config, model, 3), made, strict=True)]
            print(f"  three images at a time, to one: PSNR at least {min(psnr):.1f}, median {np.median(psnr):.1f}")
            results[name]["PSNR, three images at a time"] = [round(each, 1) for each in psnr]
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


def show(name: str, found: Row) -> None:
    least, median = min(found["PSNR"]), float(np.median(found["PSNR"]))
    print(f"{name:<45}{found['layers']:>7}{least:>13.1f}{median:>8.1f}{found['error']:>17.3%}", flush=True)


if __name__ == "__main__":
    main()
