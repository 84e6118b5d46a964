"""What a bug report needs to know of this installation and machine; torch is not imported for it."""

from __future__ import annotations

import getpass
import importlib
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import bottleneck
from bottleneck.engines.base import SUPPORTED
from bottleneck.engines.device import accelerator_possible
from bottleneck.engines.runtimes import computes_bf16
from bottleneck.errors import Note, first_line
from bottleneck.files import user_cache
from bottleneck.names import ONNXRUNTIME, OPENVINO
from bottleneck.processor import processor_name, vector_units
from bottleneck.threads import available_cores
from bottleneck.versions import package_version

DISTRIBUTION = "bottleneck-features"
NAMESAKE = "Bottleneck"  # of PyData, with the same import name
LITTLE = 2 << 30  # bytes of free disk space below which a note is given
MOST_FILES = 20_000  # counted in one folder
# Environment variables that change threads, engines, devices, or where files go.
_VARIABLES = (
    *("BOTTLENECK_CACHE", "XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME", "HF_HUB_OFFLINE", "TMPDIR"),
    *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("CUDA_VISIBLE_DEVICES", "HDF5_USE_FILE_LOCKING", "PYTHONPATH", "PYTHONUTF8", "LANG", "LC_ALL"),
)


@dataclass(frozen=True)
class Engine:
    """An engine of a CPU: whether it can be used, in which precisions, and why not.

    reason : why it cannot be used, or not in all precisions; empty if it can.
    """

    name: str
    found: bool
    version: str | None
    precisions: list[str]
    reason: str


@dataclass(frozen=True)
class Extra:
    """An extra of the distribution: whether all that it names is installed, and what is not.

    Nothing of it is imported.
    """

    name: str
    found: bool
    missing: list[str]


@dataclass(frozen=True)
class Folder:
    """A folder for caches or weights: its size in bytes, in which a link counts as nothing.

    complete : False if there were more than 20,000 files, of which the first were counted.
    writable : whether files can be written there; the folder is made where it does not exist.
    """

    what: str
    path: str
    exists: bool
    files: int
    bytes: int
    complete: bool
    writable: bool
    free_bytes: int | None


@dataclass(frozen=True)
class Installation:
    """Versions, processor, engines, extras, folders and disk space of this installation.

    versions : by name of bottleneck, Python, the system, and each dependency; None if it is not installed.
    cores : that this process may use; `machine_cores` are those of the machine.
    vector_units : names of the processor's vector units; None if the system does not tell them.
    accelerator : whether torch may find a GPU.
    memory_bytes : of the machine, or of the container if it has less; None if unknown.
    free_bytes : of the disk of the current folder, where caches are written by default.
    environment : variables that change how this package works. The home folder is shown as `~`.
    """

    versions: dict[str, str | None]
    processor: str
    cores: int
    machine_cores: int
    memory_bytes: int | None
    vector_units: list[str] | None
    accelerator: bool
    engines: list[Engine]
    extras: list[Extra]
    folders: list[Folder]
    free_bytes: int | None
    environment: dict[str, str]
    notes: list[Note]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "notes": self.notes}


def doctor() -> Installation:
    """Describe this installation and machine, for a bug report. Nothing is written or sent.

    Returns
    -------
    Installation
        Its `to_json()` is what `bottleneck doctor --json` prints. Paths below the home folder begin with `~`,
        and a folder that has the user's name is shown as USER.
    """
    installed = None
    with suppress(PackageNotFoundError):
        installed = distribution(DISTRIBUTION)
    requirements = list(_requirements(installed)) if installed else []
    versions: dict[str, str | None] = {
        "bottleneck": bottleneck.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "encoding": f"{sys.getfilesystemencoding()} for names, {sys.stdout.encoding} for output",
    }
    versions |= {name: package_version(name) for name, extra in requirements if not extra}
    free, folders = _free_bytes(Path.cwd()), _folders()
    return Installation(
        versions=versions,
        processor=processor_name(),
        cores=available_cores(),
        machine_cores=os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        vector_units=vector_units(),
        accelerator=accelerator_possible(),
        engines=[_engine(name, precisions) for name, precisions in SUPPORTED["cpu"].items()],
        extras=_extras(requirements),
        folders=folders,
        free_bytes=free,
        environment={name: _private(os.environ[name]) for name in _VARIABLES if name in os.environ},
        notes=list(_notes(installed, versions, folders, free)),
    )


def _requirements(installed: Distribution) -> Iterator[tuple[str, str]]:
    """Yield (distribution, extra) for each requirement; the extra is empty for those that all users need."""
    for line in installed.requires or ():
        name, extra = re.match(r"[\w.-]+", line), re.search(r"""extra\s*==\s*['"]([\w-]+)['"]""", line)
        if name:
            yield name[0], extra[1] if extra else ""


