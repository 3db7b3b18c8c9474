"""How commands end that are interrupted, or whose output nobody reads: without a traceback, and with nothing left."""

import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.terminal import PYTHON, Terminal
from tests.service.running import PATIENCE, ROOT, alive, descendants, surroundings, until

ECHO = "configs/echo.yaml"
SLOW = {"ENGINE__ECHO__STEPS": 1000, "ENGINE__ECHO__STEP_SECONDS": 1, "WORKERS__CPU_WORKERS": 1}
INTERRUPTED, UNREAD = 130, 141
PRINTING = [
    ["app", "--help"],
    ["app", "--version"],
    ["app", "config"],
    ["app", "config", "--reference"],
    ["app", "doctor", ECHO],
    ["app", "doctor", "--help"],
    ["app", "doctor", "--json", ECHO],
    ["app", "generate", "--help"],
    ["app", "nonsense"],
    ["app.probe", "--help"],
    ["workers.compile", "--help"],
    ["workers.convert", "--help"],
    ["workers.fetch", "--help"],
    ["workers.fetch", "configs/demo.yaml"],
]


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_output_that_nobody_reads_ends_a_command_quietly(arguments: list[str]) -> None:
    """As under `| head`, which may have left already."""
    with subprocess.Popen(
        [*PYTHON, *arguments],
        cwd=ROOT,
        env=surroundings(SERVER__PORT=0),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        code = process.wait(PATIENCE)
    # argparse takes it for no fault, and a command that writes to standard error alone has no fault at all.
    allowed = {"--help": (0, UNREAD), "nonsense": (2,)}
    assert code in allowed.get(arguments[-1], (UNREAD,)), said
    assert "Traceback" not in said
    assert "BrokenPipe" not in said


@pytest.mark.parametrize("arguments", [["app", "doctor", ECHO], ["app", "config"], ["app", "--version"]])
def test_neither_output_may_be_read(arguments: list[str]) -> None:
    command = f"{' '.join([*PYTHON, *arguments])} 2>&1 | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=surroundings(SERVER__PORT=0), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (UNREAD, b"", b"")


@pytest.mark.parametrize("seconds", [0.3, *(pytest.param(each, marks=pytest.mark.slow) for each in (0.1, 0.6))])
@pytest.mark.parametrize(
    "arguments", [["app", "doctor"], ["app", "config"], ["app"], ["workers.fetch", "--check", ECHO]]
)
def test_ctrl_c_while_modules_are_imported_shows_no_traceback(arguments: list[str], seconds: float) -> None:
    with Terminal([*PYTHON, *arguments], SERVER__PORT=0) as terminal:
        until(lambda: imports(terminal.process.pid) or terminal.process.poll() is not None)
        time.sleep(seconds)
        terminal.interrupt()
        code = terminal.wait()
    assert code in (0, 1, INTERRUPTED)  # it may have done all there was to do
    assert "Traceback" not in terminal.shown
    assert "KeyboardInterrupt" not in terminal.shown


def imports(pid: int) -> bool:
    """Whether a process is past the start of Python itself: it has a handler of SIGTERM, or imports what fetch does."""
    try:
        status, maps = (Path(f"/proc/{pid}/{name}").read_text() for name in ("status", "maps"))
    except OSError:
        return True
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1) or "/_ssl" in maps


@pytest.mark.parametrize("pressed", [True, False], ids=["on a terminal", "by a signal to it alone"])
def test_ctrl_c_ends_doctor_with_what_it_started(*, pressed: bool) -> None:
    with Terminal([*PYTHON, "app", "doctor", "--config", "configs/demo.yaml"], SERVER__PORT=0) as terminal:
        until(lambda: len(descendants(terminal.process.pid)) > 0)
        children = descendants(terminal.process.pid)
        if pressed:
            terminal.interrupt()
        else:
            terminal.process.send_signal(signal.SIGINT)
        assert terminal.wait() == INTERRUPTED
        until(lambda: not any(map(alive, children)))
    assert "Traceback" not in terminal.shown


def test_ctrl_c_ends_generate_with_its_workers(tmp_path: Path) -> None:
    command = [*PYTHON, "app", "generate", "example/input.png", "a heart", "-o", tmp_path / "a.png", "--config", ECHO]
    with Terminal(command, **SLOW) as terminal:
        until(lambda: "step" in terminal.shown)
        children = descendants(terminal.process.pid)
        assert children
        terminal.interrupt()
        assert terminal.wait() == INTERRUPTED
        until(lambda: not any(map(alive, children)))
    assert "interrupted" in terminal.shown
    assert "Traceback" not in terminal.shown
    assert not list(tmp_path.iterdir())


def test_ctrl_c_ends_fetch_and_says_how_to_go_on(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hub:  # it takes connections, and answers nothing
        hub.settimeout(PATIENCE)
        endpoint = f"HF_ENDPOINT=http://127.0.0.1:{hub.getsockname()[1]}"
        command = ["env", endpoint, f"HF_HOME={tmp_path}", *PYTHON, "workers.fetch", "configs/sd15-canny.yaml"]
        terminal = Terminal([*command, "--to", tmp_path])
        connection, _ = hub.accept()
    with connection, terminal:
        terminal.interrupt()
        assert terminal.wait() == INTERRUPTED
    assert "interrupted; run the same command to continue" in terminal.shown
    assert "Traceback" not in terminal.shown
