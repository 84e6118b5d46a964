"""Two hosts on this machine: network namespaces with hostnames of their own, joined by one link."""

import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress

import pytest

TOOLS = ("ip", "unshare", "hostname")


class TwoHosts:
    """Hosts 1 and 2, of the addresses `addresses`; they share the files of this machine.

    names : of the namespaces, by host. hostnames : that a process there sees.
    """

    def __init__(self):
        mark = os.getpid()
        self.names = {host: f"bn{mark}-{host}" for host in (1, 2)}
        self.hostnames = {1: "host-one", 2: "host-two"}
        self._started = []
        self.addresses = {host: f"10.213.{mark % 256}.{host}" for host in (1, 2)}

    def begin(self):
        """Make the namespaces and the link. Raises CalledProcessError where the system does not let us."""
        for name in self.names.values():
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        first, second = self.names.values()
        _ip("link", "add", "up1", "netns", first, "type", "veth", "peer", "name", "up2", "netns", second)
        for host, name in self.names.items():
            _ip("-n", name, "addr", "add", f"{self.addresses[host]}/24", "dev", f"up{host}")
            _ip("-n", name, "link", "set", f"up{host}", "up")

    def popen(self, host, *command, **options):
        """Start a command on a host."""
        named = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.hostnames[host])
        words = ("ip", "netns", "exec", self.names[host], *named, *command)
        self._started.append(subprocess.Popen(words, **options))
        return self._started[-1]

    def cut(self, host):
        """Take down the link of a host; its processes go on."""
        _ip("-n", self.names[host], "link", "set", f"up{host}", "down")

    def end(self):
        """End all processes of the hosts, and remove the namespaces."""
        for name in self.names.values():
            with suppress(subprocess.CalledProcessError):
                while pids := _ip("netns", "pids", name).split():
                    for pid in pids:
                        with suppress(ProcessLookupError):
                            os.kill(int(pid), signal.SIGKILL)
                    time.sleep(0.05)
                _ip("netns", "del", name)
        while self._started:
            self._started.pop().wait()


@contextmanager
def two_hosts():
    """Yield `TwoHosts`; the test is skipped, with the reason, where they cannot be made."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        needs = f"the programs {', '.join(missing)}" if missing else "root"
        pytest.skip(f"network namespaces need {needs}")
    hosts = TwoHosts()
    try:
        try:
            hosts.begin()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
        yield hosts
    finally:
        hosts.end()


def _ip(*words):
    return subprocess.run(("ip", *words), check=True, capture_output=True, text=True).stdout
