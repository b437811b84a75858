"""Certificates are swapped while thousands of connections are open, and hundreds a second are made: nobody fails."""

import contextlib
import itertools
import json
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from authority import Authority
from client import ACCEPT, ANSWER_S, BINARY, CLOSE, ROUND_TRIP_MAX_S, close_frame, frame, upgrade
from harness import BINARY as RINGWAY
from harness import PATIENCE_S, Gateway, wait_until
from tls_client import TlsClient

# Connections that stay, and how many messages a second go to and fro on all of them.
LIVE, MESSAGES_PER_S = 2000, 2000
# For how long they do, and how long it takes them to begin: all swaps are over by then.
LIVE_S = 12
# New connections in a second: how many are begun, and how many there have to be at least, whatever the machine does.
ASKED_PER_S, DONE_PER_S_MIN = 230, 200
# Each with a thread of its own at a time.
THREADS = 8
# How often the gateway looks at the files.
LOOK_INTERVAL_S = 2
# For how long a certificate is in force at least, which is long enough for many to see it.
DWELL_S = 0.5

CONFIG = """
[gateway]
shards = 2
[[port]]
number = 0
name = "secure"
address = "127.0.0.1"
tls = {{ certificates = [{certificate}] }}
[[route]]
path = "/echo"
service = "echo"
"""

READ_AGAIN = "certificates were read again, and are in force"
HAS_A_FAULT = "certificates were read again and have a fault; those before stay in force"


@dataclass
class Certificate:
    """A certificate that was put in place."""

    der: bytes
    not_after: int
    # When its files began to be replaced, and when it was known to be in force.
    put_at: float
    loaded_at: float = float("inf")


class Swapped(Gateway):
    """A gateway whose only certificate is swapped."""

    def __init__(self, folder, **arguments):
        self.authority = Authority(folder)
        self.certificates = []
        self.failed_count = 0
        super().__init__(CONFIG.format(certificate=self.put()), **arguments)

    def __enter__(self):
        super().__enter__()
        self.now.loaded_at = time.monotonic()
        self.check()
        return self

    @property
    def now(self):
        """The certificate that is in force, or was put in place to be."""
        return self.certificates[-1]

    def put(self):
        """Puts another certificate in place, which lasts longer than all before it."""
        put_at = time.monotonic()
        days = 30 + len(self.certificates)
        named = self.authority.sign("edge", not_after=datetime.now(UTC) + timedelta(days=days))
        pem = self.authority.read("edge.pem")
        leaf = pem[: pem.index(b"-----END")] + b"-----END CERTIFICATE-----\n"
        der = ssl.PEM_cert_to_DER_cert(leaf.decode())
        self.certificates.append(Certificate(der, self.authority.not_after("edge"), put_at))
        return named

    def swap(self, has_signal):
        """Puts another certificate in place, says so by SIGHUP or lets the gateway find it, and waits for it."""
        self.put()
        if has_signal:
            self.signal(signal.SIGHUP)
        wait_until(lambda: self.reloads("loaded") == len(self.certificates) - 1, "the certificate is in force")
        self.now.loaded_at = time.monotonic()
        self.check()

    def spoil(self, files, has_signal):
        """Puts files in place that have a fault, and returns what the gateway says of it; what is in force stays."""
        for name, content in files.items():
            self.authority.put(name, content)
        self.failed_count += 1
        if has_signal:
            self.signal(signal.SIGHUP)
        wait_until(lambda: self.reloads("failed") == self.failed_count, "the fault is found")
        self.check()
        fault = self.status()["ports"][0]["tls"]["fault"]
        assert fault, "the status tells of the fault"
        assert self.logged(HAS_A_FAULT)[-1]["fault"] == fault
        return fault

    def reloads(self, result):
        """How often certificates were read again with this result."""
        return self.metrics().value("certificate_reloads_total", result=result)

    def check(self):
        """What is told is told of the certificate in force, and a client is shown it."""
        metrics = self.metrics()
        expiries = {f"{self.authority.folder}/edge.pem": self.now.not_after}
        assert metrics.by("name", "certificate_not_after_timestamp_seconds") == expiries
        assert metrics.by("result", "certificate_reloads_total") == {
            result: count
            for result, count in (("loaded", len(self.certificates) - 1), ("failed", self.failed_count))
            if count
        }
        with TlsClient(self.ports["secure"], self.authority.context()) as client:
            client.accepted().echo()
            assert client.tls.getpeercert(binary_form=True) == self.now.der
            client.closes()

    def logged(self, message):
        """The lines of the log with this message."""
        lines = (json.loads(line) for line in self.log().splitlines())
        return [line for line in lines if line["message"] == message]


