"""The group norm's kernels in a process that has Triton: interpreted on the CPU, or compiled for a GPU.

python -m tests.workers.engine.kernels.on_triton interpret|90|80 writes a line of JSON per case; needs Triton in
PYTHONPATH, and TRITON_INTERPRET=1 to interpret. The cases are all shapes of SD 1.5 at 512 x 512 and of the small
model, and awkward ones.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Generator, Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.gpu_codegen.cubins import usage_of
from workers.engine.kernels import group_norm
from workers.engine.kernels.group_norm import Norm, reference

_ARGUMENTS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}


@dataclass(frozen=True, slots=True)
class Case:
    """A group norm of [rows, positions, channels].

    `terms`: of bias, shift, other; `kept`, `tile`: of `group_norm`; `transposed`: with all inputs transposed in memory.
    """

    positions: int
    channels: int
    groups: int = 32
    terms: str = ""
    rows: int = 1
    copies: int = 1
    dtype: str = "float16"
    mean: float = 0.0
    kept: int = group_norm._KEPT
    tile: int = group_norm._TILE
    transposed: bool = False


_SD15 = {64: (1280,), 256: (640, 1280), 1024: (320, 640), 4096: (320,)}  # channels that sums have, by positions
_JOINED = {64: (2560,), 256: (1920, 2560), 1024: (960, 1280, 1920), 4096: (640, 960)}  # beside a skip connection
_VAE = {4096: (512,), 16_384: (512,), 65_536: (256, 512), 262_144: (128, 256)}
_SUMS = (("bias shift", 1), ("bias other", 1), ("other", 2))  # within and after a ResNet, and after a transformer
_AWKWARD = (
    Case(35, 96, 3, "bias shift other", rows=4, copies=2),
    Case(1, 64, 64, "shift", rows=2),
    Case(77, 120, 8, "other", rows=3, dtype="bfloat16"),
    Case(63, 1280, 32, "bias other", rows=2, dtype="float32", mean=100),
    Case(63, 1280, 32, "bias other", rows=2, dtype="float32", mean=100, kept=0),
    Case(8321, 10, 5, "bias shift other", rows=2, copies=2, kept=0),
    Case(350, 128, 32, "bias other", kept=0, tile=128),  # parts of two tiles, and a last one of less
    Case(300, 960, 32, "bias shift", rows=2, kept=0),
    Case(100, 36, 6, "", rows=2, dtype="bfloat16", kept=0),
    Case(45, 48, 6, "bias shift other", rows=6, copies=3, transposed=True),
    Case(45, 48, 6, "bias shift other", rows=6, copies=3, transposed=True, kept=0),
    Case(9, 2600, 2, "bias other", kept=0),  # groups wider than a tile's lanes
)


def interpreted() -> list[Case]:
    """Those of SD 1.5 by one row, and with fewer positions where they take two kernels, as the interpreter is slow."""
    shapes = (each for shapes in (_SD15, _JOINED, _VAE) for each in _of(shapes))
    small = [Case(min(p, 256), c, terms="bias other", kept=0 if p >= 4096 else group_norm._KEPT) for p, c in shapes]
    demo = [Case(64, channels, 8, "bias shift", rows=2) for channels in (16, 32, 64, 128)]
    return [*dict.fromkeys(small), Case(1024, 640, terms="bias shift"), *demo, *_AWKWARD]


def compiled() -> list[Case]:
    """Those of SD 1.5 with the sums that the networks have."""
    sums = [Case(p, c, terms=terms, rows=2, copies=n) for p, c in _of(_SD15) for terms, n in _SUMS]
    vae = [Case(p, c, terms=terms) for p, c in _of(_VAE) for terms in ("bias", "bias other")]
    return [*sums, *(Case(p, c, rows=2) for p, c in _of(_JOINED)), *vae, *_AWKWARD]


def _of(shapes: dict[int, tuple[int, ...]]) -> Iterator[tuple[int, int]]:
    return ((positions, channels) for positions, several in shapes.items() for channels in several)


@dataclass(frozen=True, slots=True)
class Drawn:
    """Random inputs of a case."""

    x: Tensor
    terms: list[Tensor | None]
    norm: Norm

    @classmethod
    def of(cls, case: Case) -> "Drawn":
        generator, dtype = Generator().manual_seed(case.channels), getattr(torch, case.dtype)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        def maps(rows: int) -> Tensor:
            drawn = draw(rows, case.channels, case.positions).mT
            return drawn if case.transposed else drawn.contiguous()

        shifts = draw(3 * case.channels, case.rows).mT if case.transposed else draw(case.rows, 3 * case.channels)
        terms = {
            "bias": draw(case.channels),
            "shift": shifts[:, case.channels : 2 * case.channels],  # one of many layers'
            "other": maps(case.rows // case.copies),
        }
        norm = Norm(1 + draw(case.channels) / 4, draw(case.channels), case.groups, 1e-5, silu="shift" in case.terms)
        chosen = [value if name in case.terms.split() else None for name, value in terms.items()]
        return cls((maps(case.rows) + case.mean).to(dtype), chosen, norm)

    def exact(self) -> "Drawn":
        terms = [None if each is None else each.double() for each in self.terms]
        norm = self.norm._replace(weight=self.norm.weight.double(), offset=self.norm.offset.double())
        return Drawn(self.x.double(), terms, norm)


def errors(case: Case) -> list[float]:
    """The relative errors of the sum, of the result, and of the result where the sum is not kept."""
    drawn = Drawn.of(case)
    exact = drawn.exact()
    total, expected = reference(exact.x, exact.terms, exact.norm)
    torch.use_deterministic_algorithms(True)  # fills memory with NaN, which the kernels are to write
    # What the operators do on a GPU: they would take the definition for a CPU.
    add, alone = (each._init_fn for each in (group_norm.add_group_norm, group_norm.group_norm))
    results = *add(drawn.x, drawn.terms, *drawn.norm), alone(drawn.x, drawn.terms, *drawn.norm)
    return [
        float((actual.double() - right).norm() / right.norm())
        for actual, right in zip(results, (total, expected, expected), strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Noted:
    """A kernel that notes what it is launched with."""

    kernel: Any
    launches: list[tuple[Any, dict[str, Any]]]

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda **given: self.launches.append((self.kernel, given))


def usage(case: Case, arch: int) -> Iterator[dict[str, Any]]:
    """What each kernel of a case uses; as in the networks, a sum is kept if it is not shifted."""
    launches: list[tuple[Any, dict[str, Any]]] = []
    with FakeTensorMode(), patch.object(group_norm, "wrap_triton", lambda kernel: _Noted(kernel, launches)):
        drawn = Drawn.of(case)
        total = torch.empty_like(drawn.x) if case.terms and "shift" not in case.terms else None
        group_norm._launch(drawn.x, drawn.terms, drawn.norm, total)
    for kernel, given in launches:
        yield {"kernel": kernel.__name__, **_compiled(kernel, given, arch)}


def _compiled(kernel: Any, given: dict[str, Any], arch: int) -> dict[str, int]:
    """As Triton compiles it at a launch: numbers of 1 are constants, and multiples of 16 are known as such."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        value = given[name]
        if isinstance(value, Tensor):
            signature[name] = _ARGUMENTS[value.dtype]
        else:
            signature[name] = "constexpr" if name.isupper() or value == 1 else "i32"
        if signature[name] == "constexpr":
            constants[name] = value
        elif isinstance(value, Tensor) or value % 16 == 0:
            attributes[place,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": given["num_warps"]}
    return usage_of(triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options))


def main(what: str) -> None:
    for case in interpreted() if what == "interpret" else compiled():
        with patch.multiple(group_norm, _KEPT=case.kept, _TILE=case.tile):
            found = errors(case) if what == "interpret" else list(usage(case, int(what)))
        print(json.dumps({"case": asdict(case), "found": found}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
