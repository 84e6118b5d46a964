"""A headless Chromium, where the machine has one, that notes every request, message and error of a page."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium():
    """The path of Chromium; skips the test where there is none, or no client for it."""
    pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives the browser")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if path is None:
        pytest.skip("needs chromium, which is not installed")
    return path


@contextmanager
def browser():
    """An open browser."""
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as client:
        opened = client.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@contextmanager
def visit(opened, path, width=1280, dark=False):
    """The page of a file, and the list `heard` of what it asked for and complained of."""
    theme = "dark" if dark else "light"
    size = {"width": width, "height": 900}
    context = opened.new_context(viewport=size, color_scheme=theme, reduced_motion="reduce")
    page, heard = context.new_page(), []
    page.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: heard.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (heard.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    address = Path(path).resolve().as_uri()
    own = (address, "data:")
    page.on("request", lambda each: None if each.url.startswith(own) else heard.append(each.url))
    page.goto(address)
    yield page, heard
    context.close()
