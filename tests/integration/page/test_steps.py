"""The colours of the steps say what has happened to them, in one run."""

from __future__ import annotations

import time

from selenium.webdriver import Chrome

from tests.integration.page.app import HOSTILE, PROCESSOR
from tests.integration.page.using import (
    arrives,
    choose,
    event,
    find,
    listening,
    signed_in,
    start,
    started,
    texts,
    wait_until,
)


def colours(browser: Chrome) -> list[str]:
    """The state of each step, in the order of the graph."""
    script = (
        "return [...document.querySelectorAll('.node')].map((node) => node.classList.item(node.classList.length - 1))"
    )
    found: list[str] = browser.execute_script(script)
    return found


def watching(browser: Chrome) -> None:
    """See a pipeline of one step, with events of the test's making."""
    listening(browser)
    signed_in(browser, PROCESSOR)
    choose(browser, "single")


def single(run_id: str, kind: str, moment: float, task_id: str = "1") -> dict[str, object]:
    return event(run_id, kind, moment, task=HOSTILE, task_id=task_id)


def test_a_step_that_has_failed_for_one_item_stays_failed_when_others_complete(browser: Chrome) -> None:
    signed_in(browser, PROCESSOR)
    choose(browser, "items")
    start(browser, "[3]")
    wait_until(browser, lambda _: told(browser).count("completed late") == 2)
    assert "failed late" in told(browser)
    assert colours(browser) == ["completed", "failed"]


def told(browser: Chrome) -> list[str]:
    """What has happened to which task, the latest first."""
    told = "(item) => `${item.querySelector('strong').textContent} ${item.querySelector('span').textContent}`"
    found: list[str] = browser.execute_script(f"return [...document.querySelectorAll('#events li')].map({told})")
    return found


def test_a_step_that_was_refused_for_one_item_stays_refused(browser: Chrome) -> None:
    watching(browser)
    now = time.time()
    arrives(
        browser,
        single("run", "refused", now, "1"),
        single("run", "started", now + 1, "2"),
        single("run", "completed", now + 2, "2"),
    )
    assert colours(browser) == ["refused"]


def test_a_step_that_goes_on_for_one_item_is_running(browser: Chrome) -> None:
    watching(browser)
    now = time.time()
    arrives(
        browser,
        single("run", "started", now, "1"),
        single("run", "started", now + 1, "2"),
        single("run", "completed", now + 2, "2"),
    )
    assert colours(browser) == ["started"]


def test_a_retry_that_completes_makes_its_failure_good(browser: Chrome) -> None:
    watching(browser)
    now = time.time()
    arrives(
        browser, single("run", "failed", now), single("run", "started", now + 1), single("run", "completed", now + 2)
    )
    assert colours(browser) == ["completed"]


def test_an_event_that_was_overtaken_changes_nothing(browser: Chrome) -> None:
    watching(browser)
    now = time.time()
    arrives(browser, single("run", "completed", now + 1), single("run", "started", now))
    assert colours(browser) == ["completed"]


def test_of_two_runs_at_once_the_one_that_was_started_last_is_shown(browser: Chrome) -> None:
    watching(browser)
    now = time.time()
    arrives(browser, single("old", "started", now), single("new", "started", now + 1), single("new", "failed", now + 2))
    assert colours(browser) == ["failed"]
    arrives(browser, single("old", "completed", now + 3))
    assert colours(browser) == ["failed"]
    assert "run new, the newest one" in texts(browser, "#followed")[0]


def test_a_run_that_was_chosen_is_shown_until_it_is_left_or_another_is_started(browser: Chrome) -> None:
    signed_in(browser, PROCESSOR)
    choose(browser, "single")
    first = started(browser, kwargs='{"fails": true}')
    wait_until(browser, lambda _: colours(browser) == ["failed"])
    second = started(browser, "[1]")
    wait_until(browser, lambda _: colours(browser) == ["completed"])
    details = f'#runs tr[data-run="{first}"] button'
    wait_until(browser, lambda _: texts(browser, details))
    find(browser, details).click()
    assert colours(browser) == ["failed"]
    assert f"{first}, which you have chosen" in texts(browser, "#followed")[0]
    assert find(browser, details).get_attribute("aria-pressed") == "true"
    find(browser, details).click()
    assert colours(browser) == ["completed"]
    assert f"{second}, the newest one" in texts(browser, "#followed")[0]
    assert not find(browser, "#details").is_displayed()
    find(browser, details).click()
    third = started(browser, "[2]")
    wait_until(browser, lambda _: f"{third}, the newest one" in texts(browser, "#followed")[0])


def test_of_a_run_whose_steps_nobody_has_seen_no_colours_are_made_up(browser: Chrome) -> None:
    signed_in(browser, PROCESSOR)
    choose(browser, "single")
    run_id = started(browser, "[1]")
    wait_until(browser, lambda _: colours(browser) == ["completed"])
    choose(browser, "branches")
    choose(browser, "single")
    assert colours(browser)[0] in ("node", "critical")
    find(browser, f'#runs tr[data-run="{run_id}"] button').click()
    assert texts(browser, "#followed")[0].startswith("Nothing was seen here")
    assert colours(browser)[0] in ("node", "critical")


def test_that_steps_of_the_same_task_have_the_same_colour_is_said_where_there_are_some(browser: Chrome) -> None:
    signed_in(browser, PROCESSOR)
    choose(browser, "thrice")
    assert find(browser, "#same-task").is_displayed()
    choose(browser, "single")
    assert not find(browser, "#same-task").is_displayed()
