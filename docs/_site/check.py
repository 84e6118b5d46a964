"""Check a built site: newcomers' questions find their section in three hits, no page loads foreign files.

    python docs/_site/check.py SITE

The index is the site's own. The rules are those of the search of MkDocs Material 9: words are cut at the
site's separator and not stemmed; a word of the question matches all that begin with it; a section counts more
the more of the words it has, and a whole page more than a section; hits are grouped by page.
"""

import html
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from lunr.builder import Builder
from lunr.index import Index
from lunr.query import Query
from lunr.stop_word_filter import stop_word_filter
from lunr.token_set import TokenSet

HITS = 3  # pages, and sections of a page
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)"""
)


class Search:
    """The search of a site, from its `search_index.json`."""

    def __init__(self, site: dict) -> None:
        self.separator = re.compile(site["config"]["separator"])
        builder = Builder()
        builder.ref("location")
        builder.b(0)
        builder.pipeline.add(stop_word_filter)
        for name in ("title", "text"):
            builder.field(name, site["config"]["fields"][name]["boost"])
        for section in site["docs"]:
            words = {name: self.words(re.sub("<[^>]+>", " ", section[name])) for name in ("title", "text")}
            builder.add({"location": section["location"], **words}, {"boost": section.get("boost", 1)})
        self.index: Index = builder.build()
        self.index.token_set = trie(self.index.inverted_index)

    def words(self, text: str) -> list[str]:
        """Return the words of a text, in lower case."""
        return [word for word in self.separator.split(html.unescape(text).lower()) if word]

    def pages(self, question: str) -> dict[str, list[str]]:
        """Return pages, the best first, each with its sections that were hit, the best first."""
        asked = set(self.words(question))
        query = self.index.create_query()
        for word in sorted(asked):
            query.term(word, wildcard=Query.WILDCARD_TRAILING)
        scores = {}
        for hit in self.index.query(query):
            met = {word for word in asked for found in hit["match_data"].metadata if found.startswith(word)}
            counted = met | {word for word in asked if stop_word_filter(word)}
            whole = "#" not in hit["ref"]
            scores[hit["ref"]] = hit["score"] * (1 + (whole + len(met) / len(counted)) ** 2)
        found: dict[str, list[str]] = {}
        for location in sorted(scores, key=scores.__getitem__, reverse=True):
            found.setdefault(location.partition("#")[0], []).append(location)
        return found


def trie(words: Iterable[str]) -> TokenSet:
    """Return the words as a tree of characters. lunr's own shares nodes, and confuses those of digits."""
    root = TokenSet()
    for word in words:
        node = root
        for character in word:
            node = node.edges.setdefault(character, TokenSet())
        node.final = True
    return root


def main(site: Path) -> list[str]:
    """Return a line for each thing that is wrong."""
    search = Search(json.loads((site / "search" / "search_index.json").read_text("utf-8")))
    wrong = []
    questions = (Path(__file__).parent / "questions.txt").read_text("utf-8").splitlines()
    asked = [line.split(" | ") for line in questions if " | " in line and not line.startswith("#")]
    for answer, question in asked:
        location = answer.replace(".md", ".html")
        pages = dict(list(search.pages(question).items())[:HITS])
        sections = pages.get(location.partition("#")[0], [])
        if not sections or ("#" in location and location not in sections[:HITS]):
            shown = [sections[:HITS] for sections in pages.values()]
            wrong.append(f"{question!r} finds {shown}, not {location}")
    for path in site.rglob("*.html"):
        wrong += [f"{path.relative_to(site)} loads {url}" for url in LOADED.findall(path.read_text("utf-8"))]
    print(f"{len(asked)} questions, {len(wrong)} problems")
    return wrong


if __name__ == "__main__":
    problems = main(Path(sys.argv[1]))
    print(*problems, sep="\n")
    sys.exit(bool(problems))
