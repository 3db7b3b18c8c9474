"""`python -m app generate image.png "a prompt" -o out.png`: images without a server, on this machine.

Exit codes: 0 all are made; 1 some are not; 2 the command or the configuration is wrong; 130 interrupted, 143 ended.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import get_args

import msgspec

from app.cli import results
from app.cli.plan import CommandError, Plan, add_flags, first_seed, parse_flags, plan
from app.cli.progress import say
from app.cli.runner import InterruptedByError, NoWorkersError, Runner, listed, run_plan
from app.params import RequestFields, Rules, seeds
from app.settings import Settings
from app.startup import StartError, check_runtime, prepared
from workers.console import Parser
from workers.devices import choose_devices
from workers.engine.contract import Format
from workers.machine import available_cores
from workers.nvml import Nvml, driver_fault

FAILED, WRONG, SIGNALLED = 1, 2, 128  # exit codes; to the last a signal's number is added
LOG_LEVEL, LOG_FORMAT = "CONTOUR_SERVER__LOG_LEVEL", "CONTOUR_SERVER__LOG_FORMAT"


def run(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]  # names of files need not be text
    try:
        return _generate(given, prepared(given.config, _environment(given)))
    except (CommandError, StartError) as error:
        print(str(error).replace("CONFIG", str(given.config)), file=sys.stderr)
        return WRONG


def _parser() -> Parser:
    parser = Parser(
        "app",
        "generate",
        description="Generate images without a server, on this machine's devices (CUDA_VISIBLE_DEVICES applies). "
        "For a folder, every image in it is used, and the same command continues after an interruption.",
        epilog="exit codes: 0 all made, 1 some failed, 2 the command or the configuration is wrong, 130 interrupted",
    )
    parser.add_argument("image", type=Path, help="a PNG, JPEG or WebP file, or a folder of them")
    parser.add_argument("prompt", help="what the new image should show")
    parser.add_argument(
        "-o", "--out", type=Path, help="the new image (.png, .jpg, .webp), or a folder; by default beside the input"
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("configs/demo.yaml"),
        help="configuration file in YAML (default: configs/demo.yaml)",
    )
    parser.add_argument("--format", choices=get_args(Format), help="output format, if -o has no extension")
    add_flags(parser)
    parser.add_argument("--again", action="store_true", help="replace results that exist in the output folder")
    parser.add_argument("--verbose", action="store_true", help="show the log as the server does")
    return parser


def _environment(given: argparse.Namespace) -> Mapping[str, str]:
    """The environment, with a log for people that has only warnings unless --verbose is given."""
    quiet = {} if given.verbose else {LOG_LEVEL: "warning"}
    return {LOG_FORMAT: "human"} | quiet | os.environ


def _generate(given: argparse.Namespace, settings: Settings) -> int:
    fields = parse_flags(given, Rules.of(settings))
    planned = _plan(given, settings, fields)
    if planned.folder is None:
        _writable(planned.items[0].target.parent)
    with nullcontext() if planned.folder is None else results.locked(planned.folder):
        fields, planned = _resumed(given, settings, fields, planned)
        runner = Runner(settings, planned, fields, again=given.again)
        try:
            if len(runner):
                _make(settings, runner)
        except InterruptedByError as error:
            say(
                f"{_summary(runner)}; interrupted"
                + "; run the same command again to continue" * (planned.folder is not None)
            )
            return SIGNALLED + error.signal
        except NoWorkersError as error:
            say(f"{_summary(runner)}; stopped: {error}")
            return FAILED
        if planned.folder is not None or runner.tally.failed:
            say(_summary(runner))
        return FAILED if runner.tally.failed else 0


def _resumed(
    given: argparse.Namespace, settings: Settings, fields: RequestFields, planned: Plan
) -> tuple[RequestFields, Plan]:
    """Continue with the seed of the interrupted command, unless a seed was given."""
    if given.random_seed is not None:
        return fields, planned
    former = None
    if planned.folder is not None and not given.again:
        former = results.SharedParams(settings, fields, planned.file_format).former_seed(planned.folder)
    if former is None:
        say(f"seed {fields.random_seed} (random)")
        return fields, planned
    seed = first_seed(former, fields.number_of_images or 1)
    say(f"seed {seed} (as before; --again draws a new one)")
    fields = msgspec.structs.replace(fields, random_seed=seed)
    return fields, _plan(given, settings, fields)


def _plan(given: argparse.Namespace, settings: Settings, fields: RequestFields) -> Plan:
    each = seeds(fields.random_seed, fields.number_of_images or 1)
    return plan(given.image, given.out, each, settings.engine.output.format, given.format)


def _writable(folder: Path) -> None:
    """Raise CommandError now rather than after an image has been generated."""
    if not folder.is_dir():
        raise CommandError(f"{folder}: there is no such folder")
    if not os.access(folder, os.W_OK):
        raise CommandError(f"{folder} cannot be written to")


def _make(settings: Settings, runner: Runner) -> None:
    nvml = Nvml.open()
    try:
        placement = choose_devices(os.environ, nvml, settings.workers.cpu_workers)
        check_runtime(settings, placement)
        say(placement.reason)
        if placement.on_gpu and (fault := driver_fault(nvml)) is not None:
            say(str(fault))
        asyncio.run(run_plan(settings, placement, available_cores(), runner))
    finally:
        if nvml is not None:
            nvml.close()


def _summary(runner: Runner) -> str:
    tally = runner.tally
    there = f", {tally.skipped} there already" if runner.folder is not None else ""
    return f"{tally.made} made{there}" + f", {len(tally.failed)} failed: {listed(tally.failed)}" * bool(tally.failed)
