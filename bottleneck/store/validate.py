"""Open a cache file from an untrusted source: its structure is checked before any of its data is read.

HDF5 files can refer to other files (external links, external storage, virtual datasets), claim any size, or
nest without end. FORMAT.md, sections 2 to 6, defines what a cache may hold; everything else is refused here.
"""

from __future__ import annotations

import json
import os
from glob import escape
from math import prod
from pathlib import Path
from shlex import quote
from typing import NoReturn

import h5py
import numpy as np
from h5py import h5d, h5g, h5l, h5o, h5s, h5t, h5z

from bottleneck.errors import CacheError, counted, first_line
from bottleneck.files import other_than_file
from bottleneck.remote.path import RemotePath, path_of
from bottleneck.samples import FINISH
from bottleneck.store.layout import DTYPE_NAMES, FORMAT, READABLE_VERSIONS, parts_folder

MAKE_ONE = "Make one with `bottleneck extract SOURCE -o …`."
SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_MEMBERS = 4096  # of one group
MAX_ATTRIBUTES = 64  # of one object
MAX_TEXT = 64 * 1024 * 1024  # characters of one attribute
MAX_RANK = 8
MAX_STRING = 65536  # bytes of one fixed-length string
FLETCHER32_BYTES = 4

KNOWN = {  # axes and kind of each column of the tables that readers use
    "key": (1, "S"),
    "digest": (2, "u"),
    "size": (1, "i"),
    "mtime_ns": (1, "i"),
    "ctime_ns": (1, "i"),
    "inode": (1, "i"),
    "reason": (1, "S"),
    "kind": (1, "S"),
    "image": (2, "i"),
    "split": (1, "S"),
    "group": (1, "S"),
    "measures": (2, "f"),
}
TABLES = ("images", "taken", "failures", "samples")
GROUPS = (*TABLES, "features", "views", "labels")
REQUIRED_TEXT = ("format", "backbone", "preprocess", "fingerprint", "source_root", "sha256")


