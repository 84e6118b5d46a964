"""What is fuzzed: for each target valid seeds, a generator of structured inputs, and how one is read."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
import tarfile
import tempfile
import zlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
from PIL import Image

from bottleneck.errors import BottleneckError
from tests.fuzz.mutations import mutated
from tests.helpers.json_values import JSON

GOLDEN = Path(__file__).parents[1] / "integration" / "golden"
TEXT = st.text(max_size=12)


class Target:
    """One reader under test. `work` is a folder that it may use."""

    def __init__(self, work: Path) -> None:
        self.work = work

    @abstractmethod
    def seeds(self) -> Sequence[bytes]:
        """Return valid inputs."""

    @abstractmethod
    def structured(self) -> st.SearchStrategy[bytes]:
        """Return a generator of inputs whose outer structure and checksums are right."""

    @abstractmethod
    def read(self, data: bytes) -> bool:
        """Read one input: True for a result, False for a named failure. BottleneckError is one too."""

    def inputs(self) -> st.SearchStrategy[bytes]:
        """Return the generator of all inputs."""
        return mutated(self.seeds()) | mutated(self.seeds()) | self.structured()

    def outcome(self, data: bytes) -> str:
        """Return "result" or "refused"; any error that is not ours passes."""
        try:
            return "result" if self.read(data) else "refused"
        except BottleneckError as error:
            message = str(error)
        if "\n" in message:
            raise AssertionError(f"a message of more than one line: {message!r}")
        return "refused"


def png(header: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG whose checksums are right."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, body in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        parts.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
    return b"".join(parts)


class Images(Target):
    """Image bytes → pixels, through the loader as every command reads images."""

    def seeds(self) -> Sequence[bytes]:
        dice = np.random.default_rng(0)
        pixels = Image.fromarray(dice.integers(0, 255, (24, 31, 3), np.uint8))
        kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
            (pixels, "PNG", {}),
            (pixels.convert("P"), "PNG", {"transparency": 3}),
            (Image.fromarray(dice.integers(0, 65535, (9, 7)).astype(np.uint16)), "PNG", {}),
            (pixels, "JPEG", {"exif": _orientation(6)}),
            (pixels, "JPEG", {"progressive": True}),
            (pixels.convert("CMYK"), "JPEG", {}),
            (pixels.convert("P"), "GIF", {}),
            (pixels, "WEBP", {}),
            (pixels, "TIFF", {"compression": "tiff_lzw"}),
            (pixels, "BMP", {}),
        ]
        found = []
        for image, kind, options in kinds:
            file = io.BytesIO()
            image.save(file, kind, **options)
            found.append(file.getvalue())
        return found

    def structured(self) -> st.SearchStrategy[bytes]:
        size = st.integers(0, 40) | st.sampled_from((1, 65535, 99_999_999, 2**31 - 1, 2**32 - 1))
        header = st.builds(
            lambda *fields: struct.pack(">IIBBBBB", *fields),
            size,
            size,
            st.sampled_from((1, 2, 4, 8, 16, 3)),
            st.sampled_from((0, 2, 3, 4, 6, 7)),
            st.just(0),
            st.just(0),
            st.integers(0, 2),
        )
        kind = st.sampled_from(
            (b"PLTE", b"tRNS", b"tEXt", b"zTXt", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"IDAT")
        )
        body = st.binary(max_size=60) | st.binary(max_size=2000).map(zlib.compress)
        return st.builds(lambda head, chunks: png(head, *chunks), header, st.lists(st.tuples(kind, body)))

    def read(self, data: bytes) -> bool:
        from bottleneck.data.loader import load_images
        from bottleneck.data.preprocess import Preprocess

        class One:
            def read(self, key: str) -> bytes:
                return data

            def stat(self, key: str) -> tuple[int, ...]:
                return (len(data), 1, 1, 1)

        recipe = Preprocess(32, 32, "bilinear", (0.5,) * 3, (0.5,) * 3)
        (image,) = load_images(One(), ["image"], recipe, workers=1)
        if image.pixels is not None:
            assert (image.pixels.shape, image.pixels.dtype) == ((32, 32, 3), np.uint8)
            return True
        assert image.error
        assert "\n" not in image.error
        return False


def _orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


class Tables(Target):
    """A CSV, JSONL or Parquet file → a source, as `extract` reads it. The first byte is the format."""

    KINDS = (b"c.csv", b"j.jsonl", b"p.parquet")

    def seeds(self) -> Sequence[bytes]:
        rows: list[dict[str, Any]] = [
            {
                "image": f"{k}.png",
                "label": "ab"[k % 2],
                "split": ("train", "val")[k % 2],
                "age": k / 3,
                "그룹": k,
            }
            for k in range(9)
        ]
        text = ",".join(rows[0]) + "\n" + "".join(",".join(map(str, row.values())) + "\n" for row in rows)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        quoted = 'image,label\r\n"0.png","x\ny ""z"""\r\n1.png,b\r\n'
        return [
            b"c" + text.encode(),
            b"c" + quoted.encode("utf-8-sig"),
            b"j" + lines.encode(),
            b"p" + _parquet(rows),
        ]

    def structured(self) -> st.SearchStrategy[bytes]:
        name = st.sampled_from(("image", "Image ", "label", "split", "group", "sample", "age")) | TEXT
        cell = (
            JSON
            | TEXT
            | st.sampled_from(("0.png", "train", "val", "1e999", "nan", "../x", "file:///etc/passwd"))
        )
        image = st.integers(0, 11).map(lambda number: f"{number}.png")  # the last three are absent
        whole = st.builds(
            lambda key, rest: {"image": key, **rest}, image, st.dictionaries(name, cell, max_size=5)
        )
        rows = st.lists(whole, min_size=1) | st.lists(st.dictionaries(name, cell, max_size=6), max_size=6)

        def jsonl(rows: list[dict[str, Any]]) -> bytes:
            return b"j" + "\n".join(json.dumps(row) for row in rows).encode()

        def csv(table: list[list[str]]) -> bytes:
            quoted = [",".join('"' + text.replace('"', '""') + '"' for text in row) for row in table]
            return b"c" + "\n".join(quoted).encode("utf-8", "surrogatepass")

        columns = st.lists(name, min_size=1, max_size=5, unique=True)
        values = st.one_of(
            *(
                st.lists(kind, min_size=3, max_size=3)
                for kind in (TEXT, st.integers(-9, 2**62), st.floats(), st.binary())
            )
        )

        def parquet(names: list[str], columns: list[list[Any]]) -> bytes:
            table = dict(zip(names, columns, strict=False))
            return b"p" + _parquet(
                [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
            )

        header = st.lists(name.filter(lambda text: "\0" not in text), min_size=1, max_size=6)
        body = st.lists(st.lists(TEXT, max_size=6), max_size=5)
        split = st.sampled_from(("train", "val", "TEST ", ""))
        number = st.floats().map(str) | st.integers(-9, 99).map(str) | st.just("")
        named = st.lists(st.builds(lambda *cells: list(cells), image, TEXT, split, number), min_size=2)
        return st.one_of(
            rows.map(jsonl),
            st.builds(lambda first, rest: csv([first, *rest]), header, body),
            st.builds(lambda rest: csv([["image", "label", "split", "age"], *rest]), named),
            st.builds(parquet, columns, st.lists(values, min_size=5, max_size=5)),
        )

    def read(self, data: bytes) -> bool:
        from bottleneck.data.read_source import read_source

        kind = next((name for name in self.KINDS if name[:1] == data[:1]), self.KINDS[0]).decode()
        for number in range(9):
            (self.work / f"{number}.png").touch()  # the rows of the seeds name them
        path = self.work / kind
        path.write_bytes(data[1:])
        source = read_source(path)
        assert len(source.samples)
        assert all("\n" not in note.message for note in source.notes)
        return True


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


class Tars(Target):
    """A tar file → its images and labels, as `extract` lists a shard."""

    def seeds(self) -> Sequence[bytes]:
        names = ("a/0.png", "a/0.cls", "b/1.jpg", "b/1.json", "긴" * 60 + ".png")
        found = []
        for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
                for name in names[: 4 if kind == tarfile.USTAR_FORMAT else 5]:
                    body = b'{"label": 3}' if name.endswith("json") else b"7"
                    member = tarfile.TarInfo(name)
                    member.size = len(body)
                    tar.addfile(member, io.BytesIO(body))
            found.append(file.getvalue())
        return found

    def structured(self) -> st.SearchStrategy[bytes]:
        def block(name: str, size: int, kind: bytes, body: bytes, link: str) -> bytes:
            member = tarfile.TarInfo(name.replace("\0", "") or "x")
            member.size, member.type, member.linkname = size, kind, link.replace("\0", "")
            header = member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
            return header + body + bytes(-len(body) % 512)

        name = (
            st.sampled_from(("a/0.png", "0.cls", "0.json", "../x.png", "/x.png", "GNUSparseFile.0/x")) | TEXT
        )
        body = st.sampled_from(
            (b"", b"7", b"12 path=x\n", b"30 mtime=nan\n", b"99999999999 a=b\n", b"1 0 0\n")
        )
        body = body | st.binary(max_size=700)
        size = st.integers(0, 700) | st.sampled_from((2**20 + 1, 2**33 - 1, 2**60))
        kind = st.sampled_from([bytes([code]) for code in b"0123457gxLKSVMNAD\\0"])
        text = st.text(st.characters(codec="utf-8"), max_size=12)
        blocks = st.builds(block, name | text, size, kind, body, text)
        return st.lists(blocks, max_size=8).map(lambda blocks: b"".join(blocks) + bytes(1024))

    def read(self, data: bytes) -> bool:
        from bottleneck.data.read_source import read_source

        (self.work / "shard.tar").write_bytes(data)
        source = read_source(self.work / "shard.tar")
        for key in source.images[:3]:
            source.read(key)
        return True


class Logs(Target):
    """A commit log → the rows of its parts."""

    def __init__(self, work: Path) -> None:
        from tests.store.make_golden import interrupted

        super().__init__(work)
        self.template = interrupted(work)
        self.log = (self.template / "log").read_bytes()

    def seeds(self) -> Sequence[bytes]:
        return [self.log]

    def structured(self) -> st.SearchStrategy[bytes]:
        lines = [json.loads(line[65:]) for line in self.log.splitlines()]
        names = [line["part"] for line in lines if "part" in line]
        value = JSON | st.sampled_from([*names, "log", "../x.h5", "", 2**70, -1, lines[1]["nodes"]])

        def changed(edits: list[tuple[int, str, Any]]) -> bytes:
            objects = [dict(line) for line in lines]
            for number, field, new in edits:
                objects[number % len(objects)][field] = new
            texts = [json.dumps(item, sort_keys=True, separators=(",", ":")).encode() for item in objects]
            return b"".join(hashlib.sha256(text).hexdigest().encode() + b" " + text + b"\n" for text in texts)

        fields = sorted({field for line in lines for field in line} | {"table"})
        edit = st.tuples(st.integers(0, 9), st.sampled_from(fields), value)
        return st.lists(edit, min_size=1, max_size=3).map(changed)

    def read(self, data: bytes) -> bool:
        from bottleneck.store.reader import FeatureCache
        from bottleneck.store.verify import Check
        from bottleneck.store.writer import CacheWriter
        from tests.helpers.world import ROOT, SPEC, A

        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            parts = Path(shutil.copytree(self.template, Path(folder) / "cache.h5.parts"))
            (parts / "log").write_bytes(data)
            Check().cache(parts)
            try:
                with FeatureCache(parts) as cache:
                    cache.features(A.name).read(0, len(cache.images))
            finally:
                with CacheWriter(Path(folder) / "cache.h5", SPEC, [A], ROOT):
                    pass
        return True


class Heads(Target):
    """A safetensors file → a head, and its answers."""

    FILES = tuple(sorted((GOLDEN / "heads").glob("*.safetensors")))

    def seeds(self) -> Sequence[bytes]:
        return [path.read_bytes() for path in self.FILES]

    def structured(self) -> st.SearchStrategy[bytes]:
        from bottleneck.heads.tensor_file import sealed

        seeds = [resealable(data) for data in self.seeds()]
        fields = sorted({field for header, _ in seeds for field in header.get("__metadata__", {})})
        value = (
            JSON.map(json.dumps) | TEXT | st.sampled_from(("1e-320", "3e38", "NaN", "[]", "{}", "null", "-1"))
        )
        number = st.sampled_from((0.0, 3e38, 1e-38, float("nan"), float("inf"), -1.0))

        def changed(which: int, edits: list[tuple[str, str]], at: float, new: float) -> bytes:
            header, body = seeds[which % len(seeds)]
            header = json.loads(json.dumps(header))
            for field, text in edits:
                header.setdefault("__metadata__", {})[field] = text
            body = bytearray(body)
            if len(body) >= 4:
                place = int(at * (len(body) // 4 - 1)) * 4
                body[place : place + 4] = struct.pack("<f", new)
            text = json.dumps(header).encode()
            return bytes(sealed(struct.pack("<Q", len(text)) + text + bytes(body)))

        edit = st.tuples(st.sampled_from(fields), value)
        return st.builds(changed, st.integers(0, 99), st.lists(edit, max_size=2), st.floats(0, 1), number)

    def read(self, data: bytes) -> bool:
        from bottleneck.heads.artifact import load_head

        path = self.work / "head.safetensors"
        path.write_bytes(data)
        head = load_head(path)
        answers = head.probabilities(np.ones((2, head.n_features), np.float32))
        assert len(answers) == 2
        return True


class Models(Heads):
    """A safetensors file → a model with its network, and its answer to an image."""

    FILES = (GOLDEN / "model.safetensors", *Heads.FILES[:1])

    def read(self, data: bytes) -> bool:
        from bottleneck import load_model

        path = self.work / "model.safetensors"
        path.write_bytes(data)
        model = load_model(path, engine="torch")
        pixels = np.zeros((9, 9, 3), np.uint8)
        Image.fromarray(pixels).save(self.work / "0.png")
        assert len(model.predict(self.work / "0.png")) <= 1
        return True


def resealable(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the arrays of a safetensors file."""
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


TARGETS: dict[str, type[Target]] = {
    "image": Images,
    "manifest": Tables,
    "tar": Tars,
    "log": Logs,
    "head": Heads,
    "model": Models,
}
