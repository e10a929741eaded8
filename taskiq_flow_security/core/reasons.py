"""The stable codes that say why something was allowed or refused."""

from __future__ import annotations

from taskiq_flow_security.core.string_enum import StringEnum


class Reason(StringEnum):
    """Why a decision fell as it did. The values are a contract: they reach errors, results and audit events."""

    # Allowed, by the step that granted it.
    ADMIN = "admin"
    PERMISSION = "permission"
    ACL = "acl"
    AUTHENTICATED = "authenticated"
    PUBLIC = "public"
    SECURITY_DISABLED = "security_disabled"

    # Denied by the policy. PERMISSION and ACL deny under their own names too.
    SCOPE = "scope"
    WHITELIST = "whitelist"
    GUARD = "guard"
    RATE_LIMIT = "rate_limit"
    BACKEND_UNAVAILABLE = "backend_unavailable"
    INVALID_REQUEST = "invalid_request"
    PIPELINE_MISMATCH = "pipeline_mismatch"
    UNKNOWN_TASK = "unknown_task"
    DEPENDENCY_IN_ARGUMENTS = "dependency_in_arguments"
    DELEGATION_DEPTH = "delegation_depth"
    API_KEY_REMOVED = "api_key_removed"
    API_KEY_EXPIRED = "api_key_expired"
    API_KEY_REVOKED = "api_key_revoked"
    REVOKED = "revoked"
    REPLAYED = "replayed"
    POLICY_STALE = "policy_stale"
    POLICY_CONFLICT = "policy_conflict"

    # Not authenticated: credentials.
    NO_PRINCIPAL = "no_principal"
    NO_CREDENTIALS = "no_credentials"
    SEVERAL_CREDENTIALS = "several_credentials"
    UNKNOWN_API_KEY = "unknown_api_key"
    BEARER_NOT_ACCEPTED = "bearer_not_accepted"
    UNKNOWN_SCHEME = "unknown_scheme"
    CREDENTIALS_IN_QUERY = "credentials_in_query"

    # Denied at the HTTP and WebSocket edge.
    NO_RULE = "no_rule"
    HTTPS_REQUIRED = "https_required"
    ORIGIN = "origin"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    UNREADABLE_MESSAGE = "unreadable_message"
    MESSAGE_TOO_BIG = "message_too_big"

    # Not authenticated: tokens and signatures.
    UNSIGNED = "unsigned"
    OVERSIZED = "oversized"
    MALFORMED = "malformed"
    UNKNOWN_KEY = "unknown_key"
    WRONG_ALGORITHM = "wrong_algorithm"
    BAD_SIGNATURE = "bad_signature"
    WRONG_TYPE = "wrong_type"
    WRONG_ISSUER = "wrong_issuer"
    WRONG_AUDIENCE = "wrong_audience"
    WRONG_TASK = "wrong_task"
    INVALID_CLAIMS = "invalid_claims"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    CANNOT_ISSUE = "cannot_issue"

    # Refused because the message or this process is at fault.
    UNREADABLE = "unreadable"
    INVALID_LABEL = "invalid_label"
    NOT_VERIFIED = "not_verified"
    UNSIGNABLE = "unsignable"
    MISCONFIGURED = "misconfigured"
    INTERNAL_ERROR = "internal_error"
