"""`make test-health`: start the proxy as a user would and look at /health, /health/live and /health/ready."""

import http.client
import json
import secrets
import sys
from typing import Final

from programs import LOOPBACK, Failed, Program, free_port, running, stop_on_sigterm

PATHS: Final = ("/health", "/health/live", "/health/ready")
LIMIT_S: Final = 10.0


def look(port: int, method: str, path: str) -> None:
    """Ask once, print what came, raise Failed when it is not a healthy answer."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=LIMIT_S)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    print(f"  {method:4} {path:14} {response.status} {body.decode('utf-8', 'replace').strip()[:160]}")
    if response.status != http.HTTPStatus.OK:
        raise Failed(f"{method} {path} was answered {response.status}, not 200.")
    if method == "HEAD":
        if body:
            raise Failed(f"HEAD {path} was answered with a body.")
    elif path == "/health":
        told = json.loads(body)
        if told.get("status") != "healthy" or not {"openai", "anthropic", "gemini", "groq"} <= set(told["providers"]):
            raise Failed("/health does not name the four providers as healthy.")


def main() -> int:
    stop_on_sigterm()
    port = free_port()
    try:
        proxy = Program(
            "proxy",
            "run",
            "--port",
            f"tcp:{port}:interface={LOOPBACK}",
            port=port,
            environ={
                "LLM_PROXY_IDENTITY_SECRET": secrets.token_hex(),
                "LLM_PROXY_LEDGER": "off",
            },  # nothing is kept of this run
        )
        with running(proxy):
            proxy.wait_until_ready()
            for path in PATHS:
                look(port, "GET", path)
                look(port, "HEAD", path)
    except Failed as failed:
        print(f"test-health: {failed}", file=sys.stderr)
        return 1
    print("test-health: all as it should be")
    return 0


if __name__ == "__main__":
    sys.exit(main())
