"""ONNX Runtime in place of torch: the same images from files, and no others than the configuration's."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnxruntime import get_available_providers
from torch import Tensor, nn

from tests.service.running import Service, result_pixels
from tests.workers.engine import demo
from tests.workers.engine.demo import relative_error
from workers.console import command
from workers.convert import read_engine, to_onnx
from workers.engine.config import EngineConfig, Sizing
from workers.engine.engine import DiffusionEngine
from workers.engine.model import load
from workers.engine.runtimes import export, files, sessions
from workers.engine.runtimes.files import GRAPHS, RuntimeProblem, check, folder_for

ROOT = Path(__file__).parents[3]
CONFIG_FILE = ROOT / "configs" / "demo.yaml"
EQUAL = 1e-3
FLOAT = onnx.TensorProto.FLOAT
CACHING = ("trt_engine_cache_enable", "trt_engine_cache_path", "trt_timing_cache_enable", "trt_timing_cache_path")


@dataclass(frozen=True)
class Pair:
    """One configuration in two engines."""

    config: EngineConfig
    torch: DiffusionEngine
    onnx: DiffusionEngine


def configured(folder: Path) -> EngineConfig:
    """The demo's configuration, with a folder for its files."""
    return replace(read_engine(CONFIG_FILE), onnx=str(folder), runtime="onnxruntime", dtype="float32")


@pytest.fixture(scope="module", params=[pytest.param(None, marks=pytest.mark.slow)], ids=["exported"])
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    """The same with its files, which take long to make; smaller images and fewer steps, which are not in them."""
    whole = configured(tmp_path_factory.mktemp("onnx"))
    assert [path.name for path in to_onnx(whole)] == sorted(f"{name}.onnx" for name in GRAPHS)
    size = Sizing(short_side=64, long_side=128, multiple=8)
    return replace(whole, slots=3, size=size, sampler=replace(whole.sampler, steps=4))


@pytest.fixture(scope="module")
def pair(config: EngineConfig) -> Pair:
    return Pair(
        config,
        DiffusionEngine(config, load(replace(config, runtime="torch"), "cpu")),
        DiffusionEngine(config, sessions.load(config, "cpu")),
    )


def test_an_image_alone_is_torchs(pair: Pair) -> None:
    for engine in (pair.torch, pair.onnx):
        engine.warm_up()
    expected, actual = (demo.make(engine, demo.task(1)) for engine in (pair.torch, pair.onnx))
    assert relative_error(actual, expected) <= EQUAL
    assert largest_difference(pair, actual, expected) <= EQUAL + 1 / 255  # two may round to neighbours


def test_an_image_among_others_at_other_steps_is_torchs(pair: Pair) -> None:
    expected, actual = (three(engine) for engine in (pair.torch, pair.onnx))
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(one, other) <= EQUAL


@pytest.mark.parametrize(("width", "height"), [(96, 64), (64, 128)])
def test_images_of_other_sizes_are_torchs(pair: Pair, width: int, height: int) -> None:
    expected, actual = (demo.make(engine, demo.task(2, width, height)) for engine in (pair.torch, pair.onnx))
    assert actual.shape == (demo.CHANNELS, *demo.latent_size(width, height))
    assert relative_error(actual, expected) <= EQUAL
    assert largest_difference(pair, actual, expected) <= EQUAL + 1 / 255


def test_images_that_each_ask_for_something_else_are_torchs(pair: Pair) -> None:
    asked: tuple[dict[str, Any], ...] = (
        {"steps": 3, "guidance_scale": 1.0, "temperature": 0.2},
        {"steps": 7, "guidance_scale": 6.5, "negative": "a blue square"},
        {"control_scale": 1.7, "temperature": 0.01},
    )
    expected, actual = (three(engine, asked) for engine in (pair.torch, pair.onnx))
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(one, other) <= EQUAL


def test_an_edge_map_is_torchs_and_a_prompt_that_is_cut_is_told_of(pair: Pair) -> None:
    task = demo.task(3, text="a red circle, " * 60, control_image="edges")
    torchs, onnxs = pair.torch.prepare(task), pair.onnx.prepare(task)
    assert onnxs.warnings == torchs.warnings
    assert onnxs.warnings[0].startswith("The prompt has ")
    assert relative_error(demo.make(pair.onnx, task), demo.make(pair.torch, task)) <= EQUAL


