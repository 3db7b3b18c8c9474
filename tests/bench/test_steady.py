"""The benchmark of the scheduler's rules, on short runs."""

from concurrent.futures import ThreadPoolExecutor

from tests.bench import steady


def test_that_steps_get_dearer_with_the_next_bucket_costs_no_throughput() -> None:
    figures = {
        rule: steady.joining("1 device, strong gain", 1.2, rule, seed=1, seconds=40.0)
        for rule in ("contour", "always joins", "never joins")
    }
    throughput = {rule: each["throughput, of bound"] or 0.0 for rule, each in figures.items()}
    assert throughput["contour"] >= 0.98 * throughput["always joins"]
    assert throughput["contour"] >= 1.5 * throughput["never joins"]


def test_appointments_save_refused_clients_from_coming_in_vain() -> None:
    own, same = [
        steady.returning(3.0, "bursts", 1.2, told, seed=1, seconds=40.0) for told in ("its own time", "the same")
    ]
    assert own["tries per image"] is not None
    assert same["tries per image"] is not None
    assert own["tries per image"] < 0.9 * same["tries per image"]


def test_a_table_has_a_row_for_all_values_of_the_last_setting() -> None:
    with ThreadPoolExecutor(1) as pool:
        study = steady.Study(lambda a, b, seed: {"sum": a + b + seed, "none": None}, {"a": [1, 2], "b": [10, 20]})
        rows = steady.rows(study, [1, 3], pool)
    assert rows[1] == {"a": 1, "b": 20, "sum": 23.0, "none": None}
    assert list(steady.markdown("any", study, rows))[-2:] == ["| 1 | 13 / 23 | - / - |", "| 2 | 14 / 24 | - / - |"]
