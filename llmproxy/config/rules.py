"""What a value by itself cannot tell: one key that needs another, a file that has to be there."""

from difflib import get_close_matches
from pathlib import Path as FilePath

from llmproxy.config.check import Group, place_of
from llmproxy.config.complaint import Complaint, Path
from llmproxy.config.model import Settings


def check_rules(settings: Settings, found: Group, complaints: list[Complaint]) -> None:
    """Hold ``settings`` against every rule. Paths of files in it are absolute by now."""

    def complain(path: Path, message: str) -> None:
        # What was refused as a value is at its default by now, and says nothing about these rules.
        if all(complaint.path[: len(path)] != path for complaint in complaints):
            complaints.append(Complaint(place_of(found, path), path, message))

    ca_files: dict[Path, str | None] = {("upstream", "ca_file"): settings.upstream.ca_file}
    for name, provider in settings.providers.items():
        ca_files["providers", name, "upstream", "ca_file"] = provider.upstream.get("ca_file")
    for where, ca_file in ca_files.items():
        if ca_file is not None and not FilePath(ca_file).is_file():
            complain(where, "there is no such file")

    server = settings.server
    if server.drain_delay_s > server.drain_timeout_s > 0:
        words = f"must not be above server.drain_timeout_s, which is {server.drain_timeout_s:g}"
        complain(("server", "drain_delay_s"), words)

    limiting = settings.features.rate_limiting
    path = ("features", "rate_limiting")
    if limiting.enabled:
        words = "true is not supported yet: this version enforces no rate limits, and starts only with false"
        complain((*path, "enabled"), words)
    if limiting.backend == "redis" and not (limiting.redis.address or limiting.redis.url):
        complain((*path, "backend"), "redis needs redis.address or redis.url")
    for name in limiting.estimation.provider_chars_per_token:
        if name not in settings.providers:
            near = get_close_matches(name, settings.providers, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(settings.providers)}"
            where = (*path, "estimation", "provider_chars_per_token", name)
            complain(where, f"there is no such provider; {hint}")
