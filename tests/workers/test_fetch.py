"""What is downloaded of a repository, and what a person is told when it cannot be. The hub is a server on loopback."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from workers import fetch
from workers.config import locate
from workers.engine.config import EngineConfig, Weights
from workers.engine.weights import absent
from workers.fetch import PARTS, FetchError, wanted

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = f"""
engine:
  model: {{path: some/model, revision: {COMMIT}}}
  controlnet: {{path: some/controlnet, revision: {COMMIT}}}
"""

MODEL = (
    ".gitattributes",
    "README.md",
    "feature_extractor/preprocessor_config.json",
    "model_index.json",
    "safety_checker/model.fp16.safetensors",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder/pytorch_model.bin",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "v1-5-pruned.ckpt",
    "v1-5-pruned.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)
CONTROLNET = ("config.json", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors")
TAKEN_OF_MODEL = {
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
}
TAKEN_OF_CONTROLNET = {"config.json", "diffusion_pytorch_model.safetensors"}


def test_of_a_model_half_precision_and_texts_are_taken() -> None:
    assert set(wanted(PARTS["model"], MODEL)) == TAKEN_OF_MODEL


def test_without_half_precision_the_full_is_taken() -> None:
    assert set(wanted(PARTS["controlnet"], CONTROLNET)) == TAKEN_OF_CONTROLNET


def test_with_half_precision_the_full_is_left() -> None:
    files = [*CONTROLNET, "diffusion_pytorch_model.fp16.safetensors"]

    assert wanted(PARTS["controlnet"], files) == ["diffusion_pytorch_model.fp16.safetensors", "config.json"]


def test_pickled_weights_are_refused() -> None:
    with pytest.raises(FetchError, match=r"no diffusion_pytorch_model\.safetensors, and pickled weights are not read"):
        wanted(PARTS["controlnet"], ["config.json", "diffusion_pytorch_model.bin"])


def test_a_repository_of_another_layout_is_refused() -> None:
    with pytest.raises(FetchError, match=r"no vae/config\.json"):
        wanted(PARTS["model"], [name for name in MODEL if name != "vae/config.json"])


# ------------------------------------------------------------------------------------------------------ with a server


@dataclass
class Hub:
    """A hub that has these repositories, or answers every request with `error` (status, code)."""

    repositories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    error: tuple[int, str] | None = None

    def content(self, path: str) -> bytes | None:
        """The body for a request path: a listing, or a file that holds its own name."""
        for name, files in self.repositories.items():
            if path.startswith(f"/api/models/{name}/tree/{COMMIT}"):
                return json.dumps([self._entry(file) for file in files]).encode()
            if path.startswith(f"/{name}/resolve/{COMMIT}/"):
                return path.removeprefix(f"/{name}/resolve/{COMMIT}/").encode()
        return None

    def _entry(self, file: str) -> dict[str, object]:
        return {"type": "file", "path": file, "size": len(file), "oid": hashlib.sha1(file.encode()).hexdigest()}


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = None if hub.error else hub.content(self.path)
            status, code = hub.error or ((200, "") if body is not None else (404, "RepoNotFound"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body or b"")))
            self.send_header("ETag", f'"{hashlib.sha1(body or b"").hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body or b"")

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run_fetch(folder: Path, config: str = CONFIG, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command, as it is typed, with a cache of its own."""
    path = folder / "my.yaml"
    path.write_text(config)
    return subprocess.run(
        [sys.executable, "-m", "workers.fetch", str(path)],
        cwd=ROOT,
        env=os.environ | {"HF_HOME": str(folder / "cache"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"} | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_configurations_weights_land_in_the_cache(tmp_path: Path) -> None:
    with serving(Hub({"some/model": MODEL, "some/controlnet": CONTROLNET})) as url:
        done = run_fetch(tmp_path, HF_ENDPOINT=url)

    snapshots = {name: tmp_path / f"cache/hub/models--some--{name}/snapshots/{COMMIT}" for name in PARTS}
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"engine.{name}: {snapshot}" for name, snapshot in snapshots.items()]
    assert files_in(snapshots["model"]) == TAKEN_OF_MODEL
    assert files_in(snapshots["controlnet"]) == TAKEN_OF_CONTROLNET


def test_of_a_lora_one_file_is_fetched(tmp_path: Path) -> None:
    lora = f"loras: [{{path: some/lora, revision: {COMMIT}, file: few.safetensors}}]"
    files = {"some/model": MODEL, "some/controlnet": CONTROLNET, "some/lora": ("a.bin", "few.safetensors", "README.md")}
    with serving(Hub(files)) as url:
        done = run_fetch(tmp_path, f"{CONFIG}  {lora}\n", HF_ENDPOINT=url)

    snapshot = tmp_path / f"cache/hub/models--some--lora/snapshots/{COMMIT}"
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"engine.loras.0: {snapshot}"
    assert files_in(snapshot) == {"few.safetensors"}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ((403, "GatedRepo"), "it is gated: accept its terms on its page, then set HF_TOKEN"),
        ((404, "RepoNotFound"), "there is no such repository, or it is private: correct the path, or set HF_TOKEN"),
        ((404, "RevisionNotFound"), f"it has no revision {COMMIT}"),
        ((400, ""), "the hub refused, with status 400"),
    ],
)
def test_what_the_hub_refuses_is_told(tmp_path: Path, error: tuple[int, str], told: str) -> None:
    with serving(Hub(error=error)) as url:
        done = run_fetch(tmp_path, HF_ENDPOINT=url)

    assert done.returncode == 1
    assert done.stderr.startswith(f"engine.model: some/model: {told}")


