"""Runs and their events in Redis, shared by processes (extra ``redis``). What comes from there is verified."""

from taskiq_flow_security.runs.redis.events import RedisRunEvents
from taskiq_flow_security.runs.redis.store import RedisRunStore

__all__ = ["RedisRunEvents", "RedisRunStore"]
