"""Settings of an extraction and of the engine that runs it. This module imports neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass, field

from bottleneck.errors import BottleneckError, ClusterError
from bottleneck.names import DECODINGS, DTYPES

ON_ERROR = ("skip", "fail")


@dataclass(frozen=True)
class EngineConfig:
    """How a network is run.

    engine : one of `names.ENGINES`; "torch-compiled" compiles for a minute.
    precision : one of `names.PRECISIONS`; "auto" is fp32 on a CPU, "fast" bf16 where the processor has units
        for it.
    device : "auto", "cpu", "cuda", "cuda:1", "mps" …
    batch_size : images that pass the network at once; None takes the engine's best.
    workers : decoder threads; None takes as many as there are cores.
    force : use an int8 or bf16 engine although it differs from float32 by more than its bound, scaled
        decoding although it differs from exact decoding by more than its own, and int8, calibrated on the
        images to predict, for a model that did not learn in it.
    """

    engine: str = "auto"
    precision: str = "auto"
    device: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise BottleneckError(f"batch_size is {self.batch_size}; expected 1 or more.")


@dataclass(frozen=True)
class ExtractConfig:
    """What to extract. None means: what the cache has, or the default in a new cache.

    backbone : registry name; `names.DEFAULT_BACKBONE` in a new cache.
        A model file (`models/x.safetensors`) stands for its network and its preprocessing.
    weights : weights id, a file, or "none" for random ones drawn with `seed`.
    nodes : NODE or NODE@POOL, each becomes a dataset; the bottleneck in a new cache.
    pool : pooling of the maps of nodes without @POOL, one of `names.POOLS`.
    dtype : type in which features are stored, one of `names.DTYPES`; float16 in a new cache.
    views : augmented views per image, stored beside the plain features.
    flip : store the features of each image's mirror image as its one view, for `evaluate --flip`.
    image_size, crop : replace those of the published preprocessing (`Preprocess.override`).
    decoding : one of `names.DECODINGS`; exact in a new cache. "scaled" decodes large JPEGs at part of their
        size (`Preprocess.decoding`); its agreement with exact decoding is measured on the user's images.
    in_channels : 1 (grey), 3 or 4; images are decoded to it and the first layer is adapted.
    depth : blocks of `small_cnn`.
    seed : of random weights and of views; 0 in a new cache.
    on_error : "skip" lists an unreadable image as a failure, "fail" stops at the first.
    reread : read every image, also where size, times and inode say that it has not changed.
    measure : also measure the pixels of images that were computed before pixels were measured.
    source_moved : the images of the cache are now in this source; their features are kept.
    keep_parts : leave the cache as a folder of parts, where one file would be too big.
    trust_code : allow a backbone named `package.module:function` to be imported.
    plan_file : a file that fixes source, network, nodes and precision for all shards (`plan_file`). It is
        written if it does not exist, and compared if it does.
    ray : address of a Ray cluster whose workers read the images and run the network: "HOST:PORT"; "auto" for
        the cluster of this machine or, where there is none, one that is started for the run; None for none.
    ray_workers : number of workers, of equal size; None for one on each node, also on nodes that come later.
    gpus_per_worker : GPUs of each worker, or the part of one.
    engine : how the network is run.
    """

    backbone: str | None = None
    weights: str | None = None
    nodes: tuple[str, ...] = ()
    pool: str | None = None
    dtype: str | None = None
    views: int = 0
    flip: bool = False
    image_size: int | None = None
    crop: float | str | None = None
    decoding: str | None = None
    in_channels: int | None = None
    depth: int | None = None
    seed: int | None = None
    on_error: str = "skip"
    reread: bool = False
    measure: bool = False
    source_moved: bool = False
    keep_parts: bool = False
    trust_code: bool = False
    plan_file: str | None = None
    ray: str | None = None
    ray_workers: int | None = None
    gpus_per_worker: float = 0.0
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple(self.nodes))
        if self.dtype not in (None, *DTYPES):
            raise BottleneckError(f"dtype is {self.dtype!r}; expected {' or '.join(DTYPES)}.")
        if self.decoding not in (None, *DECODINGS):
            raise BottleneckError(f"decoding is {self.decoding!r}; expected {' or '.join(DECODINGS)}.")
        if self.on_error not in ON_ERROR:
            raise BottleneckError(f"on_error is {self.on_error!r}; expected {' or '.join(ON_ERROR)}.")
        self._require_ray()
        if self.views < 0:
            raise BottleneckError(f"views is {self.views}; expected 0 or more.")
        if self.flip and self.views:
            raise BottleneckError(
                "A cache holds mirrored views or augmented ones, not both.",
                "Leave --views or --flip out, or write two caches with -o.",
            )

    def _require_ray(self) -> None:
        """Raise ClusterError for workers of a cluster that are not possible, or without a cluster."""
        workers, gpus = self.ray_workers, self.gpus_per_worker
        if workers is not None and workers < 1:
            raise ClusterError(
                f"--ray-workers is {workers}; expected 1 or more.",
                "Leave it out for one worker on each node.",
            )
        if gpus < 0 or (gpus > 1 and gpus != round(gpus)):
            raise ClusterError(
                f"--gpus-per-worker is {gpus:g}; expected a part of one GPU, such as 0.5, or a whole number."
            )
        if self.ray is None and (workers is not None or gpus):
            flag = "--ray-workers" if workers is not None else "--gpus-per-worker"
            raise ClusterError(f"{flag} is for workers of a Ray cluster.", "Add --ray, or --ray HOST:PORT.")

    @property
    def node_names(self) -> tuple[str, ...]:
        """The requested nodes, with `pool` written into those that name none."""
        return tuple(f"{node}@{self.pool}" if self.pool and "@" not in node else node for node in self.nodes)
