"""The guide's complete example and its checks, run by uvicorn and curl over real HTTPS."""

from __future__ import annotations

import datetime
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ROOT = Path(__file__).parents[3]
START_SECONDS = 30
STOP_SECONDS = 30


class Answer(NamedTuple):
    """What curl shows."""

    status: int
    head: str
    body: str


class Served:
    """The example, and how curl reaches it."""

    def __init__(self, port: int, certificate: Path) -> None:
        self._port = port
        self._certificate = certificate

    def curl(self, path: str, *options: str, scheme: str = "https") -> Answer:
        """``curl -i``, retried until the server listens."""
        finished = subprocess.run(
            [
                *("curl", "--silent", "--show-error", "-i", "--cacert", str(self._certificate)),
                *("--retry", str(START_SECONDS), "--retry-connrefused", "--retry-delay", "1", *options),
                f"{scheme}://127.0.0.1:{self._port}{path}",
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=2 * START_SECONDS,
        )
        head, _, body = finished.stdout.replace("\r\n", "\n").partition("\n\n")
        return Answer(int(head.split()[1]), head.lower(), body)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate and its key, for this machine, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    return file


@pytest.fixture(scope="module")
def served(certificate: Path) -> Iterator[Served]:
    with serving("--ssl-certfile", str(certificate)) as port:
        yield Served(port, certificate)


@pytest.fixture(scope="module")
def served_plainly(certificate: Path) -> Iterator[Served]:
    with serving() as port:
        yield Served(port, certificate)


@contextmanager
def serving(*options: str) -> Iterator[int]:
    """The port at which ``uvicorn`` serves the example with these options."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "uvicorn", "tests.integration.api.guide_app:app"),
                *("--fd", str(listening.fileno()), "--log-level", "warning", *options),
            ],
            cwd=ROOT,
            pass_fds=[listening.fileno()],
        )
        try:
            yield listening.getsockname()[1]
        finally:
            server.terminate()
            server.wait(STOP_SECONDS)


def test_no_credentials_are_401(served: Served) -> None:
    answer = served.curl("/pipelines")
    assert answer.status == 401
    assert "www-authenticate: bearer" in answer.head


def test_an_invalid_key_is_403(served: Served) -> None:
    assert served.curl("/pipelines", "-H", "X-API-Key: invalid-key").status == 403


def test_a_valid_viewer_key_is_200(served: Served) -> None:
    answer = served.curl("/pipelines", "-H", "X-API-Key: viewer-key")
    assert (answer.status, json.loads(answer.body)) == (200, {"pipelines": []})
    assert "strict-transport-security: max-age=31536000" in answer.head


def test_the_guides_request_to_api_pipelines_is_200(served: Served) -> None:
    answer = served.curl("/api/pipelines", "-H", "X-API-Key: admin-key")
    assert answer.status == 200
    assert [pipeline["id"] for pipeline in json.loads(answer.body)["pipelines"]] == ["data-pipeline"]


def test_a_processor_runs_the_pipeline(served: Served) -> None:
    options = ("-H", "X-API-Key: processor-key", "--json", '{"args": [[1, 2]]}')
    answer = served.curl("/pipelines/data-pipeline/execute", *options)
    assert answer.status == 202


def test_a_viewer_does_not(served: Served) -> None:
    options = ("-H", "X-API-Key: viewer-key", "--json", '{"args": [[1, 2]]}')
    answer = served.curl("/pipelines/data-pipeline/execute", *options)
    assert (answer.status, json.loads(answer.body)["reason"]) == (403, "whitelist")


def test_plain_http_is_403(served_plainly: Served) -> None:
    answer = served_plainly.curl("/pipelines", "-H", "X-API-Key: admin-key", scheme="http")
    assert (answer.status, json.loads(answer.body)["reason"]) == (403, "https_required")


def test_plain_http_behind_a_proxy_that_terminates_tls_is_200(served_plainly: Served) -> None:
    options = ("-H", "X-API-Key: admin-key", "-H", "X-Forwarded-Proto: https")
    assert served_plainly.curl("/pipelines", *options, scheme="http").status == 200
