"""What all parts guard: one task of one pipeline, one caller, and `FlowSecurity` objects that let him run it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from uuid import uuid4

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from taskiq_flow_security import AuditLogger, FlowSecurity, Principal, TaskiqFlowConfig
from taskiq_flow_security.audit import AuditFile
from taskiq_flow_security.config import SigningKeyConfig

Algorithm = Literal["HS256", "EdDSA"]
ALGORITHMS: tuple[Algorithm, ...] = ("HS256", "EdDSA")

SECRET = "benchmark-secret-0123456789abcdef-0123456789"
PIPELINE = "data-pipeline"
PRINCIPAL = Principal("alice", roles=["processor"])


async def work(number: int) -> int:
    """The task: as little as possible, so that what is around it shows."""
    return number


def new_security(algorithm: Algorithm = "HS256", audit_file: Path | None = None, **settings: Any) -> FlowSecurity:
    """A `FlowSecurity`. All of one algorithm trust each other, as API and worker do."""
    config = TaskiqFlowConfig(
        signing_keys=[signing_key(algorithm)],
        pipeline_acls={PIPELINE: {"execute": ["processor"]}},
        **settings,
    )
    return FlowSecurity(config, audit=new_audit(audit_file))


def new_audit(file: Path | None) -> AuditLogger:
    """An audit logger that writes to a file or, as nobody listens to it, records nothing that was allowed."""
    name = f"benchmark.{uuid4().hex}"
    logging.getLogger(name).propagate = False
    if file is None:
        return AuditLogger(name)
    _audit_files.append(AuditFile(file))
    return AuditLogger(name, sinks=_audit_files[-1:])


_audit_files: list[AuditFile] = []


@contextmanager
def audit_directory() -> Iterator[Path]:
    """A directory for audit files that are no longer needed at the end."""
    with TemporaryDirectory() as directory:
        yield Path(directory)
        for file in _audit_files:
            file.flush()
        _audit_files.clear()


def signing_key(algorithm: Algorithm) -> SigningKeyConfig:
    """A key for principals and messages."""
    material = {"secret": SECRET} if algorithm == "HS256" else {"private_key": ed25519_pem()}
    return SigningKeyConfig.model_validate(
        {"kid": "benchmark", "alg": algorithm, "uses": ["issue", "send"], **material},
    )


@cache
def ed25519_pem() -> str:
    """A private key, the same all through the run."""
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
