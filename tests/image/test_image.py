"""The container image: built for real with the small model, started by its own command, asked for an image, stopped.

It takes minutes, so only `make test-image` runs it.
"""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import pytest

from app import __version__
from tests.image.container import CannotBuildError, Container, build, output, process_of
from tests.service.running import PATIENCE, ROOT, descendants, good_request, result_pixels, until
from workers.engine.runtimes.files import GRAPHS

INPUT = (ROOT / "example" / "input.png").read_bytes()
VOLUME = "/var/cache/contour"
WRITTEN_BY_THE_SYSTEM = ("/proc", "/sys", "/dev", "/run")  # mounted, not part of the image

pytestmark = pytest.mark.skipif("TEST_IMAGE" not in os.environ, reason="builds an image for minutes: make test-image")


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    try:
        built = build("--build-arg", "MODEL=demo")
    except CannotBuildError as error:
        pytest.skip(str(error))
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-4000:]
    container = Container()
    yield container
    container.remove()


class Running:
    """The image's own command, on a free port."""

    def __init__(self, container: Container) -> None:
        self.container = container
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = str(free.getsockname()[1])
        self.began = container.root.parent / "began"
        self.began.touch()
        command = container.config["Entrypoint"] + (container.config["Cmd"] or [])
        confined = ("setpriv", "--no-new-privs", *command)  # as --security-opt no-new-privileges
        self.started = container.start(*confined, CONTOUR_SERVER__PORT=self.port, CUDA_VISIBLE_DEVICES="")
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.process = process_of(self.started, command[0])
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.started.poll() is None:
            os.kill(self.process, signal.SIGKILL)
        self.started.wait(PATIENCE)
        self._reader.join(PATIENCE)
        self.client.close()
        assert self.started.stdout is not None
        self.started.stdout.close()

    def _read(self) -> None:
        assert self.started.stdout is not None
        self.log.extend(self.started.stdout)

    def ready(self) -> bool:
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def probe(self) -> tuple[int, str]:
        """The image's HEALTHCHECK."""
        kind, *command = self.container.config["Healthcheck"]["Test"]
        assert kind == "CMD"  # no shell
        return self.container.run(*command, CONTOUR_SERVER__PORT=self.port)

    def private(self) -> tuple[int, int]:
        """Mode and owner of the folder for what compilers make, as the service sees it."""
        (cache,) = (each.partition("=")[2] for each in self.container.config["Env"] if "WORKERS__CACHE=" in each)
        found = Path(f"/proc/{self.process}/root{cache}").stat()
        return found.st_mode & 0o777, found.st_uid

    def stop(self) -> int:
        os.kill(self.process, getattr(signal, self.container.config["StopSignal"]))
        return self.started.wait(PATIENCE)


