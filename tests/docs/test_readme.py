"""The README's commands, run as they stand there.

A simulator is started, and the proxy by the README's own command, with another port. A fence is run when a comment
in front of it says what must come out:

    <!-- run: 200 json choices.0.message.content -->    status, and a field that holds some text
    <!-- run: 200 stream [DONE] -->                     status, an event stream, and what is in its last event
"""

import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import pytest

from tests.docs.pages import README, ROOT, Fence, fences

pytestmark = pytest.mark.slow

LOOPBACK: Final = "127.0.0.1"
PLACE: Final = "localhost:9002"
START_LIMIT_S: Final = 15.0
ANSWER_LIMIT_S: Final = 15.0
KEYS: Final = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "GROQ_API_KEY")

SHELL: Final = fences(README, "bash")
RUN: Final = [each for each in SHELL if each.mark.startswith("run: ")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(command: list[str], port: int, output: IO[bytes], **environ: str) -> Iterator[None]:
    """A program of ours in the background, from when it accepts connections until the block ends."""
    program = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            try:
                socket.create_connection((LOOPBACK, port), timeout=1).close()
                break
            except OSError:
                if program.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    pytest.fail(f"{shlex.join(command)} did not start: {output.read().decode('utf-8', 'replace')}")
                time.sleep(0.05)
        yield
    finally:
        program.terminate()
        try:
            program.wait(10)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()


def start_command(port: int) -> list[str]:
    """The README's own way to a running service, without the installation, which tests/packaging tries."""
    (fence,) = (each for each in SHELL if each.mark == "start")
    install, start = fence.text.splitlines()
    assert install == "pip install ."
    program, *arguments = shlex.split(start)
    assert arguments[-2:] == ["--port", "9002"]
    beside = Path(sys.executable).parent / program
    return [str(beside), "--pidfile=", *arguments[:-1], f"tcp:{port}:interface={LOOPBACK}"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of the proxy: the simulator behind it, and a ledger of its own."""
    return {
        "ENVIRONMENT": "demo",
        "SIMULATOR_PORT": str(free_port()),
        "LLM_PROXY_IDENTITY_SECRET": secrets.token_hex(),
        "LLM_PROXY_LEDGER": "sqlite",
        "LLM_PROXY_CONFIG_PROFILE": "",
        "STATE_DIRECTORY": str(tmp_path_factory.mktemp("state")),
    }


@pytest.fixture(scope="module")
def proxy(settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``host:port`` of a proxy that the README's command started, with the simulator behind it."""
    folder = tmp_path_factory.mktemp("readme")
    port, simulator_port = free_port(), int(settings["SIMULATOR_PORT"])
    simulate = [sys.executable, "-m", "llmproxy", "simulate", "--port", str(simulator_port)]
    with (
        open(folder / "simulator", "w+b") as simulator_output,
        open(folder / "proxy", "w+b") as proxy_output,
        running(simulate, simulator_port, simulator_output),
        running(
            start_command(port),
            port,
            proxy_output,
            **settings,
        ),
    ):
        yield f"{LOOPBACK}:{port}"


def ask(fence: Fence, proxy: str) -> tuple[int, str]:
    """Run a fence in bash; status and body of what its one curl got."""
    bash, curl = shutil.which("bash"), shutil.which("curl")
    if bash is None or curl is None:
        pytest.fail("bash and curl are needed to run the commands of the README; install them (apt-get install curl)")
    # The command stays as it is in the README: curl is a function that adds what the test wants to know.
    options = f"--silent --show-error --max-time {ANSWER_LIMIT_S:.0f} --write-out '\\n%{{http_code}}'"
    script = f'curl() {{ {curl} {options} "$@"; }}\n'
    assert fence.text.count("curl ") == 1 and PLACE in fence.text
    environ = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        [bash, "-euc", script + fence.text.replace(PLACE, proxy)],
        env={**environ, **dict.fromkeys(KEYS, "a-key")},
        capture_output=True,
        text=True,
        timeout=ANSWER_LIMIT_S + 5,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def look_up(told: Any, path: str) -> Any:
    for name in path.split("."):
        told = told[int(name)] if isinstance(told, list) else told[name]
    return told


def test_what_it_cost(proxy: str, settings: dict[str, str]) -> None:
    """Who has asked something sees what it cost, in the form that the README shows, while the proxy runs."""
    (fence,) = (each for each in fences(README, "console") if each.mark == "usage")
    command, head, *_, last = fence.text.splitlines()
    for each in RUN[:2]:
        assert ask(each, proxy)[0] == 200
    program, *arguments = shlex.split(command.removeprefix("$ "))
    deadline = time.monotonic() + ANSWER_LIMIT_S
    while True:
        done = subprocess.run(
            [str(Path(sys.executable).parent / program), *arguments],
            cwd=ROOT,
            env={**os.environ, **settings, "PYTHONIOENCODING": "utf-8", "COLUMNS": "120"},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        lines = done.stdout.splitlines()
        if done.returncode == 0 and len(lines) > 2 and lines[1].split()[1] == "2":
            break  # what was asked is written within half a second
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.2)
    assert lines[0].split() == head.split()
    assert (lines[1].split()[0], lines[1].split()[-1][-1]) == ("gpt-4o-2024-08-06", "█")
    assert lines[2].split()[0] == last.split()[0] == "total"
    assert lines[2].split()[-1].startswith("$0.000")


@pytest.mark.parametrize("fence", RUN, ids=str)
def test_a_command_of_the_readme_works_as_it_stands(fence: Fence, proxy: str) -> None:
    """Who pastes a command of the README gets the answer that the README promises."""
    expected, kind, what = fence.mark.removeprefix("run: ").split(" ", 2)
    status, body = ask(fence, proxy)
    assert status == int(expected), body
    if kind == "json":
        text = look_up(json.loads(body), what)
        assert isinstance(text, str) and text, body
    else:
        assert kind == "stream"
        events = [each for each in body.replace("\r\n", "\n").split("\n\n") if each.strip()]
        assert len(events) > 3 and "data: " in events[0], body
        assert what in events[-1], events[-1]


def test_every_provider_is_in_the_readme() -> None:
    """The README asks each provider whole, the three big ones also streamed, and shows /meta/ and /health."""
    text = "\n".join(each.text for each in RUN)
    for path in (
        "/openai/v1/chat/completions",
        "/openai/v1/responses",
        "/anthropic/v1/messages",
        "/gemini/v1/models/",
        "/gemini/v1beta/models/",
        ":generateContent",
        ":streamGenerateContent?alt=sse",
        "/groq/v1/chat/completions",
        "/meta/alice/",
        "/health",
    ):
        assert PLACE + path in text or path in text, path
    assert sum(" stream " in each.mark for each in RUN) == 3


def test_no_curl_of_the_readme_is_left_out() -> None:
    """A curl that somebody adds to the README is run, or it says why not."""
    assert [str(each) for each in SHELL if "curl " in each.text and each not in RUN] == []


def test_the_front_page_of_a_running_proxy_gives_the_base_urls_of_the_readme(proxy: str) -> None:
    """What the proxy says of itself and what the README says for the SDKs are the same."""
    status, page = ask(Fence(page="", line=0, language="bash", mark="", text=f"curl http://{PLACE}/"), proxy)
    assert status == 200
    said = {line.split()[-1].removeprefix(f"http://{proxy}") for line in page.splitlines() if "http://" in line}
    assert said == {"/openai/v1", "/anthropic", "/gemini", "/groq"}
    (python,) = fences(README, "python")
    (node,) = fences(README, "js")
    for path in said:
        assert f'"http://{PLACE}{path}"' in python.text
    for path in said - {"/groq"}:
        assert f'"http://{PLACE}{path}"' in node.text
