"""From nothing, or from another model, to a model's folder: scenes, the VAE, the UNet with its ControlNet."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKL

from example.demo_model.consistency import Consistency
from example.demo_model.corpus import Corpus
from example.demo_model.diffusion import FINISH, FULL_SIZE, HALF_SIZE, DiffusionStage, with_average
from example.demo_model.drawing import SIZE
from example.demo_model.export import export
from example.demo_model.journal import Journal
from example.demo_model.lessons import Encoded, Lessons
from example.demo_model.loop import Stage, run_stage
from example.demo_model.prompts import vocabulary
from example.demo_model.tokenizer import train_tokenizer
from example.demo_model.vae import AutoencoderStage, first_vae, normalise
from workers.machine import keep_freed_memory

SHARES: Mapping[str, float] = {"autoencoder": 0.14, "half size": 0.25, "full size": 0.42, "finish": 0.19}
S = TypeVar("S", bound=Stage)
FREED = 2**31 - 1  # bytes that stay with the process: a step on whole images then takes a quarter less time


@dataclass(frozen=True)
class Plan:
    """The inputs of a training: minutes in all, scenes to learn from, a seed, a device, a model to start from, stages.

    Rendering scenes and encoding them come on top of the minutes, which the stages share. Raises ValueError for too
    little of either, an unknown stage, and an autoencoder left out that no model is there for.
    """

    minutes: float
    scenes: int
    seed: int = 0
    device: str = "auto"
    start: str = ""
    stages: tuple[str, ...] = tuple(SHARES)

    def __post_init__(self) -> None:
        if self.minutes <= 0 or self.scenes < 1:
            raise ValueError(
                f"minutes are {self.minutes:g} and scenes {self.scenes}; minutes must be above 0 and scenes 1 or more"
            )
        if unknown := [stage for stage in self.stages if stage not in SHARES]:
            raise ValueError(f"there is no stage {unknown[0]!r}; the stages are {', '.join(SHARES)}")
        if "autoencoder" not in self.stages and not self.start:
            raise ValueError("without the stage autoencoder, a model to start from is needed (--start)")

    def seconds(self, stage: str) -> float:
        """A stage's time budget."""
        return self.minutes * 60 * SHARES[stage] / sum(SHARES[each] for each in self.stages)

    @property
    def where(self) -> torch.device:
        """The device itself."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)


class Training:
    """One training in a folder for its scenes, checkpoints and losses; `run` goes on with what a killed one left."""

    def __init__(self, plan: Plan, work: Path) -> None:
        self.plan, self.work = plan, work
        self.corpus = Corpus.render(work, plan.scenes, plan.seed)
        self.journal = Journal(work)
        plain = [caption for caption, inked in zip(self.corpus.captions, self.corpus.inked, strict=True) if not inked]
        self.tokenizer = train_tokenizer([*plain, *vocabulary()], work / "tokenizer")

    def run(self, out: Path) -> None:
        """Every stage, then the model into `out`."""
        start = Path(self.plan.start) if self.plan.start else None
        vae = self._vae(start)
        trained, averaged = with_average(self.tokenizer, self.plan.seed, self.plan.where, start)
        for recipe, size, consistency in (
            (HALF_SIZE, SIZE // 2, None),
            (FULL_SIZE, SIZE, Consistency(vae)),
            (FINISH, SIZE, Consistency(vae)),
        ):
            if recipe.name not in self.plan.stages:
                continue
            encoded = Encoded.of(self.corpus, size, vae, cache=self.work / f"latents-{size}.pt")
            lessons = Lessons(self.corpus, encoded, self.tokenizer)
            seconds, seed = self.plan.seconds(recipe.name), self.plan.seed
            self._run(DiffusionStage(recipe, trained, averaged, lessons, seconds, seed, consistency))
        export(out, vae, averaged.unet, averaged.controlnet, averaged.text_encoder, self.tokenizer)

    def _vae(self, start: Path | None) -> AutoencoderKL:
        vae = AutoencoderKL.from_pretrained(start / "vae", dtype=torch.float32) if start else first_vae(self.plan.seed)
        vae = vae.to(self.plan.where, memory_format=torch.channels_last)
        if "autoencoder" in self.plan.stages:
            images, seconds = self.corpus.images, self.plan.seconds("autoencoder")
            self._run(AutoencoderStage(vae, images, seconds, self.plan.seed))
            normalise(vae, images)
        return vae.eval().requires_grad_(False)

    def _run(self, stage: S) -> S:
        run_stage(stage, self.work, self.journal)
        return stage


def train(plan: Plan, work: Path, out: Path) -> None:
    """Train, put the model into `out`, and its losses into `work`: losses.jsonl, losses.png. Go on with a killed run.

    Raises ValueError if `work` holds a training by another plan.
    """
    keep_freed_memory(FREED)
    work.mkdir(parents=True, exist_ok=True)
    _keep_to(plan, work / "plan.json")
    training = Training(plan, work)
    training.run(out)
    training.journal.plot(work / "losses.png")
    print(training.journal.table())


def _keep_to(plan: Plan, file: Path) -> None:
    numbers = json.loads(json.dumps(asdict(plan)))
    if not file.exists():
        file.write_text(json.dumps(numbers))
    if (before := json.loads(file.read_text())) != numbers:
        raise ValueError(
            f"{file.parent} holds a training of {before}, and this one is of {numbers}: "
            "give it another --work folder, or remove that one"
        )
