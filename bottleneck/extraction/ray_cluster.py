"""Reach a Ray cluster, or start Ray on this machine, and say what its nodes have.

Ray is imported only here and in `ray_pool`, and only for `--ray`. It sends nothing to its makers, writes
nothing to the user's terminal, and what was started for the run ends with it.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bottleneck.errors import ClusterError, Note, first_line
from bottleneck.threads import available_cores

AUTO = "auto"  # the cluster of this machine, else one that is started here
ANSWER_SECONDS = 10.0  # for an address
TRIES = 2  # of Ray to reach a head at an address; what answers and is none costs 40 seconds each
LONGEST_FOLDER = 36  # bytes: Ray adds up to 70 to the paths of its sockets, of which a system allows 107
STORE_HINT = "Start its nodes with a larger --object-store-memory, or use nodes with more memory."
_TOKEN = secrets.token_hex(32)  # one for this process, since Ray keeps the first one that it read
_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # an empty frame; a server of HTTP/2 begins with such a one
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS
_HINT = "Give the HOST:PORT that `ray start --head` printed, or --ray alone on a node of the cluster."


class TokenError(ClusterError):
    """The cluster wants a token of those who connect."""


@dataclass(frozen=True)
class ClusterNode:
    """A living node of the cluster, and what Ray may give away of it. store : bytes of its object store."""

    id: str
    host: str
    cpus: int
    gpus: float
    store: int

    def __str__(self) -> str:
        return f"{self.host} (node {self.id[:8]})"


@dataclass(frozen=True)
class Size:
    """Resources of one worker, and the node on which it must be; None where Ray chooses."""

    cpus: int
    gpus: float
    node: ClusterNode | None = None

    def __str__(self) -> str:
        cpus = "1 CPU" if self.cpus == 1 else f"{self.cpus} CPUs"
        return f"{cpus} and {self.gpus:g} GPUs" if self.gpus else cpus


def require_ray() -> None:
    """Raise ClusterError where Ray is not installed."""
    if find_spec("ray") is None:
        raise ClusterError(
            "--ray needs Ray, which is not installed.", "Run: pip install 'bottleneck-features[ray]'"
        )


@contextmanager
def connected(address: str) -> Iterator[list[Note]]:
    """Connect with a Ray cluster for the block; yield the notes on that.

    A connection that the caller's program has already is used, and stays.

    Raises
    ------
    ClusterError
        Ray is not installed, nothing answers at the address, or what answers has another version.
    """
    require_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before the import, which reads it
    with _quiet():
        import ray
    if ray.is_initialized():
        yield []
        return
    folder = tempfile.mkdtemp(prefix="bn-ray-", dir=short_folder())
    try:
        with _nothing_printed():
            try:
                yield _connect(address, folder)
            finally:
                with _quiet():
                    ray.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # processes that end may still write there


def living_nodes() -> list[ClusterNode]:
    """Return the nodes that are alive. Raises ClusterError where the cluster's head is gone."""
    import ray

    try:
        nodes = ray.nodes()
    except Exception as error:  # of classes that are not public
        raise ClusterError(
            f"The Ray cluster does not answer any more: {first_line(error)}.",
            "Finished work is saved: run extract again when its head is there.",
        ) from error
    return [
        ClusterNode(
            id=node["NodeID"],
            host=node["NodeManagerHostname"],
            cpus=int(node["Resources"].get("CPU", 0)),
            gpus=float(node["Resources"].get("GPU", 0)),
            store=int(node["Resources"].get("object_store_memory", 0)),
        )
        for node in nodes
        if node["Alive"]
    ]


