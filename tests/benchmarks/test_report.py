"""The benchmark's table: what it says about results that are known, good and bad."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.report import faults, ratio_cell, repetitions, table, upstream_connections


def run(proxy: str, step: str, rep: int = 1, **more: Any) -> dict[str, Any]:
    """A sound record of a closed-loop run."""
    return {
        "proxy": proxy,
        "step": step,
        "rep": rep,
        "mode": "closed",
        "conns": 16,
        "ok": 1000,
        "errors": 0,
        "live": 16,
        "events_s": 0.0,
        "first_error": "",
        **more,
    }


def line(report: str, label: str) -> list[str]:
    """The cells of the line with this label."""
    found = next(text for text in report.splitlines() if text.startswith(f"| {label} |"))
    return [cell.strip() for cell in found.strip("|").split("|")][1:]


JSON_16 = "CPU ms / 1,000 requests, 16 connections"


class Medians(SynchronousTestCase):
    def test_median_and_ratio(self) -> None:
        """Each proxy's cell is the median of its repetitions, and the ratio is that of the medians."""
        records = [
            run(proxy, "W1c16", rep, cpu_s_per_1k=cpu)
            for proxy, cpus in (("llmproxy", (0.030, 0.090, 0.040)), ("nginx", (0.010, 0.020, 0.020)))
            for rep, cpu in enumerate(cpus, 1)
        ]
        self.assertEqual(line(table(records), JSON_16), ["20.0", "40.0", "2.00 (2.00-4.50)"])

    def test_nginx_comes_first(self) -> None:
        """Whatever was measured first, the baseline is the first column and gets no ratio to itself."""
        records = [run("haproxy", "W1c16", cpu_s_per_1k=0.01), run("nginx", "W1c16", cpu_s_per_1k=0.02)]
        report = table(records)
        self.assertIn("|  | nginx | haproxy | haproxy / nginx |", report)
        self.assertEqual(line(report, JSON_16), ["20.0", "10.0", "0.50"])

    def test_without_nginx(self) -> None:
        """With no baseline there are figures and no ratio column."""
        report = table([run("llmproxy", "W1c16", cpu_s_per_1k=0.04)])
        self.assertIn("|  | llmproxy |\n", report)
        self.assertEqual(line(report, JSON_16), ["40.0"])

    def test_missing_repetition(self) -> None:
        """A repetition that one proxy does not have counts for the other's median, not for the ratio."""
        self.assertEqual(ratio_cell([2.0, None, 6.0], [1.0, 1.0, 2.0]), "2.67 (2.00-3.00)")

    def test_no_ratio_to_nothing(self) -> None:
        """A baseline of nothing or less gives no ratio: it would say nothing."""
        self.assertEqual(ratio_cell([5.0, 5.0], [1.0, 0.0]), "-")
        self.assertEqual(ratio_cell([5.0], [-3.0]), "-")
        self.assertEqual(ratio_cell([], []), "-")

    def test_lines_not_measured_are_left_out(self) -> None:
        """With --only W1 the table does not hold empty lines about streams."""
        report = table([run("nginx", "W1c16", cpu_s_per_1k=0.02)])
        self.assertNotIn("Streams", report)
        self.assertNotIn("upload", report)


