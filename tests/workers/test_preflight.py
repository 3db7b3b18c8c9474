"""Problems with a configuration's names and paths that are found before a worker starts."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from app.checks import model
from app.checks.finding import Level, Subject
from app.settings import SettingsError, load
from tests.cli.command import run
from tests.service.running import ROOT
from tests.workers.test_lazy import HEAVY, loaded
from workers.engine.config import EngineConfig
from workers.preflight import MARK, problems

DEMO = ROOT / "configs/demo.yaml"
TEXT = "engine:\n  model: {path: ./demo}\n  controlnet: {path: ./demo/controlnet}\n  size: {multiple: 32}\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration of a copy of the small model, which may be spoilt."""
    shutil.copytree(DEMO.with_suffix(""), tmp_path / "demo")
    (tmp_path / "my.yaml").write_text(TEXT)
    return tmp_path / "my.yaml"


def told(config: Path, **environ: str) -> list[str]:
    """The problems, each with its key, without the folder."""
    variables = {f"CONTOUR_ENGINE__{name}": value for name, value in environ.items()}
    found = problems(load(config, variables).engine)
    return [f"{'.'.join(each.key)} {each.text}".replace(f"{config.parent}/", "") for each in found]


def test_the_small_model_has_none_and_nothing_heavy_is_imported_to_find_that(config: Path) -> None:
    program = f"from pathlib import Path\nfrom app.startup import prepared\nprepared(Path({str(config)!r}), {{}})"
    assert loaded(program, (*HEAVY, "numpy", "httpx", "huggingface_hub")) == set()
    assert told(config) == []


def test_doctor_tells_the_same(config: Path) -> None:
    shutil.rmtree(config.parent / "demo/vae")
    fine, missing = model.configuration(Subject(config, {}))
    assert (fine.level, missing.level) == (Level.OK, Level.MISSING)
    assert missing.text.endswith(f"there is no {config.parent}/demo/vae/config.json")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("UniPCMultistepSchedular", "UniPCMultistepScheduler"),
        ("unipc", "UniPCMultistepScheduler"),
        ("ddim", "DDIMScheduler"),
        ("Euler", "EulerDiscreteScheduler"),
        ("Euler a", "EulerAncestralDiscreteScheduler"),
        ("DPM++ 2M Karras", "DPMSolverMultistepScheduler"),
        ("DPMSolver", "DPMSolverMultistepScheduler"),
        ("LMS", "LMSDiscreteScheduler"),
        ("k_euler", "EulerDiscreteScheduler"),
        ("Euler Ancestral", "EulerAncestralDiscreteScheduler"),
        ("DPMSolverMultiStepScheduler", "DPMSolverMultistepScheduler"),
    ],
)
def test_a_misspelt_sampler_is_told_with_the_nearest(config: Path, name: str, near: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(config, {"CONTOUR_ENGINE__SAMPLER__NAME": name})
    assert str(refused.value) == (
        f"environment variable CONTOUR_ENGINE__SAMPLER__NAME: engine.sampler.name is {name!r}, "
        f"which is not a sampler that this engine supports; did you mean {near}?"
    )


def test_a_sampler_like_no_other_is_told_with_all_there_are(config: Path) -> None:
    with pytest.raises(SettingsError, match=r"is 'x', which is not a sampler .*; allowed: .*DDIMScheduler, .*UniPC"):
        load(config, {"CONTOUR_ENGINE__SAMPLER__NAME": "x"})


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"MODEL__PATH": "./dmeo"}, "model.path is dmeo, but there is no such folder; did you mean demo?"),
        ({"MODEL__PATH": "./a/b"}, "model.path is a/b, but there is no such folder; a does not exist either"),
        ({"MODEL__PATH": "./demo.safetensors"}, "model.path is demo.safetensors, but there is no such file"),
        (
            {"MODEL__PATH": "./demo/vae"},
            "model.path is demo/vae, which is not a model in diffusers' layout: it has no unet/config.json",
        ),
        (
            {"CONTROLNET__PATH": "./demo"},
            "controlnet.path is demo, which is not a ControlNet in diffusers' layout: it has no config.json"
            "; did you mean demo/controlnet?",
        ),
        (
            {"CONTROLNET__PATH": "./demo/unet"},
            "controlnet.path is demo/unet, but demo/unet/config.json describes UNet2DConditionModel, "
            "not ControlNetModel",
        ),
        (
            {"VAE__PATH": "./demo"},
            "vae.path is demo, which is not a VAE in diffusers' layout: it has no config.json; did you mean demo/vae?",
        ),
        (
            {"VAE__PATH": "./demo/unet"},
            "vae.path is demo/unet, but demo/unet/config.json describes UNet2DConditionModel, "
            "not AutoencoderKL or AutoencoderTiny",
        ),
        (
            {"LORAS": "[{path: ./demo/unet, file: diffusion_pytorch_modle.safetensors}]"},
            "loras.0.file is diffusion_pytorch_modle.safetensors, but there is no such file in demo/unet; "
            "did you mean diffusion_pytorch_model.safetensors?",
        ),
    ],
)
def test_a_path_that_leads_nowhere_is_told(config: Path, changes: dict[str, str], line: str) -> None:
    part = line.partition(".")[0]
    assert next(each for each in told(config, **changes) if each.startswith(f"engine.{part}")) == f"engine.{line}"


