"""Runs the gateway under measurement: one shard on one core, on ports that are free, watched from outside."""

import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

# The binary, as gateway and as generator.
RINGWAY = os.environ.get("RINGWAY", str(Path(__file__).resolve().parent.parent / "target/release/ringway"))
SERVER_CORE = os.environ.get("SERVER_CORE", "0")
CLIENT_CORE = os.environ.get("CLIENT_CORE", "1")
# Descriptors that a process has open beside its connections.
DESCRIPTORS_BESIDE = 200

CONFIGURATION = """
[gateway]
shards = 1

[admin]
listen = "127.0.0.1:{admin}"

[[port]]
number = {port}
address = "127.0.0.1"

[[route]]
name = "echo"
path = "/echo"
service = "echo"
origins = "any"

[limits]
ping_interval_ms = {ping_interval_ms}
pong_timeout_ms = {pong_timeout_ms}
"""


class Gateway:
    """A gateway as a context manager: ready on entry, gone on exit."""

    def __init__(self, ping_interval_ms: int = 30_000, pong_timeout_ms: int = 10_000) -> None:
        self.limits = {"ping_interval_ms": ping_interval_ms, "pong_timeout_ms": pong_timeout_ms}

    def __enter__(self) -> "Gateway":
        self.port, self.admin = free_ports(2)
        self.url = f"ws://127.0.0.1:{self.port}/echo"
        self.folder = tempfile.mkdtemp(prefix="ringway-bench-")
        configuration = Path(self.folder, "ringway.toml")
        configuration.write_text(CONFIGURATION.format(port=self.port, admin=self.admin, **self.limits))
        command = ["taskset", "-c", SERVER_CORE, RINGWAY, "run", "--config", str(configuration)]
        log = Path(self.folder, "log")
        with log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out)
        deadline = time.monotonic() + 20
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the gateway did not start:\n{log.read_text()}")
            time.sleep(0.02)
        return self

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/ready", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def metric(self, name: str, labels: str = "") -> float:
        """The sum of a metric's series, of those that have these labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=20) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{") and labels in line)

    def connections(self) -> int:
        """How many connections are open."""
        return int(self.metric("ringway_connections_active"))

    def wait_for(self, connections: int) -> None:
        """Waits until so many connections are open."""
        while self.connections() < connections:
            time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder)


def cpu_s(pid: int) -> float:
    """The processor time of all threads of a process, in seconds."""
    return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def free_ports(count: int) -> list[int]:
    """TCP ports on which nothing listens just now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def raise_descriptor_limit() -> None:
    """Lets this process, and those it starts, have as many descriptors as they may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections_max() -> int:
    """How many connections one process can have."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit - DESCRIPTORS_BESIDE
