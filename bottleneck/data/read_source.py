"""Open a source of images of any form.

Forms: a folder (`class/x.jpg`, `split/class/x.jpg`, or flat), one image, a manifest (.csv, .jsonl, .parquet),
tar shards (one .tar, or a folder of them), a .zip, or an fsspec URL of any of these.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby

from bottleneck.data.config import ReadConfig
from bottleneck.data.folder_layout import by_suffix, folder_samples
from bottleneck.data.kept_images import KeptImages
from bottleneck.data.listing import (
    Listing,
    base_of,
    is_image,
    list_folder,
    list_remote,
    list_shards,
    shard_target,
)
from bottleneck.data.manifest import read_manifest
from bottleneck.data.source import Source, evenly, image_files, take_shard
from bottleneck.data.splits import classes_set_aside, classes_thinned, set_aside
from bottleneck.data.storage import OPTIONAL_SUFFIXES, SUFFIXES, Files, LocalFiles, RemoteFiles
from bottleneck.data.table_file import TABLE_SUFFIXES, encodable, read_table
from bottleneck.data.untrusted import refusal
from bottleneck.errors import ImageError, Note, SourceError, counted
from bottleneck.remote.filesystem import access_hint, open_url
from bottleneck.remote.retries import Retrier
from bottleneck.remote.urls import one_line, split_chain, without_secrets
from bottleneck.samples import SampleTable

PACKED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".7z", ".rar")


def read_source(source: str | os.PathLike[str] | Source, config: ReadConfig | None = None) -> Source:
    """List a source of images; no image is read. A `Source` is returned as it is.

    Raises
    ------
    SourceError
        What was looked for, what was there, and what to do.
    """
    if isinstance(source, Source):
        return source
    config = config or ReadConfig()
    whole = _locate(os.fspath(source), config)
    split = set_aside(whole.samples, config.val_fraction, config.test_fraction, config.seed)
    fractions = {"val": config.val_fraction, "test": config.test_fraction}
    fractions = {name: fraction for name, fraction in fractions.items() if fraction}
    aside = fractions | {"seed": config.seed} if fractions else {}
    samples = replace(whole.samples, split=split, set_aside=aside)
    lost = (*classes_set_aside(whole.samples, samples), *classes_thinned(whole.samples, samples))
    notes = (*whole.notes, *lost)
    whole = replace(whole, samples=samples, notes=notes)
    if config.cache_images is not None:
        whole = _kept_in(whole, config.cache_images)
    whole = whole if config.limit is None else evenly(whole, config.limit)
    return whole if config.shard is None else take_shard(whole, config.shard)


def _kept_in(source: Source, folder: str) -> Source:
    """Return the source with a folder that keeps its files, or a note that it is not needed."""
    if source.reads_at_once:
        return replace(source, kept=KeptImages(folder))
    text = f"The images are on this machine, so none are kept in {folder}."
    return replace(source, notes=(*source.notes, Note("images-not-kept", text)))


def read_sources(
    sources: Sequence[str | os.PathLike[str] | Source], config: ReadConfig | None = None
) -> list[Source]:
    """List several sources before any image is read.

    Image files in a row become one source, so that they pass a network together (`image_files`).

    Raises SourceError as `read_source` does.
    """
    opened: list[Source] = []
    asked = config and replace(config, remembered={}, inputs_only=False, head_target=None, cache_images=None)
    for are_images, group in groupby(sources, _is_image_file):
        if are_images and asked in (None, ReadConfig()):
            opened.append(image_files([os.fspath(path) for path in group if not isinstance(path, Source)]))
        else:
            opened += [read_source(one, config) for one in group]
    return opened if len(opened) == 1 else [replace(one, one_of_several=True) for one in opened]


def _is_image_file(named: str | os.PathLike | Source) -> bool:
    if isinstance(named, Source):
        return False
    path = os.fspath(named)
    return path.lower().endswith(SUFFIXES) and os.path.isfile(path)


def _locate(source: str, config: ReadConfig) -> Source:
    """Open a source; its form follows from what is at its path, and from its name."""
    if source.lower().startswith("file://"):
        source = open_url(source)[1]
    if ("://" in source or "::" in source) and not os.path.exists(source):
        return _locate_url(source, config)
    path = os.path.abspath(os.path.expanduser(source))
    if encodable(path) != path:
        raise SourceError(f"The source {encodable(path)} has a name that is not valid UTF-8; rename it.")
    if path.lower().endswith(".zip") and os.path.isfile(path):
        return _locate_url(f"zip://::{path}", config)
    if os.path.isdir(path):
        _refuse_columns(config, path)
        return _folder(LocalFiles(path), list_folder(path), config)
    if not os.path.exists(path):
        raise SourceError(
            f"The source {source} does not exist; expected a folder, an image, a manifest, a .tar or a URL."
        )
    if not os.path.isfile(path):
        raise SourceError(
            f"The source {source} is a pipe or a device; expected a folder, an image, a manifest or a .tar."
        )
    folder, name = os.path.split(path)
    return _one_file(LocalFiles(folder), name, config)


def _locate_url(url: str, config: ReadConfig) -> Source:
    """Open a folder or a file with fsspec."""
    filesystem, path = open_url(url, given=True)
    shown, retrier = without_secrets(url), Retrier()
    files = RemoteFiles(filesystem, path, url, retrier=retrier)
    try:
        is_folder = not path.strip("/") or files.store.ask("isdir", path)
        exists = is_folder or files.store.ask("exists", path)
    except Exception as error:  # each backend has error classes of its own
        reason = f"The source {shown} cannot be reached: {one_line(error)}."
        raise SourceError(reason, access_hint(url)) from error
    if is_folder:
        _refuse_columns(config, shown)
        return replace(_folder(files, list_remote(files), config), retrier=retrier)
    if not exists:
        raise SourceError(f"The source {shown} does not exist.", "Check the names in it.")
    folder, _, name = path.rpartition("/")
    head, chain, archive = split_chain(url)
    protocol, _, inside = head.partition("://")
    above = f"{protocol}://{inside.rpartition('/')[0]}{chain}{archive}"
    files = RemoteFiles(filesystem, folder, above, retrier=retrier)
    return replace(_one_file(files, name, config), retrier=retrier)


def _refuse_columns(config: ReadConfig, source: str) -> None:
    if config.names_columns:
        raise SourceError(
            f"Columns are named, but {source} is a folder; only a manifest has columns.",
            "Leave the column flags out, or give a .csv, .jsonl or .parquet file.",
        )


def _folder(files: LocalFiles | RemoteFiles, listing: Listing, config: ReadConfig) -> Source:
    """Return the source of a folder of images, or of tar shards where it has no images of its own."""
    if listing.shards and not listing.keys:
        tar_files, members = list_shards(files, listing.shards)
        members.others += listing.others - Counter({".tar": len(listing.shards)})
        members.absent |= listing.absent
        return _listed(tar_files, members, config)
    return _listed(files, listing, config)


def _listed(files: Files, listing: Listing, config: ReadConfig) -> Source:
    """Return the source of a listing; SourceError where it has no images."""
    if not listing.keys:
        raise SourceError(_nothing(files.root, listing))
    samples, notes = folder_samples(listing.keys, files.root, listing.folders)
    target, suffix, told = shard_target(listing.keys, listing.labels, bool(samples.targets), config.labels)
    if target:
        separator = {"separator": (config.label_separator,)} if config.label_separator else {}
        samples = replace(samples, targets={"label": target}, columns=separator)
        bases = {base_of(key)[0] for key in listing.keys}
        read = sum(suffix in texts for base, texts in listing.labels.items() if base in bases)
        listing.others -= Counter({suffix: read})
    _require_targets(samples, config)
    if "label" in config.regression and not target:
        samples = replace(samples, targets={"label": samples.targets["label"].as_numbers()})
    return Source(
        files.root,
        tuple(listing.keys),
        samples,
        listing.others.total(),
        listing.absent,
        files,
        notes=(*notes, *told, *_ignored_notes(listing)),
        ignored_by_suffix=dict(listing.others),
    )


def _require_targets(samples: SampleTable, config: ReadConfig) -> None:
    """Raise SourceError where a target that is said to be of some kind is not there."""
    for name in (*config.classes, *config.regression):
        if name not in samples.targets:
            known = ", ".join(samples.targets) or "none"
            raise SourceError(f"--classes or --regression names target {name!r}; there are {known}.")


def _ignored_notes(listing: Listing) -> list[Note]:
    """Return a note on files that are not read, hidden ones not counted."""
    others = Counter({suffix: count for suffix, count in listing.others.items() if suffix != "hidden"})
    if not others:
        return []
    count = others.total()
    one, several = (
        "file is not read, being no image by its name",
        "files are not read, being no images by their names",
    )
    message = f"{counted(count, one, several)}: {by_suffix(others)}."
    if listing.shards:
        message += " Shards are read where they have no images beside them."
    elif any(suffix in TABLE_SUFFIXES for suffix in others):
        message += " If a table lists the images, give the table as SOURCE."
    for suffix, advice in OPTIONAL_SUFFIXES.items():
        message += f" To read {suffix}, {advice}." if suffix in others and suffix not in SUFFIXES else ""
    return [Note("files-ignored", message, details={"by_suffix": dict(others)})]


def _nothing(root: str, listing: Listing) -> str:
    """Return what was looked for, and what is there instead."""
    others = [by_suffix(listing.others)] if listing.others else []
    others += [f"{key} ({reason})" for key, reason in list(listing.absent.items())[:1]]
    found = ", ".join(others) or "no files at all"
    return f"No images in {root}: looked for {' '.join(SUFFIXES)}, found {found}."


def _one_file(files: LocalFiles | RemoteFiles, name: str, config: ReadConfig) -> Source:
    """Return the source of a manifest, a shard or a single image."""
    location = without_secrets(f"{files.root.rstrip('/')}/{name}")
    return replace(_opened_file(files, name, config), location=location)


def _opened_file(files: LocalFiles | RemoteFiles, name: str, config: ReadConfig) -> Source:
    if name.lower().endswith(TABLE_SUFFIXES):
        return _manifest(files, name, config)
    _refuse_columns(config, name)
    if name.lower().endswith(".tar"):
        return _listed(*list_shards(files, [name]), config)
    if not is_image(name):
        raise SourceError(
            f"The source {without_secrets(name)} is none of these: an image ({' '.join(SUFFIXES)}), "
            f"a manifest ({' '.join(TABLE_SUFFIXES)}), an uncompressed .tar, a .zip, a folder.",
            "Unpack it and give the folder." if name.lower().endswith(PACKED) else "",
        )
    listing = Listing()
    listing.add(name, files.missing([name]).get(name))
    return _listed(files, listing, config)


def _manifest(files: LocalFiles | RemoteFiles, name: str, config: ReadConfig) -> Source:
    try:
        data = files.read(name)
    except (OSError, ImageError) as error:
        reason = without_secrets(getattr(error, "strerror", None) or one_line(error))
        raise SourceError(f"The manifest {without_secrets(name)} cannot be read: {reason}.") from error

    def missing(keys: Sequence[str]) -> dict[str, str]:
        refused = {} if isinstance(files, LocalFiles) else {key: refusal(key, files.root) for key in keys}
        reasons = {key: reason for key, reason in refused.items() if reason is not None}
        return reasons | files.missing([key for key in keys if key not in reasons and "://" not in key])

    manifest = read_manifest(read_table(name, data), config, name, files.root, missing)
    if not manifest.images:
        key, reason = next(iter(manifest.absent.items()))
        raise SourceError(
            f"None of the {counted(len(manifest.absent), 'image')} that {name} names can be read; "
            f"the first is {key}: {reason}.",
            f"Paths are relative to {files.root}.",
        )
    return Source(
        files.root,
        tuple(manifest.images),
        manifest.samples,
        0,
        manifest.absent,
        files,
        notes=(*manifest.notes, *_secret_notes(manifest.images)),
        columns=manifest.columns,
        cells=manifest.cells,
    )


def _secret_notes(keys: Iterable[str]) -> list[Note]:
    """Return a note on URLs that hold a secret: they are the keys by which images are found."""
    secret = sum(1 for key in keys if "://" in key and without_secrets(key) != key)
    if not secret:
        return []
    text = (
        f"{counted(secret, 'image is', 'images are')} named by a URL with a password, signature or token. "
        "Such URLs are keys of the images, in caches and in results. Do not share them, or list images by "
        "URLs without secrets."
    )
    return [Note("secrets-in-keys", text, details={"images": secret})]
