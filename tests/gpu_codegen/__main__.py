"""python -m tests.gpu_codegen report: the kernels of each pass and a step, and an estimate of their time.

`--every`: of all sizes and batches, instead of those that every change is tested with. `--write`: make these counts the
most that the tests allow.
"""

import argparse
import sys
from pathlib import Path

from tests.gpu_codegen.cases import Case, every, quick
from tests.gpu_codegen.report import report, write_limits
from tests.gpu_codegen.results import MOVED, make, results
from tests.gpu_codegen.standins import MovedError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_codegen", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    reporting = commands.add_parser("report")
    reporting.add_argument("--every", action="store_true")
    reporting.add_argument("--write", action="store_true")
    making = commands.add_parser("make")  # how `results.py` calls it
    making.add_argument("case", type=Case.named)
    making.add_argument("file", type=Path)
    arguments = parser.parse_args()
    try:
        if arguments.command == "make":
            make(arguments.case, arguments.file)
            return 0
        found = [each.result() for each in results(every() if arguments.every else quick()).values()]
    except MovedError as error:
        print(error, file=sys.stderr)
        return MOVED
    if arguments.write:
        write_limits(found)
    print(report(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
