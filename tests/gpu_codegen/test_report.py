"""The table of limits has a line for each case."""

from tests.gpu_codegen.cases import every, quick
from tests.gpu_codegen.report import limits


def test_each_case_has_limits_and_there_are_no_others() -> None:
    assert limits().keys() == {case.inputs for case in (*every(), *quick())}
