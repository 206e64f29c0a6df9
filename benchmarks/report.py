"""From recorded results to a table: faults, medians, ratios. Pure functions, no clock, no process.

A record is what one run of the load client said, plus `proxy`, `step`, `rep` and what the driver saw beside.
Steps that are no run of the load client: `setup` (the first record), `start` and `end` (of a proxy).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Record = Mapping[str, Any]
#: The records of one proxy in one repetition, by step. Runs straight to the mock are "direct:" + step.
Repetition = Mapping[str, Record]

BASELINE = "nginx"
DIRECT = "direct"
#: Paced streams below this part of their due pace have fallen behind: other work than what was asked.
LEAST_PACE = 0.97
#: Others may use this part of the proxies' cpu before the figures are worth a second look.
MOST_BY_OTHERS = 0.10


def faults(record: Record) -> list[str]:
    """What makes a record no measurement: each a phrase, none when all is well."""
    found: list[str] = []
    if record.get("died"):
        found.append("the proxy ended during the run")
    if errors := record.get("errors"):
        found.append(f"{errors} errors, the first: {record.get('first_error')}")
    if record.get("mode") in ("closed", "rate") and not record.get("ok"):
        found.append("not one request succeeded")
    if record.get("mode") == "hold" and record["live"] < record["conns"]:
        found.append(f"only {record['live']} of {record['conns']} streams were alive at the end")
    due = record.get("due_events_s")
    if due and record["events_s"] < due * LEAST_PACE:
        found.append(f"fell behind: {record['events_s']:,.0f} of {due:,.0f} events a second")
    if record.get("logged") is not None and record["logged"] < record["finished"]:
        found.append(f"its access log has {record['logged']} of at least {record['finished']} requests")
    return found


def repetitions(records: Iterable[Record]) -> dict[str, list[Repetition]]:
    """Records by proxy, each proxy a list of repetitions, in the order they came."""
    by_proxy: dict[str, dict[int, dict[str, Record]]] = {}
    straight: dict[int, dict[str, Record]] = {}
    for record in records:
        if record["step"] == "setup":
            continue
        if record["proxy"] == DIRECT:
            # A straight run is everybody's, or, at half load, that of the proxy whose pace it has.
            straight.setdefault(record["rep"], {})[f"{record.get('beside', '')}:{record['step']}"] = record
        else:
            by_proxy.setdefault(record["proxy"], {}).setdefault(record["rep"], {})[record["step"]] = record
    result: dict[str, list[Repetition]] = {}
    for proxy, reps in by_proxy.items():
        for rep, steps in reps.items():
            for name, record in straight.get(rep, {}).items():
                beside, step = name.split(":", 1)
                if beside in ("", proxy):
                    steps[f"{DIRECT}:{step}"] = record
        result[proxy] = list(reps.values())
    return result


def value(repetition: Repetition, step: str, *keys: str) -> float | None:
    """One number of a record, None where the step was not run or has no such number."""
    found: Any = repetition.get(step)
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, (int, float)) else None


@dataclass(frozen=True)
class Metric:
    """One line of the table."""

    label: str
    step: str
    of: Callable[[Repetition], float | None]
    form: str
    #: Lower is better, so a ratio can be read as "times nginx's". False: a plain figure, no ratio.
    ratio: bool = True


def plain(label: str, step: str, *keys: str, form: str = "{:,.1f}", by: float = 1.0, ratio: bool = True) -> Metric:
    """A number as it was recorded, times `by`."""

    def of(repetition: Repetition) -> float | None:
        number = value(repetition, step, *keys)
        return None if number is None else number * by

    return Metric(label, step, of, form, ratio)


def over_direct(label: str, step: str, kind: str, quantile: str, *, ratio: bool) -> Metric:
    """A latency less the same latency without a proxy, in microseconds."""

    def of(repetition: Repetition) -> float | None:
        through = value(repetition, step, kind, quantile)
        direct = value(repetition, f"{DIRECT}:{step}", kind, quantile)
        return None if through is None or direct is None else through - direct

    return Metric(label, step, of, "{:,.0f}", ratio)


def kib_per_stream(repetition: Repetition) -> float | None:
    before, after = value(repetition, "W6", "rss0_kib"), value(repetition, "W6", "rss1_kib")
    live = value(repetition, "W6", "live")
    return (after - before) / live if before is not None and after is not None and live else None


def upstream_connections(repetition: Repetition) -> float | None:
    conns, reqs = value(repetition, "W1c16", "up_conns"), value(repetition, "W1c16", "up_reqs")
    return conns / reqs if conns is not None and reqs else None


def total_errors(repetition: Repetition) -> float | None:
    return float(sum(record.get("errors", 0) for name, record in repetition.items() if not name.startswith(DIRECT)))


def most_by_others(repetition: Repetition) -> float | None:
    shares = [r["others_cpu"] for name, r in repetition.items() if "others_cpu" in r and not name.startswith(DIRECT)]
    return max(shares, default=None)


METRICS: Sequence[tuple[str, Sequence[Metric]]] = (
    (
        "Small JSON",
        (
            plain("CPU ms / 1,000 requests, 1 connection", "W1c1", "cpu_s_per_1k", by=1e3),
            plain("CPU ms / 1,000 requests, 16 connections", "W1c16", "cpu_s_per_1k", by=1e3),
            plain("CPU ms / 1,000 requests, 64 connections", "W1c64", "cpu_s_per_1k", by=1e3),
            plain("CPU ms / 1,000 requests, half load", "W1half", "cpu_s_per_1k", by=1e3),
            over_direct("added latency, 1 connection, p50, us", "W1c1", "latency_us", "p50", ratio=True),
            over_direct("added latency, 1 connection, p99, us", "W1c1", "latency_us", "p99", ratio=False),
            over_direct("added latency, half load, p50, us", "W1half", "latency_us", "p50", ratio=True),
            over_direct("added latency, half load, p99, us", "W1half", "latency_us", "p99", ratio=False),
            plain("requests/s, 1 connection", "W1c1", "rps", form="{:,.0f}", ratio=False),
            plain("requests/s, 16 connections", "W1c16", "rps", form="{:,.0f}", ratio=False),
            plain("requests/s, 64 connections", "W1c64", "rps", form="{:,.0f}", ratio=False),
            Metric(
                "upstream connections / request, 16 connections",
                "W1c16",
                upstream_connections,
                "{:.3f}",
                False,
            ),
        ),
    ),
    (
        "Streams",
        (
            plain("CPU us / event, 1,000 streams x 20/s", "W3", "cpu_us_per_event"),
            plain("  events/s arrived (20,000 due)", "W3", "events_s", form="{:,.0f}", ratio=False),
            plain("  event delay, whole way, p50, us", "W3", "added_us", "p50", form="{:,.0f}", ratio=False),
            plain("  event delay, whole way, p99, us", "W3", "added_us", "p99", form="{:,.0f}", ratio=False),
            plain("CPU us / event, 100 streams x 20/s", "W3b", "cpu_us_per_event"),
            over_direct("  added event delay, p50, us", "W3b", "added_us", "p50", ratio=True),
            over_direct("  added event delay, p99, us", "W3b", "added_us", "p99", ratio=False),
            over_direct("  added time to first byte, p50, us", "W3b", "ttft_us", "p50", ratio=True),
            over_direct("  added time to first byte, p99, us", "W3b", "ttft_us", "p99", ratio=False),
            plain("CPU us / event, flat out", "W2", "cpu_us_per_event", form="{:,.2f}"),
            plain("  events/s", "W2", "events_s", form="{:,.0f}", ratio=False),
        ),
    ),
    (
        "Large bodies",
        (
            plain("CPU ms / 1 MB upload", "W4", "cpu_s_per_1k", form="{:,.2f}"),
            plain("  uploads/s", "W4", "rps", form="{:,.0f}", ratio=False),
            plain("CPU ms / 10 MB answer", "W5", "cpu_s_per_1k", form="{:,.2f}"),
            plain("  MB/s", "W5", "mb_s", form="{:,.0f}", ratio=False),
        ),
    ),
    (
        "Memory and start",
        (
            Metric("KiB / idle stream", "W6", kib_per_stream, "{:,.1f}"),
            plain("  idle streams alive", "W6", "live", form="{:,.0f}", ratio=False),
            plain(
                "  still open upstream 1 s after all clients left",
                "W6",
                "still_streaming",
                form="{:,.0f}",
                ratio=False,
            ),
            plain("RSS at start, MiB", "start", "rss_mib", form="{:,.0f}", ratio=False),
            plain("RSS at the end, MiB", "end", "rss_mib", form="{:,.0f}", ratio=False),
            plain("start to first 200, s", "start", "cold_s", form="{:,.3f}", ratio=False),
        ),
    ),
    (
        "Soundness",
        (
            Metric("errors", "end", total_errors, "{:,.0f}", False),
            Metric("largest share of the proxies' cpu used by others", "end", most_by_others, "{:.2f}", False),
        ),
    ),
)


def ratio_cell(ours: Sequence[float | None], base: Sequence[float | None]) -> str:
    """Ratio of the medians, then the lowest and the highest ratio of one repetition; "-" where none is."""
    pairs = [(a, b) for a, b in zip(ours, base, strict=False) if a is not None and b is not None]
    # An added latency can be measured as nothing, or less: a ratio of that says nothing.
    if not pairs or any(b <= 0 for _, b in pairs):
        return "-"
    each = [a / b for a, b in pairs]
    cell = f"{median(a for a, _ in pairs) / median(b for _, b in pairs):.2f}"
    return cell if len(each) == 1 else f"{cell} ({min(each):.2f}-{max(each):.2f})"


def is_faulty(metric: Metric, runs: Sequence[Repetition]) -> bool:
    return any(metric.step in run and faults(run[metric.step]) for run in runs)


def cell(metric: Metric, runs: Sequence[Repetition]) -> str:
    """The median of a metric. "(!)" marks one that stands on a faulty run."""
    numbers = [number for run in runs if (number := metric.of(run)) is not None]
    if not numbers:
        return "-"
    return metric.form.format(median(numbers)) + (" (!)" if is_faulty(metric, runs) else "")


def ratio(metric: Metric, ours: Sequence[Repetition], base: Sequence[Repetition]) -> str:
    """The ratio of a metric to the baseline's, "-" when either stands on a faulty run."""
    if is_faulty(metric, ours) or is_faulty(metric, base):
        return "-"
    return ratio_cell([metric.of(run) for run in ours], [metric.of(run) for run in base])


