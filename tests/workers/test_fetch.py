"""What `python -m workers.fetch` gets ready, from where, and that the engine reads it; the hub is on loopback."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load, load_file, save

from app.settings import load as load_settings
from tests.workers.engine import demo
from tests.workers.hub import COMMIT, Asked, Hub, entry, files_of, serving
from workers import fetch
from workers.config import locate
from workers.engine.config import EngineConfig, Lora, Weights
from workers.engine.engine import DiffusionEngine
from workers.engine.model import load as load_model
from workers.engine.weights import absent
from workers.fetching.errors import FetchError
from workers.fetching.parts import PARTS, texts_of, weights_of
from workers.fetching.store import find, manifest_in, sha256_of

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
MODEL_FILES = (
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


Fetched: TypeAlias = tuple[Path, Hub, "subprocess.CompletedProcess[str]"]


@contextmanager
def one_thread() -> Iterator[None]:
    """More would wait for one another on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------------------------ which files


def test_of_a_model_half_precision_is_taken() -> None:
    assert weights_of(PARTS["model"], MODEL_FILES, "float16") == {
        "unet/diffusion_pytorch_model": ["unet/diffusion_pytorch_model.fp16.safetensors"],
        "vae/diffusion_pytorch_model": ["vae/diffusion_pytorch_model.fp16.safetensors"],
        "text_encoder/model": ["text_encoder/model.fp16.safetensors"],
    }


def test_the_texts_beside_the_weights_are_taken() -> None:
    assert texts_of(PARTS["model"], MODEL_FILES) == [
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/vocab.json",
    ]


def test_full_precision_is_taken_where_it_is_wanted() -> None:
    taken = weights_of(PARTS["model"], MODEL_FILES, "float32")
    assert taken["unet/diffusion_pytorch_model"] == ["unet/diffusion_pytorch_model.safetensors"]


def test_without_half_precision_the_full_is_taken() -> None:
    assert weights_of(PARTS["controlnet"], ["config.json", WEIGHTS], "float16") == {
        "diffusion_pytorch_model": [WEIGHTS]
    }


def test_shards_are_taken_if_all_are_there() -> None:
    shards = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]

    assert weights_of(PARTS["controlnet"], shards, "float16") == {"diffusion_pytorch_model": shards}
    with pytest.raises(FetchError, match=r"no diffusion_pytorch_model\.safetensors"):
        weights_of(PARTS["controlnet"], shards[1:], "float16")


def test_a_repository_of_another_layout_is_refused() -> None:
    with pytest.raises(FetchError, match=r"no vae/config\.json"):
        texts_of(PARTS["model"], [name for name in MODEL_FILES if name != "vae/config.json"])


# ------------------------------------------------------------------------------------------------------ with a server


def controlnet(dtype: torch.dtype = torch.float16) -> dict[str, bytes]:
    """A repository as small as can be: the engine would not read it, the command does not mind."""
    return {
        "config.json": (DEMO / "controlnet" / "config.json").read_bytes(),
        WEIGHTS: weights(dtype),
    }


def weights(dtype: torch.dtype = torch.float16, count: int = 50_000) -> bytes:
    generator = torch.Generator().manual_seed(0)
    tensors = {"numbers": torch.randn(count, generator=generator).to(dtype), "positions": torch.arange(9)}
    content: bytes = save(tensors, {"format": "pt"})
    return content


def command(folder: Path, *options: str, config: str = ONE, **environ: str) -> tuple[list[str], dict[str, str]]:
    """The command as it is typed, and its environment, with folders of its own."""
    path = folder / "my.yaml"
    path.write_text(config)
    own = {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "0", "CONTOUR_WORKERS__MODELS": str(folder / "models")}
    return [sys.executable, "-m", "workers.fetch", str(path), *options], os.environ | own | environ


