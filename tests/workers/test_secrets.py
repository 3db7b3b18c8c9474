"""Secrets in the environment: which of it children get, and what they can read of their parent."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.service.running import ROOT
from workers.confinement import PR_SET_DUMPABLE, forget_secrets

SECRETS = {
    "CONTOUR_SERVER__API_KEY": "k",
    "CONTOUR_SERVER__API_KEY_FILE": "/keys",
    "CONTOUR_SERVER": "{api_key: k}",
    "HF_TOKEN": "t",
    "HUGGING_FACE_HUB_TOKEN": "t",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=x",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "authorization=x",
    "AWS_SECRET_ACCESS_KEY": "s",
    "AWS_SESSION_TOKEN": "s",
    "GOOGLE_APPLICATION_CREDENTIALS": "/credentials.json",
    "PGPASSWORD": "p",
    "MYSQL_PWD": "p",
    "db_password": "p",
    "SENTRY_DSN": "https://1@sentry.example",
    "PIP_INDEX_URL": "https://user:word@pypi.example/simple",
}
OTHERS = {
    "PATH": "/usr/bin",
    "HOME": "/root",
    "PWD": "/srv",
    "OLDPWD": "/",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HOME": "/cache",
    "KEYBOARD_LAYOUT": "us",
    "XAUTHORITY": "/x",
    "LD_LIBRARY_PATH": "/lib",
    "CUDA_VISIBLE_DEVICES": "0",
    "NVIDIA_VISIBLE_DEVICES": "all",
    "TORCHINDUCTOR_CACHE_DIR": "/cache",
    "TRITON_CACHE_KEY": "shared",
    "OMP_NUM_THREADS": "2",
    "CONTOUR_SERVER__PORT": "8000",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318",
    "HTTPS_PROXY": "http://user:word@proxy:3128",  # read whenever traces are sent
}
# A process that forgets, then has a child of the same user read its environment and its memory under /proc.
PARENT = """
import ctypes, json, os, subprocess, sys
from workers.confinement import forget_secrets

def read_by_child(parent):
    end, start = os.pipe()
    if os.fork() == 0:
        os.close(end)
        for name in ("environ", "mem"):
            try:
                os.close(os.open(f"/proc/{parent}/{name}", os.O_RDONLY))
                os.write(start, b"open ")
            except PermissionError:
                os.write(start, b"denied ")
        os._exit(0)
    os.close(start)
    os.wait()
    return os.read(end, 100).decode().split()

if os.geteuid() == 0:  # who may read everything
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    ctypes.CDLL(None).prctl(4, *map(ctypes.c_ulong, (1, 0, 0, 0)))  # dumpable, as a user's process is from its start
before = read_by_child(os.getpid())
forgotten = forget_secrets(os.environ)
print(json.dumps([before, forgotten, read_by_child(os.getpid())]))
"""
CHILD = """
import multiprocessing, os
from pathlib import Path
from workers.confinement import forget_secrets

def tell():
    print(Path("/proc/self/environ").read_text(), end="")

if __name__ == "__main__":
    forget_secrets(os.environ)
    child = multiprocessing.get_context("spawn").Process(target=tell)
    child.start()
    child.join()
"""


def output(*command: str, **environ: str) -> str:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)} | environ
    command = (sys.executable, *command)
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def test_secrets_are_removed_and_nothing_else() -> None:
    environ = SECRETS | OTHERS
    try:
        names = forget_secrets(environ)
    finally:
        ctypes.CDLL(None).prctl(
            PR_SET_DUMPABLE, *map(ctypes.c_ulong, (1, 0, 0, 0))
        )  # this process needs its /proc/self
    assert sorted(names) == sorted(SECRETS)
    assert environ == OTHERS


def test_a_child_that_is_spawned_later_has_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(CHILD)
    told = output(str(tmp_path / "parent.py"), CONTOUR_SERVER__API_KEY="secret-key", HF_TOKEN="hf_secret", KEPT="yes")
    assert "KEPT=yes" in told
    assert "secret" not in told


def test_nor_can_it_read_its_parents() -> None:
    before, forgotten, after = json.loads(output("-c", PARENT, HF_TOKEN="hf_secret"))
    assert forgotten == ["HF_TOKEN"]
    assert before[0] == "open"  # memory may be denied everywhere, by the system's configuration
    assert after == ["denied", "denied"]


def test_a_process_without_secrets_stays_open_to_profilers() -> None:
    before, forgotten, after = json.loads(output("-c", PARENT))
    assert forgotten == []
    assert after == before
