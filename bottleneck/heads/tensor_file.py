"""A safetensors file as bytes: what is wrong with one, and the checksum of the files that we write.

bytes           8 of the header's length, the header (JSON, with the metadata), the tensors
sha256          in the metadata: of the whole file, with 64 zeros in place of the sum itself
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from bottleneck.errors import ArtifactError, first_line

MAX_HEADER = 100_000_000  # bytes, as in the safetensors library
UNSEALED = b"0" * 64
SUM = re.compile(rb'"sha256":"([0-9a-f]{64})"')  # inside the description quotes have a backslash before them
AGAIN = "Copy it again from where it came, or make it again."
ZIP, PICKLE = b"PK\x03\x04", b"\x80"
KINDS = {  # what other files begin with
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"RIFF": "a WebP image or another RIFF file",
    b"\x89HDF": "an HDF5 file, as feature caches and Keras models are",
    ZIP: "a zip archive, as torch writes",
    PICKLE: "a pickle, which is not read",
    b"\x1f\x8b": "a gzip file",
    b"\x93NUMPY": "a NumPy array",
    b"%PDF": "a PDF file",
    b"version https://git-lfs": "a pointer of Git LFS, without the content",
    b"<": "a page of the web",
    b"{": "JSON",
}


def kind_of(start: bytes, expected: tuple[bytes, ...] = ()) -> str:
    """Return what a file is by its first bytes, as the predicate of a sentence; "" where they do not show it.

    expected : beginnings of `KINDS` that the reader takes
    """
    if not start:
        return "is empty"
    if not any(start):
        return "begins with zeros: its content was lost"
    found = next((magic for magic in KINDS if start.lstrip().startswith(magic)), b"")
    return f"is {KINDS[found]}" if found and found not in expected else ""


def fault_of(path: Path, error: object) -> str:
    """Return what is wrong with a file that safetensors refused, as the predicate of a sentence.

    error : of the library or the system; its words are quoted where nothing better is known.
    """
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(64)
        length = int.from_bytes(start[:8], "little")
        file.seek(8)
        header = file.read(length) if 0 < length <= MAX_HEADER else b""
    if not header.startswith(b"{"):
        return kind_of(start) or "is of another format, or its beginning is damaged"
    if len(header) < length:
        return f"is cut off: it has {size:,} bytes, and its header alone {8 + length:,}"
    try:
        described = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in described.items() if name != "__metadata__"]
        need = int(8 + length + max(ends, default=0))
    except (ValueError, RecursionError, AttributeError, TypeError, LookupError):
        return "has a damaged header"
    if size < need:
        return f"is cut off: it has {size:,} of {need:,} bytes"
    if size > need:
        return f"has {size - need:,} bytes after its end"
    return f"has a damaged header: {first_line(error)}"


def sealed(data: bytes) -> bytes:
    """Return a safetensors file with its sum and sorted metadata; the library writes it in any order."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted((header["__metadata__"] | {"sha256": UNSEALED.decode()}).items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start, rest = len(text).to_bytes(8, "little"), memoryview(data)[8 + size :]
    digest = hashlib.sha256(start + text)
    digest.update(rest)
    field = b'"sha256":"%s"'
    return b"".join((start, text.replace(field % UNSEALED, field % digest.hexdigest().encode(), 1), rest))


def has_checksum(path: Path) -> bool:
    """Return whether the file has a checksum; raise ArtifactError if its content does not agree with it."""
    with open(path, "rb") as file:
        start = file.read(8)
        header = file.read(min(int.from_bytes(start, "little"), MAX_HEADER))
        match = SUM.search(header)
        if match is None:
            return False
        digest = hashlib.sha256(start + header[: match.start(1)] + UNSEALED + header[match.end(1) :])
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest().encode() != match[1]:
        raise ArtifactError(
            "Its content does not agree with its checksum: the file was damaged or changed.",
            AGAIN,
        )
    return True
