"""The deployment of ``examples/deploy``, without Docker: the same commands and files, on this machine's ports."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from websockets.asyncio.client import connect

DEPLOY = Path(__file__).parents[3] / "examples" / "deploy"
HOST = "taskiq-flow.example.com"

ADMIN = "the-key-of-an-administrator-0123456789"
VIEWER = "the-key-of-a-viewer-0123456789"
PASSWORD = "the-password-of-redis"
JWT_SECRET = "the-secret-of-this-deployment-0123456789"

_START_SECONDS = 30


@dataclass(frozen=True)
class Stack:
    """A deployment that runs."""

    http_port: int
    https_port: int
    web_port: int
    certificate: Path

    def tls(self) -> ssl.SSLContext:
        """What a client trusts: this deployment's certificate, and no other."""
        return ssl.create_default_context(cafile=str(self.certificate))

    def client(self, address: str = "127.0.0.1") -> httpx.Client:
        """A client of nginx, by HTTPS, from this address."""
        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.https_port}",
            headers={"host": HOST},
            transport=httpx.HTTPTransport(verify=self.tls(), local_address=address),
            timeout=20,
        )

    def socket(self, key: str | None, path: str = "/ws", **headers: str) -> connect:
        """A WebSocket through nginx."""
        given = headers if key is None else {"X-API-Key": key, **headers}
        return connect(
            f"wss://{HOST}{path}", host="127.0.0.1", port=self.https_port, ssl=self.tls(), additional_headers=given
        )


@contextmanager
def running(directory: Path) -> Iterator[Stack]:
    """Redis with a password, a worker, the API under uvicorn, and nginx in front of it."""
    http_port, https_port, web_port, redis_port = free_ports(4)
    certificate = make_certificate(directory)
    variables = _variables(redis_port)
    with ExitStack() as stack:
        stack.enter_context(
            _process(
                directory / "redis.log",
                {},
                *("redis-server", "--port", str(redis_port), "--bind", "127.0.0.1", "--requirepass", PASSWORD),
                *("--save", "", "--appendonly", "no", "--dir", str(directory)),
            )
        )
        wait_for(redis_port)
        worker = ("-m", "taskiq", "worker", "app:broker", "--workers", "1")
        stack.enter_context(_process(directory / "worker.log", variables, sys.executable, *worker))
        web = ("-m", "uvicorn", "app:app", "--host", "127.0.0.1", "--port", str(web_port), *uvicorn_options())
        stack.enter_context(_process(directory / "web.log", variables, sys.executable, *web))
        wait_for(web_port)
        conf = directory / "nginx.conf"
        conf.write_text(nginx_conf(directory, http_port, https_port, web_port))
        nginx = ("nginx", "-e", str(directory / "nginx-error.log"), "-c", str(conf), "-g", "daemon off;")
        stack.enter_context(_process(directory / "nginx.log", {}, *nginx))
        wait_for(https_port)
        yield Stack(http_port, https_port, web_port, certificate)


def uvicorn_options() -> list[str]:
    """The options of the Dockerfile's command but for host and port."""
    [line] = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line.startswith("CMD ")]
    return [str(option) for option in json.loads(line.removeprefix("CMD ")) if str(option).startswith("--no-")]


def nginx_conf(directory: Path, http_port: int, https_port: int, web_port: int) -> str:
    """``nginx.conf`` inside what the image has around it, with this machine's ports and files for the containers'."""
    conf = (DEPLOY / "nginx.conf").read_text()
    for theirs, ours in {
        "listen 80;": f"listen 127.0.0.1:{http_port};",
        "listen 443 ssl": f"listen 127.0.0.1:{https_port} ssl",
        "http://web:8000": f"http://127.0.0.1:{web_port}",
        "/etc/nginx/tls/": f"{directory}/",
        "/var/log/nginx/": f"{directory}/",
    }.items():
        assert theirs in conf
        conf = conf.replace(theirs, ours)
    temporary = "\n".join(
        f"{name}_temp_path {directory}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"pid {directory}/nginx.pid;\nerror_log {directory}/nginx-error.log;\nevents {{}}\n"
        f"http {{\n{temporary}\n{conf}\n}}\n"
    )


def make_certificate(directory: Path) -> Path:
    """A certificate that signs itself, for the server's name, and its key, as the deployment names them."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / "privkey.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    path = directory / "fullchain.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return path


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listening.getsockname()[1] for listening in sockets]


def wait_for(port: int) -> None:
    """Wait until somebody listens on a port."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, f"nobody listens on {port}"
            time.sleep(0.05)  # a port has nothing to await
        else:
            return


def _variables(redis_port: int) -> dict[str, str]:
    """What docker-compose.yml gives to the API and the worker, but for where Redis is."""
    import yaml

    given: Mapping[str, str] = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())["x-security"]
    filled_in = {
        "${REDIS_PASSWORD:?set it in .env}": PASSWORD,
        "${REDIS_PASSWORD}": PASSWORD,
        "${JWT_SECRET:?set it in .env}": JWT_SECRET,
        "${API_KEYS:?set it in .env}": json.dumps(
            {
                ADMIN: {"role": "admin", "pipelines": ["*"], "permissions": ["read", "execute", "admin"]},
                VIEWER: {"role": "viewer", "pipelines": ["data-pipeline"], "permissions": ["read"]},
            }
        ),
        "@redis:6379": f"@127.0.0.1:{redis_port}",
    }
    variables = {}
    for name, value in given.items():
        for theirs, ours in filled_in.items():
            value = value.replace(theirs, ours)
        assert "${" not in value, name
        variables[name] = value
    return variables


@contextmanager
def _process(log: Path, variables: Mapping[str, str], *command: str) -> Iterator[None]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKIQ_FLOW_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=DEPLOY, env={**inherited, **variables}, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
