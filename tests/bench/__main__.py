"""`python -m tests.bench NAME [options]` runs one benchmark; without a name, each of them with its defaults.

Except for those that take long: `cpu`, `few_steps`, `latency`, which is for a GPU, `overload`, `priorities`,
`quantisation`, `replay`, `scheduling`, `soak`, `stalls` and `steady` run when named.
"""

import runpy
import sys

SHORT = ("overhead", "decision", "startup", "demo")
BENCHMARKS = (
    *(*SHORT, "cpu", "decoding", "few_steps", "latency", "overload", "priorities"),
    *("quantisation", "replay", "scheduling", "soak", "stalls", "steady"),
)


def main() -> None:
    """Run what was asked for, as if it had been started itself."""
    names = sys.argv[1:2] or SHORT
    for name in names:
        if name not in BENCHMARKS:
            sys.exit(f"there is no benchmark {name}; there are {', '.join(BENCHMARKS)}")
        sys.argv = [name, *sys.argv[2:]]
        runpy.run_module(f"tests.bench.{name}", run_name="__main__", alter_sys=True)  # its processes find its functions


if __name__ == "__main__":
    main()
