"""The files for systemd and for containers: what they promise holds with the defaults of this version."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from llmproxy.config.model import DEFAULT_PORT, Server
from llmproxy.config.schema import ENVIRONMENT as VARIABLES
from llmproxy.lifecycle.files import OWN_FILES

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "examples" / "llmproxy.service"
IMAGE = ROOT / "examples" / "Dockerfile"


class _Values(defaultdict[str, list[str]]):
    """Each key of a unit's [Service] with all of its values."""

    @classmethod
    def of(cls, path: Path) -> _Values:
        parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
        parser.optionxform = str  # type: ignore[method-assign, assignment]
        parser.read_string(path.read_text())
        found = cls(list)
        for line in path.read_text().partition("[Service]")[2].partition("[Install]")[0].splitlines():
            key, sign, value = line.partition("=")
            if sign and not line.startswith("#"):
                found[key].append(value)
        return found


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """systemd finds nothing to complain about, once llmproxy is where the unit looks for it."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze on this machine")
    program = tmp_path / "llmproxy"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "llmproxy.service"
    unit.write_text(UNIT.read_text().replace("/opt/llmproxy/bin/llmproxy", str(program)))
    done = subprocess.run(("systemd-analyze", "verify", unit), capture_output=True, text=True, timeout=60)
    complaints = [line for line in done.stderr.splitlines() if "llmproxy" in line]
    assert (done.returncode, complaints) == (0, [])


def test_the_unit_fits_the_defaults() -> None:
    """systemd waits longer than the proxy, gives it the files that it may need, and asks as often as it is told."""
    values = _Values.of(UNIT)
    server = Server()
    assert values["Type"] == ["notify"]
    assert float(values["TimeoutStopSec"][0]) > server.drain_delay_s + server.drain_timeout_s
    assert int(values["LimitNOFILE"][0]) >= 2 * server.max_connections + OWN_FILES
    assert int(values["WatchdogSec"][0]) >= 10
    assert values["KillMode"] == ["mixed"]
    assert values["Restart"] == ["on-failure"]
    assert values["ExecReload"][-1] == "/bin/kill -HUP $MAINPID"
    assert values["StateDirectory"] == ["llmproxy"]
    assert values["DynamicUser"] == values["NoNewPrivileges"] == ["yes"]
    assert {"AF_INET", "AF_INET6", "AF_UNIX"} == set(values["RestrictAddressFamilies"][0].split())


def test_the_commands_of_the_unit_are_there(tmp_path: Path) -> None:
    """What the unit runs are commands of llmproxy's: the start with its options, and the look before a reload."""
    values = _Values.of(UNIT)
    start, look = values["ExecStart"][0].split(), values["ExecReload"][0].split()
    assert (start[1:3], look[1]) == (["run", "--config"], "check-config")
    assert start[3] == look[2]
    config = tmp_path / "llmproxy.yml"
    config.write_text("log: {level: debug}\n")
    done = subprocess.run(
        (sys.executable, "-m", "llmproxy", look[1], config), cwd=ROOT, capture_output=True, timeout=30
    )
    assert done.returncode == 0, done.stdout


