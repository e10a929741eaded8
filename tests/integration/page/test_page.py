"""The page, as somebody sees and uses it."""

from __future__ import annotations

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.integration.page.app import HOSTILE, PROCESSOR, VIEWER
from tests.integration.page.using import choose, find, sign_in, signed_in, start, texts, wait_until


def test_a_wrong_key_is_told_so_and_nothing_is_shown(browser: Chrome) -> None:
    sign_in(browser, "guessed")
    wait_until(browser, lambda _: texts(browser, "#sign-in-problem") == ["This key is not accepted."])
    assert not find(browser, "#work").is_displayed()


def test_a_wrong_token_is_told_so(browser: Chrome) -> None:
    sign_in(browser, "eyJhbGciOiJIUzI1NiJ9.e30.c2ln")
    wait_until(browser, lambda _: "token is not accepted" in texts(browser, "#sign-in-problem")[0])


def test_a_viewer_sees_the_pipelines_that_it_may_read_and_is_told_why_it_starts_none(browser: Chrome) -> None:
    signed_in(browser, VIEWER)
    assert texts(browser, "nav button") == ["branches", "single"]
    choose(browser, "single")
    assert "not start it" in texts(browser, "#summary")[0]
    start(browser)
    wait_until(browser, lambda _: "may not execute single" in texts(browser, "#start-answer")[0])


def test_a_graph_has_a_column_for_what_can_run_at_the_same_time_and_shows_the_critical_path(browser: Chrome) -> None:
    signed_in(browser, PROCESSOR)
    choose(browser, "branches")
    boxes = {node.text: node.rect for node in browser.find_elements(By.CSS_SELECTOR, ".node")}
    assert boxes["load"]["x"] < boxes["total"]["x"] == boxes["largest"]["x"] < boxes["report"]["x"]
    assert len(browser.find_elements(By.CSS_SELECTOR, ".edge")) == 4
    assert len(browser.find_elements(By.CSS_SELECTOR, ".node.critical")) == 3


def test_a_processor_starts_a_run_sees_its_steps_light_up_and_its_result(browser: Chrome) -> None:
    signed_in(browser, PROCESSOR)
    choose(browser, "branches")
    start(browser, kwargs='{"source": "four"}')
    wait_until(browser, lambda _: len(browser.find_elements(By.CSS_SELECTOR, ".node.completed")) == 4)
    wait_until(browser, lambda _: texts(browser, "#runs .state-completed"))
    find(browser, "#runs button").click()
    wait_until(browser, lambda _: "4 of 4" in texts(browser, "#details")[0])
    events = texts(browser, "#events strong")
    assert {"enqueued", "started", "completed"} <= set(events)


def test_a_run_that_fails_is_shown_as_one(browser: Chrome) -> None:
    signed_in(browser, PROCESSOR)
    choose(browser, "single")
    start(browser, kwargs='{"fails": true}')
    wait_until(browser, lambda _: browser.find_elements(By.CSS_SELECTOR, ".node.failed"))
    wait_until(browser, lambda _: texts(browser, "#runs .state-failed"))
    find(browser, "#runs button").click()
    wait_until(browser, lambda _: "ValueError" in texts(browser, "#details")[0])


def test_a_new_run_takes_nothing_away_from_who_is_about_to_click(browser: Chrome) -> None:
    signed_in(browser, PROCESSOR)
    choose(browser, "single")
    start(browser, "[11]")
    wait_until(browser, lambda _: texts(browser, "#runs tr:first-child .state-completed"))
    about_to_be_clicked, runs = find(browser, "#runs button"), len(texts(browser, "#runs tr"))
    start(browser, "[33]")
    wait_until(browser, lambda _: len(texts(browser, "#runs tr")) == runs + 1)
    about_to_be_clicked.click()
    wait_until(browser, lambda _: texts(browser, "#details") == ["22"])


def test_arguments_that_are_no_json_are_not_sent(browser: Chrome) -> None:
    signed_in(browser, PROCESSOR)
    choose(browser, "single")
    runs = texts(browser, "#runs tr")
    for args, kwargs in (("[1,", "{}"), ("{}", "{}"), ("[]", "[]"), ("[]", "null")):
        start(browser, args, kwargs)
        wait_until(browser, lambda _: texts(browser, "#start-answer")[0].startswith("Write here a JSON"))
    assert texts(browser, "#runs tr") == runs


def test_a_number_that_would_be_sent_as_another_is_not_sent(browser: Chrome) -> None:
    signed_in(browser, PROCESSOR)
    choose(browser, "single")
    start(browser, "[9007199254740993]")
    wait_until(browser, lambda _: "too large" in texts(browser, "#start-answer")[0])


def test_names_with_html_in_them_are_text(browser: Chrome) -> None:
    signed_in(browser, PROCESSOR)
    choose(browser, "single")
    start(browser, "[1]")
    wait_until(browser, lambda _: HOSTILE in texts(browser, "#events span"))
    assert texts(browser, ".node title") == [HOSTILE]
    assert browser.find_elements(By.TAG_NAME, "img") == []
    assert browser.title == "Pipelines"


def test_signing_out_leaves_nothing_behind(browser: Chrome) -> None:
    signed_in(browser, PROCESSOR)
    choose(browser, "single")
    start(browser, "[40404]")
    wait_until(browser, lambda _: texts(browser, "#runs .state-completed"))
    find(browser, "#runs button").click()
    wait_until(browser, lambda _: texts(browser, "#details")[0])
    find(browser, "#sign-out").click()
    assert "40404" not in browser.page_source
    assert "80808" not in browser.page_source
    assert find(browser, "#args").get_attribute("value") == "[]"
    assert find(browser, "#sign-in").is_displayed()
    assert not find(browser, "#work").is_displayed()
    assert texts(browser, "nav button") == []
    assert find(browser, "#credential").get_attribute("value") == ""
    stored = "return JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
    assert browser.execute_script(stored) == '[{},{},""]'


def test_every_field_and_button_has_a_name_to_be_read_out(browser: Chrome) -> None:
    def shown() -> list[WebElement]:
        controls = browser.find_elements(By.CSS_SELECTOR, "input, textarea, button")
        return [control for control in controls if control.is_displayed()]

    assert all(control.accessible_name for control in shown())
    signed_in(browser, PROCESSOR)
    assert len(shown()) > 5
    assert all(control.accessible_name for control in shown())
