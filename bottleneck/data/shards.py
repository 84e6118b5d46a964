"""Tar shards: images in uncompressed .tar files, read where they lie, nothing unpacked."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence

from bottleneck.data.files import LocalFiles, RemoteFiles, TarFiles
from bottleneck.data.folder import Listing
from bottleneck.errors import SourceError


def list_shards(files: LocalFiles | RemoteFiles, shards: Sequence[str]) -> tuple[TarFiles, Listing]:
    """List the members of tar files. Keys are `shard.tar/member`.

    Raises
    ------
    SourceError
        A shard is compressed or damaged, or two members have one name.
    """
    members: dict[str, tuple[str, int, int]] = {}
    found = Listing()
    for shard in sorted(shards):
        for member in _members(files, shard):
            key = f"{shard}/{member.name.removeprefix('./').lstrip('/')}"
            if key in members:
                raise SourceError(f"Duplicate sample key {key!r}: the shard has two members of this name.")
            regular = member.isreg() and not member.issparse()
            members[key] = (shard, member.offset_data, member.size)
            found.add(key, None if regular else "is a link or a sparse file in its shard")
    found.keys.sort()
    return TarFiles(files, members), found


def _members(files: LocalFiles | RemoteFiles, shard: str) -> Iterator[tarfile.TarInfo]:
    """The files and links in an uncompressed tar, read header by header."""
    path = files.path(shard)
    opener = open if isinstance(files, LocalFiles) else files.filesystem.open
    try:
        with opener(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # tarfile keeps every header otherwise
                if not member.isdir():
                    yield member
            stream.seek(tar.offset)
            if stream.read(512).strip(b"\0"):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError(f"bad header at byte {tar.offset}")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise SourceError(
            f"The shard {shard} cannot be read: {error}.", "Shards are uncompressed .tar files."
        ) from error