def open_untrusted(path: str | os.PathLike[str]) -> h5py.File:
    """Open a cache file for reading.

    Parameters
    ----------
    path : path of one HDF5 file

    Returns
    -------
    h5py.File, whose structure follows the format. Its checksums have not been compared: see `verify`.

    Raises
    ------
    CacheError
        The file is absent, is not a cache, is of another format version, or breaks a rule of the format.
    """
    path = path_of(path)
    _require_signature(path)
    try:
        file = h5py.File(path.open("rb") if isinstance(path, RemotePath) else path, "r", locking=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise _refusal(path, f"HDF5 cannot open it ({first_line(error)})") from None
    try:
        _Inspection(path, file).run()
    except CacheError:
        file.close()
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        file.close()
        raise _refusal(path, f"its structure is damaged ({first_line(error)})") from None
    return file


def _require_signature(path: Path) -> None:
    try:
        if not path.is_file():
            if path.exists():
                raise CacheError(f"{path} is {other_than_file(path)}; expected a feature cache.", MAKE_ONE)
            raise no_cache(path)
        with path.open("rb") as raw:
            start = raw.read(len(SIGNATURE))
    except OSError as error:
        raise CacheError(f"{path} cannot be read: {error.strerror or error}.") from None
    if start != SIGNATURE:
        raise CacheError(
            f"{path} is not a feature cache: expected an HDF5 file, got one that starts with {start!r}.",
            MAKE_ONE,
        )


def no_cache(path: Path) -> CacheError:
    """Return the error for a cache that is not there; it names what lies there in its place."""
    if isinstance(path, RemotePath):
        return CacheError(f"There is no feature cache {path}.", "Check the address.")
    if parts_folder(path).is_dir():
        what = f"{path} is not finished: {parts_folder(path)} has the rows of an interrupted run."
        return CacheError(what, FINISH)
    shards = path.parent.glob(f"{escape(path.stem)}--shard-*-of-*{escape(path.suffix)}")
    if first := min(map(str, shards), default=None):
        what = f"There is no feature cache {path}, but shards of one, such as {first}."
        return CacheError(what, f"Merge all of them: bottleneck cache merge SHARDS -o {quote(str(path))}")
    return CacheError(f"There is no feature cache {path}.", MAKE_ONE)


def _refusal(path: Path, what: str) -> CacheError:
    return CacheError(
        f"{path} is refused: {what}.", "Get it anew, or compute it again with `bottleneck extract`."
    )


class _Inspection:
    """One pass over the objects of a file. Each check raises CacheError."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path, self.file = path, file
        self.file_bytes = path.stat().st_size
        self.stored_bytes = 0
        self.seen: set[int] = set()

    def run(self) -> None:
        """Check the root, its members, and the members of its groups."""
        root = self.file.id
        group = h5g.open(root, b"/")
        self._once("/", group)
        self._attributes("/", group)
        self._root_attributes()
        for name in self._members("/", group):
            item = self._object("/", group, name)
            path = f"/{name.decode('utf-8', 'replace')}"
            if isinstance(item, h5g.GroupID) != (path[1:] in GROUPS) and path[1:] in (*GROUPS, "covariates"):
                self._refuse(f"{path} is a {type(item).__name__}")
            if isinstance(item, h5g.GroupID):
                for inner in self._members(path, item):
                    child = self._object(path, item, inner)
                    child_path = f"{path}/{inner.decode('utf-8', 'replace')}"
                    if not isinstance(child, h5d.DatasetID):
                        self._refuse(f"{child_path} is a group, deeper than a cache goes")
                    self._dataset(child_path, child)
            else:
                self._dataset(path, item)
        if self.stored_bytes > self.file_bytes:
            self._refuse(f"its datasets claim {self.stored_bytes} bytes, the file has {self.file_bytes}")

    def _refuse(self, what: str) -> NoReturn:
        raise _refusal(self.path, what)

    def _members(self, path: str, group: h5g.GroupID) -> list[bytes]:
        count = group.get_num_objs()
        if count > MAX_MEMBERS:
            self._refuse(f"{path} holds {counted(count, 'object')}; at most {MAX_MEMBERS} are allowed")
        return [bytes(name) for name in group]

    def _object(self, path: str, group: h5g.GroupID, name: bytes) -> h5g.GroupID | h5d.DatasetID:
        """Open a member by its hard link; a soft or external link is refused, not followed."""
        shown = f"{path.rstrip('/')}/{name.decode('utf-8', 'replace')}"
        kind = group.links.get_info(name).type
        if kind != h5l.TYPE_HARD:
            names = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "an external link"}
            self._refuse(f"{shown} is {names.get(kind, 'a link of unknown kind')}")
        item = h5o.open(group, name)
        if not isinstance(item, h5g.GroupID | h5d.DatasetID):
            self._refuse(f"{shown} is neither a group nor a dataset")
        self._once(shown, item)
        self._attributes(shown, item)
        return item

    def _once(self, path: str, item: h5g.GroupID | h5d.DatasetID) -> None:
        address = h5o.get_info(item).addr
        if address in self.seen:
            self._refuse(f"{path} is reached by two links")
        self.seen.add(address)

    def _attributes(self, path: str, item: h5g.GroupID | h5d.DatasetID) -> None:
        count = h5py.h5a.get_num_attrs(item)
        if count > MAX_ATTRIBUTES:
            self._refuse(f"{path} has {counted(count, 'attribute')}; at most {MAX_ATTRIBUTES} are allowed")
        for index in range(count):
            attribute = h5py.h5a.open(item, index=index)
            name = attribute.name.decode("utf-8", "replace")
            if attribute.get_space().get_simple_extent_type() != h5s.SCALAR:
                self._refuse(f"the attribute {name!r} of {path} is not a scalar")
            kind = attribute.get_type()
            text = isinstance(kind, h5t.TypeStringID) and kind.is_variable_str()
            if not (text or (isinstance(kind, h5t.TypeIntegerID) and kind.get_size() == 8)):
                self._refuse(f"the attribute {name!r} of {path} is neither a text nor an int64")

    def _root_attributes(self) -> None:
        attributes = self.file.attrs
        if "format" not in attributes or _text(attributes, "format") != FORMAT:
            self._refuse(f"it is HDF5 but not a feature cache (its attribute 'format' is not {FORMAT!r})")
        version = attributes.get("format_version")
        if version not in READABLE_VERSIONS:
            self._refuse(f"its format version is {version}, this software reads {READABLE_VERSIONS}")
        for name in REQUIRED_TEXT:
            if not _text(attributes, name):
                self._refuse(f"its root attribute {name!r} is missing")
        for name in ("backbone", "preprocess"):
            if not isinstance(json.loads(_text(attributes, name)), dict):
                self._refuse(f"its root attribute {name!r} is not a JSON object")

    def _dataset(self, path: str, dataset: h5d.DatasetID) -> None:
        shape, dtype = self._shape_and_type(path, dataset)
        self._storage(path, dataset, prod(shape) * dtype.itemsize)
        group, _, name = path.lstrip("/").partition("/")
        if group in TABLES and name in KNOWN and (len(shape), dtype.kind) != KNOWN[name]:
            self._refuse(f"{path} has {len(shape)} axes of type {dtype}; expected {KNOWN[name]}")
        if name == "digest" and group in TABLES and shape[1] != 32:
            self._refuse(f"{path} has rows of {shape[1]} bytes; a sha256 has 32")
        if group in ("features", "views") and (dtype.name not in ("float16", "float32") or len(shape) < 2):
            self._refuse(f"{path} has {len(shape)} axes of type {dtype}; expected rows of float16 or float32")

    def _shape_and_type(self, path: str, dataset: h5d.DatasetID) -> tuple[tuple[int, ...], np.dtype]:
        space = dataset.get_space()
        if (
            space.get_simple_extent_type() != h5s.SIMPLE
            or not 1 <= space.get_simple_extent_ndims() <= MAX_RANK
        ):
            self._refuse(f"{path} is not an array of 1 to {MAX_RANK} axes")
        kind = dataset.get_type()
        if isinstance(kind, h5t.TypeStringID):
            if kind.is_variable_str() or kind.get_size() > MAX_STRING:
                self._refuse(f"{path} holds strings of variable or huge length")
        elif not isinstance(kind, h5t.TypeIntegerID | h5t.TypeFloatID):
            self._refuse(f"{path} holds elements of a type that no cache has ({type(kind).__name__})")
        dtype = kind.dtype
        if dtype.kind != "S" and (dtype.name not in DTYPE_NAMES or dtype.newbyteorder("<") != dtype):
            self._refuse(f"{path} holds elements of type {dtype}; expected one of {', '.join(DTYPE_NAMES)}")
        return space.get_simple_extent_dims(), dtype

    def _storage(self, path: str, dataset: h5d.DatasetID, need: int) -> None:
        """Require that every element is stored in this file; then no shape can be larger than the file."""
        properties = dataset.get_create_plist()
        if properties.get_external_count():
            self._refuse(f"{path} keeps its data in other files (external storage)")
        layout = properties.get_layout()
        if layout == h5d.VIRTUAL:
            self._refuse(f"{path} is a virtual dataset")
        if need == 0:
            return
        if layout != h5d.CHUNKED:
            self._refuse(f"{path} is not stored in chunks")
        for index in range(properties.get_nfilters()):
            code = properties.get_filter(index)[0]
            if code != h5z.FILTER_FLETCHER32:
                self._refuse(f"{path} uses HDF5 filter {code}; only fletcher32 is allowed")
        if properties.get_nfilters() != 1:
            self._refuse(f"{path} does not have the fletcher32 filter once")
        if need > self.file_bytes:
            self._refuse(f"{path} claims {need} bytes, the file has {self.file_bytes}")
        self._chunks(path, dataset, properties.get_chunk(), need)

    def _chunks(self, path: str, dataset: h5d.DatasetID, chunk: tuple[int, ...], need: int) -> None:
        shape = dataset.get_space().get_simple_extent_dims()
        if chunk[1:] != shape[1:] or chunk[0] > shape[0]:
            self._refuse(f"{path} has chunks of shape {chunk}; expected whole rows of {shape}")
        expected = -(-shape[0] // chunk[0])
        if dataset.get_num_chunks() != expected:
            self._refuse(f"{path} has {dataset.get_num_chunks()} of its {expected} chunks")
        stored = dataset.get_storage_size()
        whole = expected * (need // shape[0] * chunk[0] + FLETCHER32_BYTES)
        if stored != whole:
            self._refuse(f"{path} stores {stored} bytes; its shape needs {whole}")
        self.stored_bytes += stored


def _text(attributes: h5py.AttributeManager, name: str) -> str:
    value = attributes.get(name, "")
    return value if isinstance(value, str) and len(value) <= MAX_TEXT else ""
