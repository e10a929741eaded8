"""What a caller proves its identity with."""

from taskiq_flow_security.credentials.api_keys import ApiKey, ApiKeys, id_of, is_id
from taskiq_flow_security.credentials.bearer_tokens import (
    BearerKey,
    BearerTokens,
    bearer_key_from_pem,
    bearer_keys_from_jwks,
)

__all__ = [
    "ApiKey",
    "ApiKeys",
    "BearerKey",
    "BearerTokens",
    "bearer_key_from_pem",
    "bearer_keys_from_jwks",
    "id_of",
    "is_id",
]