def run_fetch(folder: Path, *options: str, config: str = ONE, **environ: str) -> "subprocess.CompletedProcess[str]":
    arguments, environment = command(folder, *options, config=config, **environ)
    return subprocess.run(
        arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


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


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def prepared(folder: Path, weights: Weights = CONTROLNET, dtype: str = "float16") -> Path:
    found = find(folder / "models", "model" if weights == MODEL else "controlnet", weights, dtype)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Fetched:
    """The small model, fetched from a hub: the folder, the hub (gone by now), and what the command said."""
    folder = tmp_path_factory.mktemp("fetched")
    hub = Hub(
        {"some/model": files_of(DEMO) | {"unet/weights.bin": b""}, "some/controlnet": files_of(DEMO / "controlnet")}
    )
    with serving(hub) as url:
        done = run_fetch(folder, config=BOTH, HF_ENDPOINT=url)
    return folder, hub, done


def test_a_configurations_weights_are_prepared(
    fetched: Fetched,
) -> None:
    folder, hub, done = fetched
    model, control = prepared(folder, MODEL), prepared(folder, CONTROLNET)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"engine.model: {model}", f"engine.controlnet: {control}"]
    taken = {name for name in files_in(DEMO) if not name.startswith(("controlnet/", "model_index"))}
    assert files_in(model) == taken | {"contour.json"}
    assert files_in(control) == {"config.json", WEIGHTS, "contour.json"}
    assert len(hub.asked) == len(taken) + 2


def test_nothing_else_is_left_behind(fetched: Fetched) -> None:
    folder, _, _ = fetched
    empty = {path.name for path in (folder / "models" / ".locks").iterdir() if path.stat().st_size == 0}
    assert {path.name for path in (folder / "models").iterdir()} == {
        ".locks",
        ".work",
        prepared(folder, MODEL).name,
        prepared(folder).name,
    }
    assert files_in(folder / "models" / ".work") == set()
    assert len(empty) == 2
    assert not (folder / "cache" / "hub").exists()


def test_the_manifest_has_every_file_with_its_hash(
    fetched: Fetched,
) -> None:
    folder = prepared(fetched[0], MODEL)
    manifest = manifest_in(folder)
    assert manifest is not None
    assert {name: stored.sha256 for name, stored in manifest.files.items()} == {
        name: sha256_of(folder / name) for name in files_in(folder) - {"contour.json"}
    }


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_what_was_fetched_makes_the_same_picture(
    fetched: Fetched,
) -> None:
    named = replace(demo.CONFIG, model=MODEL, controlnet=CONTROLNET)
    config = locate(named, ROOT, str(fetched[0] / "models"))
    assert absent(config) == []
    assert_same_picture(config)


def assert_same_picture(config: EngineConfig) -> None:
    with one_thread():
        engine = DiffusionEngine(config, load_model(config, "cpu"))
        assert torch.equal(demo.make(engine, demo.task()), demo.make(demo.engine(), demo.task()))


def test_what_is_there_asks_nothing_of_anybody(
    fetched: Fetched,
) -> None:
    done = run_fetch(fetched[0], config=BOTH, HF_ENDPOINT="http://127.0.0.1:9")  # nobody listens there
    assert (done.returncode, done.stdout, done.stderr) == (0, fetched[2].stdout, "")


def test_of_a_lora_one_file_is_fetched_as_it_is(tmp_path: Path) -> None:
    lora = f"loras: [{{path: some/lora, revision: {COMMIT}, file: few.safetensors}}]"
    content = weights(torch.float32)
    files = {"a.bin": b"", "few.safetensors": content, "README.md": b""}
    with serving(Hub({"some/controlnet": controlnet(), "some/lora": files})) as url:
        done = run_inside(tmp_path, url, config=f"{ONE}  {lora}\n")

    assert done.returncode == 0, done.stderr
    folder = prepared(tmp_path, Lora(path="some/lora", revision=COMMIT, file="few.safetensors"))
    assert done.stdout.splitlines()[-1] == f"engine.loras.0: {folder}"
    assert files_in(folder) == {"few.safetensors", "contour.json"}
    assert (folder / "few.safetensors").read_bytes() == content


# ------------------------------------------------------------------------------------------------------------ formats


