"""Hostile cache files, each made from a sound one. `HOSTILE` maps a name to (reason, function)."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from bottleneck.store.layout import seal
from tests.helpers.world import A

FEATURES = f"features/{A.name}"
HOSTILE: dict[str, tuple[str, Callable[[h5py.File, Path], None]]] = {}


def hostile(reason: str):
    """Register a function that makes a file hostile, with a pattern of the reason for its refusal."""

    def register(function):
        HOSTILE[function.__name__] = (reason, function)
        return function

    return register


def make(name: str, sound: Path, path: Path) -> Path:
    """Write the hostile file `name`, made from the cache `sound`, to `path`."""
    shutil.copy(sound, path)
    with h5py.File(path, "r+", libver="latest") as file:
        HOSTILE[name][1](file, path)
    return path


def replace(file: h5py.File, path: str, **arguments) -> h5py.Dataset:
    """Replace a dataset by another one with the same attributes."""
    attributes = dict(file[path].attrs)
    shape, dtype = file[path].shape, file[path].dtype
    del file[path]
    dataset = file.create_dataset(path, **({"shape": shape, "dtype": dtype} | arguments))
    dataset.attrs.update(attributes)
    return dataset


@hostile("external link")
def external_link(file, path):
    del file[FEATURES]
    file[FEATURES] = h5py.ExternalLink("/etc/passwd", "/x")


@hostile("external link")
def external_link_at_the_root(file, path):
    del file["images"]
    file["images"] = h5py.ExternalLink("sound.h5", "/images")


@hostile("soft link")
def soft_link(file, path):
    file["elsewhere"] = h5py.SoftLink(f"/{FEATURES}")


@hostile("soft link")
def soft_link_in_a_middle_component(file, path):
    file.move("features", "hidden")
    file["features"] = h5py.SoftLink("/hidden")


@hostile("soft link")
def dangling_soft_link(file, path):
    file["views"] = h5py.SoftLink("/nowhere")


@hostile("external storage")
def external_storage(file, path):
    replace(file, FEATURES, external=[("/etc/passwd", 0, 1000)])


@hostile("virtual dataset")
def virtual_dataset(file, path):
    layout = h5py.VirtualLayout(shape=file[FEATURES].shape, dtype=np.float16)
    layout[...] = h5py.VirtualSource("sound.h5", FEATURES, shape=file[FEATURES].shape)
    attributes = dict(file[FEATURES].attrs)
    del file[FEATURES]
    file.create_virtual_dataset(FEATURES, layout).attrs.update(attributes)


@hostile("filter 32015")
def unknown_filter(file, path):
    shape, attributes = file[FEATURES].shape, dict(file[FEATURES].attrs)
    del file[FEATURES]
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk(shape)
    properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
    space = h5py.h5s.create_simple(shape)
    link = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    link.set_create_intermediate_group(True)
    identifier = h5py.h5d.create(
        file.id, FEATURES.encode(), h5py.h5t.IEEE_F16LE, space, properties, lcpl=link
    )
    h5py.Dataset(identifier).attrs.update(attributes)


@hostile("filter 1;")
def a_compression_bomb(file, path):
    replace(file, FEATURES, shape=(1 << 16, 5), chunks=(1 << 16, 5), compression="gzip")[...] = 0


@hostile("claims")
def shape_of_2_to_the_60(file, path):
    replace(file, FEATURES, shape=(1 << 60, 5), chunks=(1024, 5), fletcher32=True)


@hostile("claims")
def one_row_of_a_terabyte(file, path):
    replace(file, FEATURES, shape=(1, 1 << 39), chunks=(1, 1 << 30), fletcher32=True)


@hostile("of its 7 chunks")
def chunks_never_written(file, path):
    replace(file, FEATURES, shape=(7, 5), chunks=(1, 5), fletcher32=True)


@hostile("not stored in chunks")
def contiguous_storage_never_written(file, path):
    replace(file, FEATURES, shape=(8, 5))


@hostile("chunks of shape")
def chunks_across_a_row(file, path):
    replace(file, FEATURES, shape=(8, 4), chunks=(8, 2), fletcher32=True)[...] = 0


@hostile("two links")
def hard_link_cycle(file, path):
    file["features/again"] = file["features"]


@hostile("two links")
def root_inside_itself(file, path):
    file["root"] = file["/"]


@hostile("two links")
def one_dataset_twice(file, path):
    file["features/again"] = file[FEATURES]


@hostile("deeper")
def deep_nesting(file, path):
    file.create_group("/".join(["deep"] * 500))


@hostile("neither a group nor a dataset")
def named_type(file, path):
    file["type"] = np.dtype("f4")


@hostile("/images is a")
def a_dataset_where_a_group_belongs(file, path):
    del file["images"]
    file.create_dataset("images", data=np.zeros(8), chunks=(8,), fletcher32=True)


@hostile("/covariates is a")
def a_group_where_a_dataset_belongs(file, path):
    del file["covariates"]
    file.create_group("covariates")


@hostile("type that no cache has")
def object_references(file, path):
    replace(file, "images/size", dtype=h5py.ref_dtype, shape=(8,))


@hostile("type that no cache has")
def region_references(file, path):
    replace(file, "images/size", dtype=h5py.regionref_dtype, shape=(8,))


@hostile("type that no cache has")
def compound_elements(file, path):
    replace(file, "images/size", dtype=np.dtype([("a", "i8"), ("b", "f4")]), shape=(8,))


@hostile("type that no cache has")
def vlen_of_vlen(file, path):
    replace(file, "images/size", dtype=h5py.vlen_dtype(np.dtype("i8")), shape=(8,))


@hostile("variable or huge length")
def vlen_strings(file, path):
    replace(file, "images/key", dtype=h5py.string_dtype(), shape=(8,))


@hostile("elements of type")
def big_endian(file, path):
    replace(file, "images/size", dtype=">i8", shape=(8,))


@hostile("expected rows of float16 or float32")
def features_of_another_type(file, path):
    replace(file, FEATURES, data=np.zeros((8, 5), np.int64), dtype="i8", chunks=(8, 5), fletcher32=True)


@hostile("axes of type")
def digests_of_another_type(file, path):
    replace(file, "images/digest", data=np.zeros((8, 32)), dtype="f8", chunks=(8, 32), fletcher32=True)


@hostile("a sha256 has 32")
def digests_of_another_length(file, path):
    replace(file, "images/digest", data=np.zeros((8, 5), "u1"), shape=(8, 5), chunks=(8, 5), fletcher32=True)


@hostile("'backbone' is missing")
def missing_attribute(file, path):
    del file.attrs["backbone"]


@hostile("neither a text nor an int64")
def attribute_of_another_type(file, path):
    file.attrs["fingerprint"] = 1.5


@hostile("not a scalar")
def huge_attribute(file, path):
    file[FEATURES].attrs["extra"] = np.zeros(1 << 16)


@hostile("attributes; at most")
def thousands_of_attributes(file, path):
    for number in range(2000):
        file["images"].attrs[f"a{number}"] = "x"


@hostile("objects; at most")
def thousands_of_objects(file, path):
    for number in range(5000):
        file.create_group(f"labels/g{number}")


@hostile("format version is 3")
def a_later_version(file, path):
    file.attrs["format_version"] = np.int64(3)


@hostile("not a feature cache")
def another_kind_of_hdf5(file, path):
    file.attrs["format"] = "model_weights"


@hostile("structure is damaged")
def backbone_that_is_no_json(file, path):
    file.attrs["backbone"] = "{" * 100_000


@hostile("root's checksum")
def attribute_changed_without_the_seal(file, path):
    file.attrs["created_with"] = "something else"


@hostile("fingerprint is not that of its recipes")
def fingerprint_of_another_recipe(file, path):
    file.attrs["fingerprint"] = hashlib.sha256(b"x").hexdigest()
    reseal(file)


@hostile("is not what its attributes say")
def rows_of_another_node(file, path):
    file[FEATURES].attrs["node"] = "another"
    reseal(file)


@hostile("calibration images of node .* are no list of sha256")
def calibration_images_that_are_a_number_and_a_word(file, path):
    file[FEATURES].attrs["calibrated_on"] = '[1, "../../secret"]'
    reseal(file)


@hostile("does not have a row per image")
def features_of_fewer_images(file, path):
    replace(file, FEATURES, data=np.zeros((7, 5), "f2"), shape=(7, 5), chunks=(7, 5), fletcher32=True)
    reseal(file)


def reseal(file: h5py.File) -> None:
    """Correct the root's checksum, as a forger would."""
    seal(file)
