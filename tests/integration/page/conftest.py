"""The API served by uvicorn, and a browser that looks at it."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from tests.integration.page.app import make_app
from tests.services import require


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where the API is."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(make_app(), lifespan="on", log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A headless Chromium."""
    require("chromium")
    require("chromedriver")
    driver = Chrome(options=options(tmp_path_factory.mktemp("chromium")), service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chrome: Chrome, address: str) -> Iterator[Chrome]:
    """The page, freshly loaded; nothing in it may have broken its own policy."""
    _log(chrome)
    chrome.get(address)
    yield chrome
    assert [line for line in _log(chrome) if "Content Security" in line] == []


def _log(chrome: Chrome) -> list[str]:
    """What the console has said since the last call."""
    return [str(entry["message"]) for entry in chrome.get_log("browser")]  # type: ignore[no-untyped-call]  # selenium's


def options(profile: Path) -> ChromeOptions:
    """Options of a browser that keeps to itself."""
    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--window-size=1280,1100", f"--user-data-dir={profile}"),
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return options