def test_no_network_is_told(tmp_path: Path) -> None:
    with serving(Hub()) as url:
        pass

    done = run_fetch(tmp_path, HF_ENDPOINT=url)

    assert done.returncode == 1
    assert done.stderr.startswith(f"engine.model: some/model: {url} cannot be reached (")


def test_offline_mode_is_told(tmp_path: Path) -> None:
    done = run_fetch(tmp_path, HF_HUB_OFFLINE="1")

    assert done.stderr == "engine.model: some/model: HF_HUB_OFFLINE is set: unset it to download\n"


# --------------------------------------------------------------------------------------------------- without a server


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def list_files(*arguments: object, **options: object) -> list[str]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(HfApi, "list_repo_files", list_files)

    with pytest.raises(FetchError, match=r"no space is left in .*: make some, or set HF_HOME"):
        fetch.fetch("model", Weights(path="some/model", revision=COMMIT))


def test_a_repository_that_is_not_pinned_is_refused(tmp_path: Path) -> None:
    done = run_fetch(tmp_path, "engine: {model: {path: some/model}, controlnet: {path: .}}")

    assert done.returncode == 1
    assert done.stderr == (
        f"{tmp_path}/my.yaml: engine.model.revision is missing, "
        "but must be the repository's commit: 40 digits of 0-9 and a-f\n"
    )


def test_of_folders_nothing_is_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch.main([str(ROOT / "configs" / "demo.yaml")]) == 0

    demo = ROOT / "configs" / "demo"
    assert capsys.readouterr().out.splitlines() == [f"engine.model: {demo}", f"engine.controlnet: {demo}/controlnet"]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("engine: {model: {path: ./gone}, controlnet: {path: .}}")

    assert fetch.main([str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"{tmp_path}/gone: there is no such folder")


def test_an_engine_without_a_model_needs_nothing() -> None:
    assert fetch.main([str(ROOT / "configs" / "echo.yaml")]) == 0
    assert absent(EngineConfig(kind="echo")) == []


def test_what_is_not_here_is_listed(tmp_path: Path) -> None:
    engine = EngineConfig(model=Weights(path="some/model", revision=COMMIT), controlnet=Weights(path="./gone"))

    assert absent(locate(engine, tmp_path)) == ["engine.model: some/model", f"engine.controlnet: {tmp_path}/gone"]


def test_the_demo_is_here() -> None:
    demo = EngineConfig(model=Weights(path="./demo"), controlnet=Weights(path="./demo/controlnet"))

    assert absent(locate(demo, ROOT / "configs")) == []
