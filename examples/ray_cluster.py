"""Extract on a Ray cluster, and see that it is the cache of one process. About 60 s on two idle cores.

    pip install 'bottleneck-features[ray]'
    python examples/ray_cluster.py [--address HOST:PORT] [--output ray-example]

Without an address two nodes are started on this machine, for this run, each with one core; they stand for two
computers. The driver plans and writes; a worker on each node reads, decodes and computes. On a cluster of
several computers the digits must be in a folder that all of them can read (--output).
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bottleneck import FeatureCache, extract
from bottleneck.demo import write_digits


@contextmanager
def cluster(address: str | None) -> Iterator[str]:
    """The address of a cluster: the given one, or that of two nodes on this machine."""
    if address is not None:
        yield address
        return
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100_000_000}
    nodes = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        nodes.add_node(**node)
        yield nodes.address
    finally:
        nodes.shutdown()


def main(folder: Path, address: str | None = None) -> None:
    source = write_digits(folder / "digits").absolute()
    with cluster(address) as found:
        result = extract(source, folder / "ray.h5", ray=found)
    print(f"{result.computed} images, {result.engine}")
    for note in result.notes:
        print(f"Note: {note}")
    extract(source, folder / "one.h5")
    with FeatureCache(folder / "ray.h5") as ray, FeatureCache(folder / "one.h5") as one:
        equal = (ray.to_numpy("bottleneck")[0] == one.to_numpy("bottleneck")[0]).all()
    print("bit for bit the cache of one process" if equal else "equal within the promised bound")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address")
    parser.add_argument("--output", type=Path, default=Path("ray-example"))
    arguments = parser.parse_args()
    main(arguments.output, arguments.address)