def _extras(requirements: Iterable[tuple[str, str]]) -> list[Extra]:
    missing: dict[str, list[str]] = {}
    for name, extra in requirements:
        if extra:
            absent = missing.setdefault(extra, [])
            if package_version(name) is None:
                absent.append(name)
    return [Extra(name, not absent, absent) for name, absent in missing.items()]


def _engine(name: str, precisions: tuple[str, ...]) -> Engine:
    """Import the library of an engine, unless it is torch, whose import takes seconds."""
    library = name if name in (ONNXRUNTIME, OPENVINO) else "torch"
    reason, computed = "", list(precisions)
    number = package_version(library)
    if number is None:
        return Engine(name, False, None, [], f"not installed: pip install {library}")
    try:
        if library != "torch":
            importlib.import_module(library)
    except Exception as error:  # whatever a library raises at its import
        return Engine(name, False, number, [], f"cannot be imported: {first_line(error)}")
    if name == OPENVINO and not computes_bf16():
        computed.remove("bf16")
        reason = "no bf16: the processor has no units for it"
    return Engine(name, True, number, computed, reason)


def _folders() -> list[Folder]:
    cache, home = user_cache(), Path.home()
    base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    torch = Path(os.environ.get("TORCH_HOME") or base / "torch")
    places = {
        "exported networks": cache / "graphs",
        "known networks": cache / "networks",
        "lists of networks": cache / "listings",
        "races of engines": cache / "races",
        "trusted sources": cache / "sources",
        "caches to be uploaded": cache / "staging",
        "weights of torchvision": torch / "hub" / "checkpoints",
        "weights of timm": Path(os.environ.get("HF_HOME") or base / "huggingface") / "hub",
        "caches below this folder": Path("cache"),
    }
    return [_folder(what, path) for what, path in places.items()]


def _folder(what: str, path: Path) -> Folder:
    files = size = 0
    pending = [path]
    while pending and files <= MOST_FILES:
        with suppress(OSError), os.scandir(pending.pop()) as entries:  # a folder may vanish or be closed
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                else:
                    files += 1
                    size += entry.stat(follow_symlinks=False).st_size if not entry.is_symlink() else 0
    free = _free_bytes(path.absolute())
    shown, writable = _private(str(path)), _is_writable(path.absolute())
    return Folder(what, shown, path.is_dir(), files, size, not pending, writable, free)


def _is_writable(path: Path) -> bool:
    """Return whether files can be written to a folder, or the folder be made."""
    place = next(place for place in (path, *path.parents) if os.path.lexists(place))
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)


def _free_bytes(path: Path) -> int | None:
    """Return the free bytes of the disk of a path, of which only the upper folders need to exist."""
    for place in (path, *path.parents):
        with suppress(OSError):
            return shutil.disk_usage(place).free
    return None


def _memory_bytes() -> int | None:
    limits = []
    with suppress(OSError, ValueError, AttributeError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))  # "max" is no limit
    return min(limits, default=None)


def _private(text: str) -> str:
    """Return paths without the home folder and the user's name."""
    home = str(Path.home())
    parts = [
        "~" + part[len(home) :] if part == home or part.startswith(home.rstrip(os.sep) + os.sep) else part
        for part in text.split(os.pathsep)
    ]
    text = os.pathsep.join(parts)
    with suppress(Exception):  # no name is known, as in some containers
        name = re.escape(getpass.getuser())
        text = re.sub(rf"(?<=[/\\]){name}(?=[/\\{os.pathsep}]|$)", "USER", text)
    return text


def _notes(
    installed: Distribution | None, versions: dict[str, str | None], folders: list[Folder], free: int | None
) -> Iterator[Note]:
    if installed is None:
        text = f"{DISTRIBUTION} is not installed: Python runs it from a source folder."
        yield Note(
            "not-installed", f"{text} Run pip install . there, to see its dependencies and extras here."
        )
    elif installed.version != bottleneck.__version__:
        text = f"Python runs version {bottleneck.__version__}, but {installed.version} is installed."
        yield Note("other-version-installed", f"{text} Run pip install . again, or clear PYTHONPATH.")
    if absent := [name for name, number in versions.items() if number is None]:
        text = f"Not installed: {', '.join(absent)}."
        if absent == [OPENVINO]:
            text += " It is a dependency on x86-64 under Linux and Windows alone."
        yield Note("dependencies-missing", text, details={"missing": absent})
    if package_version(NAMESAKE) is not None:
        text = f"PyData's package {NAMESAKE} is installed too. Both are imported as bottleneck."
        yield Note("namesake-installed", f"{text} Use an environment without it.")
    if closed := [folder.path for folder in folders if not folder.writable]:
        text = f"No files can be written to {', '.join(closed)}. Set BOTTLENECK_CACHE or XDG_CACHE_HOME to"
        yield Note("folders-not-writable", f"{text} a folder of yours, or write caches elsewhere with -o.")
    if free is not None and free < LITTLE:
        text = f"The disk of the current folder has {free / 2**30:.1f} GiB left."
        yield Note("disk-nearly-full", f"{text} Free space, or write caches elsewhere with -o.")