def rewrite(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no VAE": (lambda demo: shutil.rmtree(demo / "vae"), "there is no demo/vae/config.json"),
    "no weights": (
        lambda demo: (demo / "unet/diffusion_pytorch_model.safetensors").unlink(),
        "there is no demo/unet/diffusion_pytorch_model.safetensors",
    ),
    "a pickle": (
        lambda demo: (demo / "text_encoder/model.safetensors").rename(demo / "text_encoder/pytorch_model.bin"),
        "there is no demo/text_encoder/model.safetensors, only pytorch_model.bin, a pickle",
    ),
    "no tokenizer": (
        lambda demo: shutil.rmtree(demo / "tokenizer"),
        "there is no demo/tokenizer/tokenizer_config.json",
    ),
    "no words": (
        lambda demo: (demo / "tokenizer/tokenizer.json").unlink(),
        "there is no demo/tokenizer/tokenizer.json, and no vocab.json",
    ),
    "no schedule": (lambda demo: shutil.rmtree(demo / "scheduler"), "there is no demo/scheduler/scheduler_config.json"),
    "cut short": (
        lambda demo: cut(demo / "vae/diffusion_pytorch_model.safetensors"),
        "demo/vae/diffusion_pytorch_model.safetensors is not a complete safetensors file",
    ),
    "a pointer": (
        lambda demo: (demo / "unet/diffusion_pytorch_model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
        ),
        "demo/unet/diffusion_pytorch_model.safetensors is not a complete safetensors file: it is a Git LFS pointer",
    ),
    "not JSON": (lambda demo: (demo / "unet/config.json").write_text("{"), "demo/unet/config.json is not JSON"),
    "code": (
        lambda demo: rewrite(demo / "unet/config.json", auto_map={"x": "y"}),
        "demo/unet/config.json sets auto_map, which is refused",
    ),
    "another architecture": (
        lambda demo: rewrite(demo / "unet/config.json", addition_embed_type="text_time"),
        "addition_embed_type of the UNet is 'text_time'; this engine runs None only",
    ),
    "another text encoder": (
        lambda demo: rewrite(demo / "text_encoder/config.json", hidden_size=7),
        "cross_attention_dim of the UNet is 96, but the text encoder's hidden_size is 7",
    ),
}


@pytest.mark.parametrize("name", list(SPOILT))
def test_a_model_that_is_spoilt_is_told(config: Path, name: str) -> None:
    spoil, reason = SPOILT[name]
    spoil(config.parent / "demo")
    [line] = told(config)
    assert line.startswith(f"engine.model.path is demo, but {reason}")


def test_a_controlnet_of_another_model_is_told(config: Path) -> None:
    rewrite(config.parent / "demo/controlnet/config.json", cross_attention_dim=2048)
    [line] = told(config)
    assert line.startswith(
        "engine.controlnet.path is demo/controlnet, but cross_attention_dim is 96 in the UNet and 2048"
    )