def status(pid: int) -> dict[str, str]:
    """What the kernel says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def users(pid: int) -> set[int]:
    """The real, effective, saved and file system user ids of a process."""
    return {int(uid) for uid in status(pid)["Uid"].split()}


def has_triton(container: Container) -> bool:
    """Whether torch is built for CUDA there."""
    return bool(list((container.root / "opt/venv/lib").glob("python*/site-packages/triton")))


def compiled(running: Running) -> list[str]:
    """What is compiled, or kept uncompiled as that is faster."""
    (worker,) = running.client.get("/readyz").json()["workers"]
    return [kind for kind, n in worker["graphs"].items() if kind.endswith("compiled") and n]


def test_its_own_command_makes_images_as_nobody_in_particular_and_ends_by_its_signal(container: Container) -> None:
    with Running(container) as running:
        until(running.ready)
        assert running.probe() == (0, "/readyz answers 200\n")
        answer = running.client.post("/generation/", json=good_request())
        assert result_pixels(answer).shape == (256, 256, 3)
        if not has_triton(container):
            until(lambda: len(compiled(running)) == 2)  # the step and the VAE, for fixed shapes
        assert running.client.post("/edges", content=INPUT, headers={"Content-Type": "image/png"}).status_code == 200
        family = {running.process, *descendants(running.process)}
        assert len(family) >= 3
        assert {user for pid in family for user in users(pid)} == {10001}
        assert {status(pid)[kind] for pid in family for kind in ("CapEff", "CapPrm")} == {"0" * 16}
        assert {status(pid)["NoNewPrivs"] for pid in family} == {"1"}  # so there is no way to get any
        assert "2" in {
            status(pid)["Seccomp"] for pid in family
        }  # the process that finds edges filters its system calls
        assert running.private() == (0o700, 10001)
        assert running.stop() == 0, "".join(running.log)
    assert any("running on the CPU" in line for line in running.log)  # that it works on the CPU is said
    assert any("by OpenVINO alone" in line for line in running.log) is not has_triton(container)
    written = output("find", str(container.root), "-newer", str(running.began), "-type", "f").splitlines()
    inside = {"/" + str(Path(file).relative_to(container.root)) for file in written}
    assert not {file for file in inside if not file.startswith((VOLUME, *WRITTEN_BY_THE_SYSTEM))}


def test_the_probe_fails_where_nothing_listens(container: Container) -> None:
    command = container.config["Healthcheck"]["Test"][1:]
    code, said = container.run(*command, CONTOUR_SERVER__PORT="1")
    assert code == 1
    assert said.startswith("not ready: ")


def test_the_configuration_of_the_image(container: Container) -> None:
    config = container.config
    assert config["User"] == "10001"
    assert config["Volumes"] == {VOLUME: {}}
    assert "8000/tcp" in config["ExposedPorts"]
    assert "HF_HUB_OFFLINE=1" in config["Env"]
    assert config["Labels"]["contour.model"] == "demo"
    assert config["Labels"]["org.opencontainers.image.version"] == __version__


def test_it_holds_the_model_as_safetensors_and_no_pickle_test_or_cache_of_pip(container: Container) -> None:
    home = container.root / "opt" / "contour"
    files = [path for path in home.rglob("*") if path.is_file() and home / "openvino" not in path.parents]
    assert sum(path.suffix == ".safetensors" for path in files) >= 4
    assert not [path for path in files if path.suffix in {".bin", ".ckpt", ".pt", ".pth", ".pkl"}]
    assert not (container.root / "opt" / "contour" / "tests").exists()
    assert not (container.root / "root" / ".cache" / "pip").exists()


def test_it_holds_the_networks_for_openvino_only_where_torch_has_no_cuda(container: Container) -> None:
    made = [path.name for path in (container.root / "opt/contour/openvino").rglob("*.xml")]
    assert sorted(made) == ([] if has_triton(container) else [f"{name}.xml" for name in sorted(GRAPHS)])


def test_its_code_and_packages_are_compiled_and_belong_to_root(container: Container) -> None:
    ours = [
        path for name in ("app", "scheduler", "workers") for path in (container.root / "opt/contour" / name).rglob("*")
    ]
    sources, compiled = ({path for path in ours if path.suffix == suffix} for suffix in (".py", ".pyc"))
    assert len(compiled) == len(sources) > 50
    assert any((container.root / "opt/venv").rglob("torch/__pycache__/__init__.*.pyc"))
    assert {path.stat().st_uid for path in ours} == {0}


def test_it_has_a_c_compiler_only_where_triton_needs_one(container: Container) -> None:
    triton = has_triton(container)
    code, said = container.run("sh", "-c", "command -v cc gcc g++ ld")
    assert triton == ("gcc" in said), said
    if triton:
        header = 'import sysconfig; print(sysconfig.get_path("include"))'
        code, said = container.run("sh", "-c", f"cc --version && test -f $(python -c '{header}')/Python.h")
        assert code == 0, said


def test_another_user_of_group_0_makes_a_cache_of_its_own(container: Container) -> None:
    cache = VOLUME + "/another"
    prepare = f"from workers.folders import prepare; import os; f = prepare({cache!r}); s = os.stat(f)"
    code, said = container.run("python", "-c", f"{prepare}; print(oct(s.st_mode & 0o777), s.st_uid)", user="12345:0")
    assert (code, said.split()) == (0, ["0o700", "12345"]), said


@pytest.mark.usefixtures("container")
def test_a_model_that_there_is_not_ends_the_build_with_a_sentence() -> None:
    done = build("--build-arg", "MODEL=sd99")
    assert done.returncode != 0
    assert "MODEL=sd99: there is no configs/sd99.yaml. Choose one of:" in done.stdout + done.stderr
