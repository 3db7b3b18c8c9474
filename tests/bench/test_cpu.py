"""The figures of the benchmark on a CPU, and which contenders are in memory together."""

from tests.bench.contenders import BASELINE, CONTENDERS, OPENVINO
from tests.bench.cpu import MEMORY_GIB, figures, groups, table, title


def test_ratios_are_to_the_baseline_in_the_same_precision() -> None:
    ours, theirs = f"{OPENVINO}, bfloat16", f"{BASELINE}, bfloat16"
    times = {
        ("step", theirs): [0.2, 0.4, 0.2],
        ("step", f"{BASELINE}, float32"): [9.0],
        ("step", ours): [0.3, 0.1, 0.1],
        ("networks", ours): [0.05],
    }
    steps = figures(times, "step", CONTENDERS)
    assert (steps[theirs]["ratio"], steps[ours]["ratio"]) == (1.0, 0.5)
    assert (steps[ours]["median"], steps[ours]["min"], steps[ours]["upper quartile"]) == (100.0, 100.0, 200.0)
    assert figures(times, "networks", CONTENDERS)[ours]["ratio"] == 0.25  # the baseline's step is its networks alone


def test_every_contender_is_in_one_group_that_fits_into_memory() -> None:
    found = groups(CONTENDERS, 2)
    assert [each for group in found for each in group] == list(CONTENDERS)
    assert all(len(group) <= 2 and sum(each.gib for each in group) <= MEMORY_GIB for group in found)
    assert [title(each) for each in found[0]] == [f"{BASELINE}, bfloat16", f"{OPENVINO}, bfloat16"]
    assert groups(CONTENDERS, len(CONTENDERS)) == [list(CONTENDERS)]


def test_the_table_has_a_line_for_each_contender_and_each_failure() -> None:
    ours = f"{OPENVINO}, bfloat16"
    rows = {"step": figures({("step", ours): [0.1, 0.3]}, "step", CONTENDERS), "error": {"diffusers": "no memory"}}
    lines = list(table(rows, "demo-256"))
    assert ours in lines[2]
    assert "200.00" in lines[2]
    assert "diffusers: no memory" in lines[3]
