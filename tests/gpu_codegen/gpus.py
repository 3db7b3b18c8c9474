"""The GPUs that code is generated for: what a compiler asks of them, and what the estimates are based on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A kind of GPU; bytes, and figures a second.

    `tensor_flops` is what a large matrix product in half precision reaches, `attention_flops` the flash kernel with
    heads of 64. Those of the A100 are assumed from its data sheet and FlashAttention-2's paper, not measured.
    """

    arch: str
    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_per_block: int  # the most that a kernel can ask for
    shared_per_multiprocessor: int
    l2: int
    memory: int
    memory_bandwidth: float
    l2_bandwidth: float
    tensor_flops: float
    attention_flops: float

    @property
    def cc(self) -> int:
        """As in 90."""
        return self.capability[0] * 10 + self.capability[1]


_KB, _MB, _GB = 2**10, 2**20, 2**30
H100 = Gpu(
    arch="sm_90",
    name="NVIDIA H100",
    capability=(9, 0),
    multiprocessors=132,
    shared_per_block=227 * _KB,
    shared_per_multiprocessor=228 * _KB,
    l2=50 * _MB,
    memory=80 * _GB,
    memory_bandwidth=3.0e12,
    l2_bandwidth=5.5e12,
    tensor_flops=798e12,
    attention_flops=380e12,
)
A100 = Gpu(
    arch="sm_80",
    name="NVIDIA A100",
    capability=(8, 0),
    multiprocessors=108,
    shared_per_block=163 * _KB,
    shared_per_multiprocessor=164 * _KB,
    l2=40 * _MB,
    memory=40 * _GB,
    memory_bandwidth=1.4e12,
    l2_bandwidth=3.5e12,
    tensor_flops=260e12,
    attention_flops=170e12,
)
GPUS = {gpu.arch: gpu for gpu in (H100, A100)}

REGISTERS_PER_MULTIPROCESSOR = 65_536
