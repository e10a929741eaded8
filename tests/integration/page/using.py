"""What somebody does with the page, and what the network does to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

SECONDS = 20

T = TypeVar("T")


def wait_until(browser: Chrome, holds: Callable[[Chrome], T]) -> T:
    """What this returns, as soon as it is true."""
    return WebDriverWait(browser, SECONDS, poll_frequency=0.05).until(holds)


def find(browser: Chrome, selector: str) -> WebElement:
    """The first element that it selects."""
    return browser.find_element(By.CSS_SELECTOR, selector)


def texts(browser: Chrome, selector: str) -> list[str]:
    """What is written in all that it selects, shown or not."""
    script = "return [...document.querySelectorAll(arguments[0])].map((found) => found.textContent)"
    found: list[str] = browser.execute_script(script, selector)
    return found


def sign_in(browser: Chrome, credential: str) -> None:
    """Try to sign in."""
    find(browser, "#credential").send_keys(credential)
    find(browser, "#sign-in-form button").click()


def signed_in(browser: Chrome, credential: str) -> None:
    """Sign in, and see the first pipeline."""
    sign_in(browser, credential)
    wait_until(browser, lambda _: texts(browser, "#connection") == ["live"])
    wait_until(browser, lambda _: find(browser, "#pipeline").is_displayed())
    loaded(browser)


def loaded(browser: Chrome) -> None:
    """Wait until nothing is being loaded."""
    wait_until(browser, lambda _: not browser.find_elements(By.CSS_SELECTOR, "[aria-busy]"))


def click(browser: Chrome, pipeline: str) -> None:
    """Go to a pipeline."""
    [button] = [button for button in browser.find_elements(By.CSS_SELECTOR, "nav button") if button.text == pipeline]
    button.click()


def choose(browser: Chrome, pipeline: str) -> None:
    """Go to a pipeline, and see it."""
    click(browser, pipeline)
    wait_until(browser, lambda _: texts(browser, "#name") == [pipeline] and texts(browser, ".node"))
    loaded(browser)


def fill(browser: Chrome, selector: str, text: str) -> None:
    """Write something else into a field."""
    field = find(browser, selector)
    field.clear()
    field.send_keys(text)


def start(browser: Chrome, args: str = "[]", kwargs: str = "{}") -> None:
    """Start a run."""
    fill(browser, "#args", args)
    fill(browser, "#kwargs", kwargs)
    find(browser, "#start-button").click()


def started(browser: Chrome, args: str = "[]", kwargs: str = "{}") -> str:
    """Start a run, and wait until it is known; its id."""
    start(browser, args, kwargs)
    wait_until(browser, lambda _: texts(browser, "#start-answer")[0].startswith("Started as "))
    return texts(browser, "#start-answer")[0].removeprefix("Started as ").rstrip(".")


def answering(browser: Chrome, part: str, status: int) -> None:
    """Let what is asked at paths with this part be answered with a problem; no longer, if the status is 0."""
    browser.execute_script(
        """
        const [part, status] = arguments;
        const fetched = window.fetched ??= window.fetch;
        window.asked = [];
        window.fetch = async (path, options) => {
          window.asked.push(path);
          if (!status || !path.includes(part)) return fetched(path, options);
          return new Response(JSON.stringify({ detail: `This is a ${status}.` }), { status });
        };
        """,
        part,
        status,
    )


def asked(browser: Chrome) -> list[str]:
    """The paths at which something was asked since `answering`."""
    paths: list[str] = browser.execute_script("return window.asked")
    return paths


def holding(browser: Chrome, part: str) -> None:
    """Keep the answers to what is asked at paths with this part until they are released."""
    browser.execute_script(
        """
        const [part] = arguments;
        const fetched = window.fetched ??= window.fetch;
        window.held = [];
        window.fetch = async (path, options) => {
          const answer = await fetched(path, options);
          if (path.includes(part)) await new Promise((release) => window.held.push(release));
          return answer;
        };
        """,
        part,
    )


def held(browser: Chrome, number: int) -> None:
    """Wait until so many answers are held."""
    wait_until(browser, lambda _: browser.execute_script("return window.held.length") == number)


def release(browser: Chrome) -> None:
    """Let go the answers that are held, the newest first, and the page do what it does with them."""
    browser.execute_async_script(
        """
        const done = arguments[0];
        window.fetch = window.fetched;
        for (const release of window.held.reverse()) release();
        setTimeout(done, 200);
        """
    )


def listening(browser: Chrome) -> None:
    """Keep the WebSockets that are opened from here on, and what is sent."""
    browser.execute_script(
        """
        window.sent = [];
        window.WebSocket = class extends WebSocket {
          constructor(address) { super(address); window.socket = this; }
          send(text) { window.sent.push(JSON.parse(text)); super.send(text); }
        };
        """
    )


def arrives(browser: Chrome, *messages: dict[str, Any]) -> None:
    """Let these arrive over the newest WebSocket."""
    script = "for (const data of arguments) socket.dispatchEvent(new MessageEvent('message', { data }))"
    browser.execute_script(script, *(json.dumps({"pipeline_id": "single", **message}) for message in messages))


def event(run_id: str, kind: str, time: float, *, task: str, task_id: str = "1") -> dict[str, Any]:
    """A message about a task."""
    return {"type": "event", "run_id": run_id, "kind": kind, "time": time, "task": task, "task_id": task_id}
