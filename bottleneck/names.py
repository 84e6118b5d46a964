"""Words that users type and files contain, each written once. This module imports nothing."""

from __future__ import annotations

SPLITS = ("train", "val", "test")
ALL_SAMPLES = "all"  # what is measured of a source without splits
TARGET_KINDS = ("class", "multilabel", "regression")

DEFAULT_BACKBONE = "efficientnet_lite0"
SMALL_CNN = "small_cnn"  # the network that is trained from random weights
BOTTLENECK = "bottleneck"  # node of the last pooled features, before the classifier
NATIVE = "native"  # pool of BOTTLENECK: the network's own pooling
DEFAULT_POOL = "avg"  # of every other node
COVARIATES = "covariates"  # the block of a head's inputs that they are
SIDE_BY_SIDE = "+"  # between the nodes whose features a head takes side by side
POOLS = ("avg", "avg2", "avg3", "max", "token", "flatten", "none")
DTYPES = ("float16", "float32")  # types of stored features; the first is the default

MEASURES = ("width", "height", "low", "high", "entropy", "contrast", "sharpness")  # of an image's pixels

EXACT, SCALED = "exact", "scaled"  # how JPEGs are decoded: all pixels, or fewer where many are not needed
DECODINGS = (EXACT, SCALED)

ONNXRUNTIME, OPENVINO = "onnxruntime", "openvino"  # libraries that run an exported graph on a CPU
ENGINES = ("auto", ONNXRUNTIME, OPENVINO, "torch", "torch-compiled")
FAST = "fast"  # 16 bits where the hardware multiplies them faster, else fp32
COMPUTED_IN = ("fp32", "bf16", "fp16", "int8")  # number formats of a network that computes
PRECISIONS = ("auto", FAST, *COMPUTED_IN)

LINEAR_HEADS = ("logistic", "ridge")  # take any target, and can be trained on cached views
HEAD_KINDS = (*LINEAR_HEADS, "nearest-mean", "knn", "mlp")
CLASS_WEIGHTS = ("balanced",)
SCALES = ("auto", "equal")  # of the blocks of a head's inputs
MULTI_CLASS = ("multinomial", "ovr")  # one softmax, or one sigmoid per class

STATE_PREFIX = "backbone."  # of a network's tensors in a model file, beside the head's arrays

EXPORT_FORMATS = ("onnx", "torch")
MAP_FORMAT = "map"  # of a cache: a table for viewers of embeddings
CACHE_SUFFIXES = (".h5", ".hdf5", ".parts")
HEADS_FOLDER = "heads"  # where heads are written by default
TOP_CLASSES = 5  # listed per prediction
DEMO_FOLDER = "bottleneck-demo"

COLUMN_FLAGS = {  # by the role of a manifest's column
    "image": "--image-column",
    "label": "--label-column",
    "split": "--split-column",
    "group": "--group",
    "sample": "--sample-column",
    "covariate": "--covariate",
    "separator": "--label-separator",
}
ASIDE_FLAGS = {"val": "--val-fraction", "test": "--test-fraction", "seed": "--seed"}
FOUND_BY_ROLE = ("image", "label", "split")  # roles whose column needs no flag where it has the role's name

DEFAULT_CHANNELS = 3  # of a network's input: RGB
SMALL_CNN_DEPTH = 4  # blocks of small_cnn by default
PATCH_IMAGES = 300  # searched for the strongest patches by default


def nodes_in(name: str) -> tuple[str, ...]:
    """The nodes of a name such as A+B, whose rows stand side by side; of one node, itself."""
    return tuple(node.strip() for node in name.split(SIDE_BY_SIDE))


def default_pool(node: str) -> str:
    """The pool that a node's name means without @POOL."""
    return NATIVE if node == BOTTLENECK else DEFAULT_POOL


def is_cache(path: object) -> bool:
    """Return whether a path is that of a feature cache by its suffix, in any case."""
    return str(path).lower().endswith(CACHE_SUFFIXES)
