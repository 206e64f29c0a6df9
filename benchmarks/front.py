"""TLS towards the upstream: an nginx in front of the mock, and a certificate authority made for the occasion.

The front is on the cpu of mock and load. Both proxies check its certificate against that authority. The keys
live in `build/`, are made anew when that folder is gone, and are good for nothing else.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

from benchmarks.machine import SetupError

NAME = "localhost"


def make_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """Authority, certificate and key files for `localhost` (ECDSA P-256, as the providers use), made once."""
    folder.mkdir(exist_ok=True)
    authority, certificate, key = folder / "ca.pem", folder / "server.pem", folder / "server.key"
    if authority.exists() and certificate.exists() and key.exists():
        return authority, certificate, key
    openssl = shutil.which("openssl")
    if openssl is None:
        raise SetupError("--tls makes its certificates with openssl: apt-get update && apt-get install -y openssl")

    def run(*arguments: str | Path) -> None:
        subprocess.run([openssl, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    authority_key, request, extensions = folder / "ca.key", folder / "server.csr", folder / "server.ext"
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    long_lived = ["-days", "3650"]
    rights = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]
    subject = ["-subj", "/CN=llmproxy benchmark authority"]
    run("req", "-x509", *new_key, "-keyout", authority_key, "-out", authority, *long_lived, *subject, *rights)
    run("req", "-new", *new_key, "-keyout", key, "-out", request, "-subj", f"/CN={NAME}")
    extensions.write_text(
        f"subjectAltName=DNS:{NAME},IP:127.0.0.1\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n"
        "authorityKeyIdentifier=keyid\n"
    )
    signed_by: list[str | Path] = ["-CA", authority, "-CAkey", authority_key, "-CAcreateserial"]
    run("x509", "-req", "-in", request, *signed_by, *long_lived, "-extfile", extensions, "-out", certificate)
    return authority, certificate, key


def _loopback_addresses(port: int) -> list[str]:
    """Both loopback addresses where the machine has both: `localhost` may be looked up as either."""
    addresses = [f"127.0.0.1:{port}"]
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
        addresses.append(f"[::1]:{port}")
    except OSError:
        pass
    return addresses


def front_config(*, port: int, mock_port: int, certificate: Path, key: Path, connections: int) -> str:
    """The nginx configuration of the front: it ends TLS and passes every byte on unbuffered."""
    listen = "\n    ".join(f"listen {address} ssl backlog=4096;" for address in _loopback_addresses(port))
    return f"""\
worker_processes 1;
daemon off;
pid front.pid;
error_log stderr warn;
events {{ worker_connections {connections}; }}
http {{
  access_log off;
  client_max_body_size 0;
  keepalive_requests 1000000000;
  keepalive_timeout 600s;
  client_body_temp_path tmp-body; proxy_temp_path tmp-proxy;
  fastcgi_temp_path tmp-fastcgi; uwsgi_temp_path tmp-uwsgi; scgi_temp_path tmp-scgi;
  upstream mock {{ server 127.0.0.1:{mock_port}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    {listen}
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.2 TLSv1.3;
    location / {{
      proxy_pass http://mock;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_request_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""
