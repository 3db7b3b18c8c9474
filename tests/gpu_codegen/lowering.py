"""Lowers a function to the program that torch's compiler would run on a GPU, as the engine has it compile.

torch.compile's path from ATen operators on: `compile_fx` functionalises, decomposes, fuses and generates Python that
calls kernels, with the options of the engine's mode. It differs in three ways. Dynamo is left out: the operators are
recorded on fake tensors (that Dynamo takes the passes whole is tested with the small model). Nothing is timed, so
matrix products and convolutions stay the libraries', as they are, not a Triton template or padded. And attention is by
the flash kernel, where the engine would measure.

Only for processes that `standins.install` has prepared.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from tests.gpu_codegen.cases import FLOAT8, Case, engines
from tests.gpu_codegen.flawed import FLAWED
from tests.gpu_codegen.passes import Call, fake, on_a_gpu, pass_of
from tests.workers.engine.fake_cuda import DEVICE
from workers.engine.attention import kernels
from workers.engine.execution import _MODE_ON_CUDA

_UNTIMED = {
    "max_autotune_gemm_backends": "ATEN",
    "max_autotune_conv_backends": "ATEN",
    "shape_padding": False,
    "triton.autotune_cublasLt": False,  # with torch 2.11 a second choice for products that add a bias
}


class _Generated(BaseException):
    """The code has been generated. Not an Exception, which the compiler would wrap."""


def lower(case: Case) -> str:
    """The program of a pass, or of a flawed network."""
    if case.which in FLAWED:
        with fake():
            return program_of(FLAWED[case.which]())
    which, in_float8 = case.which.removesuffix(FLOAT8), case.which.endswith(FLOAT8)
    with on_a_gpu(replace(engines()[0], quantisation="fp8" if in_float8 else "none")) as model:
        return program_of(pass_of(which, model, _attend, case.size, case.images, case.rows))


def program_of(call: Call) -> str:
    """The program of a function of fake tensors: Python, with the source of each Triton kernel in it."""
    from torch._inductor import list_mode_options
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.graph import GraphLowering
    from torch.fx.experimental.proxy_tensor import make_fx

    inputs, tree = tree_flatten(call.arguments)

    def flat(*tensors: Tensor) -> list[Tensor]:
        return tree_leaves(call.function(*tree_unflatten(list(tensors), tree)))

    def stop(code: str) -> None:
        raise _Generated(code)

    recorded = make_fx(flat)(*inputs)
    GraphLowering.save_output_code = stop
    try:
        compile_fx(recorded, inputs, config_patches=list_mode_options(_MODE_ON_CUDA) | _UNTIMED)
    except _Generated as done:
        return str(done)
    raise AssertionError("compile_fx has generated no code")


def _attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    q, k, v = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (queries, keys, values))
    (flash,) = kernels(torch.device(DEVICE), "flash")
    return flash.run(q, k, v).transpose(1, 2).flatten(2)
