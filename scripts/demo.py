"""`make demo`: simulator and proxy in the foreground, lines to paste, and one streamed answer as proof.

PORT chooses the proxy's port (9002), SIMULATOR_PORT the simulator's (9010). Ctrl-C stops both.
"""

import http.client
import json
import os
import sys
import time
from contextlib import ExitStack
from typing import Final

from programs import LOOPBACK, Failed, Program, is_taken, running, stop_on_sigterm

DEFAULT_PORTS: Final = {"PORT": "9002", "SIMULATOR_PORT": "9010"}
CONFIG: Final = "configs/demo.yml"
LOOK_AGAIN_S: Final = 0.5
ANSWER_LIMIT_S: Final = 60.0

LINES: Final = """\
llmproxy runs on http://{host}:{port}, in front of the simulator: no key is needed and nothing is paid.

Paste into another terminal:

  curl -N http://{host}:{port}/openai/v1/chat/completions \\
    -H "Content-Type: application/json" -H "Authorization: Bearer demo" \\
    -d '{{"model": "gpt-4o", "stream": true, "messages": [{{"role": "user", "content": "Hello!"}}]}}'

Or with an SDK, where base_url is all that changes (pip install openai, then in Python):

  from openai import OpenAI
  client = OpenAI(base_url="http://{host}:{port}/openai/v1", api_key="demo")
  for chunk in client.chat.completions.create(
      model="gpt-4o", stream=True, messages=[{{"role": "user", "content": "Hello!"}}]
  ):
      print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)

One answer as proof, as it arrives:
"""


def chosen_port(variable: str) -> int:
    """The port that a variable of the environment names, or the default; raises Failed unless it is free."""
    text = os.environ.get(variable) or DEFAULT_PORTS[variable]
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise Failed(f"{variable} is {text!r}; the demo needs a number from 1 to 65535.")
    if is_taken(int(text)):
        raise Failed(f"Port {text} is taken by another program; make demo {variable}=N takes another one.")
    return int(text)


def stream_one_answer(port: int) -> None:
    """Ask for a streamed answer through the proxy and print each piece when it comes."""
    body = {"model": "gpt-4o", "stream": True, "messages": [{"role": "user", "content": "What are you?"}]}
    fields = {"Content-Type": "application/json", "Authorization": "Bearer demo"}
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=ANSWER_LIMIT_S)
    asked_at = time.monotonic()
    connection.request("POST", "/openai/v1/chat/completions", json.dumps(body), fields)
    response = connection.getresponse()
    if response.status != http.HTTPStatus.OK:
        raise Failed(f"The proxy answered {response.status}: {response.read().decode('utf-8', 'replace')}")
    events, first_s, done = 0, 0.0, False
    print("  ", end="")
    while line := response.readline():
        field, _, data = line.rstrip().partition(b": ")
        if field != b"data":
            continue
        done = data == b"[DONE]"
        if not done:
            events += 1
            first_s = first_s or time.monotonic() - asked_at
            for choice in json.loads(data)["choices"]:
                print(choice["delta"].get("content") or "", end="", flush=True)
    connection.close()
    if not done:
        raise Failed(f"The answer broke off after {events} events.")
    last_s = time.monotonic() - asked_at
    print(f"\n\n({events} events; the first after {first_s:.2f} s, the last after {last_s:.2f} s)")


def run(port: int, simulator_port: int) -> None:
    """Start both, show them, and stay until one of them ends or somebody presses Ctrl-C."""
    environ = {
        "SIMULATOR_PORT": str(simulator_port),
        "LOG_FORMAT": os.environ.get("LOG_FORMAT") or "text",
    }
    with ExitStack() as stack:
        simulate = ("simulate", "--port", str(simulator_port))
        simulator = Program("simulator", *simulate, port=simulator_port, environ={})
        stack.enter_context(running(simulator)).wait_until_ready()
        # On the loopback interface only: a demonstration is nobody else's business.
        listen = ("--port", f"tcp:{port}:interface={LOOPBACK}")
        proxy = Program("proxy", "run", "--config", CONFIG, *listen, port=port, environ=environ)
        stack.enter_context(running(proxy)).wait_until_ready("/health/ready")
        print(f"\n{LINES.format(host=LOOPBACK, port=port)}", flush=True)
        stream_one_answer(port)
        print("\nSimulator and proxy keep running; Ctrl-C stops both. The proxy's log:\n", flush=True)
        while True:
            print(proxy.new_output(), end="", flush=True)
            simulator.check_alive()
            proxy.check_alive()
            time.sleep(LOOK_AGAIN_S)


def main() -> int:
    stop_on_sigterm()
    try:
        run(chosen_port("PORT"), chosen_port("SIMULATOR_PORT"))
    except (Failed, OSError, http.client.HTTPException) as failed:
        print(f"demo: {failed}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