def _lines() -> list[str]:
    """The instructions of the Dockerfile, each on one line."""
    text = re.sub(r"\\\n\s*", "", IMAGE.read_text())
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_image() -> None:
    """The image runs as somebody else than root, on the proxy's port, in exec form, with a health check and a place for
    what must outlive it."""
    last = _lines()[[number for number, line in enumerate(_lines()) if line.startswith("FROM")][-1] :]
    words = {line.split()[0]: line.partition(" ")[2] for line in last}
    assert words["FROM"].startswith("python:3.11-slim")
    assert words["USER"].isdigit()
    assert int(words["USER"]) > 0
    assert words["EXPOSE"] == str(DEFAULT_PORT)
    assert words["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(words["ENTRYPOINT"]) + json.loads(words["CMD"]) == ["llmproxy", "run"]
    assert f"STATE_DIRECTORY={words['VOLUME']}" in words["ENV"]
    assert "/health/live" in words["HEALTHCHECK"]
    assert f"'{DEFAULT_PORT}'" in words["HEALTHCHECK"]
    users = [number for number, line in enumerate(last) if line.startswith("USER")]
    assert not any(line.startswith("RUN") for line in last[users[-1] :])


@pytest.mark.parametrize("path", [UNIT, IMAGE], ids=["unit", "image"])
def test_the_configuration_decides(path: Path) -> None:
    """Neither sets a variable that goes before a key of the configuration: the key would do nothing, and not say so."""
    assert [name for name in VARIABLES if re.search(rf"\b{name}=", path.read_text())] == []


def _ignored() -> re.Pattern[str]:
    """What .dockerignore keeps from a build; patterns as https://docs.docker.com/build/concepts/context/ has them."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert not any(line.startswith(("!", "/")) for line in patterns)
    ways = {"**/": "(?:.*/)?", "*": "[^/]*", ".": r"\."}
    texts = [re.sub(r"\*\*/|\*|\.", lambda found: ways[found[0]], line) for line in patterns]
    return re.compile(f"(?:{'|'.join(texts)})(?:/.*)?")


def test_what_is_kept_from_a_build() -> None:
    """No environment, history, cache or build of a folder that is worked in is sent to Docker, and none of our files
    that the Dockerfile copies is left out."""
    ignored = _ignored()
    for path in (
        ".git/HEAD",
        ".venv/bin/python",
        "tests/sdk/node/node_modules/x/y.js",
        "tests/sdk/.venv-new/bin/python",
        "benchmarks/build/x",
        "llmproxy/wire/__pycache__/x.pyc",
        "llmproxy/_build.py",
        "llmproxy.egg-info/PKG-INFO",
        "twisted/plugins/dropin.cache",
        ".mypy_cache/x",
        "dist/llmproxy-1.whl",
        "_trial_temp-1/x",
        "proxy.log",
    ):
        assert ignored.fullmatch(path), path
    made = re.compile(r".*__pycache__/.*|.*\.pyc|llmproxy/_build\.py|.*dropin\.cache")
    for source, _ in _copied():
        files = [source, *source.rglob("*")] if source.is_dir() else [source]
        names = [str(each.relative_to(ROOT)) for each in files]
        assert [name for name in names if ignored.fullmatch(name) and not re.search(made, name + "/")] == []


def _copied() -> list[tuple[Path, str]]:
    """What the Dockerfile copies from the project, and the path that it gets."""
    found = []
    for line in _lines():
        if line.startswith("COPY") and "--from" not in line:
            *sources, to = line.split()[1:]
            found += [(ROOT / source, source if to in ("./", source) else to) for source in sources]
    assert found
    return found


@pytest.mark.slow
def test_what_the_image_copies_is_enough(tmp_path: Path) -> None:
    """From the files that the Dockerfile copies, and no others, llmproxy is built, with its twistd plugin."""
    ignored = _ignored()

    def left_out(folder: str, names: list[str]) -> list[str]:
        inside = Path(folder).relative_to(ROOT)
        return [name for name in names if ignored.fullmatch(str(inside / name))]

    for source, to in _copied():
        place = tmp_path / to
        if source.is_dir():
            shutil.copytree(source, place, ignore=left_out)
        else:
            place.parent.mkdir(exist_ok=True)
            shutil.copy(source, place)
    target = tmp_path / "installed"
    pip = (
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        target,
        ".",
    )
    subprocess.run(pip, cwd=tmp_path, check=True, timeout=120)
    run = (sys.executable, "-m", "llmproxy", "--version")
    done = subprocess.run(run, cwd=target, capture_output=True, text=True, timeout=30)
    assert done.stdout.startswith("llmproxy ")
    assert (target / "twisted" / "plugins" / "llmproxy_plugin.py").exists()
