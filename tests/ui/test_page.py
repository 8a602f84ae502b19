"""The page in a real browser: a run from its start to the chat with its endpoints, by clicks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from harness.record import Record
from harness.ui import commands
from tests.chain.conftest import ROOT, write_tiny_run
from tests.ui.conftest import page_of

pytestmark = pytest.mark.ui
expect.set_options(timeout=60_000)
MINUTES = 180_000  # milliseconds: a job or an endpoint on a busy machine


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Iterator[Path]:
    """A directory with a run file of many steps; what was started in it is taken down afterwards."""
    write_tiny_run(tiny_model, tmp_path, steps=600, more="save_steps = 20")
    yield tmp_path
    for lock in (tmp_path / ".runs").glob("*/lock"):
        record = Record(lock.parent.name, lock.parent)
        while commands.interrupt(record):  # a test that failed leaves a verb at work
            time.sleep(1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HARNESS_RUNS_DIR": str(tmp_path / ".runs")}
    words = [sys.executable, "-m", "harness", "down", "--all"]
    subprocess.run(words, cwd=tmp_path, env=environment, check=True, timeout=120)


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    with page_of(folder) as found:
        yield found


def opened(browser: Browser, address: str, width: int = 1200) -> Page:
    """A browser window at the address; a script that fails in it fails the test."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.on("pageerror", lambda error: pytest.fail(f"the page's script failed: {error}"))
    page.goto(address)
    return page


def screenshot(page: Page, name: str) -> None:
    """Kept where UI_SCREENSHOTS names a directory, for somebody to look at."""
    if folder := os.environ.get("UI_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def test_a_run_from_start_to_chat(browser: Browser, address: str, folder: Path) -> None:
    page = opened(browser, address)
    expect(page.get_by_role("heading", name="Runs", exact=True)).to_be_visible()
    page.get_by_label("Run file").click()
    page.get_by_role("option", name="tiny.toml").click()
    page.get_by_role("button", name="Start").click()
    page.get_by_role("link", name="tiny-").click()

    chart = page.get_by_text("training loss")
    expect(chart).to_contain_text("of 600", timeout=MINUTES)
    expect(page.get_by_role("log", name="training log")).to_contain_text("step=")
    screenshot(page, "run-training")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("training Stopped")).to_be_visible(timeout=MINUTES)
    stood = chart.inner_text()

    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_text("training Completed")).to_be_visible(timeout=MINUTES)
    expect(chart).to_contain_text("at step 600 of 600")
    assert "at step 600" not in stood  # it was stopped on the way and went on from there
    expect(page.get_by_text("after fine-tuning")).to_be_visible(timeout=MINUTES)
    screenshot(page, "run-measured")
    report = page.get_by_role("link", name="the whole report").get_attribute("href")
    assert report is not None
    told = page.request.get(address.partition("/?")[0] + report)
    assert told.ok and "<svg" in told.text()

    for model in ("tuned", "base"):
        page.get_by_role("button", name=f"Deploy the {model} model").click()
        expect(page.get_by_text(f"endpoint {model} InService")).to_be_visible(timeout=MINUTES)
    page.get_by_role("button", name="Chat").click()
    for model in ("Before fine-tuning", "After fine-tuning"):
        expect(page.get_by_role("heading", name=model)).to_be_visible()
    page.get_by_label("Message").fill("t1 red: warm?")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("log", name="After fine-tuning")).to_contain_text("Yes")
    expect(page.get_by_role("log", name="Before fine-tuning").locator(".answer").last).not_to_have_text("…")
    screenshot(page, "chat")

    page.set_viewport_size({"width": 390, "height": 844})
    screenshot(page, "chat-phone")
    page.get_by_role("link", name="back to the run").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    screenshot(page, "run-phone")
    page.get_by_role("button", name="Take down").click()
    expect(page.get_by_text("InService")).to_have_count(0, timeout=MINUTES)
    result = json.loads(next((folder / ".runs").glob("tiny-*/result.json")).read_text())
    assert result["score"]["rows"] == 24


def test_a_plan_has_its_memory_bars(browser: Browser, address: str) -> None:
    page = opened(browser, address)
    page.get_by_label("Run file").click()
    page.get_by_role("option", name="tinyllama-imdb").click()
    page.get_by_role("button", name="Check and price").click()
    bar = page.get_by_role("img", name="training on ml.trn1.2xlarge, one NeuronCore")
    expect(bar).to_be_visible()
    expect(page.get_by_text("on AWS: ")).to_contain_text("USD")
    screenshot(page, "plan")
    page.set_viewport_size({"width": 390, "height": 844})
    screenshot(page, "plan-phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_what_is_wrong_with_a_run_file_is_said_here(browser: Browser, address: str, folder: Path) -> None:
    path = folder / "tiny.toml"
    path.write_text(path.read_text().replace("max_steps", "max_stepz"))
    page = opened(browser, address)
    page.get_by_label("Run file").click()
    page.get_by_role("option", name="tiny.toml").click()
    page.get_by_role("button", name="Check and price").click()
    expect(page.get_by_text("max_stepz")).to_contain_text("max_steps")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("alert").filter(has_text="exit code 3")).to_contain_text("max_stepz")
    page.close()


def test_by_keyboard(browser: Browser, address: str) -> None:
    page = opened(browser, address)
    expect(page.get_by_role("button", name="Start")).to_be_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Skip to main content"
    page.keyboard.press("Enter")
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.ariaLabel || document.activeElement.innerText"))
    assert {"Run file", "Platform", "CHECK AND PRICE", "START"} <= {str(name).strip() for name in reached}, reached
    assert page.evaluate("document.documentElement.lang") == "en-US"
    page.close()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, "token"),
        ({"Cookie": "harness-ui=wrong"}, "token"),
        ({"Host": "evil.example", "token": "yes"}, "127.0.0.1"),
        ({"Origin": "http://localhost:3000", "token": "yes"}, "another page"),
    ],
)
def test_nobody_else_sees_it(address: str, change: dict[str, str], why: str) -> None:
    headers = {k: v for k, v in change.items() if k != "token"}
    url = address if "token" in change else address.partition("?")[0]
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10)
    assert refused.value.code == 403
    assert why in refused.value.read().decode()
