"""The way back: results and progress that can be trusted."""

from taskiq_flow_security.results.backend import ProtectedResults, check_results
from taskiq_flow_security.results.seal import ResultSeal

__all__ = ["ProtectedResults", "ResultSeal", "check_results"]