def sizes_of(nodes: Iterable[ClusterNode], workers: int | None, gpus: float) -> list[Size]:
    """Return the workers of a cluster: `workers` of equal size, or else as many as its nodes have room for.

    With GPUs, these are on nodes that have them; where the number is not given, nodes without GPUs get a
    worker as well. Nodes without a CPU to give get none.
    """
    nodes = [node for node in nodes if node.cpus]
    able = [node for node in nodes if gpus and node.gpus >= gpus]
    if workers is not None:
        able = able or nodes
        cpus = min(node.cpus for node in able) // -(-workers // len(able))
        return [Size(max(1, cpus), gpus)] * workers
    counts = {node: int(node.gpus // gpus) if node in able else 1 for node in nodes}
    return [
        Size(max(1, node.cpus // count), gpus if node in able else 0.0, node)
        for node, count in counts.items()
        for _ in range(count)
    ]


def require_room(nodes: Sequence[ClusterNode], gpus: float) -> None:
    """Raise ClusterError where no node has the CPU, or the GPUs, of one worker."""
    able = [node for node in nodes if node.cpus]
    if not able:
        raise ClusterError("No node of the Ray cluster has a CPU to give.", "Start one with `ray start`.")
    if max(node.gpus for node in able) < gpus:
        most = max(node.gpus for node in able)
        raise ClusterError(
            f"--gpus-per-worker is {gpus:g}, and no node of the Ray cluster has more than {most:g} GPUs.",
            "Start a node with GPUs, or leave --gpus-per-worker out to compute on processors.",
        )


def _connect(address: str, folder: str) -> list[Note]:
    """Connect with the cluster at `address`, or start Ray in `folder`."""
    known = os.environ.get("RAY_ADDRESS") if address == AUTO else address
    if known not in (None, "", AUTO):
        _require_answer(str(known))
        with _few_tries():
            _init(f"at {known}", address=known)
        return []
    if (found := _of_this_machine()) is not None:
        try:
            with _few_tries():
                _init(f"at {found}", address=found)
        except TokenError:
            _init(f"at {found}", address=AUTO)  # by this word, Ray takes the token that the user has
        return []
    with _own_token(), _full_priority():
        _init("of this machine", num_cpus=available_cores(), include_dashboard=False, _temp_dir=folder)
    text = "No Ray cluster was named or found: Ray was started on this machine alone, for this run."
    return [Note("ray-local", text)]


def _init(where: str, **options: Any) -> None:
    """Call Ray's own `init`. where : the cluster, for a sentence. A SIGTERM meanwhile is the caller's."""
    import ray

    try:
        with _quiet(), _signals_kept():
            ray.init(log_to_driver=False, configure_logging=False, **options)
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM:  # Ray's handler makes this of one
            if callable(signal.getsignal(signal.SIGTERM)):
                signal.raise_signal(signal.SIGTERM)
            raise
        where = f"The Ray cluster {where}"
        if "AuthenticationError" in f"{type(error).__name__}: {error}":
            raise TokenError(
                f"{where} wants a token, or another one than is here.",
                "Copy ~/.ray/auth_token from its head, and set RAY_AUTH_MODE=token.",
            ) from error
        if "Version mismatch" in str(error):
            versions = " ".join(str(error).partition("Version mismatch: ")[2].split())
            raise ClusterError(
                f"{where} has other versions of Ray or Python: {versions}.",
                "Install the cluster's versions here, or these there; they must be the same on all nodes.",
            ) from error
        raise ClusterError(f"{where} cannot be used: {first_line(error)}.", _HINT) from error


@contextmanager
def _own_token() -> Iterator[None]:
    """Give Ray a token for the block where the user has none.

    Ray would leave one in the user's home, and clusters that are started there later would want it.
    """
    names = ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
    if any(name in os.environ for name in names) or (Path.home() / ".ray" / "auth_token").exists():
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = _TOKEN
    try:
        yield
    finally:
        for name in names:  # Ray sets the mode itself
            os.environ.pop(name, None)


@contextmanager
def _full_priority() -> Iterator[None]:
    """Let workers of a Ray that is started in the block have the priority of this process, unless the user
    has said otherwise. Ray would give them a niceness of 15, which costs a tenth of the rate and more.
    """
    name = "RAY_worker_niceness"
    if name in os.environ:
        yield
        return
    os.environ[name] = "0"
    try:
        yield
    finally:
        del os.environ[name]


def _require_answer(address: str) -> None:
    """Raise ClusterError unless a server of gRPC, as Ray is, answers; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if "://" in address:
        raise ClusterError(
            f"{address} is an address of Ray's client; expected HOST:PORT, 6379 by default.",
            "Run this command on a node of the cluster, with --ray, or by `ray job submit`.",
        )
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ClusterError(f"{address} is no address of a Ray cluster; expected HOST:PORT.", _HINT)
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS") == "1":  # it would say nothing without a certificate
                return
            connection.sendall(_HTTP2_PREFACE)
            if connection.recv(len(_SETTINGS))[3:4] != _SETTINGS[3:4]:
                raise ClusterError(f"What answers at {address} is no Ray cluster.", _HINT)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ClusterError(f"No Ray cluster answers at {address}: {reason}.", _HINT) from error


def _of_this_machine() -> str | None:
    """Return the address of the cluster that `ray start` recorded on this machine, if it still answers."""
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray")
    try:
        address = (folder / "ray_current_cluster").read_text().strip()
        _require_answer(address)
    except (OSError, ClusterError):
        return None
    return address


def short_folder() -> str | None:
    """Return the folder for temporary files, or /tmp where its path is too long for Ray's sockets."""
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder)) <= LONGEST_FOLDER - len("/bn-ray-12345678") else "/tmp"


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Put the caller's handlers of signals back after the block: Ray sets its own."""
    here = threading.current_thread() is threading.main_thread()
    numbers = [signal.SIGTERM, signal.SIGINT] if here else []
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _few_tries() -> Iterator[None]:
    """Let Ray try `TRIES` times to reach a head; its own 20 take a quarter of an hour.

    The number is private to Ray: a version that has it elsewhere takes its own time.
    """
    try:
        from ray._private import ray_constants

        before = ray_constants.NUM_REDIS_GET_RETRIES
    except (ImportError, AttributeError):
        yield
        return
    ray_constants.NUM_REDIS_GET_RETRIES = TRIES
    try:
        yield
    finally:
        ray_constants.NUM_REDIS_GET_RETRIES = before


@contextmanager
def _nothing_printed() -> Iterator[None]:
    """Keep Ray from printing on stdout, as it does when a worker dies, whatever `log_to_driver` says.

    The function is private to Ray: a version that has it elsewhere prints, and computes the same.
    """
    try:
        from ray._private import worker

        shown = worker.print_to_stdstream
    except (ImportError, AttributeError):
        yield
        return
    worker.print_to_stdstream = lambda *arguments, **options: None
    try:
        yield
    finally:
        worker.print_to_stdstream = shown


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop Ray's warnings and what it logs: its state is in our own errors and notes."""
    for name in ("ray", "ray.data", "ray._private"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
