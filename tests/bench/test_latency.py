"""The latency benchmark, run small as it is run, and what it concludes from what it measures."""

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pynvml
import pytest

from app.settings import load
from tests.bench.environment import gpu_state
from tests.bench.latency import _alarms, run
from tests.bench.parts import Part, services
from tests.bench.parts.bench import Bench, NoTimeError, Row, SkippedError
from tests.bench.parts.flops import of_diffusers, of_engine
from tests.bench.parts.gauge import Gauge
from tests.bench.parts.stats import in_turns, interval, is_steady, verdict
from tests.bench.parts.work import table
from tests.bench.report import COMPLETE, CONCLUSIONS, Report, lines
from tests.service import running
from tests.service.running import ROOT, until
from tests.workers.engine import full_size
from workers.engine import kernels
from workers.nvml import Nvml

LIMIT_SECONDS = 600


def read(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(out.read_text())
    return content


def bench(**changes: Any) -> Bench:
    small = Bench("demo", "cpu", side=64, steps=2, repeats=4, patience=1.0, folder=Path("unused"))
    return replace(small, **changes)


def part(rows: Mapping[str, Callable[[], Any]], seconds: float = 10.0) -> Part:
    return Part(lambda bench: iter(rows.items()), seconds)


def fails() -> None:
    raise ValueError("no such kernel")


# ---------------------------------------------------------------------------------------------------------- the script


def test_the_script_measures_what_it_is_asked_for(tmp_path: Path) -> None:
    out, names = tmp_path / "latency.json", "peak,batches,stages,agreement,peers,lcm,kernels,load"
    small = "--model demo --device cpu --side 64 --steps 2 --repeats 2 --patience 0.2 --parts"
    command = [
        sys.executable,
        "-m",
        "tests.bench.latency",
        *small.split(),
        names,
        f"--out={out}",
        f"--folder={tmp_path}",
    ]
    options: Any = {"cwd": ROOT, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "timeout": LIMIT_SECONDS}
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    content = read(out)
    parts = content["parts"]
    assert parts.keys() == set(names.split(","))
    assert all(COMPLETE in rows for rows in parts.values())
    assert parts["peak"]["best, TFLOP/s"] > 0
    assert content["environment"]["torch"]
    stages = parts["stages"]["as shipped"]
    for stage in ("prepare", "hint", "text", "step", "VAE", "encode", "in all", "in all, back to back"):
        assert 0 < stages[stage]["low"] <= stages[stage]["median"] <= stages[stage]["high"]
    assert 0 < stages["step"]["share of peak"] < stages["step"]["share of peak with the work saved"]
    assert parts["agreement"]["not compiled"]["at least 40 dB"] is True
    assert parts["agreement"]["not compiled"]["standard deviation of the images"] > 1
    assert parts["batches"]["4 together"]["images/s"] > 0
    assert parts["batches"]["joining"]["image that another joins"]["median"] > 0
    assert parts["peers"]["diffusers, channels-last"]["ratio"]["n"] == 1
    assert parts["peers"]["stable-fast"] == {"skipped": "stable-fast is not installed"}
    assert sum(kernel["share"] for kernel in parts["kernels"]["steps"]["kernels"]) == pytest.approx(1, abs=0.1)
    assert parts["load"]["start"]["devices"] == ["CPU"]
    assert parts["load"]["start"]["fallbacks"] == {}
    assert parts["load"]["closed loop"]["images/s"] > 0
    assert parts["load"]["open loop, 95% of the throughput"]["refused or lost"] == 0
    assert "in all, back to back" in done.stdout


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_run_that_is_told_to_end_says_what_it_left_out(tmp_path: Path) -> None:
    class Final:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def finalise() -> None:
        Final()

    parts = {"a": part({"one": lambda: 1, "two": lambda: signal.raise_signal(signal.SIGTERM)}), "b": part({})}
    missed = {"a": part({"one": finalise, "two": fails}), "b": part({})}  # Python drops what is raised in `one`
    for each in (parts, missed):
        report = Report(tmp_path / "out.json", {})
        with _alarms(float("inf")) as check:
            assert run(report, each, bench(), check=check) == 2
        rows = read(tmp_path / "out.json")["parts"]
        assert rows["a"].keys() == {"one", "cut off"}
        assert (rows["a"]["cut off"], rows["b"]) == ("SIGTERM", {"skipped": "SIGTERM"})


def test_a_part_or_row_that_fails_is_told_and_the_others_run(tmp_path: Path) -> None:
    def broken(bench: Bench) -> Iterator[Row]:
        yield "before", lambda: 1
        fails()

    report = Report(tmp_path / "out.json", {})
    assert run(report, {"broken": Part(broken), "rows": part({"one": fails, "two": lambda: 2})}, bench()) == 1
    rows = read(tmp_path / "out.json")["parts"]
    assert rows["broken"] == {"before": 1, "error": "ValueError: no such kernel"}
    assert (rows["rows"]["one"], rows["rows"]["two"]) == ({"error": "ValueError: no such kernel"}, 2)


def test_what_cannot_be_measured_says_why(tmp_path: Path) -> None:
    def lacking() -> None:
        raise SkippedError("xformers is not installed")

    def slow() -> None:
        raise NoTimeError("2 of 4 parts were compiled")

    report, soon = Report(tmp_path / "out.json", {}), bench(deadline=time.monotonic() + 20)
    parts = {"short": part({"peer": lacking, "late": slow, "two": lambda: 2}), "long": part({}, seconds=60)}
    assert run(report, parts, soon) == 0
    rows = read(tmp_path / "out.json")["parts"]
    assert rows["short"] == {"peer": {"skipped": "xformers is not installed"}, "cut off": "2 of 4 parts were compiled"}
    assert re.fullmatch(r"out of time: (1?\d|20) s were left", rows["long"]["skipped"])


def test_a_run_goes_on_with_a_file_of_its_own_identity_alone(tmp_path: Path) -> None:
    out, numbers = tmp_path / "out.json", count()
    parts = {"a": part({"good": lambda: next(numbers), "bad": fails}), "b": part({"good": lambda: next(numbers)})}
    run(Report(out, {}, {"gpu": "H100"}), parts, bench())
    run(Report(out, {}, {"gpu": "H100"}), parts | {"a": part({"good": fails, "bad": lambda: "measured"})}, bench())
    assert read(out)["parts"]["a"] | {COMPLETE: 0} == {"good": 0, "bad": "measured", COMPLETE: 0}
    run(Report(out, {}, {"gpu": "H200"}), parts, bench())
    assert read(out)["parts"]["a"]["good"] == 2
    assert read(tmp_path / "out.earlier.json")["identity"] == {"gpu": "H100"}


def test_a_part_that_is_measured_in_another_way_is_measured_anew(tmp_path: Path) -> None:
    out, numbers = tmp_path / "out.json", count()
    parts = {name: part({"one": lambda: next(numbers)}) for name in ("a", "b")}
    for methods in ({"a": "1", "b": "1"}, {"a": "1", "b": "2"}):
        run(Report(out, {}, {}, methods), parts, bench())
    rows = read(out)["parts"]
    assert (rows["a"]["one"], rows["b"]["one"]) == (0, 2)


def test_conclusions_from_what_is_measured_again_are_drawn_again(tmp_path: Path) -> None:
    out, numbers = tmp_path / "out.json", count()
    drawn = {f"{CONCLUSIONS} after 1": lambda: next(numbers)}
    for failing in (fails, lambda: 1, fails):
        run(Report(out, {}, {}), {"a": part({"one": failing} | drawn)}, bench())
    assert read(out)["parts"]["a"][f"{CONCLUSIONS} after 1"] == 1


def test_a_part_that_cannot_be_had_here_has_not_failed(tmp_path: Path) -> None:
    def lacking(bench: Bench) -> Iterator[Row]:
        raise SkippedError("it takes a GPU")
        yield "never", fails

    report = Report(tmp_path / "out.json", {})
    assert run(report, {"a": Part(lacking)}, bench()) == 0
    assert read(tmp_path / "out.json")["parts"]["a"] == {"skipped": "it takes a GPU"}


def test_the_table_has_a_line_for_each_figure() -> None:
    row = {"median": 1.0, "low": 0.5, "high": 2.0, "n": 9, "throttled": {"sw_power_cap": 0.5}}
    title, first, second = lines({"parts": {"good": {"one": row}}})
    assert title.strip() == "good"
    assert first.split() == ["one", "1.000", "[0.500", "..", "2.000]", "n", "9"]
    assert second.split() == ["throttled", "sw_power_cap", "0.5"]


# --------------------------------------------------------------------------------------------------------- conclusions


@pytest.mark.parametrize(
    ("draw", "median"),
    [
        (lambda r: r.expovariate(1), math.log(2)),
        (lambda r: r.gauss(3, 1), 3),
        (lambda r: r.lognormvariate(0, 2), 1),
    ],
    ids=["exponential", "normal", "lognormal"],
)
@pytest.mark.parametrize("n", [5, 6, 20, 41])
def test_intervals_cover_the_median_as_often_as_they_say(
    draw: Callable[[random.Random], float], median: float, n: int
) -> None:
    source = random.Random(n)
    found = [interval([draw(source) for _ in range(n)]) for _ in range(2000)]
    covered = sum(low <= median <= high for low, high, _ in found) / len(found)
    assert covered == pytest.approx(found[0][2], abs=0.02)
    assert found[0][2] >= 0.95 or n == 5


def test_intervals_of_many_values_are_those_of_the_normal_distribution() -> None:
    low, high, coverage = interval(range(10_001))
    assert (5000 - low, high - 5000) == pytest.approx((98, 98), abs=1)  # 1.96 standard deviations of 50
    assert coverage == pytest.approx(0.95, abs=0.005)


def test_a_device_that_slows_down_evenly_slows_both_alike() -> None:
    clock = count(100)
    found = in_turns(lambda: float(next(clock)), lambda: 2.0 * next(clock), rounds=6)
    assert (found["ratio"]["median"], found["ratio"]["low"], found["ratio"]["high"]) == (2, 2, 2)


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([0.90], "faster"),
        ([1.04, 1.07], "undecided"),
        ([1.20, 1.10], "slower"),
        ([0.97], "undecided: less than 5% takes 5 starts"),
        ([0.97, 0.96, 0.98, 0.97, 0.97], "faster"),
        ([0.97, 1.01, 0.98, 1.02, 0.97], "no difference found"),
    ],
)
def test_small_effects_take_five_starts(ratios: list[float], expected: str) -> None:
    starts = [{"median": ratio, "low": ratio - 0.05, "high": ratio + 0.05, "coverage": 0.96} for ratio in ratios]
    assert verdict(starts)["verdict"] == expected


