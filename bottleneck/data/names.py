"""Names that cannot be kept: undecodable bytes of a file system, lone surrogates of JSON, NUL."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text itself, or with escapes for what UTF-8 cannot say (undecodable bytes, lone surrogates)."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        raw = text.encode("utf-8", "surrogateescape" if _from_bytes(text) else "backslashreplace")
        return raw.decode("utf-8", "backslashreplace")
    return text


def _from_bytes(text: str) -> bool:
    return all(not "\ud800" <= char <= "\udfff" or "\udc80" <= char <= "\udcff" for char in text)


def storable(text: str) -> bool:
    """True for text that a cache can hold: valid UTF-8 without NUL."""
    return printable(text) == text and "\0" not in text
