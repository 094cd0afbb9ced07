"""A real browser for the tests of pages: the system's Chromium, without a network."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from conftest import without

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of Playwright's, which is the system's own: none is downloaded."""
    place = next(filter(None, map(shutil.which, NAMES)), None)
    if place is None:
        without("Chromium is needed: install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root Chromium runs only without its sandbox.
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=place, args=flags)
        try:
            yield browser
        finally:
            browser.close()


class Opened:
    """A page in a window of its own, and what went wrong in it.

    Attributes:
        page: Playwright's.
        errors: what the console and uncaught exceptions said.
        requests: the addresses that were asked for, but for the page itself and what is in it.
    """

    def __init__(self, browser: Any, path: Path, width: int = 1280, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self.note)
        self.address = path.resolve().as_uri()
        self.page.goto(self.address)
        self.page.wait_for_selector("html[data-ready]", timeout=20_000)

    def note(self, request: Any) -> None:
        if request.url != self.address and not request.url.startswith(("data:", "blob:")):
            self.requests.append(request.url)

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def scrolls_sideways(self) -> bool:
        return self.page.evaluate("document.documentElement.scrollWidth > innerWidth")

    def draw(self, strokes: list[list[tuple[float, float]]]) -> str:
        """Draw strokes on the pad with the mouse, in shares of its side; what the network then says."""
        self.page.click("#clear")
        self.page.locator("#pad").scroll_into_view_if_needed()
        box = self.page.locator("#pad").bounding_box()
        assert box

        def place(point: tuple[float, float]) -> tuple[float, float]:
            return box["x"] + point[0] * box["width"], box["y"] + point[1] * box["height"]

        mouse = self.page.mouse
        for stroke in strokes:
            mouse.move(*place(stroke[0]))
            mouse.down()
            for point in stroke[1:]:
                mouse.move(*place(point))
            mouse.up()
        self.page.wait_for_timeout(100)  # it answers with the next frame
        return self.text("#verdict")


def strokes_of(image: np.ndarray) -> list[list[tuple[float, float]]]:
    """The lines in the middle of a digit's strokes, as somebody would draw them.

    Args:
        image: (28, 28) uint8.
    """
    line = skeleton(image > 100)
    places = {(int(row), int(column)) for row, column in np.argwhere(line)}
    strokes = []
    while places:
        # From an end if there is one.
        start = min(places, key=lambda place: len(beside(place, places)))
        stroke = [start]
        places.remove(start)
        while following := beside(stroke[-1], places):
            stroke.append(following[0])
            places.remove(following[0])
        strokes.append([((column + 0.5) / 28, (row + 0.5) / 28) for row, column in stroke])
    return strokes


def beside(place: tuple[int, int], places: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """The neighbours of a place, those at its sides before those at its corners."""
    row, column = place
    steps = [(0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, -1), (-1, 1)]
    return [near for down, right in steps if (near := (row + down, column + right)) in places]


def skeleton(drawn: np.ndarray) -> np.ndarray:
    """What is drawn, thinned to lines of one pixel (Zhang and Suen 1984)."""
    drawn = drawn.copy()
    changed = True
    while changed:
        changed = False
        for first in (True, False):
            wide = np.pad(drawn, 1).astype(int)
            # The neighbours of each pixel, clockwise from above.
            ring = [(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)]
            size = drawn.shape[0]
            near = [wide[1 + y : 1 + y + size, 1 + x : 1 + x + size] for y, x in ring]
            count = sum(near)
            rises = sum((near[i] == 0) & (near[(i + 1) % 8] == 1) for i in range(8))
            up, right, down, left = near[0], near[2], near[4], near[6]
            if first:
                is_border = (up * right * down == 0) & (right * down * left == 0)
            else:
                is_border = (up * right * left == 0) & (up * down * left == 0)
            removed = drawn & (count >= 2) & (count <= 6) & (rises == 1) & is_border
            changed = changed or bool(removed.any())
            drawn &= ~removed
    return drawn