class Newcomers:
    """Clients that come at a steady rate from entry to exit; each does a full handshake, echoes and leaves in order."""

    def __init__(self, gateway):
        self.gateway = gateway
        # TLS of both versions by turns; a context gives no ticket to another connection by itself.
        self._contexts = [
            gateway.authority.context(version=version) for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
        ]
        # Of each that came when it began and was done, and the certificate that it was shown.
        self.seen = []
        self.faults = []
        self._numbers = itertools.count()
        self._leave = threading.Event()
        self._threads = [threading.Thread(target=self._come) for _ in range(THREADS)]

    def __enter__(self):
        self._began_at = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception):
        self._leave.set()
        for thread in self._threads:
            thread.join()
        self.per_s = len(self.seen) / (time.monotonic() - self._began_at)

    def _come(self):
        for number in self._numbers:
            due_at = self._began_at + number / ASKED_PER_S
            if self._leave.wait(max(0.0, due_at - time.monotonic())):
                return
            try:
                began_at = time.monotonic()
                der = self._visit(self._contexts[number % 2])
                self.seen.append((began_at, time.monotonic(), der))
            except (OSError, AssertionError) as fault:
                self.faults.append(repr(fault))

    def _visit(self, context):
        """One connection from its beginning to its end; the certificate that it was shown."""
        said = frame(BINARY, b"newcomer")
        heard = frame(BINARY, b"newcomer", mask=None) + frame(CLOSE, b"\x03\xe8", mask=None)
        tcp = socket.create_connection(("127.0.0.1", self.gateway.ports["secure"]), timeout=ANSWER_S)
        with context.wrap_socket(tcp, server_hostname="localhost") as client:
            assert not client.session_reused
            client.sendall(upgrade() + said + close_frame(1000))
            answer = b""
            while more := client.recv(65536):
                answer += more
            head, _, rest = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101 ") and ACCEPT.encode() in head and rest == heard, answer
            der = client.getpeercert(binary_form=True)
            client.unwrap()
        return der


@contextlib.contextmanager
def live_connections(gateway):
    """Connections that echo meanwhile and until they are done, all that comes back is checked; yields the process."""
    url = f"wss://localhost:{gateway.ports['secure']}/echo"
    load = [f"--connections={LIVE}", f"--rate={MESSAGES_PER_S}", f"--duration={LIVE_S}s", "--warmup=0s"]
    command = [RINGWAY, "bench", "echo", url, "--ca", str(gateway.authority.ca), "--json", *load]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            wait_until(lambda: gateway.metrics().value("connections_active") == LIVE, "all live ones are open")
            yield process
        finally:
            process.kill()


def messages(gateway):
    """How many messages have come so far."""
    return gateway.metrics().value("messages_total", direction="received")


def passed(span_s):
    """Returns when so much time has passed: nothing tells of what does not happen."""
    until = time.monotonic() + span_s
    wait_until(lambda: time.monotonic() > until, "time has passed")


