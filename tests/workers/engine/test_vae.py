"""Another VAE in place of the model's own: small ones of both classes, with random weights."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.workers.engine import demo
from workers.engine.conditioning import pack_upsamplers
from workers.engine.config import EngineConfig, Weights
from workers.engine.engine import DiffusionEngine
from workers.engine.model import assemble, decode, read
from workers.engine.model_checks import UnsafeModelError, UnsupportedModelError
from workers.engine.networks import has_pass, vae_image
from workers.engine.preview import fit
from workers.engine.runtimes import export, openvino_files, sessions
from workers.engine.runtimes import files as onnx_files
from workers.engine.weights import files
from workers.preflight import problems

LEVELS = 3
OWN = json.loads((demo.FOLDER / "vae" / "config.json").read_text())


def tiny(**changes: Any) -> Any:
    from diffusers import AutoencoderTiny

    levels = {f"{side}coder_block_out_channels": (8,) * LEVELS for side in ("en", "de")}
    blocks = {f"num_{side}coder_blocks": (1,) * LEVELS for side in ("en", "de")}
    return AutoencoderTiny(**levels | blocks | {"latent_channels": demo.CHANNELS} | changes)


def kl(**changes: Any) -> Any:
    from diffusers import AutoencoderKL

    levels = changes.pop("levels", LEVELS)
    sizes = {
        "block_out_channels": (8,) * levels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "norm_num_groups": 4,
        "latent_channels": demo.CHANNELS,
        "scaling_factor": OWN["scaling_factor"],
    }
    return AutoencoderKL(**sizes | changes)


KINDS: dict[str, Callable[[], Any]] = {
    "tiny": tiny,
    "tiny, scaled": partial(tiny, scaling_factor=0.5),
    "KL": kl,
    "KL, no post_quant_conv": partial(kl, use_post_quant_conv=False, use_quant_conv=False),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def saved(vae: Any, folder: Path) -> EngineConfig:
    """The demo's configuration with this VAE."""
    vae.save_pretrained(folder)
    return replace(demo.CONFIG, vae=Weights(path=str(folder)))


@pytest.fixture
def config(kind: str, tmp_path: Path) -> EngineConfig:
    torch.manual_seed(0)
    return saved(KINDS[kind](), tmp_path / "vae")


def test_an_image_is_that_of_the_diffusers_pipeline(config: EngineConfig, tmp_path: Path) -> None:
    import diffusers

    parts = read(config, torch.float32)
    engine = DiffusionEngine(config, assemble(config, parts, "cpu"))
    prepared = engine.prepare(demo.task())
    engine.admit(0, prepared)
    demo.run(engine, 0)
    pixels = engine.collect(engine.finish(0))
    by_diffusers = getattr(diffusers, type(parts.vae).__name__).from_pretrained(tmp_path / "vae")
    expected = demo.Reference(config, replace(parts, vae=by_diffusers)).pixels(prepared)
    assert np.abs(pixels.astype(int) - expected).max() <= 1  # two may round to neighbours
    assert expected.std() > 1


@torch.no_grad()
def test_colours_of_previews_are_fitted_to_it(config: EngineConfig) -> None:
    parts = read(config, torch.float32)
    colours = DiffusionEngine(config, assemble(config, parts, "cpu"))._execution.colours
    assert colours is not None
    expected, own = (
        fit(partial(decode, vae), demo.CHANNELS, torch.device("cpu")) for vae in (parts.vae, demo.parts().vae)
    )
    assert torch.allclose(colours.weights, expected.weights, atol=0.1)
    assert not torch.allclose(colours.weights, own.weights, atol=1)


