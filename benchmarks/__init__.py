"""Measures llmproxy beside nginx on one machine. `README.md` here says what is measured and how to read it.

run.py        the command
accounting.py another one: what accounting costs, on and off in one process; answers.py is what it relays
measure.py    one whole run: who is measured, in which order
workloads.py  what each workload is
proxies.py    the proxies: how each is configured, started and stopped
native.py     the two C programs (mock provider, load client): built on first use, called from here
machine.py    processes, cpus and /proc
front.py      the TLS front of the mock, with its own certificate authority
report.py     medians, ratios, faults, the table: pure functions of the recorded results
"""
