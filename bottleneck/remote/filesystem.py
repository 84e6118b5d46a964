"""The fsspec filesystem of a URL, asked with time limits and retries that are the same for all backends."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from bottleneck.errors import SourceError
from bottleneck.remote import retries
from bottleneck.remote.retries import Passing, Refused, Retrier
from bottleneck.remote.urls import one_line, split_chain, without_secrets
from bottleneck.threads import REMOTE_READS

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

Result = TypeVar("Result")

# The extra that installs what a scheme needs.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "hf": "hf"}
_SCHEME = re.compile("([a-z0-9]+)://", re.IGNORECASE)
_NEAR = ("", "file", "local", "memory", "dir")  # schemes without a network
# Of an S3 filesystem for uploads: blocks of 50 MB that are in memory at once.
_OWN = {"skip_instance_cache": True, "max_concurrency": 4}
# What helps where a store refuses, by scheme.
_ACCESS = {
    "s3": "Run `aws configure` or set AWS_PROFILE; for a public bucket set FSSPEC_S3_ANON=true, for a store "
    "other than that of AWS FSSPEC_S3_ENDPOINT_URL.",
    "gs": "Run `gcloud auth application-default login`; for a public bucket set FSSPEC_GS_TOKEN=anon.",
    "hf": "Run `hf auth login`, or set HF_TOKEN.",
}
BLOCK = 4 << 20  # bytes that are read at once of a file that is read in parts
KEPT = 16  # blocks of such a file in memory
TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")  # in a file's record
TAGS = ("CRC", "md5Hash", "ETag", "etag")


def scheme_of(url: str) -> str:
    """Return the scheme of the store in which the file of a URL or chain lies; "" for a path."""
    found = _SCHEME.match(url.rpartition("::")[2])
    return found[1].lower() if found else ""


def is_remote(url: str) -> bool:
    """Return whether a path, URL or chain is read over a network."""
    return scheme_of(url) not in _NEAR


def access_hint(url: str) -> str:
    """Return what to do where the store of a URL refuses or does not answer."""
    scheme = _EXTRAS.get(scheme_of(url), scheme_of(url))
    return _ACCESS.get(scheme, "Check the address; run the same command again when its server answers.")


def version_of(info: Mapping[str, Any]) -> str:
    """Return what changes with a file by its record, a tag or else a time; "" where the store tells none."""
    return next((str(info[name]) for name in (*TAGS, *TIMES) if info.get(name)), "")


def open_url(url: str, given: bool = False, own: bool = False) -> tuple[AbstractFileSystem, str]:
    """Return the fsspec filesystem of a URL, and the path in it.

    given : the user named the URL. own : nothing else uses the filesystem, see `count_sent_again`.

    Raises
    ------
    SourceError
        No such protocol, its package is not installed, or it cannot be reached.
    """
    from fsspec.core import url_to_fs

    from bottleneck.remote.http import WebFileSystem

    if url.lower().startswith(("http://", "https://")) and not split_chain(url)[1]:
        return WebFileSystem(given=url if given else ""), url
    try:
        return url_to_fs(url, **_options(url, own))
    except Exception as error:  # each backend has error classes of its own
        extra, url = _EXTRAS.get(scheme_of(url)), without_secrets(url)
        if isinstance(error, ImportError) and extra:
            raise SourceError(
                f"The URL {url} needs a package that is not installed.",
                f"Run: pip install 'bottleneck-features[{extra}]'",
            ) from error
        raise SourceError(f"The URL {url} cannot be opened: {one_line(error)}.") from error


def _options(url: str, own: bool = False) -> dict[str, Any]:
    """Return the options of the store of a URL, by its scheme, as `url_to_fs` takes them.

    botocore would keep 10 connections, and wait for a minute. What the user has set for fsspec stays.
    """
    scheme = scheme_of(url)
    if _EXTRAS.get(scheme) != "s3":
        return {}
    from fsspec.config import conf

    ours = {
        "connect_timeout": retries.TIMEOUT,
        "read_timeout": retries.TIMEOUT,
        "max_pool_connections": REMOTE_READS,
        "retries": {"total_max_attempts": 1 + retries.RETRIES, "mode": "standard"},
    }
    users = conf.get("s3", {}).get("config_kwargs", {}) | conf.get("s3a", {}).get("config_kwargs", {})
    return {scheme: {"config_kwargs": ours | users, **(_OWN if own else {})}}


def count_sent_again(filesystem: AbstractFileSystem, retrier: Retrier) -> None:
    """Let `retrier` count the requests that botocore itself sends again; other backends leave it to us."""
    if _EXTRAS.get(filesystem.protocol[0]) != "s3":
        return

    def created(request: Any, **event: Any) -> None:
        if request.context.get("retries", {}).get("attempt", 1) > 1:
            retrier.count("no answer, or an error of the server")

    filesystem.connect()
    filesystem.s3.meta.events.register("request-created.s3", created)


class RemoteStore:
    """Requests to an fsspec filesystem. Called from several threads at once.

    url : of a folder or file in it. retrier : sends them again; not used where no network is between.
    """

    def __init__(self, filesystem: AbstractFileSystem, url: str, retrier: Retrier) -> None:
        from fsspec.archive import AbstractArchiveFileSystem

        self.filesystem = filesystem
        self._url, self._retrier = url, retrier
        self._near = not is_remote(url)
        self._archive = isinstance(filesystem, AbstractArchiveFileSystem)
        # All members of an archive are read through one file with one position
        self._turn: AbstractContextManager = threading.Lock() if self._archive else nullcontext()

    def ask(self, method: str, *arguments: Any, size: int = 0, **options: Any) -> Any:
        """Return the answer of a method of the filesystem. size : bytes expected, which take their time.

        Raises what the filesystem raises, and TimeoutError.
        """
        if self._near:
            return self._call(method, arguments, options)
        return self._retrier.run(
            self._url, lambda seconds: self._attempt(seconds, method, arguments, options), size
        )

    def find(self, folder: str) -> dict[str, dict[str, Any]]:
        """Return the records of all files below a folder, by path, as they are now.

        A listing has many requests, which the backend itself sends again; no limit of time holds for all.
        """
        with self._turn:
            self.filesystem.invalidate_cache()
            return dict(self.filesystem.find(folder, detail=True))

    def cat(self, path: str, start: int = 0, size: int | None = None, whole: int = 0) -> bytes:
        """Return the bytes of a file, or `size` of them from `start`.

        whole : size of the file as it is known, 0 if it is not. Fewer or more bytes are read again, unless
        the store tells by now that the file has so many.
        """
        expected = (size or whole) if not start else (size or 0)
        span = {"start": start or None, "end": None if size is None else start + size}

        def attempt(seconds: float) -> bytes:
            data: bytes = self._attempt(seconds, "cat_file", (path,), span)
            if expected and len(data) != expected and not (size is None and self._size(path) == len(data)):
                raise Passing(f"{'fewer' if len(data) < expected else 'more'} bytes than announced were sent")
            return data

        if self._near:
            return cast(bytes, self._call("cat_file", (path,), span))
        return self._retrier.run(self._url, attempt, expected)

    def open(self, path: str, size: int | None = None, version: str = "") -> BinaryIO:
        """Open a file of which parts are read, each with retries. size : in bytes, where it is known.

        version : of `version_of`. Reading raises Replaced once the store has another one; "" compares none.
        """
        if self._near or self._archive:
            return cast(BinaryIO, self.filesystem.open(path, "rb"))
        size = self.ask("info", path).get("size") if size is None else size
        if size is None:
            raise OSError("the server does not tell the size, so no part can be asked for")
        return cast(BinaryIO, _ranged_file(self, path, size, version))

    def require_version(self, path: str, version: str) -> None:
        """Raise Replaced if the file is not the one that had this version."""
        self.filesystem.invalidate_cache(path)
        if version_of(self.ask("info", path)) != version:
            raise Replaced("it was replaced while it was read")

    def _size(self, path: str) -> int | None:
        """Return the size of a file as the store tells it now."""
        self.filesystem.invalidate_cache(path)
        size: int | None = self._attempt(retries.TIMEOUT, "info", (path,), {}).get("size")
        return size

    def _attempt(self, seconds: float, method: str, arguments: tuple, options: dict[str, Any]) -> Any:
        """Call a method of the filesystem, for so long at most."""
        if getattr(self.filesystem, "limits_itself", False):
            return self._call(method, arguments, options)
        coroutine = getattr(self.filesystem, f"_{method}", None)
        try:
            if getattr(self.filesystem, "async_impl", False) and coroutine is not None:
                from fsspec.asyn import sync

                return sync(self.filesystem.loop, coroutine, *arguments, timeout=seconds, **options)
            return _within(seconds, lambda: self._call(method, arguments, options))
        except TimeoutError as error:
            raise TimeoutError(f"no whole answer within {seconds:.3g} s") from error

    def _call(self, method: str, arguments: tuple, options: dict[str, Any]) -> Any:
        with self._turn:
            return getattr(self.filesystem, method)(*arguments, **options)


def _within(seconds: float, call: Callable[[], Result]) -> Result:
    """Return call(), made in a thread that is given up after so many seconds: TimeoutError."""
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=copy_context().run, args=(run,), name="bottleneck-request", daemon=True).start()
    return outcome.result(seconds)


class Replaced(Refused):
    """A file has been replaced since it was opened: parts of the two would make no file."""


def _ranged_file(store: RemoteStore, path: str, size: int, version: str) -> Any:
    from fsspec.spec import AbstractBufferedFile

    class RangedFile(AbstractBufferedFile):
        """A file of which blocks are asked for, and the last ones kept."""

        def _fetch_range(self, start: int, end: int) -> bytes:
            data = store.cat(path, start, min(end, size) - start)
            if version:  # asked for after the bytes, which are then those of the version
                store.require_version(path, version)
            return data

    kept = {"maxblocks": KEPT}
    return RangedFile(
        store.filesystem, path, "rb", BLOCK, cache_type="blockcache", cache_options=kept, size=size
    )