def test_a_vae_of_another_model_is_told(config: Path) -> None:
    vae = shutil.copytree(config.parent / "demo/vae", config.parent / "vae")
    assert told(config, VAE__PATH="./vae") == []
    rewrite(vae / "config.json", scaling_factor=0.13025)
    [line] = told(config, VAE__PATH="./vae")
    assert line.startswith("engine.vae.path is vae, but scaling_factor of the VAE is 0.13025, and of the model's own")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"SAMPLER__OPTIONS__USE_KARAS_SIGMAS": "true"},
            "options.use_karas_sigmas is not an option of UniPCMultistepScheduler; did you mean use_karras_sigmas?",
        ),
        (
            {"SAMPLER__OPTIONS": "{use_karras_sigmas: maybe, timestep_spacing: trailin}"},
            "options.use_karras_sigmas is 'maybe', but must be true or false",
        ),
        (
            {"SAMPLER__OPTIONS": "{solver_order: 0}"},
            "options.solver_order is 0, which UniPCMultistepScheduler does not",
        ),
        (
            {"SAMPLER__NAME": "DDIMScheduler", "SAMPLER__OPTIONS": "{clip_sample: true, prediction_type: epsilon}"},
            "options.clip_sample is true, which DDIMScheduler does not accept here: leave it out",
        ),
        (
            {"SAMPLER__NAME": "LCMScheduler", "SAMPLER__STEPS": "60"},
            "steps is 60, which LCMScheduler cannot take: choose another number",
        ),
    ],
)
def test_a_sampler_that_does_not_work_is_tried_and_told(config: Path, changes: dict[str, str], line: str) -> None:
    found = told(config, **changes)
    assert found[0].startswith(f"engine.sampler.{line}")
    assert len(found) == str(changes).count("trailin") + 1


@pytest.mark.slow
def test_a_sampler_that_this_models_schedule_does_not_fit_is_told(config: Path) -> None:
    rewrite(config.parent / "demo/scheduler/scheduler_config.json", clip_sample=True)
    [line] = told(config, SAMPLER__NAME="DDIMScheduler")
    assert line.startswith("engine.sampler.name is DDIMScheduler, which does not work with this model's")
    assert line.endswith("set engine.sampler.options: {clip_sample: false}")
    assert told(config, SAMPLER__NAME="DDIMScheduler", SAMPLER__OPTIONS="{clip_sample: false}") == []


@pytest.mark.slow
def test_options_that_work_are_no_problem(config: Path) -> None:
    options = "{use_karras_sigmas: true, algorithm_type: sde-dpmsolver++}"
    assert told(config, SAMPLER__NAME="DPMSolverMultistepScheduler", SAMPLER__OPTIONS=options) == []


@pytest.mark.slow
def test_a_working_configuration_is_not_tried_again_until_it_changes(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def engine(**options: bool) -> EngineConfig:
        return load(config, {"CONTOUR_ENGINE__SAMPLER__OPTIONS": json.dumps(options)}).engine

    assert problems(engine(use_karras_sigmas=True), config.parent) == []
    monkeypatch.setattr(sys, "executable", "/nowhere")  # what is tried now says nothing, and is not noted
    note = (config.parent / MARK).read_bytes()
    assert problems(engine(use_karras_sigmas=True), config.parent) == []
    assert problems(engine(thresholding=True), config.parent) == []
    assert (config.parent / MARK).read_bytes() == note
    monkeypatch.undo()
    assert problems(engine(thresholding=True), config.parent) != []
    assert (config.parent / MARK).read_bytes() == note


def test_a_trial_is_logged_as_it_takes_seconds(config: Path) -> None:
    refused = run(
        config,
        SERVER__LOG_FORMAT="human",
        WORKERS__CACHE=config.parent / "cache",
        ENGINE__SAMPLER__OPTIONS="{solver_order: 0}",
    )
    assert refused.returncode == 2
    log, reason = refused.stderr.splitlines()
    assert log.endswith("Trying the sampler and LoRAs of this new configuration; this takes some seconds")
    assert "options.solver_order is 0, which" in reason


def test_the_trial_process_gets_no_secrets(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nenv > {tmp_path}/environment\necho '[]'\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("CONTOUR_SERVER__API_KEY", "a-key-of-more-than-16")
    assert told(config, SAMPLER__OPTIONS="{use_karras_sigmas: true}") == []
    environment = (tmp_path / "environment").read_text()
    assert "HF_HUB_OFFLINE=1" in environment
    assert "a-key-of-more-than-16" not in environment


@pytest.mark.slow
def test_a_lora_of_another_model_is_told(config: Path) -> None:
    key = "lora_unet_down_blocks_9_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{key}.lora_down.weight": torch.zeros(4, 8), f"{key}.lora_up.weight": torch.zeros(8, 4)}
    save_file(tensors, config.parent / "lora.safetensors")
    [line] = told(config, LORAS="[{path: ., file: lora.safetensors}]")
    assert line.startswith("engine.loras.0.file cannot be used: lora.safetensors: the UNet has no layer down_blocks_9")
