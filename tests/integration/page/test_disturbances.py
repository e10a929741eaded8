"""Answers that fail, or come when somebody has gone on: problems are said where they belong, nothing is mixed up."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from selenium.webdriver import Chrome

from tests.integration.page.app import PROCESSOR, VIEWER
from tests.integration.page.using import (
    answering,
    arrives,
    asked,
    choose,
    click,
    find,
    held,
    holding,
    listening,
    loaded,
    release,
    sign_in,
    signed_in,
    start,
    started,
    texts,
    wait_until,
)


@pytest.mark.parametrize("status", [429, 503])
def test_a_graph_that_cannot_be_loaded_is_said_so_and_nothing_can_be_started(browser: Chrome, status: int) -> None:
    answering(browser, "/dag", status)
    signed_in(browser, PROCESSOR)
    problem = find(browser, "#graph-problem")
    wait_until(browser, lambda _: problem.text.startswith(f"This is a {status}."))
    assert problem.is_displayed()
    assert not find(browser, "#start-button").is_enabled()
    browser.execute_script("document.getElementById('start').requestSubmit()")
    assert not any(path.endswith("/execute") for path in asked(browser))
    answering(browser, "/dag", 0)
    choose(browser, "branches")
    assert problem.text == ""
    assert find(browser, "#start-button").is_enabled()


def test_while_a_graph_is_loaded_nothing_can_be_started(browser: Chrome) -> None:
    holding(browser, "/dag")
    sign_in(browser, PROCESSOR)
    held(browser, 1)
    assert not find(browser, "#start-button").is_enabled()
    release(browser)
    assert find(browser, "#start-button").is_enabled()


def test_a_list_of_runs_that_cannot_be_loaded_is_no_problem_of_the_start(browser: Chrome) -> None:
    signed_in(browser, PROCESSOR)
    choose(browser, "single")
    answering(browser, "/status", 429)
    run_id = started(browser, "[1]")
    wait_until(browser, lambda _: "too often" in texts(browser, "#runs-problem")[0])
    assert texts(browser, "#start-answer") == [f"Started as {run_id}."]
    answering(browser, "/status", 0)
    wait_until(browser, lambda _: run_id in texts_of_runs(browser))
    assert texts(browser, "#runs-problem") == [""]


def texts_of_runs(browser: Chrome) -> list[str]:
    script = "return [...document.querySelectorAll('#runs tr')].map((row) => row.dataset.run)"
    found: list[str] = browser.execute_script(script)
    return found


def test_details_that_come_when_another_pipeline_is_shown_are_not_shown(browser: Chrome) -> None:
    signed_in(browser, PROCESSOR)
    choose(browser, "single")
    started(browser, "[40404]")
    wait_until(browser, lambda _: texts(browser, "#runs .state-completed"))
    holding(browser, "/runs/")
    find(browser, "#runs button").click()
    held(browser, 1)
    choose(browser, "branches")
    release(browser)
    assert texts(browser, "#details") == [""]
    assert not find(browser, "#details").is_displayed()


def test_details_that_come_after_signing_out_are_shown_to_nobody(browser: Chrome) -> None:
    signed_in(browser, PROCESSOR)
    choose(browser, "single")
    started(browser, "[40404]")
    wait_until(browser, lambda _: texts(browser, "#runs .state-completed"))
    holding(browser, "/runs/")
    find(browser, "#runs button").click()
    held(browser, 1)
    find(browser, "#sign-out").click()
    signed_in(browser, VIEWER)
    choose(browser, "single")
    release(browser)
    assert "80808" not in browser.page_source


def test_of_details_the_ones_are_shown_that_were_asked_for_last(browser: Chrome) -> None:
    signed_in(browser, PROCESSOR)
    choose(browser, "single")
    runs = [started(browser, f"[{value}]") for value in (111, 222)]
    wait_until(browser, lambda _: set(runs) <= set(texts_of_runs(browser)))
    wait_until(browser, lambda _: not texts(browser, "#runs .state-running"))
    holding(browser, "/runs/")
    for number, run_id in enumerate(runs, 1):
        find(browser, f'#runs tr[data-run="{run_id}"] button').click()
        held(browser, number)
    release(browser)
    assert texts(browser, "#details") == ["444"]


def test_details_of_a_run_are_brought_up_to_date_when_it_ends(browser: Chrome) -> None:
    signed_in(browser, PROCESSOR)
    choose(browser, "thrice")
    run_id = started(browser, "[3]")
    details = f'#runs tr[data-run="{run_id}"] button'
    wait_until(browser, lambda _: texts(browser, details))
    find(browser, details).click()
    wait_until(browser, lambda _: texts(browser, "#details") == ["It is still running."])
    wait_until(browser, lambda _: texts(browser, "#details") == ["3"])


def test_an_answer_to_a_start_that_comes_when_another_pipeline_is_shown_is_not_told_there(browser: Chrome) -> None:
    signed_in(browser, PROCESSOR)
    choose(browser, "single")
    holding(browser, "/execute")
    start(browser, "[1]")
    held(browser, 1)
    choose(browser, "branches")
    release(browser)
    assert texts(browser, "#start-answer") == [""]
    assert texts(browser, "#name") == ["branches"]


def test_a_list_of_runs_that_comes_when_another_pipeline_is_shown_is_not_shown(browser: Chrome) -> None:
    signed_in(browser, PROCESSOR)
    choose(browser, "single")
    started(browser, "[1]")
    wait_until(browser, lambda _: texts(browser, "#runs .state-completed"))
    choose(browser, "secret")
    holding(browser, "single/status")
    click(browser, "single")
    held(browser, 1)
    choose(browser, "secret")
    release(browser)
    loaded(browser)
    assert texts(browser, "#runs tr") == []


def test_a_run_of_another_day_tells_its_date_and_one_of_today_comes_to_tell_it(browser: Chrome) -> None:
    signed_in(browser, PROCESSOR)
    choose(browser, "single")
    run_id = started(browser, "[1]")
    wait_until(browser, lambda _: run_id in texts_of_runs(browser))
    row = f'#runs tr[data-run="{run_id}"] td:first-child'
    year = str(datetime.now(timezone.utc).year)
    assert year not in texts(browser, row)[0]
    browser.execute_script(
        """
        const Today = Date;
        window.Date = class extends Today {
          constructor(...moment) { super(...moment.length ? moment : [Today.now() + 86_400_000]); }
        };
        """
    )
    started(browser, "[2]")
    wait_until(browser, lambda _: year in texts(browser, row)[0])


@pytest.mark.parametrize("reason", ["whitelist", "acl", "permission"])
def test_a_refusal_to_watch_is_told_for_the_pipeline_that_was_refused_and_ends_no_second_connection(
    browser: Chrome, reason: str
) -> None:
    listening(browser)
    signed_in(browser, PROCESSOR)
    choose(browser, "single")
    refusal = {"type": "error", "reason": reason, "detail": "You may not read this pipeline."}
    arrives(browser, {**refusal, "pipeline_id": "branches"})
    browser.execute_script("sent.length = 0; socket.dispatchEvent(new CloseEvent('close', { code: 4403 }))")
    wait_until(browser, lambda _: sent(browser, "subscribe"))
    assert sent(browser, "subscribe") == ["single"]
    assert texts(browser, "#live-problem") == [""]
    click(browser, "branches")
    assert texts(browser, "#live-problem") == ["You may not read this pipeline."]
    assert sent(browser, "subscribe") == ["single"]  # or it would end this connection, too


@pytest.mark.parametrize("reason", ["not_found", "policy_stale", "internal_error"])
def test_what_may_pass_is_asked_for_again(browser: Chrome, reason: str) -> None:
    listening(browser)
    signed_in(browser, PROCESSOR)
    choose(browser, "single")
    arrives(browser, {"type": "error", "reason": reason, "detail": "Not now."})
    assert texts(browser, "#live-problem") == ["Not now."]
    browser.execute_script("sent.length = 0; socket.dispatchEvent(new CloseEvent('close', { code: 4403 }))")
    wait_until(browser, lambda _: sent(browser, "subscribe") == ["single"])


def sent(browser: Chrome, kind: str) -> list[str]:
    script = "return sent.filter(({ type }) => type === arguments[0]).map((message) => message.pipeline_id)"
    found: list[str] = browser.execute_script(script, kind)
    return found