def test_swaps_are_noticed_by_those_alone_that_come_after_them(io_driver, tmp_path):
    with Swapped(tmp_path, io_driver=io_driver) as gateway:
        with live_connections(gateway) as live, Newcomers(gateway) as newcomers:
            # Twice by the files, of which one is cut, and by a signal as often as there is time.
            swaps = [
                lambda: gateway.swap(has_signal=False),
                lambda: gateway.swap(has_signal=True),
                lambda: gateway.spoil({"edge.pem": gateway.authority.read("edge.pem")[:400]}, has_signal=False),
                lambda: gateway.swap(has_signal=True),
                lambda: gateway.spoil({"edge.key": another_key(gateway)}, has_signal=True),
                lambda: gateway.swap(has_signal=True),
            ]
            for swap in swaps:
                before, began_at = messages(gateway), time.monotonic()
                swap()
                passed(DWELL_S)
                # Live ones go on meanwhile: no newcomer says more than one message.
                elapsed_s = time.monotonic() - began_at
                count = messages(gateway) - before - 2 * ASKED_PER_S * elapsed_s
                assert count > MESSAGES_PER_S * elapsed_s / 2, f"{count} messages in {elapsed_s} s"
            assert live.poll() is None, "the live connections outlast all swaps"
            stdout, stderr = live.communicate(timeout=PATIENCE_S + LIVE_S)
        assert live.returncode == 0, (stdout, stderr)
        report = json.loads(stdout)
        slowest_s = max(done_at - began_at for began_at, done_at, _ in newcomers.seen)
        print(f"{newcomers.per_s:.0f} handshakes/s, {len(newcomers.seen)} in all, the slowest {slowest_s:.3f} s,")
        print(f"beside {LIVE} connections with {report['messages']} messages")
        assert report["messages"] == MESSAGES_PER_S * LIVE_S, report
        assert newcomers.faults == []
        assert newcomers.per_s >= DONE_PER_S_MIN and slowest_s < ROUND_TRIP_MAX_S
        check_seen(gateway.certificates, newcomers.seen)
        assert len(gateway.logged(READ_AGAIN)) == len(gateway.certificates) - 1
        metrics = gateway.at_rest()
    checks = len(gateway.certificates) + gateway.failed_count
    kinds = metrics.by("kind", "tls_handshakes_total")
    assert kinds.keys() == {"tls12_full", "tls13_full"}
    assert sum(kinds.values()) == LIVE + len(newcomers.seen) + checks
    assert metrics.by("end", "connections_ended_total") == {"closed": LIVE + len(newcomers.seen) + checks}
    assert metrics.value("tls_failures_total") == metrics.value("panics_total") == 0
    assert metrics.value("tls_truncated_total") == 0


def check_seen(certificates, seen):
    """Each handshake was shown a certificate that was in force while it lasted, or was just being put in place."""
    counts = Counter()
    known = {certificate.der: index for index, certificate in enumerate(certificates)}
    for began_at, done_at, der in seen:
        index = known[der]
        replaced_at = certificates[index + 1].loaded_at if index + 1 < len(certificates) else float("inf")
        assert certificates[index].put_at <= done_at and began_at <= replaced_at, f"certificate {index} out of its time"
        counts[index] += 1
    print(f"handshakes by certificate: {[counts[index] for index in range(len(certificates))]}")
    assert all(counts[index] >= DONE_PER_S_MIN * DWELL_S / 2 for index in range(len(certificates))), counts


def another_key(gateway):
    """The key of another certificate of the same authority."""
    gateway.authority.sign("other")
    return gateway.authority.read("other.key")


# What may be wrong with the files, and what is said of it.
FAULTS = {
    "a certificate that is cut": (
        lambda gateway: {"edge.pem": gateway.authority.read("edge.pem")[:400]},
        "certificate: the file holds something that begins like PEM and is none",
    ),
    "a key that is cut": (
        lambda gateway: {"edge.key": gateway.authority.read("edge.key")[:60]},
        "key: the file holds something that begins like PEM and is none",
    ),
    "another's key": (lambda gateway: {"edge.key": another_key(gateway)}, "key: "),
    "an empty certificate": (lambda _gateway: {"edge.pem": b""}, "certificate: "),
    "a key for a certificate": (lambda gateway: {"edge.pem": gateway.authority.read("edge.key")}, "certificate: "),
    "PEM that is no certificate": (
        lambda _gateway: {"edge.pem": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
        "certificate: ",
    ),
}


def test_what_has_a_fault_changes_nothing_but_what_is_told(io_driver, tmp_path):
    with Swapped(tmp_path, io_driver=io_driver) as gateway:
        for what, (files, words) in FAULTS.items():
            fault = gateway.spoil(files(gateway), has_signal=True)
            print(f"{what}: {fault}")
            assert f'edge.pem": {words}' in fault, what
            # The next fault is to be the only one.
            gateway.swap(has_signal=True)
            assert gateway.status()["ports"][0]["tls"]["fault"] is None
        assert gateway.at_rest().value("tls_failures_total") == 0


def test_a_fault_is_told_once_and_not_with_every_look(io_driver, tmp_path):
    """What was found bad is read again when files change or somebody asks for it, and not before."""
    with Swapped(tmp_path, io_driver=io_driver) as gateway:
        (gateway.authority.folder / "edge.key").unlink()
        assert "cannot be read" in gateway.spoil({}, has_signal=True)
        passed(2 * LOOK_INTERVAL_S + 0.5)
        gateway.check()
        assert len(gateway.logged(HAS_A_FAULT)) == 1
