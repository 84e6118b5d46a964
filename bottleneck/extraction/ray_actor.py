"""The actor that Ray starts on a node: it opens a `ray_worker.Worker`, or says why it cannot.

Ray sends the class by value, so that it runs where our package is missing or has another version, and can say
so. Therefore it imports everything where it is used.
"""

from __future__ import annotations

from typing import Any, cast


def actor_class() -> type:
    """Return the class of the actors; a class within a function is sent by value."""

    class RayWorker:
        def __init__(self, version: str, cores: int, on_gpu: bool) -> None:
            import threading

            self.version, self.cores, self.on_gpu = version, cores, on_gpu
            self.opening, self.refusal, self.worker = threading.Lock(), "", cast(Any, None)

        def info(self, task: list) -> dict:
            """Return where this worker is, and why it refuses; task : the reference of the pickled `Task`."""
            import socket

            import ray.util

            worker = self.open(task)
            return {
                "host": socket.gethostname(),
                "node": ray.get_runtime_context().get_node_id(),
                "address": ray.util.get_node_ip_address(),
                "refusal": self.refusal,
                "batch": worker.batch if worker else 0,
            }

        def compute(self, task: list, part: Any) -> Any:
            """Return the `Done` of a part, or the refusal of a worker that Ray has started again."""
            worker = self.open(task)
            return worker.compute(part) if worker else self.refusal

        def open(self, task: list) -> Any:
            """Return the worker, None if it refuses; it is built at the first call in this process."""
            with self.opening:
                if self.worker is None and not self.refusal:
                    self.build(task)
            return self.worker

        def build(self, task: list) -> None:
            import os
            import pickle

            import ray

            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported
            try:
                import bottleneck

                if bottleneck.__version__ == self.version:
                    from bottleneck.extraction.ray_worker import Worker

                    self.worker = Worker(pickle.loads(ray.get(task[0])), self.cores, self.on_gpu)
                else:
                    self.refusal = f"has bottleneck {bottleneck.__version__} instead of {self.version}"
            except ModuleNotFoundError as error:
                self.refusal = f"lacks the package {error.name}: install bottleneck there as here"
            except Exception as error:
                name = type(error).__name__
                self.refusal = str(error) if name == "Refusal" else f"cannot start: {name}: {error}"

    return RayWorker