@pytest.mark.parametrize(
    ("options", "found", "wanted"),
    [
        ((), torch.float32, torch.float16),
        (("--dtype", "bfloat16"), torch.float32, torch.bfloat16),
        (("--dtype", "float32"), torch.float32, torch.float32),
        ((), torch.bfloat16, torch.float16),
    ],
)
def test_weights_are_converted_to_what_is_wanted(
    tmp_path: Path, options: tuple[str, ...], found: torch.dtype, wanted: torch.dtype
) -> None:
    folder = tmp_path / "some" / "controlnet"
    folder.mkdir(parents=True)
    for name, content in controlnet(found).items():
        (folder / name).write_bytes(content)

    (tmp_path / "my.yaml").write_text(ONE)
    where = ("--from", str(tmp_path), "--to", str(tmp_path / "models"))
    assert fetch.main([str(tmp_path / "my.yaml"), *where, *options]) == 0

    original, converted = load_file(folder / WEIGHTS), load_file(prepared(tmp_path) / WEIGHTS)
    assert torch.equal(converted["numbers"], original["numbers"].to(wanted))
    assert converted["positions"].dtype == torch.int64
    assert (prepared(tmp_path) / WEIGHTS).stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def run_here(tmp_path: Path, files: Mapping[str, bytes], *options: str, config: str = ONE) -> int:
    """The same without a process of its own: from a folder, which gets these files first, to a folder."""
    for name, content in files.items():
        path = tmp_path / "given" / "some" / "controlnet" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "my.yaml").write_text(config)
    where = ("--from", str(tmp_path / "given"), "--to", str(tmp_path / "models"))
    return fetch.main([str(tmp_path / "my.yaml"), *where, *options])


def test_shards_become_one_file(tmp_path: Path) -> None:
    tensors = load(weights())
    shards = {
        f"diffusion_pytorch_model-0000{n}-of-00002.safetensors": save({name: tensor}, {"format": "pt"})
        for n, (name, tensor) in enumerate(tensors.items(), 1)
    }
    assert run_here(tmp_path, {"config.json": controlnet()["config.json"], **shards}) == 0
    assert load_file(prepared(tmp_path) / WEIGHTS).keys() == tensors.keys()


def test_numbers_too_large_for_half_precision_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = save({"numbers": torch.tensor([1.0, 1e5])}, {"format": "pt"})
    assert run_here(tmp_path, controlnet() | {WEIGHTS: large}) == 1
    assert "numbers goes up to 100000, which float16 cannot hold: choose another --dtype" in capsys.readouterr().err
    assert run_here(tmp_path, {}, "--dtype", "float32") == 0


def test_numbers_that_are_none_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    none = save({"numbers": torch.tensor([1.0, torch.nan])}, {"format": "pt"})
    assert run_here(tmp_path, controlnet() | {WEIGHTS: none}) == 1
    assert "has values that are not numbers: the file is damaged" in capsys.readouterr().err


def test_the_engines_format_is_the_default(tmp_path: Path) -> None:
    assert run_here(tmp_path, controlnet(torch.float32), config=f"{ONE}  dtype: bfloat16\n") == 0
    assert prepared(tmp_path, dtype="bfloat16").name.endswith("-bfloat16")


def test_the_format_that_is_asked_for_is_found_first(tmp_path: Path) -> None:
    for dtype in ("float16", "float32"):
        assert run_here(tmp_path, controlnet(torch.float32), "--dtype", dtype) == 0
    names = {
        asked: prepared(tmp_path, dtype=asked).name.rpartition("-")[2] for asked in ("float32", "auto", "bfloat16")
    }
    assert names == {"float32": "float32", "auto": "float16", "bfloat16": "float16"}


# ------------------------------------------------------------------------------------------------------ without a hub


def cached(folder: Path, files: dict[str, bytes]) -> None:
    """The Hugging Face cache after a download of these files."""
    repository = folder / "cache" / "hub" / "models--some--controlnet"
    for name, content in files.items():
        listed = entry(name, content)
        known = str(listed["lfs"]["sha256"] if isinstance(listed.get("lfs"), dict) else listed["blobId"])  # type: ignore[index]
        blob, link = repository / "blobs" / known, repository / "snapshots" / COMMIT / name
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.symlink_to(os.path.relpath(blob, link.parent))


