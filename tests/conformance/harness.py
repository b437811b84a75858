"""Runs the gateway under test: writes its configuration, waits until it is ready, reads its metrics, stops it."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

BINARY = os.environ.get("RINGWAY_BINARY", str(Path(__file__).parents[2] / "target/release/ringway"))

# How long a state may take to come on a machine that is busy with other things.
PATIENCE_S = 20.0

# Exit codes of the command line.
CANNOT_BIND = 69
BAD_CONFIGURATION = 78


class Gateway:
    """A running gateway as a context manager: ready on entry, gone on exit.

    `config` is TOML without `[admin]`, which is added here with a free port; `None` runs the built-in default. Ports
    with `number = 0` and a `name` are found in `ports` by their name once the gateway is ready. `wrapper` is a command
    that runs the one given to it as arguments by exec, so that `process.pid` stays the gateway's.
    """

    def __init__(self, config, *, arguments=(), wrapper=(), io_driver="auto", admin=None):
        self.config = config
        self.arguments = [*arguments, "--io-driver", io_driver]
        self.wrapper = wrapper
        self._is_admin_given = admin is not None
        self.admin = admin or free_port()
        self.process = None
        self.ports = {}

    def __enter__(self):
        self.start()
        try:
            wait_until(self._is_up, "the gateway is ready")
        except BaseException:
            self.__exit__()
            raise
        self.ports = {port["label"]: port["number"] for port in self.status()["ports"]}
        return self

    def _is_up(self):
        """Whether it is ready; starts again where somebody else took the port that was free for the admin endpoint."""
        taken = "the admin endpoint cannot be bound"
        if not self._is_admin_given and self.process.poll() == CANNOT_BIND and taken in self.log():
            self.__exit__()
            self.admin = free_port()
            self.start()
        return self.is_ready()

    def __exit__(self, *_exception):
        self.process.kill()
        self.process.wait()
        print(f"--- the gateway's log (exit {self.process.returncode}) ---\n{self.log()}", end="")
        self._folder.cleanup()

    def start(self):
        """Starts the process without waiting for anything."""
        self._folder = tempfile.TemporaryDirectory(prefix="ringway-")
        folder = Path(self._folder.name)
        command = [BINARY, "run", "--log", "json", *self.arguments]
        if self.config is not None:
            file = folder / "ringway.toml"
            file.write_text(f'[admin]\nlisten = "127.0.0.1:{self.admin}"\n{self.config}')
            command += ["--config", str(file)]
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                # The gateway dies with the tests, also when they are killed.
                ["setpriv", "--pdeathsig", "KILL", "--", *self.wrapper, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def log(self):
        """All that the gateway has written so far."""
        return self._log.read_text(errors="replace")

    def is_ready(self):
        """Whether `/ready` says 200; fails if the process is gone."""
        if self.process.poll() is not None:
            raise AssertionError(f"the gateway ended with {self.process.returncode}:\n{self.log()}")
        with contextlib.suppress(ConnectionRefusedError):
            return self.get("/ready")[0] == 200
        return False

    def get(self, path):
        """The status and body of one answer of the admin endpoint."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=PATIENCE_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def status(self):
        """`/api/v1/status`, decoded."""
        status, body = self.get("/api/v1/status")
        assert status == 200, body
        return json.loads(body)

    def metrics(self):
        """One scrape."""
        status, body = self.get("/metrics")
        assert status == 200, body
        return Metrics(body)

    def at_rest(self):
        """Waits until no connection is active and returns the scrape that says so, its funnel checked."""

        wait_until(lambda: self.metrics().value("connections_active") == 0, "all connections have ended")
        # Another one, as a scrape takes time: what ended during the first may be missing there among those that ended.
        metrics = self.metrics()
        metrics.check_funnel()
        return metrics

    @contextlib.contextmanager
    def leaving_nothing(self):
        """Checks that what happens inside leaves nothing: no connection, no descriptor, no place with an upstream.

        And that nothing panicked.
        """
        before = self.descriptors()
        yield
        self.at_rest()
        wait_until(lambda: self.descriptors() <= before, "descriptors are back")
        wait_until(lambda: not self.metrics().value("upstream_connections_active"), "no upstream has a connection")
        assert self.metrics().value("panics_total") == 0

    def signal(self, number):
        """Sends a signal to the gateway."""
        self.process.send_signal(number)

    def stop(self, within_s=PATIENCE_S):
        """SIGTERM, then the exit code; fails where that takes longer than `within_s`."""
        self.signal(signal.SIGTERM)
        return self.process.wait(within_s)

    def descriptor_count(self):
        """How many descriptors the process has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def descriptors(self):
        """What the process has open, and how often; a socket is told from every other."""
        opened = Counter()
        for descriptor in Path(f"/proc/{self.process.pid}/fd").iterdir():
            # One that is closed meanwhile is not open.
            with contextlib.suppress(FileNotFoundError):
                opened[os.readlink(descriptor)] += 1
        return opened

    def resident_size(self):
        """The process's own memory in bytes, without the pages of files that it maps."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024

    def cpu_s(self):
        """The CPU time the process has used, in seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Metrics:
    """One scrape of `/metrics`, with every series once. Names are without the prefix `ringway_`."""

    _SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
    _LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

    def __init__(self, text):
        self.text = text
        self.series = {}
        for line in text.splitlines():
            if not line or line.startswith("#"):
                continue
            sample = self._SAMPLE.fullmatch(line)
            assert sample, f"not a sample: {line}"
            labels = frozenset(self._LABEL.findall(sample["labels"] or ""))
            key = (sample["name"].removeprefix("ringway_"), labels)
            assert key not in self.series, f"twice in one scrape: {line}"
            self.series[key] = float(sample["value"])

    def value(self, name, **labels):
        """The sum of the family's series that have these labels; a family that is not there is a fault."""
        return sum(value for _, value in self._matching(name, labels))

    def by(self, label, name, **labels):
        """The family's series that have these labels and are not 0, added up by one label."""
        counts = Counter()
        for series, value in self._matching(name, labels):
            counts[series[label]] += value
        return {key: int(value) for key, value in counts.items() if value}

    def check_funnel(self):
        """For each port: what was accepted has ended once or is active."""
        accepted = self.by("port", "connections_accepted_total")
        for port in self.by("port", "port_up"):
            ended = self.value("connections_ended_total", port=port)
            active = self.value("connections_active", port=port)
            count = accepted.get(port, 0)
            assert count == ended + active, f"port {port}: {count} accepted, {ended} ended, {active} active"

    def _matching(self, name, labels):
        wanted = set(labels.items())
        family = [(dict(key[1]), value) for key, value in self.series.items() if key[0] == name]
        assert family, f"no family {name} in the scrape"
        return [(series, value) for series, value in family if wanted <= set(series.items())]


def wait_until(condition, what, within_s=PATIENCE_S):
    """Asks until the answer is true, and returns it.

    Counters and exit states of another process send no event, so this polls; it fails when `within_s` has passed.
    """
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.01)
    raise AssertionError(f"not within {within_s} s: {what}")


def free_port():
    """A TCP port on which nothing listens just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_to_end(gateway, within_s=PATIENCE_S):
    """Runs a gateway that is expected to refuse to start: its exit code and all that it wrote."""
    gateway.start()
    try:
        return gateway.process.wait(within_s), gateway.log()
    finally:
        gateway.__exit__()