class AddedLatency(SynchronousTestCase):
    def test_direct_is_taken_off(self) -> None:
        """Added latency is the quantile through the proxy less the one without, of the same repetition."""
        records = [
            run("direct", "W1c1", 1, latency_us={"p50": 20.0}, beside=""),
            run("direct", "W1c1", 2, latency_us={"p50": 40.0}, beside=""),
            run("nginx", "W1c1", 1, latency_us={"p50": 70.0}),
            run("nginx", "W1c1", 2, latency_us={"p50": 110.0}),
        ]
        self.assertEqual(line(table(records), "added latency, 1 connection, p50, us"), ["60"])

    def test_half_load_has_a_direct_run_of_its_own(self) -> None:
        """Each proxy's half load is a different pace, so it is held against the direct run at that pace."""
        records = [
            run("nginx", "W1half", latency_us={"p50": 100.0}),
            run("direct", "W1half", latency_us={"p50": 30.0}, beside="nginx"),
            run("llmproxy", "W1half", latency_us={"p50": 100.0}),
            run("direct", "W1half", latency_us={"p50": 10.0}, beside="llmproxy"),
        ]
        self.assertEqual(line(table(records), "added latency, half load, p50, us"), ["70", "90", "1.29"])

    def test_direct_is_no_contestant(self) -> None:
        """The run without a proxy has no column."""
        self.assertEqual(list(repetitions([run("direct", "W1c1", beside=""), run("nginx", "W1c1")])), ["nginx"])


class Faults(SynchronousTestCase):
    """A broken proxy cannot look fast."""

    def test_sound(self) -> None:
        """A sound run has no fault."""
        self.assertEqual(faults(run("nginx", "W1c16")), [])
        self.assertEqual(faults(run("nginx", "W3", mode="hold", due_events_s=20000.0, events_s=19990.0)), [])

    def test_errors_are_quoted(self) -> None:
        """Errors are counted and the first is quoted."""
        found = faults(run("llmproxy", "W1c16", errors=3, first_error="not a 200 (status 502)"))
        self.assertEqual(found, ["3 errors, the first: not a 200 (status 502)"])

    def test_nothing_done(self) -> None:
        """A run in which nothing succeeded is a fault, also when nothing failed."""
        self.assertEqual(faults(run("llmproxy", "W1c16", ok=0)), ["not one request succeeded"])

    def test_streams_lost(self) -> None:
        """Streams that never began or ended early are a fault."""
        found = faults(run("llmproxy", "W6", mode="hold", ok=0, conns=1000, live=998))
        self.assertEqual(found, ["only 998 of 1000 streams were alive at the end"])

    def test_fell_behind(self) -> None:
        """Paced streams that do not keep their pace are a fault: their cost per event is that of bunches."""
        found = faults(run("llmproxy", "W3", mode="hold", due_events_s=20000.0, events_s=15000.0))
        self.assertEqual(found, ["fell behind: 15,000 of 20,000 events a second"])

    def test_unwritten_access_log(self) -> None:
        """With the access log on, fewer lines than finished requests are a fault."""
        record = {"proxy": "llmproxy", "step": "end", "rep": 1, "logged": 0, "finished": 10}
        self.assertEqual(faults(record), ["its access log has 0 of at least 10 requests"])
        self.assertEqual(faults({**record, "logged": None}), [])
        self.assertEqual(faults({**record, "logged": 12}), [])

    def test_faulty_figures_are_marked(self) -> None:
        """A figure from a faulty run is marked, gets no ratio, and the fault is listed under the table."""
        report = table(
            [
                run("nginx", "W1c16", cpu_s_per_1k=0.02),
                run("llmproxy", "W1c16", cpu_s_per_1k=0.001, errors=1, first_error="cut"),
            ]
        )
        self.assertEqual(line(report, JSON_16), ["20.0", "1.0 (!)", "-"])
        self.assertIn("- llmproxy, W1c16, repetition 1: 1 errors, the first: cut", report)

    def test_work_of_others(self) -> None:
        """A run beside which others used the cpu asks to be repeated."""
        self.assertIn("repeat on a quiet machine", table([run("nginx", "W1c16", others_cpu=0.3)]))
        self.assertNotIn("repeat on a quiet machine", table([run("nginx", "W1c16", others_cpu=0.02)]))


class Reuse(SynchronousTestCase):
    def test_upstream_connections(self) -> None:
        """Connections the mock accepted, for each request it got."""
        self.assertEqual(upstream_connections({"W1c16": run("nginx", "W1c16", up_conns=5, up_reqs=1000)}), 0.005)
        self.assertIsNone(upstream_connections({}))
