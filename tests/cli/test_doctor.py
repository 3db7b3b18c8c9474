"""The findings of `python -m app doctor` about this machine, and about others."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.checks import devices, python
from app.checks.finding import Finding, Level, Subject
from app.checks.machine import available_bytes
from app.cli import doctor as command
from tests.cli.command import ECHO, doctor, run
from tests.service.running import ROOT, Service, surroundings
from tests.workers.test_nvml import SLICE, SLICED, WHOLE, FakeLibrary
from workers.console import command as command_line
from workers.devices import DeviceChoice, DeviceSpec
from workers.engine.examine import Examined
from workers.nvml import Nvml

ANY = {"SERVER__PORT": 0}
DEMO = ROOT / "configs/demo.yaml"


def missing(found: dict[str, list[dict[str, str]]]) -> list[str]:
    return [name for name, findings in found.items() if any(each["level"] == "missing" for each in findings)]


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A configuration whose weights may be spoilt."""
    shutil.copytree(DEMO.with_suffix(""), tmp_path / "demo")
    return Path(shutil.copy(DEMO, tmp_path))


def on_gpus(config: Path = DEMO, **environ: str) -> Subject:
    """A machine with two GPUs by NVML, and the torch that is installed here."""
    subject = Subject(config, environ)
    subject.__dict__["nvml"] = Nvml(FakeLibrary())
    return subject


def test_here_the_small_model_can_be_served(tmp_path: Path) -> None:
    code, found = doctor(WORKERS__CACHE=tmp_path / "cache", **ANY)
    assert code == 0
    assert not missing(found)
    assert found["packages"][0]["level"] == "ok"
    assert "CUDA_VISIBLE_DEVICES is empty; running on the CPU (1 worker)" in found["devices"][0]["text"]
    assert found["torch"][1]["text"] == "cpu0: torch computes on CPU"
    assert found["attention"][0]["text"] == "cpu0: sdpa"
    assert "4 files with 11 MiB, none truncated" in found["weights"][0]["text"]
    assert not (tmp_path / "cache").exists()  # it has only looked


def test_for_people_each_line_says_what_to_do() -> None:
    done = run("doctor", "--config", "configs/sd15-canny.yaml", WORKERS__MODELS="/nowhere", **ANY)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    begins = [number for number, line in enumerate(lines) if line.startswith("missing  weights")]
    assert len(begins) == 1
    fetch = command_line("-m", "workers.fetch", "configs/sd15-canny.yaml")
    assert any(line.endswith(f"-> {fetch}") for line in lines[begins[0] :])
    assert lines[-1] == "configs/sd15-canny.yaml cannot be served here."
    assert max(map(len, lines)) <= 120


def test_weights_that_are_cut_short_or_incomplete_are_missing(demo: Path) -> None:
    unet = demo.parent / "demo/unet/diffusion_pytorch_model.safetensors"
    with unet.open("r+b") as file:
        file.truncate(unet.stat().st_size - 1)
    (cut,) = findings("weights", Subject(demo))
    assert (cut.level, "not a complete safetensors file" in cut.text, cut.remedy[-7:]) == (
        Level.MISSING,
        True,
        "--again",
    )
    unet.unlink()
    (gone,) = findings("weights", Subject(demo))
    assert (gone.level, str(unet) in gone.text) == (Level.MISSING, True)
    shutil.copy(DEMO.with_suffix("") / "unet" / unet.name, unet)
    shutil.rmtree(demo.parent / "demo/tokenizer")
    (gone,) = findings("weights", Subject(demo))
    assert (gone.level, "tokenizer" in gone.text) == (Level.MISSING, True)


def findings(name: str, subject: Subject) -> list[Finding]:
    """What one check finds."""
    return list(command.examine(subject, [name]))


def test_a_port_that_another_program_has_is_missing_and_one_of_ours_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        code, found = doctor(*ECHO, SERVER__PORT=other.getsockname()[1])
    assert (code, missing(found)) == (1, ["port"])
    assert "is in use by process" in found["port"][0]["text"]
    with Service("echo") as ours:
        code, found = doctor(*ECHO, SERVER__PORT=ours.url.rpartition(":")[2])
    assert (code, found["port"][0]["level"]) == (0, "warning")
    assert "It is Contour, and it answers." in found["port"][0]["text"]


