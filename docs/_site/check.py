"""Check a built site: questions of newcomers find their page in three hits, and no page loads foreign files.

    python docs/_site/check.py SITE

The index is the site's own, searched by lunr's rules with the weight of titles that the theme uses.
"""

import json
import re
import sys
from pathlib import Path

from lunr import lunr

TITLE_WEIGHT = 1000
HITS = 3
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)"""
)


def boosted(documents: list[dict]) -> list[tuple[dict, dict]]:
    """Return the sections with the weights of their pages, as lunr takes them."""
    return [(each, {"boost": each.get("boost", 1)}) for each in documents if each["location"]]


def pages_found(search, question: str) -> list[str]:
    """Return the pages of the first hits, each once, in order."""
    words = " ".join(re.findall(r"[^\W_]+", question))
    pages = dict.fromkeys(hit["ref"].partition("#")[0] for hit in search.search(words))
    return list(pages)[:HITS]


def main(site: Path) -> list[str]:
    """Return a line for each thing that is wrong."""
    documents = json.loads((site / "search" / "search_index.json").read_text("utf-8"))["docs"]
    fields = [{"field_name": "title", "boost": TITLE_WEIGHT}, "text"]
    search = lunr(ref="location", fields=fields, documents=boosted(documents))
    wrong = []
    questions = (Path(__file__).parent / "questions.txt").read_text("utf-8").splitlines()
    asked = [line.split(" | ") for line in questions if " | " in line and not line.startswith("#")]
    for page, question in asked:
        found = pages_found(search, question)
        if page.replace(".md", ".html") not in found:
            wrong.append(f"{question!r} finds {found}, not {page}")
    for path in site.rglob("*.html"):
        wrong += [f"{path.relative_to(site)} loads {url}" for url in LOADED.findall(path.read_text("utf-8"))]
    print(f"{len(asked)} questions, {len(wrong)} problems")
    return wrong


if __name__ == "__main__":
    problems = main(Path(sys.argv[1]))
    print(*problems, sep="\n")
    sys.exit(bool(problems))
