"""List the images below a folder, a URL or in tar shards; read the labels of WebDataset shards.

Links to files and folders are followed, but not in a circle. Shards are uncompressed .tar files, of which
nothing is unpacked. Their files of one name, apart from the suffixes, are one sample: in `0001.jpg`,
`0001.cls`, `0001.seg.png` the image is 0001.jpg, its class is the text of 0001.cls, and the mask is no
sample. The name ends at its first dot (github.com/webdataset/webdataset).
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from bottleneck.data.config import LabelConfig
from bottleneck.data.storage import SUFFIXES, LocalFiles, RemoteFiles, TarFiles
from bottleneck.data.table_file import encodable, folded
from bottleneck.data.targets import target_from_column
from bottleneck.errors import Note, SourceError, counted
from bottleneck.remote.filesystem import access_hint
from bottleneck.remote.urls import one_line
from bottleneck.samples import Target

Identity = tuple[int, int]  # device and inode of a folder

LARGEST_HEADER = 1 << 20  # bytes of an extended header of a tar file
_EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"X")
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_RECORD = re.compile(rb"(\d{1,9}) [^=\n]{1,512}=")  # of a pax header
_DIGITS = re.compile(rb"\d+")
LONGEST_NUMBER = 256  # digits in a pax header; time of tarfile's search is quadratic in them
_NOT_UTF8 = "has a name that is not valid UTF-8; rename the file or its folder"
LABEL_SUFFIXES = (".cls", ".json", ".txt")  # the first that a source has gives the labels
LARGEST_LABEL = 64 * 1024  # bytes of a file that is read as a label
_LABEL_KEYS = ("label", "cls", "class", "class_name", "category", "target")  # of a JSON object


def is_image(key: str) -> bool:
    """Return whether a file is an image by its name; the name may be followed by a query (x.jpg?size=2)."""
    return key.lower().endswith(SUFFIXES) or key.lower().partition("?")[0].endswith(SUFFIXES)


@dataclass
class Listing:
    """Files of a source.

    keys : of images. others : number of other files by suffix. shards : the .tar files among these.
    absent : images that are known to be unreadable, with the reason.
    labels : of shards, the texts of label files by suffix, by the name of the sample (`shard_target`).
    folders : the folders, with what each has beside images that can be read: the number of files by suffix.
    """

    keys: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    shards: list[str] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    folders: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    labels: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, key: str, reason: str | None = None) -> None:
        """Add a file; `reason` is why it cannot be read, if that is known."""
        folder = self.folders[key.rpartition("/")[0]]
        hidden = key.startswith(".") or "/." in key  # macOS leaves ._x.jpg beside x.jpg
        if hidden or not is_image(key):
            suffix = "hidden" if hidden else encodable(PurePosixPath(key).suffix.lower()) or "no suffix"
            self.others[suffix] += 1
            folder[suffix] += 1
            if suffix == ".tar":
                self.shards.append(key)
        elif (shown := encodable(key)) != key:
            self.absent[shown] = _NOT_UTF8
            folder["unreadable"] += 1
        elif reason:
            self.absent[key] = reason
            folder["unreadable"] += 1
        else:
            self.keys.append(key)


def list_folder(root: str) -> Listing:
    """List the files below a folder of this machine.

    Raises
    ------
    SourceError
        The folder itself cannot be listed. One below it that cannot is among `absent`.
    """
    listing = Listing()
    folders: list[tuple[str, tuple[Identity, ...]]] = [("", (_identity(root),))]
    while folders:
        prefix, above = folders.pop()
        try:
            listing.folders[prefix.rstrip("/")].update()
            with os.scandir(os.path.join(root, prefix)) as entries:
                for entry in entries:
                    if (inside := _add_entry(entry, prefix + entry.name, above, listing)) is not None:
                        folders.append(inside)
        except OSError as error:
            if not prefix:
                raise SourceError(f"The folder {root} cannot be listed: {error.strerror}.") from error
            listing.absent[encodable(prefix)] = f"is a folder that cannot be listed: {error.strerror}"
    listing.keys.sort()
    listing.absent = dict(sorted(listing.absent.items()))
    return listing


def _add_entry(
    entry: os.DirEntry[str], key: str, above: tuple[Identity, ...], listing: Listing
) -> tuple[str, tuple[Identity, ...]] | None:
    """Add a file to `listing`, or return a folder to be listed with the identities on its path."""
    reason = None
    try:
        if entry.is_dir():
            identity = _identity(entry.path)
            if identity in above:
                listing.others["link in a circle"] += 1
                return None
            return key + "/", (*above, identity)
        if not entry.is_file():
            reason = "is a link that leads nowhere" if entry.is_symlink() else "is not a regular file"
    except OSError as error:  # a link to itself, or beyond a folder that may not be entered
        reason = f"cannot be read: {error.strerror}"
    listing.add(key, reason)
    return None


def _identity(path: str) -> Identity:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def list_remote(files: RemoteFiles) -> Listing:
    """List the files below a folder of an fsspec filesystem.

    Raises
    ------
    SourceError
        The store cannot be listed.
    """
    try:
        entries = files.store.find(files.folder)
    except NotImplementedError as error:  # no address or server will do: the text says what will
        raise SourceError(f"The source {files.root} cannot be listed: {one_line(error)}.") from error
    except Exception as error:  # each backend has error classes of its own
        raise SourceError(
            f"The source {files.root} cannot be listed: {one_line(error)}.", access_hint(files.root)
        ) from error
    files.listing |= entries
    listing = Listing()
    for path in entries:
        listing.add(path.removeprefix(files.folder).lstrip("/"))
    listing.keys.sort()
    return listing


def list_shards(files: LocalFiles | RemoteFiles, shards: Sequence[str]) -> tuple[TarFiles, Listing]:
    """List the members of tar files. Keys are `shard.tar/member`.

    Raises
    ------
    SourceError
        A shard is compressed or damaged, or two members have one name.
    """
    members: dict[str, tuple[str, int, int]] = {}
    listing = Listing()
    for shard in sorted(shards):
        for member, text in _members(files, shard):
            key = f"{shard}/{member.name.removeprefix('./').lstrip('/')}"
            if key in members:
                raise SourceError(f"Duplicate sample key {key!r}: the shard has two members of this name.")
            regular = member.isreg() and not member.issparse()
            members[key] = (shard, member.offset_data, member.size)
            listing.add(key, None if regular else "is a link or a sparse file in its shard")
            if text is not None:
                base, suffix = base_of(key)
                listing.labels.setdefault(base, {})[suffix] = text
    listing.keys, masks = without_masks(sorted(listing.keys), listing.labels)
    listing.others += masks
    return TarFiles(files, members), listing


class _Member(tarfile.TarInfo):
    """A header of a tar file. What tarfile reads beyond it takes time and memory linear in the file.

    Extended headers, which tarfile reads into memory, are bounded. The records of a pax header must lie one
    behind the other, since tarfile searches the whole header for each. Maps of sparse files are not read:
    such a file is a failure by name.
    """

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENDED and self.size > LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes; {LARGEST_HEADER:,} are allowed")
        if self.type in _PAX:
            stream = tar.fileobj
            assert stream is not None
            start = stream.tell()
            _require_pax_records(stream.read(self.size))
            stream.seek(start)
        member: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]  # not in typeshed
        return member

    def _proc_sparse(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        """Skip the map of an old GNU sparse file, which may be a chain of blocks."""
        stream, extended = tar.fileobj, self._sparse_structs[1]  # type: ignore[attr-defined]
        assert stream is not None
        for _ in range(LARGEST_HEADER // tarfile.BLOCKSIZE):
            if not extended:
                break
            block = stream.read(tarfile.BLOCKSIZE)
            extended = len(block) == tarfile.BLOCKSIZE and bool(block[504])
        else:
            raise tarfile.ReadError(f"a map of a sparse file of more than {LARGEST_HEADER:,} bytes")
        del self._sparse_structs  # type: ignore[attr-defined]
        self.sparse = []  # type: ignore[assignment]  # typeshed has bytes
        self.offset_data = stream.tell()
        tar.offset = self.offset_data + self._block(self.size)  # type: ignore[attr-defined]
        return self

    def _proc_gnusparse_00(self, member: tarfile.TarInfo, *_: object) -> None:
        member.sparse = []  # type: ignore[assignment]

    _proc_gnusparse_01 = _proc_gnusparse_10 = _proc_gnusparse_00


def _require_pax_records(data: bytes) -> None:
    """Raise ReadError unless a pax header is a sequence of records "LENGTH KEYWORD=VALUE\\n"."""
    at = 0
    while at < len(data) and data[at]:
        match = _RECORD.match(data, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise tarfile.ReadError(f"a pax header whose record at byte {at} is damaged")
        at = end
    if max(map(len, _DIGITS.findall(data)), default=0) > LONGEST_NUMBER:
        raise tarfile.ReadError(f"a pax header with a number of more than {LONGEST_NUMBER} digits")


def _members(files: LocalFiles | RemoteFiles, shard: str) -> Iterator[tuple[tarfile.TarInfo, str | None]]:
    """Yield the files and links in an uncompressed tar, header by header, with the text of label files."""
    try:
        with files.open(shard) as stream, tarfile.open(fileobj=stream, mode="r:", tarinfo=_Member) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                if not member.isdir():
                    yield member, _label_text(tar, member)
            stream.seek(tar.offset)
            if stream.read(512).strip(b"\0"):  # tarfile treats a damaged header as the end
                raise tarfile.ReadError(f"bad header at byte {tar.offset}")
    except SourceError:
        raise
    except Exception as error:  # of tarfile: nested headers end in a RecursionError, odd numbers in others
        raise SourceError(
            f"The shard {shard} cannot be read: {one_line(error)}.", "Shards are uncompressed .tar files."
        ) from error


def _label_text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str | None:
    """Return the text of a label file, None for other files and for those that are too large."""
    if base_of(member.name)[1] not in LABEL_SUFFIXES or not member.isreg() or member.size > LARGEST_LABEL:
        return None
    file = tar.extractfile(member)
    return None if file is None else encodable(file.read().decode("utf-8-sig", "backslashreplace"))


def base_of(key: str) -> tuple[str, str]:
    """Return the name that the files of a sample share, and the suffix of this file with its dot."""
    folder, slash, name = key.rpartition("/")
    stem, dot, suffix = name.partition(".")
    return folder + slash + stem, (dot + suffix).lower()


def without_masks(keys: Sequence[str], labelled: Mapping[str, Any]) -> tuple[list[str], Counter[str]]:
    """Return the images without those that belong to another image, and the number of these by suffix.

    labelled : names of samples that have a label file.
    """
    suffixes: dict[str, list[str]] = {}
    for base, suffix in map(base_of, keys):
        suffixes.setdefault(base, []).append(suffix)
    kept, masks = [], Counter[str]()
    for key in keys:
        base, suffix = base_of(key)
        plain = sorted(other for other in suffixes[base] if other.count(".") == 1)
        middle = suffix[1:].rpartition(".")[0]
        is_mask = bool(plain) and any(part.isalpha() for part in middle.split("."))
        is_second = base in labelled and suffix in plain[1:]  # .jpg comes before .png
        if is_mask or is_second:
            masks[suffix] += 1
        else:
            kept.append(key)
    return kept, masks


def shard_target(
    keys: Sequence[str], files: Mapping[str, Mapping[str, str]], has_folders: bool, config: LabelConfig
) -> tuple[Target | None, str, list[Note]]:
    """Return the target "label" of images, from the files beside them.

    Parameters
    ----------
    files : texts of the label files by suffix, by the name of the sample.
    has_folders : whether folders give labels; a .txt, which may be a caption, then does not.

    Returns
    -------
    target : None where no file gives labels.
    suffix : of the files that were read.
    notes : what was decided.
    """
    texts = [files.get(base_of(key)[0], {}) for key in keys]
    for suffix in LABEL_SUFFIXES[:2] if has_folders else LABEL_SUFFIXES:
        present = [text.get(suffix) for text in texts]
        cells: list[Any] = [None if text is None else text.strip() or None for text in present]
        unread: Counter[str] = Counter()
        if suffix == ".json":
            cells = [_json_label(cell, unread) for cell in cells]
        if any(cell is not None for cell in cells):
            target, notes = target_from_column("label", cells, config)
            return target, suffix, [_label_note(suffix, cells, unread, has_folders), *notes]
    return None, "", []


def _json_label(text: str | None, unread: Counter[str]) -> Any:
    """Return the label in a JSON file: its value, or that of a key of labels; other keys are counted."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        unread["files that are not JSON"] += 1
        return None
    if not isinstance(value, dict):
        return value
    key = next((key for name in _LABEL_KEYS for key in value if folded(key) == name), None)
    unread.update(repr(other) for other in value if other != key)
    return None if key is None else value[key]


def _label_note(suffix: str, cells: Sequence[Any], unread: Counter[str], has_folders: bool) -> Note:
    """Return the note on where labels came from, and what lies beside them."""
    message = f"Labels are read from the {suffix} files of the shards"
    if has_folders:
        message += ", not from the folders"
    if missing := sum(cell is None for cell in cells):
        message += f"; {counted(missing, 'image has', 'images have')} none"
    if unread:
        message += f"; not read: {', '.join(name for name, _ in unread.most_common(5))}"
    return Note("shard-labels", message + ".", has_folders, {"suffix": suffix, "unread": list(unread)})
