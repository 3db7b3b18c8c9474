"""From nothing to a model's folder: scenes, the VAE, its decoder again, the UNet with its ControlNet."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import TypeVar

import torch

from example.demo_model.consistency import Consistency
from example.demo_model.corpus import Corpus
from example.demo_model.diffusion import FULL_SIZE, HALF_SIZE, DiffusionStage, with_average
from example.demo_model.drawing import SIZE
from example.demo_model.export import export
from example.demo_model.journal import Journal
from example.demo_model.lessons import Encoded, Lessons
from example.demo_model.loop import Stage, run_stage
from example.demo_model.surfaces import WIDELY_VARIED
from example.demo_model.tokenizer import train_tokenizer
from example.demo_model.vae import AutoencoderStage, DecoderStage, scaling_factor
from workers.machine import keep_freed_memory

SHARES: Mapping[str, float] = {"autoencoder": 0.14, "decoder": 0.05, "half size": 0.38, "full size": 0.43}
S = TypeVar("S", bound=Stage)
FREED = 2**31 - 1  # bytes that stay with the process: a step on whole images then takes a quarter less time
FINER = 0.75  # as many scenes for full size as for all before: encoding takes four times as long there


@dataclass(frozen=True)
class Plan:
    """The inputs of a training: minutes in all, scenes to learn from, a seed, a device.

    Rendering scenes and encoding them come on top of the minutes. Raises ValueError for too little of either.
    """

    minutes: float
    scenes: int
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.minutes <= 0 or self.scenes < 1:
            raise ValueError(
                f"minutes are {self.minutes:g} and scenes {self.scenes}; minutes must be above 0 and scenes 1 or more"
            )

    def seconds(self, stage: str) -> float:
        """A stage's time budget."""
        return self.minutes * 60 * SHARES[stage]

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
        self.finer = Corpus.render(work / "finer", ceil(plan.scenes * FINER), plan.seed + 1, WIDELY_VARIED)
        self.journal = Journal(work)
        self.tokenizer = train_tokenizer(self.corpus.captions, work / "tokenizer")

    def run(self, out: Path) -> None:
        """Every stage, then the model into `out`."""
        autoencoder = AutoencoderStage(
            self.corpus.images, self.plan.seconds("autoencoder"), self.plan.seed, self.plan.where
        )
        vae = self._run(autoencoder).vae
        decoder = DecoderStage(vae, self.corpus.images, self.plan.seconds("decoder"), self.plan.seed, self.plan.where)
        vae = self._run(decoder).vae.eval().requires_grad_(False)
        scale = scaling_factor(vae, self.corpus.images)
        trained, averaged = with_average(self.tokenizer, self.plan.seed, self.plan.where)
        for recipe, size, corpus, consistency in (
            (HALF_SIZE, SIZE // 2, self.corpus, None),
            (FULL_SIZE, SIZE, self.finer, Consistency(vae, scale)),
        ):
            encoded = Encoded.of(corpus.images, size, vae, scale, cache=self.work / f"latents-{size}.pt")
            lessons = Lessons(corpus, encoded, self.tokenizer)
            seconds, seed = self.plan.seconds(recipe.name), self.plan.seed
            self._run(DiffusionStage(recipe, trained, averaged, lessons, seconds, seed, consistency))
        export(out, vae, averaged.unet, averaged.controlnet, averaged.text_encoder, self.tokenizer, scale)

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
    numbers = asdict(plan)
    if not file.exists():
        file.write_text(json.dumps(numbers))
    if (before := json.loads(file.read_text())) != numbers:
        raise ValueError(
            f"{file.parent} holds a training of {before}, and this one is of {numbers}: "
            "give it another --work folder, or remove that one"
        )
