"""What all parts guard: one task of one pipeline, one caller, and `FlowSecurity` objects that let him run it."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Literal
from uuid import uuid4

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from taskiq_flow_security import AuditLogger, FlowSecurity, Principal, TaskiqFlowConfig
from taskiq_flow_security.audit import AuditFormatter
from taskiq_flow_security.config import SigningKeyConfig

Algorithm = Literal["HS256", "EdDSA"]
ALGORITHMS: tuple[Algorithm, ...] = ("HS256", "EdDSA")

SECRET = "benchmark-secret-0123456789abcdef-0123456789"
PIPELINE = "data-pipeline"
PRINCIPAL = Principal("alice", roles=["processor"])


async def work(number: int) -> int:
    """The task: as little as possible, so that what is around it shows."""
    return number


def new_security(algorithm: Algorithm = "HS256", audit_file: Path | None = None) -> FlowSecurity:
    """A `FlowSecurity`. All of one algorithm trust each other, as API and worker do."""
    config = TaskiqFlowConfig(
        signing_keys=[signing_key(algorithm)],
        pipeline_acls={PIPELINE: {"execute": ["processor"]}},
    )
    return FlowSecurity(config, audit=new_audit(audit_file))


def new_audit(file: Path | None) -> AuditLogger:
    """An audit logger that writes to a file or, because of its level, records nothing that was allowed."""
    name = f"benchmark.{uuid4().hex}"
    logger = logging.getLogger(name)
    logger.propagate = False
    if file is None:
        logger.setLevel(logging.CRITICAL)
    else:
        logger.setLevel(logging.INFO)
        handler = logging.FileHandler(file)
        handler.setFormatter(AuditFormatter())
        logger.addHandler(handler)
    return AuditLogger(name)


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
