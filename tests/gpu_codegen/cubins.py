"""Compiles the Triton kernels of a program to cubins, and reads what they use of a multiprocessor.

Only for processes that `standins.install` has prepared. Of a kernel that its author or the engine's mode would have
tuned, which has several configurations, the first is compiled.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from runpy import run_path
from typing import Any

from tests.gpu_codegen.gpus import Gpu


@dataclass(frozen=True, slots=True)
class Cubin:
    """A compiled kernel: registers of a thread, bytes of a thread's local memory (spilled ones), of shared memory."""

    kernel: str
    warps: int
    registers: int
    local: int
    shared: int


def compile_all(sources: dict[str, str], gpu: Gpu) -> list[Cubin]:
    """Compile each kernel by its source."""
    with tempfile.TemporaryDirectory() as folder:
        return [_cubin(name, _loaded(name, source, Path(folder)), gpu) for name, source in sources.items()]


def _loaded(name: str, source: str, folder: Path) -> Any:
    """Inductor's autotuner around a kernel. Triton reads its source from a file."""
    file = folder / f"{name}.py"
    file.write_text(source)
    (autotuner,) = (each for each in run_path(str(file)).values() if hasattr(each, "configs"))
    return autotuner


def _cubin(name: str, autotuner: Any, gpu: Gpu) -> Cubin:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    config = autotuner.configs[0]
    meta = autotuner._create_compile_meta(config)
    options = autotuner._create_compile_options(config, meta)
    source = ASTSource(autotuner.fn, meta["signature"], meta["constants"], meta["configs"][0])
    compiled = triton.compile(source, target=GPUTarget("cuda", gpu.cc, 32), options=options)
    return Cubin(name, compiled.metadata.num_warps, shared=compiled.metadata.shared, **usage_of(compiled))


def usage_of(compiled: Any) -> dict[str, int]:
    """The registers of a kernel's thread, and the bytes of its local memory."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(number) for name, number in re.findall(r"([A-Z]+)(?:\[\d+\])?:(\d+)", text)}
    return {"registers": found["REG"], "local": found["STACK"] + found["LOCAL"]}
