"""What torch's compiler generates for a GPU from the engine's passes: the kernels that are wanted, and nothing else."""

import os
from collections import Counter
from concurrent.futures import Future
from typing import TypeAlias

import pytest
import torch

from tests.gpu_codegen.cases import FLOAT8, Case, every, quick
from tests.gpu_codegen.cubins import Cubin
from tests.gpu_codegen.flawed import FLAWED
from tests.gpu_codegen.gpus import H100, REGISTERS_PER_MULTIPROCESSOR
from tests.gpu_codegen.program import Kind, Program
from tests.gpu_codegen.report import limits
from tests.gpu_codegen.results import ROOT, LoweringError, Result, results
from tests.gpu_codegen.standins import MovedError

pytestmark = pytest.mark.skipif("TEST_GPU_CODEGEN" not in os.environ, reason="takes minutes: make test-gpu-codegen")

Results: TypeAlias = dict[Case, Future[Result]]

CASES = every() if os.environ.get("TEST_GPU_CODEGEN") == "every" else quick()
FLAWS = {name: Case(name, H100, (32, 32)) for name in FLAWED}
PINNED = f'"torch=={torch.__version__.partition("+")[0]}"' in (ROOT / "pyproject.toml").read_text()
WARP = 32
FEWEST_WARPS = 8  # of one kernel on a multiprocessor, that some wait for memory while others compute
GIVEN: tuple[Kind, ...] = ("convolution", "attention")  # as many as the networks have


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> Results:
    """All cases of the tests that were chosen, and the flawed networks; several at once."""
    calls = (getattr(item, "callspec", None) for item in request.session.items)
    chosen = dict.fromkeys(call.params["one"] for call in calls if call is not None and "one" in call.params)
    return results([*chosen, *FLAWS.values()])


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def one(found: Results, request: pytest.FixtureRequest) -> Result:
    return result_of(found, request.param)


def result_of(found: Results, case: Case) -> Result:
    try:
        return found[case].result()
    except MovedError as error:
        if PINNED:
            raise
        pytest.skip(str(error))


def flawed(found: Results, name: str) -> Program:
    return result_of(found, FLAWS[name]).program


def spills(result: Result) -> list[Cubin]:
    return [each for each in result.cubins if each.local]


def test_a_pass_has_no_more_kernels_of_any_kind_than_written_down(one: Result) -> None:
    """`python -m tests.gpu_codegen report --write` writes them down."""
    counts, most = one.program.counts, Counter(limits().get(one.case.inputs, {}))
    assert counts <= most, f"{counts} instead of {most}"
    assert [counts[kind] for kind in GIVEN] == [most[kind] for kind in GIVEN]


def test_convolutions_need_no_copies(one: Result) -> None:
    assert one.program.layout_copies() == []
    assert one.program.other_layouts() == []


def test_products_in_float8_are_all_that_are_wanted_and_need_no_copies(one: Result) -> None:
    """Eight in each transformer, which has two attentions."""
    wanted = 4 * one.program.counts["attention"] if one.case.which.endswith(FLOAT8) else 0
    products = [kernel for kernel in one.program.kernels if kernel.name.endswith("_scaled_mm")]
    assert len(products) == wanted
    taken = {x.name for kernel in products for x in kernel.operands[:-1]}
    assert not [copy for copy in one.program.copies() if any(x.name in taken for x in copy.operands)]


def test_nothing_falls_back_to_an_operator(one: Result) -> None:
    assert one.program.fallbacks == []


def test_nothing_waits_for_the_host_or_is_computed_there(one: Result) -> None:
    assert one.program.host_values == []


def test_each_triton_kernel_is_compiled_and_fits_a_multiprocessor(one: Result) -> None:
    assert {each.kernel for each in one.cubins} == set(one.program.sources)
    assert {each.name for each in one.program.kernels if each.kind == "own"} <= set(one.program.sources)
    assert one.cubins
    for each in one.cubins:
        assert each.shared <= one.case.gpu.shared_per_block, each
        fit = REGISTERS_PER_MULTIPROCESSOR // (each.registers * WARP * each.warps) * each.warps
        assert fit >= FEWEST_WARPS, each


def test_no_kernel_spills_registers(one: Result) -> None:
    assert spills(one) == []


# ----------------------------------------------------------------------------------- the checks find what they look for


def test_a_sound_network_passes(found: Results) -> None:
    sound = flawed(found, "sound")
    assert sound.counts == {"convolution": 1, "pointwise": 1}
    assert (sound.layout_copies(), sound.other_layouts(), sound.fallbacks, sound.host_values) == ([], [], [], [])


@pytest.mark.parametrize("name", ["copied_weights", "copied_images"])
def test_a_layout_copy_is_found(found: Results, name: str) -> None:
    (copy,) = flawed(found, name).layout_copies()
    assert copy.kind == "pointwise"


def test_a_convolution_in_another_layout_is_found(found: Results) -> None:
    assert len(flawed(found, "other_layout").other_layouts()) == 1


def test_a_fallback_is_found(found: Results) -> None:
    assert flawed(found, "fallback").fallbacks == ["torch.ops.aten.kthvalue.default"]


def test_a_kernel_of_ours_that_spills_registers_is_found(found: Results) -> None:
    spilling = result_of(found, FLAWS["spilled_registers"])
    assert spilling.program.counts == {"own": 1}
    assert [each.kernel for each in spills(spilling)] == ["spill_0"]


def test_a_copy_to_the_host_is_found(found: Results) -> None:
    assert any("empty_strided_cpu" in each for each in flawed(found, "copy_to_host").host_values)


def test_a_value_that_the_host_asks_for_is_found(found: Results) -> None:
    with pytest.raises(LoweringError, match="_local_scalar_dense"):
        flawed(found, "host_value")