def fault_lines(records: Iterable[Record]) -> list[str]:
    return [
        f"{record['proxy']}, {record['step']}, repetition {record['rep']}: {fault}"
        for record in records
        if record["step"] != "setup"
        for fault in faults(record)
    ]


def table(records: Sequence[Record]) -> str:
    """The whole report in markdown: how it was measured, one table, and what went wrong."""
    runs = repetitions(records)
    names = sorted(runs, key=lambda name: name != BASELINE)  # the baseline first, the others as they came
    others = [name for name in names if name != BASELINE] if BASELINE in runs else []
    lines = [record["text"] for record in records if record["step"] == "setup"] + [""]
    head = ["", *names, *(f"{name} / {BASELINE}" for name in others)]
    lines += ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for title, metrics in METRICS:
        rows = []
        for metric in metrics:
            cells = [cell(metric, runs[name]) for name in names]
            if all(text == "-" for text in cells):
                continue
            if metric.ratio and BASELINE in runs:
                cells += [ratio(metric, runs[name], runs[BASELINE]) for name in others]
            else:
                cells += [""] * len(others)
            rows.append("| " + " | ".join([metric.label.replace("  ", "&nbsp;&nbsp;"), *cells]) + " |")
        if rows:
            lines += [f"| **{title}** |" + " |" * (len(head) - 1), *rows]
    if wrong := fault_lines(records):
        lines += ["", "Faults; a figure marked (!) stands on a faulty run and is not to be quoted:", ""]
        lines += [f"- {line}" for line in wrong]
    noisy = [name for name in names if any((most_by_others(run) or 0) > MOST_BY_OTHERS for run in runs[name])]
    if noisy:
        lines += [
            "",
            f"Others used over {MOST_BY_OTHERS:.0%} of the proxies' cpu at times: repeat on a quiet machine.",
        ]
    return "\n".join(lines) + "\n"
