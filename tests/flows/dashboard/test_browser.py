"""The dashboard as a user has it: the command started, a real browser clicked through it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from tests import REPOSITORY
from tests.support.histories import LATER, RUN, SCRIPT, small_history

WIDTHS = (1280, 390)
NAMES = ["Overview", "Data sets", "Runs", "Captions", "Search", "Curves", "Stale", "Disk"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the dashboard of a small workspace answers, started by its command."""
    folder = tmp_path_factory.mktemp("browsed")
    written = small_history(folder / "workspace", folder / "dataset")
    (written.dataset / "photo2.jpg").unlink()
    for path in (written.workspace.root / "shards" / "images").glob("*.parquet"):
        path.unlink()
    process = subprocess.Popen(
        [sys.executable, "-m", "cutline.flows",
         "dashboard", "--workspace", written.workspace.root, "--port", "0"],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line
        yield found[0]
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("no chromium on the path: this test needs a browser (Debian: apt install chromium)")
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=sandbox)
        yield found
        found.close()


class Visit:
    """A page of the browser, and all that went wrong on it or left this machine."""

    def __init__(self, browser: Browser, address: str, width: int, scheme: str) -> None:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,  # type: ignore[arg-type]
        )
        self.page: Page = context.new_page()
        self.address = address
        self.width = width
        self.wrong: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: self.wrong.append(f"dialog: {dialog.message}"))
        self.page.on("requestfailed", self._failed)
        self.page.on(
            "request",
            lambda request: None if request.url.startswith(address) else self.wrong.append(request.url),
        )
        self.page.on(
            "response",
            lambda answer: (
                self.wrong.append(f"{answer.status}: {answer.url}") if answer.status >= 400 else None
            ),
        )

    def _failed(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # the next page was asked for meanwhile
            self.wrong.append(f"failed: {request.url} {request.failure}")

    def look(self) -> None:
        """The page has loaded, nothing went wrong, and it is no wider than the window."""
        self.page.wait_for_load_state("load")
        assert self.wrong == [], self.page.url
        assert self.page.evaluate("document.documentElement.scrollWidth") <= self.width, self.page.url
        assert self.page.locator("h1").count() == 1

    def open(self, path: str) -> None:
        self.page.goto(self.address + path)
        self.look()

    def click(self, name: str) -> None:
        self.page.get_by_role("link", name=name, exact=True).first.click()
        self.look()


@pytest.fixture
def visit(browser: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Visit]:
    width, scheme = getattr(request, "param", (1280, "light"))
    found = Visit(browser, address, width, scheme)
    yield found
    found.page.wait_for_load_state("networkidle")  # pictures that were still on their way
    assert found.wrong == []
    found.page.context.close()


@pytest.mark.parametrize("visit", [(width, s) for width in WIDTHS for s in ("light", "dark")], indirect=True)
def test_all_pages_can_be_reached_by_clicking_and_fit_the_window(visit: Visit) -> None:
    visit.open("/")
    for name in NAMES:
        visit.click(name)
        expect(visit.page.locator("nav a[aria-current=page]")).to_have_text(name)
    for path in (f"/runs/{RUN}", f"/compare?run={RUN}&run={LATER}", f"/changes?before={RUN}&after={LATER}"):
        visit.open(path)
    visit.open(f"/rejects?run={RUN}&reason=truncated")


def test_colours_follow_what_the_reader_prefers(browser: Browser, address: str) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        visit = Visit(browser, address, 1280, scheme)
        visit.open("/")
        grounds.append(visit.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        visit.page.context.close()
    assert grounds == ["rgb(255, 255, 255)", "rgb(21, 22, 26)"]


def test_captions_are_filtered_sorted_and_opened(visit: Visit) -> None:
    visit.open("/captions")
    page = visit.page
    page.get_by_label("Words").fill("dog")
    page.get_by_label("Sort").select_option("least sure first")
    page.get_by_role("button", name="Show").click()
    visit.look()
    captions = page.locator(".gallery .cutline")
    expect(captions).to_have_text(
        [
            "two children (and a Dog)",
            "a dog on the beach",
            "a dog's life",
            "<b>a dog</b> & <script>alert(2)</script>",
        ]
    )
    expect(page.get_by_role("status")).to_contain_text("4 captions with dog")
    page.get_by_label("File").fill("photo1")
    page.get_by_role("button", name="Show").click()
    visit.look()
    expect(captions).to_have_text(["a dog on the beach"])
    visit.page.go_back()
    page.locator(".gallery a").last.click()
    visit.look()
    expect(page.locator("h1")).to_have_text("<b>a dog</b> & <script>alert(2)</script>")
    expect(page.locator(".facts")).to_contain_text(SCRIPT)
    assert page.evaluate("document.scripts.length") == 0


def test_photographs_are_drawn_and_one_that_is_gone_says_why(visit: Visit) -> None:
    visit.open(f"/captions?run={RUN}&sort=path")
    widths = {
        image.get_attribute("alt"): image.evaluate("image => image.decode().then(() => image.naturalWidth)")
        for image in visit.page.locator(".gallery img").all()
    }
    assert len(widths) == 6
    assert widths.pop("Photograph photo2.jpg") == 320  # the placeholder
    assert set(widths.values()) == {64}
    visit.page.get_by_alt_text("Photograph photo2.jpg").click()
    visit.look()
    expect(visit.page.locator("figcaption")).to_contain_text("vanished: the file was listed and is gone")


def test_two_runs_are_picked_and_what_changed_between_them_is_shown(visit: Visit) -> None:
    visit.open("/runs")
    for box in visit.page.get_by_role("checkbox").all():
        box.check()
    visit.page.get_by_role("button", name="Compare").click()
    visit.look()
    expect(visit.page.locator("tr.changed").first).to_contain_text("predictions.beam")
    visit.click("Which captions changed from A to B")
    expect(visit.page.locator(".changes li")).to_have_count(1)
    expect(visit.page.locator(".changes .cutline")).to_contain_text("a dog's life")


def test_the_keyboard_reaches_the_content_first_and_every_field_has_a_name(visit: Visit) -> None:
    visit.open("/captions")
    visit.page.keyboard.press("Tab")
    expect(visit.page.locator(":focus")).to_have_text("To the content")
    visit.page.keyboard.press("Enter")
    assert visit.page.evaluate("document.activeElement.id") == "main"
    for role in ("main", "banner", "contentinfo"):
        assert visit.page.get_by_role(role).count() == 1  # type: ignore[arg-type]
    fields = visit.page.locator("select, input:not([type=hidden])").all()
    assert len(fields) == 5
    assert all(field.evaluate("field => field.labels.length") == 1 for field in fields)


def test_an_address_that_is_not_there_has_a_page_that_leads_back(visit: Visit) -> None:
    visit.page.goto(f"{visit.address}/<script>alert(1)</script>")
    expect(visit.page.locator("h1")).to_have_text("Not found")
    visit.wrong.clear()  # the browser itself notes the 404
    visit.click("To the overview")
