"""Compiles the Triton kernels of a program to cubins, and reads what they use of a multiprocessor.

Only for processes that `standins.install` has prepared. A kernel that its author or the engine's mode would have tuned
has several configurations; the first is compiled, or all.
"""

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
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


def compile_all(sources: dict[str, str], gpu: Gpu, *, tuned: bool = False) -> list[Cubin]:
    """Compile each kernel by its source, in its first configuration; or, with `tuned`, in all."""
    with tempfile.TemporaryDirectory() as folder:
        return [
            _cubin(name, autotuner, config, gpu, Path(folder))
            for name, source in sources.items()
            for autotuner in [_loaded(name, source, Path(folder))]
            for config in (autotuner.configs if tuned else autotuner.configs[:1])
        ]


def _loaded(name: str, source: str, folder: Path) -> Any:
    """Inductor's autotuner around a kernel. Triton reads sources from files, so the kernel is a module."""
    file = folder / f"{name}.py"
    file.write_text(source)
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    (autotuner,) = (each for each in vars(module).values() if hasattr(each, "configs"))
    return autotuner


def _cubin(name: str, autotuner: Any, config: Any, gpu: Gpu, folder: Path) -> Cubin:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    meta = autotuner._create_compile_meta(config)
    options = autotuner._create_compile_options(config, meta)
    source = ASTSource(autotuner.fn, meta["signature"], meta["constants"], meta["configs"][0])
    compiled = triton.compile(source, target=GPUTarget("cuda", gpu.cc, 32), options=options)
    file = folder / f"{name}.cubin"
    file.write_bytes(compiled.asm["cubin"])
    usage = _usage(file)
    local = usage["STACK"] + usage["LOCAL"]
    return Cubin(name, compiled.metadata.num_warps, usage["REG"], local, compiled.metadata.shared)


def _usage(cubin: Path) -> dict[str, int]:
    """As in {"REG": 16, "STACK": 0, "SHARED": 0, "LOCAL": 0, ...}."""
    from triton import knobs

    command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(number) for name, number in re.findall(r"([A-Z]+)(?:\[\d+\])?:(\d+)", text)}