def three(engine: DiffusionEngine, asked: Sequence[dict[str, Any]] = ({}, {}, {})) -> list[Tensor]:
    """Each joins a step after the last."""
    for seed, options in enumerate(asked):
        engine.admit(seed, engine.prepare(demo.task(seed, **options)))
        engine.step()
    while engine.step():
        pass
    latents = [engine.latents(slot) for slot in range(3)]
    for slot in range(3):
        engine.discard(slot)
    return latents


def largest_difference(pair: Pair, actual: Tensor, expected: Tensor) -> float:
    one, other = pair.onnx.decode(actual), pair.torch.decode(expected)
    return float(np.abs(one.astype(np.float64) - other).max() / 255)


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_checker_accepts_each_file(config: EngineConfig, graph: str) -> None:
    path = folder_for(config, "float32") / f"{graph}.onnx"
    onnx.checker.check_model(path, full_check=True)
    written = {entry.key for entry in onnx.load(path).metadata_props}
    assert {"contour.version", "contour.dtype", "contour.model", "contour.opset"} <= written


def test_tensorrt_is_told_of_the_batch_of_each_input(config: EngineConfig) -> None:
    spans = sessions.shapes(folder_for(config, "float32") / "step.onnx", config)
    assert len(spans) == 7
    assert {dims[0] for dims in spans.values()} == {(1, 1, 3)}  # whatever torch calls that dimension
    sides = (config.size.multiple // demo.SCALE, *demo.latent_size(128))
    assert spans["latents"][1:] == [(demo.CHANNELS,) * 3, sides, sides]


@torch.no_grad()
def test_tensorrt_is_told_of_shapes_precision_and_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, device = configured(tmp_path), torch.device("cuda:1")
    paths = {name: tmp_path / f"{name}.onnx" for name in ("text", "hint", "times")}
    for name, path in paths.items():
        export.write_graph(dict(export.graphs(demo.parts(), 2))[name], {"latent_scale": "8"}, path)
    monkeypatch.delenv(sessions.CACHE, raising=False)
    assert sessions.tensorrt_provider(paths["hint"], config, "float16", device) == (
        "TensorrtExecutionProvider",
        {
            "device_id": "1",
            "trt_fp16_enable": "1",
            "trt_profile_min_shapes": "edges:32x32",
            "trt_profile_opt_shapes": "edges:256x256",
            "trt_profile_max_shapes": "edges:512x512",
        },
    )
    monkeypatch.setenv(sessions.CACHE, "/cache")
    times, text = (sessions.tensorrt_provider(paths[name], config, "float32", device)[1] for name in ("times", "text"))
    assert times["trt_profile_max_shapes"] == "timesteps:1000"
    assert text.keys() == {"device_id", "trt_fp16_enable", *CACHING}  # all of its dimensions are fixed
    assert text["trt_fp16_enable"] == "0"
    assert text["trt_timing_cache_path"] == str(Path(text["trt_engine_cache_path"]).parent) == "/cache"
    other = replace(config, guidance_scale=1.0)  # other files, of the same names
    changed = sessions.tensorrt_provider(paths["text"], other, "float32", device)[1]
    assert changed["trt_engine_cache_path"] != text["trt_engine_cache_path"]


@torch.no_grad()
@pytest.mark.parametrize("name", ["text", "hint", "times"])
@pytest.mark.parametrize("inline", [export.INLINE_BYTES, 0], ids=["one file", "weights in a second file"])
def test_each_of_the_smaller_graphs_computes_what_torch_does(name: str, inline: int, tmp_path: Path) -> None:
    graph = dict(export.graphs(demo.parts(), 2))[name]
    path = tmp_path / f"{name}.onnx"
    export.write_graph(graph, {}, path, inline)
    assert (tmp_path / f"{name}.onnx.data").exists() == (inline == 0)
    expected = graph.module(*graph.inputs.values())
    session = sessions.Session(path, torch.device("cpu"))
    assert relative_error(session(torch.empty(expected.shape), *graph.inputs.values()), expected) <= EQUAL


class _Reversed(nn.Module):
    """Splits a product into 40 parts; the UNet of Stable Diffusion splits its text's keys and values into 32."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 820))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x @ self.weight).split([*range(1, 41)], 1)[::-1], 1)


@torch.no_grad()
def test_sizes_stay_in_the_first_file(tmp_path: Path) -> None:
    """In the second, ONNX Runtime does not find them."""
    graph = export.Graph(_Reversed(), {"x": torch.randn(2, 32)}, (None,), "parts")
    export.write_graph(graph, {}, tmp_path / "parts.onnx", 0)
    assert (tmp_path / "parts.onnx.data").stat().st_size == 4 * 32 * 820
    expected = graph.module(*graph.inputs.values())
    session = sessions.Session(tmp_path / "parts.onnx", torch.device("cpu"))
    assert relative_error(session(torch.empty(expected.shape), *graph.inputs.values()), expected) <= EQUAL


@torch.no_grad()
@pytest.mark.slow
def test_the_smallest_feature_maps_of_stable_diffusions_depth_may_be_single_points(tmp_path: Path) -> None:
    from diffusers import ControlNetModel, UNet2DConditionModel

    shape = {
        "block_out_channels": (8,) * 4,
        "down_block_types": ("DownBlock2D",) * 4,  # attention is in the middle
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
    }
    torch.manual_seed(0)
    unet = UNet2DConditionModel(up_block_types=("UpBlock2D",) * 4, **shape).eval()
    controlnet = ControlNetModel(**shape).eval()
    graph = dict(export.graphs(replace(demo.parts(), unet=unet, controlnet=controlnet), 2))["step"]
    path = tmp_path / "step.onnx"
    export.write_graph(graph, {}, path)
    inputs = {name: torch.randn_like(value[:1]) for name, value in graph.inputs.items()}
    inputs["latents"], inputs["hint"] = inputs["latents"][..., :8, :8], inputs["hint"][:, :8, :8]
    values = [each.contiguous() for each in inputs.values()]
    expected = graph.module(*values)
    assert expected.shape[2:] == (8, 8)
    session = sessions.Session(path, torch.device("cpu"))
    assert relative_error(session(torch.empty(expected.shape), *values), expected) <= EQUAL


# ------------------------------------------------------------------------------------------------------------- refused


def test_files_of_other_weights_are_refused(config: EngineConfig, tmp_path: Path) -> None:
    assert config.model is not None
    model = tmp_path / Path(config.model.path).name
    shutil.copytree(config.model.path, model)
    changed = replace(config, model=replace(config.model, path=str(model)), onnx=str(tmp_path / "onnx"))
    shutil.copytree(folder_for(config, "float32"), folder_for(changed, "float32"))
    check(changed, "float32")

    with (model / "vae" / "diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.seek(2**20)
        file.write(bytes(2**17))  # training changes weights everywhere

    with pytest.raises(RuntimeProblem, match=r"step.onnx was made of other weights .*workers.convert CONFIG --to onnx"):
        check(changed, "float32")


def test_files_of_another_version_are_refused(config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    check(config, "float32")
    monkeypatch.setattr(files, "VERSION", "another")
    with pytest.raises(RuntimeProblem, match=r"another version of contour \(3\); make it again with: .* --to onnx"):
        check(config, "float32")


def test_a_file_that_is_none_is_refused(config: EngineConfig, tmp_path: Path) -> None:
    changed = replace(config, onnx=str(tmp_path))
    shutil.copytree(folder_for(config, "float32"), folder_for(changed, "float32"))
    (folder_for(changed, "float32") / "vae.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(RuntimeProblem, match=r"vae.onnx cannot be read .*workers.convert CONFIG --to onnx"):
        check(changed, "float32")


def test_a_missing_package_is_told(tmp_path: Path) -> None:
    without = "import sys; sys.modules['onnxruntime'] = None; sys.path.insert(0, '.');"
    code = f"{without} from app.cli.serve import run; sys.exit(run(['--config', 'configs/demo.yaml']))"
    done = start(code, tmp_path)
    assert done.returncode == 2
    assert "engine.runtime is onnxruntime, but onnxruntime is not installed: " in done.stderr


@pytest.mark.skipif("CUDAExecutionProvider" in get_available_providers(), reason="ONNX Runtime here knows GPUs")
def test_an_onnx_runtime_that_knows_no_gpu_is_not_taken_for_one_that_does(tmp_path: Path) -> None:
    with pytest.raises(RuntimeProblem, match="knows no GPU: install onnxruntime-gpu in its place"):
        check(configured(tmp_path), "float16", cuda=True)


def test_lack_of_memory_raises_torchs_error(tmp_path: Path) -> None:
    """A sum over more numbers than any machine has bytes for."""
    ends = [onnx.helper.make_tensor_value_info(*end) for end in (("x", FLOAT, [1]), ("y", FLOAT, []))]
    nodes = [
        onnx.helper.make_node("Expand", ["x", "many"], ["wide"]),
        onnx.helper.make_node("ReduceSum", ["wide"], ["y"], keepdims=0),
    ]
    many = onnx.helper.make_tensor("many", onnx.TensorProto.INT64, [1], [2**46])
    graph = onnx.helper.make_graph(nodes, "wide", ends[:1], ends[1:], [many])
    opsets = [onnx.helper.make_opsetid("", export.OPSET)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "wide.onnx")
    session = sessions.Session(tmp_path / "wide.onnx", torch.device("cpu"))
    with pytest.raises(torch.OutOfMemoryError, match="Failed to allocate memory"):
        session(torch.zeros(()), torch.ones(1))


def test_missing_files_are_told_before_a_worker_starts(tmp_path: Path) -> None:
    code = "import sys; from app.cli.serve import run; sys.exit(run(['--config', 'configs/demo.yaml', '--port', '0']))"
    done = start(code, tmp_path)
    assert done.returncode == 2
    assert (
        f"step.onnx is missing; make it with: {command('-m', 'workers.convert', 'configs/demo.yaml')} --to onnx"
        in done.stderr
    )


def start(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    settings = {"CONTOUR_ENGINE__RUNTIME": "onnxruntime", "CONTOUR_ENGINE__ONNX": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | settings | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_without_tensorrt_the_next_provider_runs_the_files(
    config: EngineConfig, caplog: pytest.LogCaptureFixture
) -> None:
    engine = DiffusionEngine(config, sessions.load(replace(config, onnx_provider="tensorrt"), "cpu"))
    assert demo.make(engine, demo.task(1)).isfinite().all()
    assert "engine.onnx_provider is tensorrt, but it needs an NVIDIA GPU; running on cpu" in caplog.text


@pytest.mark.skipif("TensorrtExecutionProvider" in get_available_providers(), reason="TensorRT is here")
def test_an_onnx_runtime_without_tensorrt_is_told_from_one_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert "install onnxruntime-gpu and tensorrt" in sessions.without_tensorrt(torch.device("cuda:0"))
    path = tmp_path / "text.onnx"
    export.write_graph(dict(export.graphs(demo.parts(), 2))["text"], {}, path)
    with pytest.warns(UserWarning, match="TensorrtExecutionProvider"):
        session = sessions.Session(path, torch.device("cpu"), ("TensorrtExecutionProvider", {}))
    assert session.shapes["tokens"] == [1, 77]
    assert "text.onnx runs without TensorRT" in caplog.text


# ------------------------------------------------------------------------------------------------------------- service


def test_the_service_makes_torchs_image(config: EngineConfig) -> None:
    images = []
    for runtime in ("torch", "onnxruntime"):
        few = {"ENGINE__SAMPLER__STEPS": 4, "ENGINE__SIZE__SHORT_SIDE": 64, "ENGINE__SIZE__LONG_SIDE": 64}
        same = {"ENGINE__RUNTIME": runtime, "ENGINE__DTYPE": "float32", "ENGINE__ONNX": config.onnx}
        with Service("demo", **same, **few) as service:
            answer = service.wait_until_ready().generate()
            assert answer.status_code == 200, answer.text
            images.append(result_pixels(answer))
    expected, actual = images
    assert cv2.PSNR(expected, actual) > 45
