"""What is changed at run time: roles, access control lists, limits and revocations, the same in all processes."""

from taskiq_flow_security.live_policy.administration import Administration
from taskiq_flow_security.live_policy.document import PolicyChange, PolicyDocument, Revocation, RevocationKind
from taskiq_flow_security.live_policy.in_force import InForce
from taskiq_flow_security.live_policy.live import LivePolicy

__all__ = ["Administration", "InForce", "LivePolicy", "PolicyChange", "PolicyDocument", "Revocation", "RevocationKind"]
