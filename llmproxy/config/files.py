"""Which files make the configuration, in which order."""

import re
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Final

from llmproxy.config.complaint import Complaint, Place

FOLDER: Final = "configs"
DEFAULT_ENVIRONMENT: Final = "dev"

# These names become part of a path.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def files_in_use(
    *,
    environ: Mapping[str, str],
    cwd: str,
    config_file: str | None,
    environment: str | None,
    complaints: list[Complaint],
) -> tuple[str, ...]:
    """The files to lay over the built-in defaults, the last winning, as people would name them from ``cwd``.

    ``config_file`` alone, or ``configs/base.yml``, ``configs/<environment>.yml`` and the profile. What nobody
    asked for by name may be missing: base.yml, and dev.yml while no environment is named.
    """
    if config_file is not None:
        if environment is not None:
            words = "--config takes that file alone, so --environment would do nothing: give one of them"
            complaints.append(Complaint(Place("--environment"), (), words))
        return (config_file,)
    named = (
        ("--environment", environment),
        ("environment variable ENVIRONMENT", environ.get("ENVIRONMENT") if environment is None else None),
        ("environment variable LLM_PROXY_CONFIG_PROFILE", environ.get("LLM_PROXY_CONFIG_PROFILE")),
    )
    folder = FilePath(cwd, FOLDER)
    files = [_file("base")] if (folder / "base.yml").is_file() else []
    if not (environment or environ.get("ENVIRONMENT")) and (folder / f"{DEFAULT_ENVIRONMENT}.yml").is_file():
        files.append(_file(DEFAULT_ENVIRONMENT))
    for source, name in named:
        if not name:
            continue
        if _NAME.fullmatch(name) and (folder / f"{name}.yml").is_file():
            files.append(_file(name))
        else:
            complaints.append(Complaint(Place(source), (), _missing(name, folder)))
    return tuple(dict.fromkeys(files))


def _file(name: str) -> str:
    return f"{FOLDER}/{name}.yml"


def _missing(name: str, folder: FilePath) -> str:
    from difflib import get_close_matches

    if not _NAME.fullmatch(name):
        return f"{name!r} cannot be the name of a file in {FOLDER}"
    there = sorted(one.stem for one in folder.glob("*.yml") if one.stem != "base")
    if near := get_close_matches(name, there, 1):
        hint = f"; did you mean {near[0]}?"
    else:
        hint = f"; there are {', '.join(there)}" if there else ""
    return f"there is no {_file(name)}{hint}"
