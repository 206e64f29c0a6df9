"""The command: `python benchmarks/run.py`. Measures llmproxy beside nginx and prints a table of medians.

Ends with 0 when every run was sound, 1 when a proxy made errors (the table says which), 2 when the benchmark
could not run at all. Never with an opinion about speed.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make the folder's own modules importable
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import report
from benchmarks.machine import SetupError
from benchmarks.measure import Measurement, Settings
from benchmarks.native import BUILD
from benchmarks.workloads import ALL, SHAPES


def names_of_workloads(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if unknown := [name for name in names if name not in ALL]:
        raise argparse.ArgumentTypeError(f"no workload {', '.join(unknown)}; there are {', '.join(ALL)}")
    return names


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/run.py", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--only", type=names_of_workloads, default=ALL, metavar="W1,W3", help=f"workloads, of {','.join(ALL)}"
    )
    parser.add_argument("--reps", type=positive, default=3, help="repetitions (3)")
    parser.add_argument("--scale", type=float, default=1.0, help="times every duration (1); 0.3 for a quick look")
    parser.add_argument("--idle-streams", type=positive, default=1000, metavar="N", help="streams in W6 (1000)")
    parser.add_argument("--no-access-log", action="store_true", help="both without access log (both with)")
    parser.add_argument("--tls", action="store_true", help="reach the mock over TLS, its certificate checked")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="openai", help="whose requests and answers (openai)")
    parser.add_argument(
        "--proxy-cmd", metavar="CMD", help="start llmproxy with this; {port} and {config} are filled in"
    )
    parser.add_argument("--no-llmproxy", action="store_true", help="measure nginx and the peers alone")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PORT,CMD",
        help="another proxy beside them (repeatable)",
    )
    parser.add_argument(
        "--port-base",
        type=positive,
        default=19400,
        metavar="N",
        help="mock N, nginx N+10, llmproxy N+20 (19400)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=BUILD / "results.jsonl",
        help="results, a JSON line each (build/results.jsonl)",
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="measure nothing, print the table of such a file")
    return parser


def main() -> int:
    options = arguments().parse_args()
    # So that what was started is stopped, whoever ends us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if options.table:
        records = [json.loads(line) for line in options.table.read_text().splitlines()]
    else:
        settings = Settings(
            only=options.only,
            repetitions=options.reps,
            scale=options.scale,
            idle_streams=options.idle_streams,
            access_log=not options.no_access_log,
            tls=options.tls,
            shape=options.shape,
            port_base=options.port_base,
            proxy_command=options.proxy_cmd,
            without_llmproxy=options.no_llmproxy,
            peers=tuple(options.peer),
        )
        try:
            BUILD.mkdir(exist_ok=True)
            with open(options.out, "w") as out:
                measurement = Measurement(settings, out)
                measurement.run()
            records = measurement.records
        except SetupError as problem:
            print(f"benchmark: {problem}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130
    print(report.table(records), end="")
    return 1 if report.fault_lines(records) else 0


if __name__ == "__main__":
    sys.exit(main())