def test_a_cache_serves_without_a_network(tmp_path: Path) -> None:
    cached(tmp_path, controlnet())
    done = run_fetch(tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert (prepared(tmp_path) / WEIGHTS).read_bytes() == weights()
    assert (tmp_path / f"cache/hub/models--some--controlnet/snapshots/{COMMIT}" / WEIGHTS).is_file()  # it stays


def test_what_the_cache_has_is_not_downloaded(tmp_path: Path) -> None:
    cached(tmp_path, {WEIGHTS: weights()})
    hub = Hub({"some/controlnet": controlnet()})
    with serving(hub) as url:
        done = run_inside(tmp_path, url)
    assert done.returncode == 0, done.stderr
    assert hub.asked == [Asked("config.json", None)]


def test_a_damaged_cache_is_told(tmp_path: Path) -> None:
    cached(tmp_path, controlnet())
    link = tmp_path / f"cache/hub/models--some--controlnet/snapshots/{COMMIT}" / WEIGHTS
    link.resolve().write_bytes(weights()[:-1] + b"x")
    done = run_fetch(tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert f"{link} is damaged: its hash is not what it is filed under" in done.stderr


def test_offline_without_a_cache_is_told(tmp_path: Path) -> None:
    done = run_fetch(tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert done.stderr == (
        f"engine.controlnet: some/controlnet: HF_HUB_OFFLINE is set, and {tmp_path}/cache/hub does not have it at "
        f"revision {COMMIT}: unset it to download, or name a folder that has it by --from\n"
    )


@pytest.mark.parametrize("place", ["some/controlnet", "controlnet", f"hub/models--some--controlnet/snapshots/{COMMIT}"])
def test_a_folder_serves_without_a_network(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "given" / place
    folder.mkdir(parents=True)
    for name, content in controlnet().items():
        (folder / name).write_bytes(content)
    assert run_here(tmp_path, {}) == 0
    assert (prepared(tmp_path) / WEIGHTS).read_bytes() == weights()


def test_a_folder_that_lacks_the_repository_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "given").mkdir()
    assert run_here(tmp_path, {}) == 1
    assert f"{tmp_path}/given does not have it: none of these is a folder in it:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a pointer of Git LFS, not what it points at: run git lfs pull",
        ),
        (b"PK\x03\x04rest", "a zip, as torch.save writes: a pickle, which can run any code and is not read"),
        (b"\x80\x02}q\x00.", "a pickle, which can run any code and is not read"),
        (weights()[:-1], "damaged or cut off"),
    ],
)
def test_what_is_no_safetensors_file_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, told: str
) -> None:
    assert run_here(tmp_path, controlnet() | {WEIGHTS: content}) == 1
    assert f"{WEIGHTS} is no whole safetensors file: it is {told}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"in_channels": 9}, "in_channels of the ControlNet is 9; this engine runs 4 only"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type of the ControlNet is 'text_time'"),
    ],
)
def test_another_architecture_is_told_before_its_weights_are_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], told: str
) -> None:
    config = json.loads(controlnet()["config.json"]) | changes
    assert run_here(tmp_path, {"config.json": json.dumps(config).encode(), WEIGHTS: b"not read"}) == 1
    assert told in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- what is there, and stays


def test_a_check_finds_what_is_damaged_and_again_mends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(tmp_path, controlnet()) == 0
    assert run_here(tmp_path, {}, "--check") == 0
    assert "engine.controlnet: whole\n" in capsys.readouterr().out

    path = prepared(tmp_path) / WEIGHTS
    path.write_bytes(weights()[:-1] + b"x")

    assert run_here(tmp_path, {}, "--check") == 1
    told = capsys.readouterr()
    assert f"engine.controlnet: {path} has another content than it had, by its SHA-256\n" in told.out
    assert "made anew by --again" in told.err
    assert run_here(tmp_path, {}, "--again") == 0
    assert path.read_bytes() == weights()


def test_a_check_tells_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "given").mkdir()
    assert run_here(tmp_path, {}, "--check") == 1
    assert f"engine.controlnet: some/controlnet is not prepared in {tmp_path}/models" in capsys.readouterr().out


