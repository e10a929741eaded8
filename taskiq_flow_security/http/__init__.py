"""The HTTP and WebSocket edge: the same policy for any ASGI application. Needs the extra ``http``."""

from taskiq_flow_security.http.api import VisualizationAPI, create_visualization_api
from taskiq_flow_security.http.middleware import HTTPSecurityMiddleware
from taskiq_flow_security.http.rules import Rule, taskiq_flow_rules

__all__ = ["HTTPSecurityMiddleware", "Rule", "VisualizationAPI", "create_visualization_api", "taskiq_flow_rules"]
