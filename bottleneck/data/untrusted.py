"""What strangers' files may do: bytes that a library parses, and what a list or cache may name.

Exceptions of a parser become ImageError, and its warnings are dropped.

A list that lies on this machine is the user's own and may name anything. A list from the web, or a cache, may
come from a stranger: it names files of its own host, or below its own folder; the user must allow the rest.
"""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bottleneck.errors import CacheError, ImageError
from bottleneck.files import user_cache
from bottleneck.remote.path import RemotePath, path_of
from bottleneck.remote.urls import allowed, host_of, one_line, without_secrets

LOCAL_SCHEMES = ("file", "local", "memory", "dir")


@contextmanager
def parsing(what: str) -> Iterator[None]:
    """Turn any exception of the block into an ImageError that begins with `what`, and drop its warnings.

    Put only calls into the parser inside, so that a defect of our own code is not hidden.
    """
    with _quiet():
        try:
            yield
        except MemoryError:
            raise ImageError("needs more memory than there is", passing=True) from None
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(f"{what}: {one_line(error)}") from error


class _Parsing:
    """Message pattern of a warning filter that matches only in threads that are inside `parsing`.

    pattern : for those who copy the filters, as scikit-learn does for its jobs: it matches nothing.
    """

    here = threading.local()
    pattern = "(?!)"

    def match(self, text: str) -> bool:
        return getattr(self.here, "inside", False)


_FILTER = ("ignore", _Parsing(), Warning, None, 0)
_lock = threading.Lock()


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop the warnings of this thread only.

    `warnings.catch_warnings` replaces the filters of the whole process; two threads that leave it in the
    wrong order lose the user's filters for good. So one filter is added that matches only in this block.
    """
    with _lock:
        filters: list[Any] = warnings.filters  # type: ignore[assignment]  # typeshed: a Sequence; it is a list
        if not filters or filters[0] is not _FILTER:  # a test or a user changed the filters
            if _FILTER in filters:
                filters.remove(_FILTER)
            filters.insert(0, _FILTER)
    _Parsing.here.inside = True
    try:
        yield
    finally:
        _Parsing.here.inside = False


def refusal(key: str, root: str) -> str | None:
    """Return why an image must not be opened that a list at the URL `root` names; None where it may be.

    Relative paths, and URLs of the list's own host, may be.
    """
    local, remote = allowed()
    if "://" not in key and "::" not in key:
        return None
    if host_of(key) is not None and host_of(key) == host_of(root):
        return None
    if any(part.partition(":")[0].lower() in LOCAL_SCHEMES for part in key.split("::")):
        return (
            None if local else "is a file of this machine in a list from elsewhere; --allow-local allows it"
        )
    return None if remote else "is on another host than the list that names it; --allow-remote allows it"


def require_trusted_root(root: str, cache: str | os.PathLike[str]) -> None:
    """Raise CacheError unless the images of a cache may be read at the folder or URL `root`.

    They may below the current folder and below the cache's own, where the user allows it, and where a command
    of this user wrote the cache from that root (`remember_root`).
    """
    local, remote = allowed()
    if "://" in root or "::" in root:
        if (
            remote
            or _record(root, cache).exists()
            or (root.lower().startswith("zip://::") and _is_near(root.partition("::")[2], cache))
        ):
            return
        raise CacheError(
            f"{cache} names images at {root}, another host, and a cache may come from a stranger.",
            "Repeat the command with --allow-remote if you trust it.",
        )
    if not (local or _is_near(root, cache) or _record(root, cache).exists()):
        raise _astray(cache, f"images in {root}")


def remember_root(root: str, cache: str | os.PathLike[str]) -> None:
    """Record that this user wrote `cache` from `root`, so that later commands read its images there.

    The record names both: another cache at this path, or another root in this cache, is not trusted by it.
    """
    with suppress(OSError):  # a home that cannot be written: the user allows it by the flag
        record = _record(root, cache)
        record.parent.mkdir(parents=True, exist_ok=True)
        record.touch()


def _record(root: str, cache: str | os.PathLike[str]) -> Path:
    place = path_of(cache)
    known = place if isinstance(place, RemotePath) else os.path.realpath(place)
    pair = f"{root}\0{known}".encode("utf-8", "surrogateescape")
    return user_cache() / "sources" / hashlib.sha256(pair).hexdigest()


def require_trusted_keys(keys: Iterable[str], root: str, cache: str | os.PathLike[str]) -> None:
    """Raise CacheError if a key of a cache leads out of its root to where `require_trusted_root` refuses."""
    local, remote = allowed()
    for key in keys:
        if "://" in key or "::" in key:
            if not (local and remote) and (why := refusal(key, root)) is not None:
                raise CacheError(f"{cache} names the image {without_secrets(key)}, which {why}.")
            continue
        is_path_out = "://" not in root and "::" not in root and (key.startswith("/") or ".." in key)
        if is_path_out and not local and not _is_near(os.path.join(root, key), cache):
            raise _astray(cache, f"the image {key}")


def _astray(cache: str | os.PathLike[str], what: str) -> CacheError:
    return CacheError(
        f"{cache} names {what}, neither below the current folder nor below that of the cache, and a cache "
        "may come from a stranger.",
        "Repeat the command with --allow-local if you trust it.",
    )


def _is_near(root: str, cache: str | os.PathLike[str]) -> bool:
    path = os.path.realpath(root)
    folders = (os.path.realpath(os.curdir), os.path.dirname(os.path.realpath(cache)))
    return any(os.path.commonpath([folder, path]) == folder for folder in folders)
