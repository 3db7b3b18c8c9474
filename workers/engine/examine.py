"""python -m workers.engine.examine cpu|cuda:0: examine torch and a device; writes one line of JSON.

It is a separate process because the front end must not import torch, and a driver or library may kill the process.
"""

import os
import sys
from collections.abc import Mapping, Sequence

import msgspec


class Examined(msgspec.Struct, frozen=True):
    """torch's version and the CUDA it was built for; the device as torch sees it; of each attention kernel why it
    cannot be used, empty if it can.

    `memory` is in bytes: free, and in all. `flaw` says why the device cannot be computed on, empty if it can.
    """

    torch: str
    cuda: str | None
    device: str
    capability: str | None = None
    memory: tuple[int, int] | None = None
    kernels: Mapping[str, str] = {}
    flaw: str = ""


def main(arguments: Sequence[str]) -> int:
    """Write the result to standard output; return the exit code. Ends with the parent process, as torch may hang."""
    from workers.process import die_with_parent

    die_with_parent(os.getppid())
    sys.stdout.buffer.write(msgspec.json.encode(examine(arguments[0])) + b"\n")
    return 0


def examine(name: str) -> Examined:
    """Examine torch and a device. Raises ImportError where torch cannot be imported."""
    import torch

    from workers.engine import attention

    device, version, cuda = torch.device(name), str(torch.__version__), torch.version.cuda
    try:
        torch.ones(2, 2, device=device).matmul(torch.ones(2, 2, device=device)).sum().item()
        if device.type == "cpu":
            return Examined(version, cuda, "CPU", kernels=attention.flaws(device))
        properties = torch.cuda.get_device_properties(device)
        return Examined(
            version,
            cuda,
            properties.name,
            f"{properties.major}.{properties.minor}",
            torch.cuda.mem_get_info(device),
            attention.flaws(device),
        )
    except Exception as error:  # noqa: BLE001 - drivers fail in many ways, and this reports how
        return Examined(version, cuda, name, flaw=attention.summary(error))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