def test_an_address_that_is_not_this_machines_is_missing() -> None:
    environ = {"CONTOUR_SERVER__HOST": "192.0.2.1", "CONTOUR_SERVER__PORT": "0"}
    (found,) = findings("port", Subject(ROOT / "configs/echo.yaml", environ))
    assert (found.level, "choose one with --host" in found.remedy) == (Level.MISSING, True)


def test_a_cache_that_cannot_be_written_to_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    code, found = doctor(*ECHO, WORKERS__CACHE=tmp_path / "file" / "cache", **ANY)
    assert (code, missing(found)) == (1, ["cache"])
    assert "CONTOUR_WORKERS__CACHE" in found["cache"][0]["remedy"]


def test_a_configuration_that_is_wrong_is_missing_and_the_machine_is_looked_at_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("server: {prot: 8000}\n")
    code, found = doctor("--config", path)
    assert (code, missing(found)) == (1, ["configuration"])
    assert "did you mean port?" in found["configuration"][0]["text"]
    assert "devices" in found


def test_a_torch_that_ends_the_process_ends_only_that_which_asks(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    environment = surroundings(**ANY) | {"PYTHONPATH": str(tmp_path)}
    asked = [sys.executable, "-m", "app", "doctor"]
    done = subprocess.run(asked, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "a process that uses torch was ended by signal 11" in " ".join(done.stdout.split())


def test_where_nothing_is_installed_it_says_what_is_not() -> None:
    asked = [sys.executable, "-S", "-m", "app", "doctor", "--json"]  # -S: no site-packages
    done = subprocess.run(asked, cwd=ROOT, env=surroundings(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "not installed: accelerate, diffusers, " in done.stdout
    assert "not checked: No module named" in done.stdout


def test_few_open_files_are_a_warning() -> None:
    script = f'ulimit -n 256; exec "{sys.executable}" -m app doctor --config configs/echo.yaml'
    done = subprocess.run(
        ["sh", "-c", script], cwd=ROOT, env=surroundings(**ANY), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "warning  open files       256 may be open, but 900 connections" in done.stdout
    assert "-> ulimit -n 9" in done.stdout


def test_float8_needs_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"CONTOUR_ENGINE__QUANTISATION": "fp8"}
    (found,) = findings("quantisation", Subject(DEMO, wanted | {"CUDA_VISIBLE_DEVICES": ""}))
    assert (found.level, found.text) == (Level.MISSING, "engine.quantisation is fp8, which needs a GPU")
    subject = on_gpus(DEMO, **wanted)
    monkeypatch.setitem(subject.__dict__, "placement", DeviceChoice((DeviceSpec("gpu0", "cuda", WHOLE),), "a GPU"))
    assert findings("quantisation", subject) == []
    monkeypatch.setattr(Nvml, "capability", lambda *_: "8.6")
    assert "compute capability 8.6" in findings("quantisation", subject)[0].text


def test_onnx_files_that_are_not_there_are_missing_with_the_command_that_makes_them(tmp_path: Path) -> None:
    environ = {"CONTOUR_ENGINE__RUNTIME": "onnxruntime", "CONTOUR_ENGINE__ONNX": str(tmp_path)}
    (found,) = findings("onnx", Subject(DEMO, environ))
    assert found.level is Level.MISSING
    assert found.remedy == f"make it with: {command_line('-m', 'workers.convert', DEMO)} --to onnx --dtype float32"


def test_a_check_that_fails_itself_says_so_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(subject: Subject) -> Iterator[Finding]:
        yield Finding("devices", Level.OK, "so far")
        raise OSError("the driver is upset")

    monkeypatch.setattr(devices, "devices", fail)
    found = list(command.examine(Subject(ROOT / "configs/echo.yaml"), ["devices", "onnx", "python"]))
    assert [each.level for each in found] == [Level.OK, Level.WARNING, Level.OK, Level.OK]
    assert found[1].text == "internal error in this check: OSError: the driver is upset"


def test_gpus_that_the_installed_torch_cannot_use_are_told_with_what_to_install() -> None:
    placed, whole, sliced = devices.devices(on_gpus())
    assert placed.level is Level.WARNING
    assert "The installed torch was built without CUDA" in placed.text
    assert "pip install" in placed.remedy
    assert whole.text == f"NVIDIA {WHOLE} ({WHOLE}), 0 MiB, 0 MiB of it in use, compute capability 9.0, driver 575.51"
    assert f"NVIDIA {SLICED}" in sliced.text
    assert "MIG with 1 instances" in sliced.text


def test_gpus_that_are_not_wanted_are_no_fault() -> None:
    assert next(devices.devices(on_gpus(CUDA_VISIBLE_DEVICES=""))).level is Level.OK


def test_a_gpu_on_which_torch_fails_or_that_is_full_is_missing() -> None:
    gpu = DeviceSpec("gpu0", "cuda", SLICE)
    kernels = {"flash": "", "xformers": "ModuleNotFoundError: No module named 'xformers'"}
    broken = Examined("2.13.0", "13.0", "cuda:0", flaw="RuntimeError: no kernel image is available")
    (found,) = devices.of_device(gpu, broken, weights=1)
    assert (found.level, "no kernel image" in found.text) == (Level.MISSING, True)
    full = Examined("2.13.0", "13.0", "H100", "9.0", (2**20, 2**36), kernels)
    computes, memory, attention = devices.of_device(gpu, full, weights=2**21)
    assert (computes.level, memory.level, attention.level) == (Level.OK, Level.MISSING, Level.WARNING)
    assert memory.text.startswith("gpu0: 1 MiB of 64.0 GiB free; the weights take 2 MiB")
    assert attention.text == "gpu0: flash; not xformers (ModuleNotFoundError: No module named 'xformers')"


def test_a_gpu_without_a_driver_is_seen(tmp_path: Path) -> None:
    for name, vendor, kind in (("0", "0x8086", "0x030000"), ("1", "0x10de", "0x040300")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    assert not devices.has_gpu(tmp_path)  # another's, and a sound device
    (tmp_path / "1" / "class").write_text("0x030200\n")
    assert devices.has_gpu(tmp_path)
    assert not devices.has_gpu(tmp_path / "nowhere")


def test_packages_are_held_to_the_pins(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["PyYAML>=6", "msgspec", "no_such>=1; a == 1"]\n'
    )
    (tmp_path / "constraints.txt").write_text("# pins\npyyaml==0.1\n")
    absent, other = python.packages(tmp_path)
    assert (absent.level, absent.text) == (Level.MISSING, "not installed: no-such")
    assert other.level is Level.WARNING
    assert "pyyaml 6" in other.text
    assert "instead of 0.1" in other.text


def test_memory_is_what_the_control_group_leaves(tmp_path: Path) -> None:
    meminfo, membership, group = tmp_path / "meminfo", tmp_path / "membership", tmp_path / "groups/a/b"
    group.mkdir(parents=True)
    meminfo.write_text("MemTotal:  9000 kB\nMemAvailable:  8000 kB\n")
    membership.write_text("0::/a/b\n")
    assert available_bytes(meminfo, tmp_path / "groups", membership) == 8000 * 1024
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1\n")
    (group.parent / "memory.max").write_text("5000\n")
    (group.parent / "memory.current").write_text("2000\n")
    assert available_bytes(meminfo, tmp_path / "groups", membership) == 3000


def test_it_writes_no_colours_where_nobody_sees_them() -> None:
    finding = Finding("port", Level.OK, "free")
    assert "\x1b[32mok" in command.lines(finding, coloured=True)
    assert command.lines(finding, coloured=False).startswith("ok       port ")
    assert "\x1b" not in run("doctor", *ECHO, **ANY).stdout


def test_a_driver_that_is_older_than_torchs_cuda_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("devices", "nvml"):
        monkeypatch.setattr(f"workers.{module}.torch_cuda", lambda: "13.0")
    subject = on_gpus()
    (found,) = [each for each in findings("devices", subject) if each.check == "driver"]
    assert (found.level, "supports CUDA up to 12.9" in found.text) == (Level.MISSING, True)
    assert found.remedy == "install driver 580.65 or newer, or a torch built for CUDA 12"
    monkeypatch.setattr("workers.nvml.torch_cuda", lambda: "12.8")
    assert "driver" not in [each.check for each in findings("devices", subject)]
