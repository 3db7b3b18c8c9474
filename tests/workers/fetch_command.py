"""The command that fetches weights, as a process and inside this one, and the smallest weights to try it with."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

from tests.workers.engine import demo
from tests.workers.hub import COMMIT, Hub, serving
from workers import fetch
from workers.engine.config import EngineConfig, Weights
from workers.engine.engine import DiffusionEngine
from workers.engine.model import load as load_model
from workers.weights.store import find

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs" / "demo"
MODEL = Weights(path="some/model", revision=COMMIT)
CONTROLNET = Weights(path="some/controlnet", revision=COMMIT)
BOTH = f"""
engine:
  model: {{path: some/model, revision: {COMMIT}}}
  controlnet: {{path: some/controlnet, revision: {COMMIT}}}
"""
# One small part, where nothing is said of models as such.
ONE = f"""
engine:
  model: {{path: {DEMO}}}
  controlnet: {{path: some/controlnet, revision: {COMMIT}}}
"""
WEIGHTS = "diffusion_pytorch_model.safetensors"
LATER = 75


@contextmanager
def one_thread() -> Iterator[None]:
    """More would wait for one another on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def controlnet(dtype: torch.dtype = torch.float16) -> dict[str, bytes]:
    """A repository as small as can be: the engine would not read it, the command does not mind."""
    return {"config.json": (DEMO / "controlnet" / "config.json").read_bytes(), WEIGHTS: weights(dtype)}


def weights(dtype: torch.dtype = torch.float16, count: int = 50_000) -> bytes:
    generator = torch.Generator().manual_seed(0)
    tensors = {"numbers": torch.randn(count, generator=generator).to(dtype), "positions": torch.arange(9)}
    content: bytes = save(tensors, {"format": "pt"})
    return content


SIZE = len(weights())
HALF = SIZE // 2


def command(folder: Path, *options: str, config: str = ONE, **environ: str) -> tuple[list[str], dict[str, str]]:
    """The command as it is typed, and its environment, with folders of its own."""
    path = folder / "my.yaml"
    path.write_text(config)
    own = {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "0", "CONTOUR_WORKERS__MODELS": str(folder / "models")}
    return [sys.executable, "-m", "workers.fetch", str(path), *options], os.environ | own | environ


def run_fetch(folder: Path, *options: str, config: str = ONE, **environ: str) -> "subprocess.CompletedProcess[str]":
    arguments, environment = command(folder, *options, config=config, **environ)
    return subprocess.run(
        arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def start(folder: Path, url: str, *options: str, **more: object) -> "subprocess.Popen[str]":
    arguments, environment = command(folder, *options, HF_ENDPOINT=url)
    pipe = subprocess.PIPE
    return subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True, **more)  # type: ignore[call-overload, no-any-return]


def end(process: "subprocess.Popen[str]", how: signal.Signals) -> tuple[str, str]:
    process.send_signal(how)
    return process.communicate(timeout=180)


@dataclass(frozen=True)
class Done:
    """How the command ended."""

    returncode: int
    stdout: str
    stderr: str


def run_inside(folder: Path, url: str, *options: str, config: str = ONE, timeout: int = 10) -> Done:
    """The same in this process, which costs no start: what the environment says otherwise is set by hand."""
    (folder / "my.yaml").write_text(config)
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("CONTOUR_WORKERS__MODELS", str(folder / "models"))
        patch.setattr(constants, "ENDPOINT", url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache" / "hub"))
        patch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", timeout)
        code = fetch.main([str(folder / "my.yaml"), *options])
    return Done(code, out.getvalue(), err.getvalue())


def fetch_from(hub: Hub, folder: Path, *options: str, config: str = ONE, timeout: int = 10) -> Done:
    """Run the command with a hub that is there for so long. `{url}` in what it says is the hub's address."""
    with serving(hub) as url:
        done = run_inside(folder, url, *options, config=config, timeout=timeout)
    return Done(done.returncode, done.stdout, done.stderr.replace(url, "{url}"))


def run_here(tmp_path: Path, files: Mapping[str, bytes], *options: str, config: str = ONE) -> int:
    """The same without a process of its own: from a folder, which gets these files first, to a folder."""
    for name, content in files.items():
        path = tmp_path / "given" / "some" / "controlnet" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "my.yaml").write_text(config)
    where = ("--from", str(tmp_path / "given"), "--to", str(tmp_path / "models"))
    return fetch.main([str(tmp_path / "my.yaml"), *where, *options])


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def work(folder: Path) -> Path:
    """Where the part is while it is not prepared."""
    return folder / "models" / ".work" / f"controlnet-some--controlnet-{COMMIT[:12]}"


def prepared(folder: Path, weights: Weights = CONTROLNET, dtype: str = "float16") -> Path:
    found = find(folder / "models", "model" if weights == MODEL else "controlnet", weights, dtype)
    assert found is not None
    return found


def is_there(folder: Path) -> bool:
    return find(folder / "models", "controlnet", CONTROLNET, "auto") is not None


def hub_with(**faults: object) -> Hub:
    return Hub({"some/controlnet": controlnet()}, **faults)  # type: ignore[arg-type]


def ranges(hub: Hub) -> list[str | None]:
    """What was asked for of the weights, request by request."""
    return [asked.range for asked in hub.asked if asked.file == WEIGHTS]


def assert_same_image(config: EngineConfig) -> None:
    with one_thread():
        engine = DiffusionEngine(config, load_model(replace(config, dtype="float32"), "cpu"))
        assert torch.equal(demo.make(engine, demo.task()), demo.make(demo.engine(), demo.task()))