def test_the_server_reads_what_was_prepared(tmp_path: Path) -> None:
    assert run_here(tmp_path, controlnet()) == 0
    settings = load_settings(tmp_path / "my.yaml", {"CONTOUR_WORKERS__MODELS": str(tmp_path / "models")})
    assert settings.engine.controlnet == Weights(path=str(prepared(tmp_path)))


def test_half_a_model_is_no_model(tmp_path: Path) -> None:
    assert run_here(tmp_path, controlnet()) == 0
    path = prepared(tmp_path) / WEIGHTS
    for damage in (path.unlink, lambda: path.write_bytes(weights()[:-1]), (path.parent / "contour.json").unlink):
        damage()
        assert find(tmp_path / "models", "controlnet", CONTROLNET, "auto") is None
        assert run_here(tmp_path, {}) == 0
        assert path.read_bytes() == weights()


def test_originals_are_kept_if_asked(tmp_path: Path) -> None:
    hub = Hub({"some/controlnet": controlnet()})
    with serving(hub) as url:
        assert run_inside(tmp_path, url, "--keep").returncode == 0
        shutil.rmtree(prepared(tmp_path))
        assert run_inside(tmp_path, url).returncode == 0
    assert [asked.file for asked in hub.asked] == ["config.json", WEIGHTS]
    assert (prepared(tmp_path) / WEIGHTS).read_bytes() == weights()
    assert files_in(tmp_path / "models" / ".work") == set()


def test_prepared_weights_go_before_the_cache(tmp_path: Path) -> None:
    assert run_here(tmp_path, controlnet()) == 0
    engine = EngineConfig(model=Weights(path=str(DEMO)), controlnet=CONTROLNET)
    located = locate(engine, tmp_path, str(tmp_path / "models")).controlnet
    assert located == Weights(path=str(prepared(tmp_path)))
    assert locate(engine, tmp_path, str(tmp_path / "elsewhere")).controlnet == CONTROLNET


# --------------------------------------------------------------------------------------------------- without weights


def test_a_repository_that_is_not_pinned_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("engine: {model: {path: some/model}, controlnet: {path: .}}")

    assert fetch.main([str(path)]) == 2
    assert capsys.readouterr().err == (
        f"{path}: engine.model.revision is missing, but must be the repository's commit: 40 digits of 0-9 and a-f\n"
    )


def test_a_pickle_is_refused_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("engine: {model: {path: ./model.ckpt}, controlnet: {path: .}}")

    assert fetch.main([str(path)]) == 2
    assert "engine.model.path is './model.ckpt', a pickle, which can run any code" in capsys.readouterr().err


def test_of_folders_nothing_is_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch.main([str(ROOT / "configs" / "demo.yaml")]) == 0
    assert capsys.readouterr().out.splitlines() == [f"engine.model: {DEMO}", f"engine.controlnet: {DEMO}/controlnet"]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("engine: {model: {path: ./gone}, controlnet: {path: .}}")

    assert fetch.main([str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"engine.model: {tmp_path}/gone: there is no such folder")


def test_a_folder_that_is_empty_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("engine: {model: {path: .}, controlnet: {path: .}}")

    assert fetch.main([str(path)]) == 1
    assert capsys.readouterr().err == f"engine.model: {tmp_path}: there is no unet/config.json in it\n"


def test_a_folder_to_take_from_must_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch.main([str(ROOT / "configs" / "sd15-canny.yaml"), "--from", str(tmp_path / "gone")]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/gone: there is no such folder\n"


def test_an_engine_without_a_model_needs_nothing() -> None:
    assert fetch.main([str(ROOT / "configs" / "echo.yaml")]) == 0
    assert absent(EngineConfig(kind="echo")) == []


def test_what_is_not_here_is_listed(tmp_path: Path) -> None:
    engine = EngineConfig(model=MODEL, controlnet=Weights(path="./gone"))
    assert absent(locate(engine, tmp_path)) == ["engine.model: some/model", f"engine.controlnet: {tmp_path}/gone"]


def test_the_demo_is_here() -> None:
    engine = EngineConfig(model=Weights(path="./demo"), controlnet=Weights(path="./demo/controlnet"))
    assert absent(locate(engine, ROOT / "configs", "/nowhere")) == []