def test_one_round_decides_nothing() -> None:
    once = in_turns(lambda: 1.0, lambda: 2.0, rounds=1)["ratio"]
    assert verdict([once])["verdict"] == "undecided: too few rounds"


def test_times_are_steady_when_they_no_longer_fall() -> None:
    assert not is_steady([1.0] * 9)
    assert not is_steady([1.2, 1.2, 1.1, 1.1, 1.1, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert is_steady([2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.3])


@pytest.mark.filterwarnings("ignore:__array_(_ implementation|wrap__):DeprecationWarning")
def test_the_work_of_stable_diffusion_is_what_others_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(ROOT / "configs" / "sd15-canny.yaml", {}).engine
    parts = full_size.architecture()
    theirs, ours = (count(config, parts, 512) for count in (of_diffusers, of_engine))
    counted = [round(each / 1e9, 1) for each in (theirs.step, theirs.vae, theirs.text)]
    assert counted == [2 * (803.3 + 283.3) - 0.1, 2514.5, 26.6]
    assert theirs.image(20) == pytest.approx(46.0e12, rel=1e-3)
    assert ours.image(20) == pytest.approx(43.56e12, rel=1e-3)
    assert ours.vae == theirs.vae
    monkeypatch.setattr(kernels, "usable", lambda device: True)
    ours = of_engine(config, parts, 512)
    assert ours.image(20) == pytest.approx(41.81e12, rel=1e-3)
    assert ours.vae == pytest.approx(2132e9, rel=1e-3)


def event(key: str, microseconds: float = 1, *, device: str = "CUDA", named: bool = False) -> SimpleNamespace:
    """A row of torch's profiler."""
    kind = SimpleNamespace(name=device)
    return SimpleNamespace(
        key=key, device_type=kind, is_user_annotation=named, self_device_time_total=microseconds, count=4
    )


def test_operators_and_ranges_do_not_count_their_kernels_once_more() -> None:
    events = [
        event("aten::mm", 900, device="CPU"),
        event("a range", 1000, named=True),
        event("gemm", 900),
        event("triton_red_fused", 100),
    ]
    found = table(events, cuda=True, times=2)
    assert found["all, ms"] == 1
    assert [(row["kernel"], row["share"]) for row in found["kernels"]] == [("gemm", 0.9), ("triton_red_fused", 0.1)]
    assert found["kernels of one"] == {"matrix products": 2, "reductions": 2, "all": 4}


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("one_pass_3", "group norms of our own"),
        ("triton_poi_fused_add_convolution_silu_4", "pointwise"),
        ("triton_per_fused_addmm_native_layer_norm_0", "reductions"),
        ("triton_tem_fused_convolution_2", "convolutions"),
        ("triton_tem_fused_addmm_view_1", "matrix products"),
        ("triton_tem_fused_mm_7", "matrix products"),
        ("sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "convolutions"),
        ("sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize96x128x32_stage4_warpsize2x2x1", "matrix products"),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT", "matrix products"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float, __half>", "matrix products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3_64x128x64", "attentions"),
        ("void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<64, 128, 128>>", "attentions"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::silu_kernel>", "pointwise"),
        ("Memcpy DtoD (Device -> Device)", "others"),
    ],
)
def test_a_kernel_is_of_the_kind_that_its_name_says(kernel: str, kind: str) -> None:
    assert table([event(kernel)], cuda=True)["kernels of one"] == {kind: 4, "all": 4}


def test_without_kernels_there_is_no_profile() -> None:
    with pytest.raises(SkippedError, match="saw no kernel"):
        table([event("aten::mm", device="CPU")], cuda=True)


# ------------------------------------------------------------------------------------------------------------- the GPU


def test_a_figure_that_was_measured_on_a_throttled_gpu_is_marked(tmp_path: Path) -> None:
    library = MagicMock(**{"nvmlDeviceGetUtilizationRates.return_value": SimpleNamespace(gpu=99)})
    library.nvmlDeviceGetClockInfo.return_value = 1200
    library.nvmlDeviceGetPowerUsage.return_value = 700_000
    library.nvmlDeviceGetTemperatureV.side_effect = pynvml.NVMLError_NotSupported
    reasons = library.nvmlDeviceGetCurrentClocksEventReasons
    reasons.return_value = pynvml.nvmlClocksEventReasonSwPowerCap
    gauge = Gauge(Nvml(library), "GPU-1", library, period=0.001)

    def measure() -> dict[str, float]:
        seen = reasons.call_count
        until(lambda: reasons.call_count > seen + 2)
        return {"median": 1.0}

    report = Report(tmp_path / "out.json", {})
    run(report, {"a": part({"slow": measure})}, bench(), gauge)
    reasons.return_value = pynvml.nvmlClocksEventReasonGpuIdle
    run(report, {"b": part({"usual": measure})}, bench(), gauge)
    rows = read(tmp_path / "out.json")["parts"]
    assert rows["a"]["slow"]["throttled"] == {"sw_power_cap": 1}
    assert rows["a"]["slow"]["GPU under load"]["power, W"]["median"] == 700
    assert "temperature, C" not in rows["a"]["slow"]["GPU under load"]
    assert rows["b"]["usual"]["GPU under load"]["SM clock, MHz"] == {"median": 1200, "min": 1200, "max": 1200}
    assert "throttled" not in rows["b"]["usual"]


def test_unknown_readings_of_nvml_are_left_out() -> None:
    class Unsupported(Exception):
        pass

    def refuse(handle: object) -> int:
        raise Unsupported

    library = MagicMock(NVMLError=Unsupported, nvmlDeviceGetEnforcedPowerLimit=refuse)
    library.nvmlSystemGetDriverVersion.return_value = "580.1"
    library.nvmlDeviceGetMemoryInfo.return_value = SimpleNamespace(used=2**30)
    state = gpu_state("GPU-1", library)
    assert state is not None
    assert state["driver"] == "580.1"
    assert state["memory in use, GiB"] == 1
    assert "power limit, W" not in state
    library.nvmlInit.side_effect = Unsupported
    assert gpu_state("GPU-1", library) is None


# ------------------------------------------------------------------------------------------------------------ settings


def test_changes_are_compared_with_the_shipped_settings_in_five_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    @contextmanager
    def start(bench: Bench, change: services.Change | None = None) -> Iterator[Any]:
        services.configured(bench, change or {})
        started.append(change)
        yield SimpleNamespace(wait_until_compiled=dict, post=lambda: 0.98 if change else 1.0, in_use=dict)

    changes = {"beside": {"ENGINE__SPEED__BESIDE": "false"}, "unknown": {"ENGINE__SPEED__NO_SUCH_KEY": "1"}}
    monkeypatch.setattr(services, "CHANGES", changes)
    monkeypatch.setattr(services.Client, "start", start)
    report = Report(tmp_path / "out.json", {})
    run(report, {"settings": Part(services.settings)}, bench(figures=report.content["parts"]))
    rows = read(tmp_path / "out.json")["parts"]["settings"]
    assert started.count(changes["beside"]) == 5
    assert rows["verdicts after 1"]["beside"]["verdict"] == "undecided: less than 5% takes 5 starts"
    values = {"median": 0.98, "low": 0.98, "high": 0.98, "coverage": 0.9375, "n": 5}
    assert rows["verdicts after 5"]["beside"] == values | {"verdict": "faster"}
    assert "NO_SUCH_KEY" in rows["unknown, start 1"]["skipped"].upper()
    assert "unknown, start 2" not in rows


def test_every_change_names_settings_of_this_version_or_variables_of_libraries() -> None:
    for change in services.CHANGES.values():
        settings = {key: value for key, value in change.items() if "__" in key}
        services.configured(bench(), settings)
        assert all(key.startswith("TORCHINDUCTOR_") for key in change.keys() - settings.keys())


def test_a_service_whose_start_is_broken_off_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    started = list["subprocess.Popen[str]"]()
    start = subprocess.Popen

    def recorded(*arguments: Any, **options: Any) -> "subprocess.Popen[str]":
        started.append(start(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", recorded)
    monkeypatch.setattr(running, "until", MagicMock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        running.Service("demo")
    assert started[0].poll() is not None


def played(log: list[str], *workers: dict[str, Any], code: int | None = None) -> Any:
    """A service that has written a log."""
    process = SimpleNamespace(poll=lambda: code)
    return SimpleNamespace(log=log, process=process, readiness=lambda: {"workers": [*workers]})


def client_of(service: Any, on_gpu: Bench) -> services.Client:
    engine = services.configured(on_gpu, {"ENGINE__SLOTS": "1", "ENGINE__RUNTIME": "torch"})
    http: Any = SimpleNamespace(post=lambda *_, **__: SimpleNamespace(status_code=200))
    return services.Client(on_gpu, service, engine, http, {}, count(), 0.0, 0.0)


def test_a_service_is_compiled_when_each_part_is_in_use_or_given_up() -> None:
    log = ["latents of 8x8, batch of 1: compiled networks have taken over", "compile: failed: latents of 8x8, VAE: no"]
    on_gpu = bench(device="cuda:0", deadline=time.monotonic())
    service, cut_short = played(log), played(log[:1])
    client = client_of(service, on_gpu)
    assert client.wait_until_compiled()["log"] == log
    with pytest.raises(NoTimeError, match="1 of 2 parts"):
        replace(client, service=cut_short).wait_until_compiled()


def test_all_of_the_time_that_is_left_is_waited_for_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: now[0], sleep=sleep)
    for module in ("services", "bench"):
        monkeypatch.setattr(f"tests.bench.parts.{module}.time", clock)
    with pytest.raises(NoTimeError, match="0 of 2 parts"):
        client_of(played([]), bench(device="cuda:0", deadline=100.0)).wait_until_compiled()
    assert now[0] == pytest.approx(100, abs=2)


@pytest.mark.parametrize("lost", [played(["Segfault\n"], {"restarts": 1}), played(["Segfault\n"], code=1)])
def test_a_worker_that_is_lost_while_it_compiles_is_not_waited_for(lost: Any) -> None:
    with pytest.raises(RuntimeError, match=r"lost while it compiled.*\n.*Segfault"):
        client_of(lost, bench(device="cuda:0")).wait_until_compiled()


def test_an_answer_without_an_image_is_no_figure_and_comes_with_the_log() -> None:
    client = client_of(played(["no memory\n"]), bench())
    refusing: Any = SimpleNamespace(post=lambda *_, **__: SimpleNamespace(status_code=503, text="busy"))
    with pytest.raises(RuntimeError, match=r"503: busy.*\n.*no memory"):
        replace(client, http=refusing).post()
