"""Parts of pages as tests read them."""

import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest


class _Texts(HTMLParser):
    """All texts of a page outside scripts and styles, and its tags with their attributes."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.texts, self.tags, self._within = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._within.append(tag)

    def handle_endtag(self, tag):
        if tag in self._within:
            while self._within.pop() != tag:
                pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self._within[-1:]):
            self.texts.append(data)


@pytest.fixture
def opened():
    """A function: page's path → its texts, tags, and the JSON within."""

    def read(path):
        html = path.read_text(encoding="utf-8")
        parser = _Texts()
        parser.feed(html)
        data = re.search(r'<script type="application/json" id="numbers">(.*?)</script>', html, re.DOTALL)[1]
        return SimpleNamespace(html=html, texts=parser.texts, tags=parser.tags, **json.loads(data))

    return read
