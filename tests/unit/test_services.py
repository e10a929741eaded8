"""Services: those that act in their own name, by configuration only."""

from __future__ import annotations

import pytest

from taskiq_flow_security import ConfigurationError, FlowSecurity, Principal, TaskiqFlowConfig


def security(**services: object) -> FlowSecurity:
    return FlowSecurity(TaskiqFlowConfig(jwt_secret="x" * 32, services=services))


def test_a_service_has_the_rights_that_the_settings_give_it() -> None:
    service = security(nightly={"roles": ["cleaner"], "pipelines": ["a"], "permissions": ["execute"]}).service(
        "nightly"
    )
    assert service == Principal("service:nightly", ["cleaner"], ["execute"], ["a"])


def test_a_service_without_explicit_permissions_may_do_what_the_acls_let_its_roles() -> None:
    configured = FlowSecurity(
        TaskiqFlowConfig(
            jwt_secret="x" * 32,
            services={"nightly": {"roles": ["cleaner"]}},
            pipeline_acls={"a": {"execute": ["cleaner"]}},
        )
    )
    service = configured.service("nightly")
    assert configured.explain(service, pipeline="a")
    assert not configured.explain(service, pipeline="b")


def test_a_service_that_nobody_has_configured_does_not_act() -> None:
    with pytest.raises(ConfigurationError, match="'nightly'"):
        security().service("nightly")