@torch.no_grad()
def test_other_runtimes_compute_the_same(config: EngineConfig, tmp_path: Path) -> None:
    graph = dict(export.graphs(read(config, torch.float32), 2))["vae"]
    latents = torch.randn(demo.CHANNELS, *demo.latent_size(96), generator=torch.Generator().manual_seed(1))
    expected = graph.module(latents).int()
    export.write_graph(graph, {}, tmp_path / "vae.onnx")
    by_onnx = sessions.Session(tmp_path / "vae.onnx", torch.device("cpu"))
    assert (by_onnx(torch.empty(64, 96, 3, dtype=torch.uint8), latents).int() - expected).abs().max() <= 1
    openvino_files._write(graph, tmp_path / "vae.xml")
    by_openvino = openvino_files.openvino().compile_model(
        tmp_path / "vae.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    assert np.abs(by_openvino([latents.numpy()])[0].astype(int) - expected.numpy()).max() <= 1


OTHERS: dict[str, Callable[[], Any]] = {
    "KL, no attention": partial(kl, mid_block_add_attention=False),
    "KL, attention at all levels": partial(kl, up_block_types=("AttnUpDecoderBlock2D",) * LEVELS),
}


@torch.no_grad()
@pytest.mark.parametrize("name", [*KINDS, *OTHERS])
def test_with_our_kernels_it_decodes_the_same(name: str) -> None:
    """On a CPU, our operators run their definition by torch."""
    torch.manual_seed(0)
    vae, latents = (KINDS | OTHERS)[name]().eval(), torch.randn(demo.CHANNELS, 6, 5)
    assert has_pass(vae) == (name in {"KL", "KL, no post_quant_conv", "KL, no attention"})
    if has_pass(vae):
        pack_upsamplers(vae.decoder)
        expected = vae.decode(latents[None], return_dict=False)[0]
        assert demo.relative_error(vae_image(vae, latents[None]), expected) <= 1e-5
    assert (decode(vae, latents, fused=True).int() - decode(vae, latents).int()).abs().max() <= 1


@torch.no_grad()
def test_that_pass_is_compiled_whole() -> None:
    vae, latents = kl().eval(), torch.randn(demo.CHANNELS, 6, 5)
    pack_upsamplers(vae.decoder)

    def fused(latents: torch.Tensor) -> torch.Tensor:
        return decode(vae, latents, fused=True)

    compiled = torch.compile(fused, backend="eager", fullgraph=True)
    assert torch.equal(compiled(latents), fused(latents))


def test_converted_networks_belong_to_it(config: EngineConfig, tmp_path: Path) -> None:
    def names(engine: EngineConfig) -> tuple[str, str, str]:
        made_of = onnx_files.identity(engine, "float32")["model"]
        return onnx_files.label(engine), made_of, openvino_files.name_of(engine)

    with_it = names(config)
    torch.manual_seed(1)
    other = names(saved(kl(), tmp_path / "vae"))  # in the same folder
    without = names(demo.CONFIG)
    assert all(len(set(each)) == 3 for each in zip(with_it[1:], other[1:], without[1:], strict=True))
    assert with_it[0] != without[0]


def test_it_is_read_in_place_of_the_models_own(config: EngineConfig, tmp_path: Path) -> None:
    name = "diffusion_pytorch_model.safetensors"
    assert [path for path in files(config, "cpu") if path.parent.name == "vae"] == [tmp_path / "vae" / name]
    assert [path for path in files(demo.CONFIG, "cpu") if path.parent.name == "vae"] == [demo.FOLDER / "vae" / name]
    vae = read(config, torch.float16, "meta").vae  # straight to the device
    assert {(weight.device.type, weight.dtype) for weight in vae.parameters()} == {("meta", torch.float16)}


@pytest.mark.parametrize(
    ("vae", "told"),
    [
        (partial(kl, latent_channels=16), "latent_channels of the VAE is 16, and of the model's own VAE 6"),
        (partial(kl, levels=4), "the number of block_out_channels of the VAE is 4, and of the model's own VAE 3"),
        (partial(kl, scaling_factor=0.13025), "scaling_factor of the VAE is 0.13025, and of the model's own VAE 1"),
        (partial(tiny, latent_channels=16), "latent_channels of the VAE is 16"),
        (partial(tiny, upsampling_scaling_factor=1), "upsampling_scaling_factor of the VAE is 1"),
    ],
)
def test_one_for_another_model_is_refused(vae: Callable[[], Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=told):
        read(saved(vae(), tmp_path / "vae"), torch.float32)


def test_a_model_may_have_a_tiny_one_of_its_own(tmp_path: Path) -> None:
    model = shutil.copytree(demo.FOLDER, tmp_path / "model")
    shutil.rmtree(model / "vae")
    tiny().save_pretrained(model / "vae")
    config = replace(demo.CONFIG, model=Weights(path=str(model)), controlnet=Weights(path=str(model / "controlnet")))
    assert problems(config) == []
    assert type(read(config, torch.float32).vae).__name__ == "AutoencoderTiny"


def test_keys_that_name_code_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderTiny", "auto_map": {"x": "y"}}')
    with pytest.raises(UnsafeModelError, match="sets auto_map, which is refused"):
        read(replace(demo.CONFIG, vae=Weights(path=str(tmp_path))), torch.float32)


def test_another_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "ConsistencyDecoderVAE"}')
    with pytest.raises(UnsupportedModelError, match="is 'ConsistencyDecoderVAE'; this engine runs AutoencoderKL or Au"):
        read(replace(demo.CONFIG, vae=Weights(path=str(tmp_path))), torch.float32)
