"""Clients that break TLS, on purpose or by leaving: each is counted as what it did, and nothing of it stays."""

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
import time
from collections import Counter

import pytest

from authority import Authority
from client import ANSWER_S, BINARY, CLOSE, PONG, TEXT, Bystander, close_frame, frame, upgrade
from harness import Gateway, wait_until
from tls_client import (
    ALERT,
    APPLICATION_DATA,
    CHANGE_CIPHER_SPEC,
    CLOSE_NOTIFY,
    FATAL,
    HANDSHAKE,
    RECORD_BODY_SIZE_MAX,
    RECORD_HEAD_SIZE,
    UNEXPECTED_MESSAGE,
    WARNING,
    TlsClient,
    record,
    records,
)
from tls_keys import CLIENT_HELLO, FINISHED, SERVER_HELLO, Sealer12, Sealer13, key_update, message
from upstream import ACCEPTED, server_frame

HANDSHAKE_TIMEOUT_S = 2
# The clock of timeouts ticks ten times a second, and the machine is busy with other things.
EARLY_S, LATE_S = 0.2, 1.5
# How long the gateway may take for what it does at once: less than any of its timeouts.
AT_ONCE_S = 0.9

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
VERSIONS = {"1.2": V12, "1.3": V13}

# Alerts (RFC 8446 section 6).
HANDSHAKE_FAILURE, BAD_CERTIFICATE, UNKNOWN_CA = 40, 42, 48
DECODE_ERROR, USER_CANCELED, UNRECOGNIZED_NAME = 50, 90, 112

# Two ports, so that what is counted for a bystander stands apart.
CONFIG = f"""
[gateway]
shards = 1
[limits]
handshake_timeout_ms = {HANDSHAKE_TIMEOUT_S * 1000}
close_timeout_ms = 1000
write_timeout_ms = 1000
[[port]]
number = 0
name = "secure"
address = "127.0.0.1"
tls = {{{{ certificates = [{{certificates}}] }}}}
[[port]]
number = 0
name = "bystander"
address = "127.0.0.1"
tls = {{{{ certificates = [{{certificates}}] }}}}
[[route]]
path = "/echo"
service = "echo"
[[route]]
name = "chat"
path = "/chat/*"
service = "websocket"
upstreams = ["ws://127.0.0.1:{{upstream}}"]
"""

# How many clients do the same at a time.
CROWD = 10
# What all of a test may leave in memory: what the allocator keeps.
LEFT_SIZE_MAX = 2 << 20
# Certificates of many names, whose chains repeat them: a long one, which is all that clients take, and one that no
# socket has room for. And how small the socket is that they are sent to.
NAMES, LONG_CHAIN, ENDLESS_CHAIN = 1500, 3, 15
SMALL = {"segment_size": 536, "receive_buffer_size": 4096}


class Hostile(Gateway):
    """A gateway with a port for hostile clients and one for a bystander, and with an upstream of the test's."""

    def __init__(self, folder, **arguments):
        self.authority = Authority(folder)
        self.secrets = self.authority.folder / "secrets"
        certificates = [self.authority.sign()]
        for name, count in (("long", LONG_CHAIN), ("endless", ENDLESS_CHAIN)):
            hosts = [f"{number:05}.{name}.example" for number in range(NAMES)]
            certificates.append(self.authority.sign(name, *hosts))
            self.authority.put(f"{name}.pem", self.authority.read(f"{name}.pem") * count)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(ANSWER_S)
        upstream = self.listener.getsockname()[1]
        super().__init__(CONFIG.format(certificates=", ".join(certificates), upstream=upstream), **arguments)

    def __exit__(self, *exception):
        self.listener.close()
        super().__exit__(*exception)

    def client(self, version=None, **arguments):
        """A client whose secrets are written down."""
        context = self.authority.context(version=version)
        context.keylog_filename = str(self.secrets)
        return TlsClient(self.ports["secure"], context, **arguments)

    def opened(self, version=None):
        """A client whose handshake of TLS is done."""
        return self.client(version).handshake()

    def sealer(self, client, *, stage="CLIENT_TRAFFIC_SECRET_0"):
        """What seals records in place of a client's library."""
        if client.tls.version() == "TLSv1.2":
            return Sealer12(client, self.secrets)
        return Sealer13(client, self.secrets, stage=stage)

    def taken_over(self, version, is_websocket=True):
        """A client in TLS, or one whose WebSocket is open, and what seals its part from the beginning on."""
        client = self.opened(version)
        sealer = self.sealer(client)
        if is_websocket:
            client.socket.sendall(sealer.seal(APPLICATION_DATA, upgrade()))
            assert client.head().startswith("HTTP/1.1 101 ")
        return client, sealer

    def relayed(self, version):
        """A client that is relayed, and the upstream's socket."""
        client = self.opened(version)
        client.send(upgrade("/chat/room"))
        upstream, _ = self.listener.accept()
        upstream.settimeout(ANSWER_S)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += upstream.recv(1)
        upstream.sendall(ACCEPTED)
        assert client.head().startswith("HTTP/1.1 101 ")
        return client, upstream

    def counts(self):
        """What was counted of hostile clients so far: failures, ends, and streams that were cut."""
        metrics = self.metrics()
        counts = Counter(metrics.by("kind", "tls_failures_total", port="secure"))
        counts.update(metrics.by("end", "connections_ended_total", port="secure"))
        counts["truncated"] = int(metrics.value("tls_truncated_total", port="secure"))
        return counts

    @contextlib.contextmanager
    def counting(self, what, expected):
        """Checks what is counted of the clients that come and go inside, each of which has one end."""
        before, expected = self.counts(), Counter(expected)
        yield
        try:
            wait_until(lambda: self.counts() - before == expected, what)
        except AssertionError:
            raise AssertionError(f"{what}: {dict(expected)} expected, not {dict(self.counts() - before)}") from None


def attack(io_driver, folder, scenario):
    """Runs the scenario in a thread beside a bystander; afterwards the gateway is as it was before."""

    async def beside_bystander(gateway):
        tls = gateway.authority.context()
        async with Bystander(gateway.ports["bystander"], tls=tls) as bystander:
            await asyncio.to_thread(scenario, gateway)
        print(f"bystander: {bystander.count} round trips, the slowest {bystander.slowest_s * 1000:.1f} ms")

    with Hostile(folder, io_driver=io_driver) as gateway:
        # The first connections page in code, and fill what is kept for the next ones.
        for version in [*VERSIONS.values()] * CROWD:
            with gateway.opened(version) as client:
                client.accepted().echo(bytes(100_000))
                client.closes()
        gateway.at_rest()
        before, size = gateway.descriptors(), gateway.resident_size()
        asyncio.run(beside_bystander(gateway))
        metrics = gateway.at_rest()
        wait_until(lambda: gateway.descriptors() <= before, "descriptors are back")
        wait_until(lambda: gateway.resident_size() - size <= LEFT_SIZE_MAX, "memory is given back")
        print(f"memory: {size >> 10} KiB before, {(gateway.resident_size() - size) >> 10:+} KiB after")
        failures = metrics.value("tls_failures_total", port="secure")
        assert failures == metrics.by("end", "connections_ended_total", port="secure").get("tls_failed", 0)
        assert metrics.value("handshakes_in_progress") == metrics.value("upstream_connections_active") == 0
        assert metrics.value("panics_total") == 0, gateway.log()


def crowd(gateway, what, act, kind, check):
    """Has clients do the same, each of which meets its end at once, as `check` says, and is counted as this kind."""
    with gateway.counting(what, {kind: CROWD, "tls_failed": CROWD}), contextlib.ExitStack() as clients:
        for client in [clients.enter_context(act()) for _ in range(CROWD)]:
            client.socket.settimeout(AT_ONCE_S)
            check(client)


def fragments(data, size):
    """A message of the handshake in records of this size."""
    return b"".join(record(HANDSHAKE, data[start : start + size]) for start in range(0, len(data), size))


HELLO_TOO_LARGE = message(CLIENT_HELLO, bytes(70_000))
WARNINGS = record(ALERT, bytes([WARNING, UNRECOGNIZED_NAME])) * 100
CANCELED = record(ALERT, bytes([WARNING, USER_CANCELED]))
CLOSED = record(ALERT, bytes([WARNING, CLOSE_NOTIFY]))

# What comes in place of a ClientHello or right behind one: what is counted for it, and the alert that answers it.
FIRST = {
    "ones": (lambda _: b"\xff" * 100, "malformed", DECODE_ERROR),
    "zeros": (lambda _: bytes(100), "malformed", DECODE_ERROR),
    "a hello of SSL 2": (
        lambda _: bytes.fromhex("802e0103010015000000100000010080000003000004") + bytes(24),
        "malformed",
        DECODE_ERROR,
    ),
    "a message of ones": (lambda _: record(HANDSHAKE, b"\xff" * 100), "malformed", None),
    "a hello of zeros": (lambda _: record(HANDSHAKE, message(CLIENT_HELLO, bytes(60))), "malformed", DECODE_ERROR),
    "a server's hello": (lambda _: record(HANDSHAKE, message(SERVER_HELLO, bytes(60))), "malformed", DECODE_ERROR),
    "application data": (lambda _: record(APPLICATION_DATA, bytes(100)), "protocol", UNEXPECTED_MESSAGE),
    "a change of ciphers": (lambda hello: record(CHANGE_CIPHER_SPEC, b"\1") + hello, "protocol", UNEXPECTED_MESSAGE),
    "an empty record": (lambda hello: record(HANDSHAKE, b"") + hello, "malformed", DECODE_ERROR),
    "many empty records": (lambda hello: record(HANDSHAKE, b"") * 100 + hello, "malformed", DECODE_ERROR),
    "more than 64 KiB": (lambda _: fragments(HELLO_TOO_LARGE, 1 << 14), "malformed", None),
    "more than 64 KiB in small records": (lambda _: fragments(HELLO_TOO_LARGE, 100), "malformed", None),
    "more than is kept, in tiny ones": (lambda _: fragments(HELLO_TOO_LARGE[:10_000], 1), "malformed", None),
    "a record of 2^14 + 257": (
        lambda _: record(HANDSHAKE, message(CLIENT_HELLO, bytes((1 << 14) + 253))),
        "malformed",
        DECODE_ERROR,
    ),
    "a record of 2^14 + 2049": (lambda _: record(HANDSHAKE, bytes((1 << 14) + 2049)), "malformed", DECODE_ERROR),
    "the head of that": (lambda _: record(HANDSHAKE, b"", size=(1 << 14) + 2049), "malformed", DECODE_ERROR),
    "a fatal alert": (lambda _: record(ALERT, bytes([FATAL, HANDSHAKE_FAILURE])), "alert_from_client", None),
    "warnings": (lambda hello: WARNINGS + hello, "protocol", None),
    "an alert that is too long": (lambda _: record(ALERT, bytes([FATAL, 40, 0])), "malformed", DECODE_ERROR),
    "an alert that is empty": (lambda _: record(ALERT, b""), "malformed", DECODE_ERROR),
}
# The answers to these are sealed for a client that has been forsaken.
BEHIND = {
    "a refusal": (record(ALERT, bytes([FATAL, BAD_CERTIFICATE])), "certificate_refused"),
    "a fatal alert": (record(ALERT, bytes([FATAL, HANDSHAKE_FAILURE])), "alert_from_client"),
    "warnings": (WARNINGS, "alert_from_client"),
    "an end": (CLOSED, "closed"),
    "an end that is explained": (CANCELED + CLOSED, "closed"),
    "ones": (b"\xff" * 50, "malformed"),
    "plain HTTP": (upgrade(), "malformed"),
    "application data": (record(APPLICATION_DATA, bytes(50)), "decrypt"),
    "changes of ciphers": (record(CHANGE_CIPHER_SPEC, b"\1") * 100, "protocol"),
    "a change to no cipher": (record(CHANGE_CIPHER_SPEC, b"\2"), "protocol"),
}


def test_what_does_not_begin_tls_is_told_so_and_counted_as_what_it_is(io_driver, tmp_path):
    def scenario(gateway):
        def sending(data_of):
            def act():
                client = gateway.client()
                client.socket.sendall(data_of(client.flight()[0]))
                return client

            return act

        for what, (data_of, kind, alert) in FIRST.items():

            def check(client, what=what, alert=alert):
                expected = [] if alert is None else [(ALERT, bytes([FATAL, alert]))]
                assert records(client.raw_rest()) == expected, what

            crowd(gateway, what, sending(data_of), kind, check)
        for what, (data, kind) in BEHIND.items():

            def check(client, what=what):
                assert client.raw_rest()[RECORD_HEAD_SIZE] == SERVER_HELLO, what

            crowd(gateway, what, sending(lambda hello, data=data: hello + data), kind, check)

        def is_told(client):
            assert client.raw_rest().startswith(b"HTTP/1.1 400 ")

        crowd(gateway, "another protocol", sending(lambda _: b"SSH-2.0-client\r\n"), "plain_http", is_told)

    attack(io_driver, tmp_path, scenario)


def flipped(data):
    """The same with a bit of the last byte changed."""
    return data[:-1] + bytes([data[-1] ^ 1])


REFUSAL = bytes([FATAL, UNKNOWN_CA])

# What comes in place of a client's last messages, in which version, of these messages and what seals early: what is
# counted, and what a client's library says of the alert.
LAST = {
    "application data, plain": (
        "1.2",
        lambda _last, _seal: record(APPLICATION_DATA, bytes(60)),
        "protocol",
        "UNEXPECTED_MESSAGE",
    ),
    "a Finished, plain": (
        "1.2",
        lambda _last, _seal: record(HANDSHAKE, message(FINISHED, bytes(12))),
        "protocol",
        "UNEXPECTED_MESSAGE",
    ),
    "a Finished that was changed": ("1.2 1.3", lambda last, _seal: flipped(last), "decrypt", "BAD_RECORD_MAC"),
    "warnings": ("1.2", lambda last, _seal: WARNINGS + last, "protocol", None),
    "a refusal, plain": ("1.2 1.3", lambda _last, _seal: record(ALERT, REFUSAL), "certificate_refused", None),
    "application data of nobody": (
        "1.3",
        lambda _last, _seal: record(APPLICATION_DATA, bytes(60)),
        "decrypt",
        "BAD_RECORD_MAC",
    ),
    "application data": (
        "1.3",
        lambda _last, seal: seal(APPLICATION_DATA, upgrade()),
        "protocol",
        "UNEXPECTED_MESSAGE",
    ),
    "a KeyUpdate": ("1.3", lambda _last, seal: seal(HANDSHAKE, key_update()), "protocol", "UNEXPECTED_MESSAGE"),
    "another's Finished": (
        "1.3",
        lambda _last, seal: seal(HANDSHAKE, message(FINISHED, bytes(48))),
        "decrypt",
        "DECRYPT_ERROR",
    ),
    "a refusal": ("1.3", lambda _last, seal: seal(ALERT, REFUSAL), "certificate_refused", None),
    "an end": ("1.3", lambda _last, seal: seal(ALERT, bytes([WARNING, CLOSE_NOTIFY])), "closed", "DECODE_ERROR"),
}


def last_messages(client):
    """Does a handshake up to the client's last messages, which are returned and not sent."""
    data, _ = client.flight()
    client.socket.sendall(data)
    data = b""
    while not data:
        assert client.hear()
        data, _ = client.flight()
    return data


def check_alert(client, what, words):
    """The library of a client whose part was taken over reads an alert, or the end without one."""
    try:
        client.read_to_end()
        found = "an end in order"
    except ssl.SSLEOFError:
        found = None
    except ssl.SSLError as error:
        found = error.reason
    assert found is words or (found and words and words in found), f"{what}: {found}"


def each_version(cases):
    """Cases and the versions that they are of, one of each at a time."""
    for what, (versions, *case) in cases.items():
        for version in versions.split():
            yield f"{what}, {version}", VERSIONS[version], *case


def test_what_breaks_off_a_handshake_is_told_so_and_counted_as_what_it_is(io_driver, tmp_path):
    def scenario(gateway):
        for what, version, data_of, kind, words in each_version(LAST):

            def act(version=version, data_of=data_of):
                client = gateway.client(version)
                last = last_messages(client)

                def seal(*record):
                    return gateway.sealer(client, stage="CLIENT_HANDSHAKE_TRAFFIC_SECRET").seal(*record)

                client.socket.sendall(data_of(last, seal))
                return client

            crowd(gateway, what, act, kind, lambda client, what=what, words=words: check_alert(client, what, words))

    attack(io_driver, tmp_path, scenario)


# What comes once the handshake is done, in which versions, by what seals it: what is counted, and the words.
OPEN = {
    "garbage": ("1.2 1.3", lambda _: record(APPLICATION_DATA, bytes(60)), "decrypt", "BAD_RECORD_MAC"),
    "a record too short for its tag": (
        "1.2 1.3",
        lambda _: record(APPLICATION_DATA, b"x"),
        "decrypt",
        "BAD_RECORD_MAC",
    ),
    "an empty record, plain": ("1.2 1.3", lambda _: record(APPLICATION_DATA, b""), "decrypt", "BAD_RECORD_MAC"),
    "an alert, plain": ("1.2 1.3", lambda _: record(ALERT, REFUSAL), "decrypt", "BAD_RECORD_MAC"),
    "a record of no type": ("1.2 1.3", lambda _: record(99, bytes(60)), "malformed", "DECODE_ERROR"),
    "plain HTTP": ("1.2 1.3", lambda _: upgrade(), "malformed", "DECODE_ERROR"),
    "a record of 2^14 + 257": (
        "1.2 1.3",
        lambda _: record(APPLICATION_DATA, bytes((1 << 14) + 257)),
        "decrypt",
        "BAD_RECORD_MAC",
    ),
    "a record of 2^14 + 2049": (
        "1.2 1.3",
        lambda _: record(APPLICATION_DATA, bytes(RECORD_BODY_SIZE_MAX + 1)),
        "malformed",
        "DECODE_ERROR",
    ),
    "more plaintext than a record has": (
        "1.2 1.3",
        lambda sealer: sealer.seal(APPLICATION_DATA, bytes((1 << 14) + 1)),
        "malformed",
        "RECORD_OVERFLOW",
    ),
    "a fatal alert": (
        "1.2 1.3",
        lambda sealer: sealer.seal(ALERT, bytes([FATAL, HANDSHAKE_FAILURE])),
        "alert_from_client",
        None,
    ),
    "a warning": (
        "1.3",
        lambda sealer: sealer.seal(ALERT, bytes([WARNING, UNRECOGNIZED_NAME])),
        "alert_from_client",
        "DECODE_ERROR",
    ),
    "a change of ciphers": ("1.2 1.3", lambda _: record(CHANGE_CIPHER_SPEC, b"\1"), "protocol", "UNEXPECTED_MESSAGE"),
    "a KeyUpdate": ("1.2", lambda sealer: sealer.seal(HANDSHAKE, key_update()), "protocol", "UNEXPECTED_MESSAGE"),
    "a Finished": (
        "1.3",
        lambda sealer: sealer.seal(HANDSHAKE, message(FINISHED, bytes(48))),
        "protocol",
        "UNEXPECTED_MESSAGE",
    ),
    "a KeyUpdate of no kind": (
        "1.3",
        lambda sealer: sealer.seal(HANDSHAKE, message(24, b"\7")),
        "malformed",
        "ILLEGAL_PARAMETER",
    ),
    "two KeyUpdates in a record": (
        "1.3",
        lambda sealer: sealer.seal(HANDSHAKE, key_update() * 2),
        "protocol",
        "UNEXPECTED_MESSAGE",
    ),
    "half a KeyUpdate and data": (
        "1.3",
        lambda sealer: sealer.seal(HANDSHAKE, key_update()[:2]) + sealer.seal(APPLICATION_DATA, b"x"),
        "protocol",
        None,
    ),
    "padding alone": ("1.3", lambda sealer: sealer.seal(None, b"", padding=50), "protocol", None),
    "no type within": ("1.3", lambda sealer: sealer.seal(77, b"x"), "malformed", "DECODE_ERROR"),
}


@pytest.mark.parametrize("is_websocket", [False, True], ids=["before the request", "within a message"])
def test_what_breaks_open_tls_is_told_so_and_counted_as_what_it_is(io_driver, is_websocket, tmp_path):
    def scenario(gateway):
        for what, version, data_of, kind, words in each_version(OPEN):

            def act(version=version, data_of=data_of):
                client, sealer = gateway.taken_over(version, is_websocket)
                part = sealer.seal(APPLICATION_DATA, frame(BINARY, bytes(100))[:50]) if is_websocket else b""
                client.socket.sendall(part + data_of(sealer))
                return client

            crowd(gateway, what, act, kind, lambda client, what=what, words=words: check_alert(client, what, words))

    attack(io_driver, tmp_path, scenario)


# A ClientHello of TLS 1.2: version, random, no session, one suite, no compression.
HELLO_12 = message(CLIENT_HELLO, b"\3\3" + bytes(32) + b"\0" + b"\0\2\xc0\x2b" + b"\1\0")

# What is sent without end, in which version: what makes the next of it.
ENDLESS = {
    "empty records, 1.2": (V12, lambda sealer: sealer.seal(APPLICATION_DATA, b"")),
    "empty records, 1.3": (V13, lambda sealer: sealer.seal(APPLICATION_DATA, b"")),
    "warnings": (V12, lambda sealer: sealer.seal(ALERT, bytes([WARNING, UNRECOGNIZED_NAME]))),
    "cancellations": (V13, lambda sealer: sealer.seal(ALERT, bytes([WARNING, USER_CANCELED]))),
    "renegotiations": (V12, lambda sealer: sealer.seal(HANDSHAKE, HELLO_12)),
    "KeyUpdates that ask for ours": (V13, lambda sealer: sealer.update()),
    "KeyUpdates": (V13, lambda sealer: sealer.update(asks=False)),
}


@pytest.mark.parametrize("is_websocket", [False, True], ids=["before the request", "between messages"])
def test_what_has_no_end_is_ended(io_driver, is_websocket, tmp_path):
    """Nobody reads what is answered, and what still comes is thrown away for as long as the answer may take at most."""

    def flood(client, sealer, make, until):
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < until:
                client.socket.sendall(b"".join(make(sealer) for _ in range(20)))

    def scenario(gateway):
        expected = {"protocol": len(ENDLESS), "tls_failed": len(ENDLESS)}
        with gateway.counting("without end", expected), contextlib.ExitStack() as clients:
            until, threads = time.monotonic() + ANSWER_S, []
            for version, make in ENDLESS.values():
                client, sealer = gateway.taken_over(version, is_websocket)
                clients.enter_context(client)
                threads.append(threading.Thread(target=flood, args=[client, sealer, make, until]))
            start = time.monotonic()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            # The gateway lets each go after the close timeout, whatever it sends.
            elapsed_s = time.monotonic() - start
            print(f"all are gone after {elapsed_s:.2f} s")
            assert elapsed_s < 1 + LATE_S

    attack(io_driver, tmp_path, scenario)


# Which of these a client may do as often as it likes, so long as it says something between: how many fit in between.
LAWFUL = {
    "empty records, 1.2": (V12, 30),
    "empty records, 1.3": (V13, 30),
    "KeyUpdates that ask for ours": (V13, 30),
    "KeyUpdates": (V13, 1),
}


def test_what_is_lawful_may_go_on_and_costs_no_memory(io_driver, tmp_path):
    """As long as nobody reads what it is answered with: keys are renewed once for all that was asked."""
    rounds = 300

    def scenario(gateway):
        with gateway.counting("lawful", {"closed": len(LAWFUL)}):
            for what, (version, count) in LAWFUL.items():
                _, make = ENDLESS[what]
                client, sealer = gateway.taken_over(version)
                with client:
                    size = gateway.resident_size()
                    # A pong that nobody asked for is not answered.
                    for _ in range(rounds):
                        said = [make(sealer) for _ in range(count)] + [sealer.seal(APPLICATION_DATA, frame(PONG, b"x"))]
                        client.socket.sendall(b"".join(said))
                    client.socket.sendall(sealer.seal(APPLICATION_DATA, frame(TEXT, b"and on") + close_frame(1000)))
                    expected = frame(TEXT, b"and on", mask=None) + frame(CLOSE, b"\x03\xe8", mask=None)
                    assert client.read(len(expected)) == expected, what
                    left = gateway.resident_size() - size
                    print(f"{rounds * count} {what}: {left >> 10:+} KiB")
                    assert left < LEFT_SIZE_MAX

    attack(io_driver, tmp_path, scenario)


def test_a_hello_may_come_in_any_pieces(io_driver, tmp_path):
    """In records of a byte each, one by one or all at once; its bytes one by one; and what follows it as well."""

    def one_by_one(client, data):
        for byte in data:
            client.socket.sendall(bytes([byte]))

    def scenario(gateway):
        sends = [lambda client, data: client.socket.sendall(data), one_by_one]
        with gateway.counting("pieces", {"closed": 2 * 2 * len(sends)}):
            for version in VERSIONS.values():
                for send in sends:
                    for size in (1, 1 << 14):
                        with gateway.client(version) as client:
                            hello, _ = client.flight()
                            send(client, fragments(hello[RECORD_HEAD_SIZE:], size))
                            while not client.is_open:
                                client.hear()
                                send(client, client.flight()[0])
                            client.accepted().echo()
                            client.closes()

    attack(io_driver, tmp_path, scenario)


class Slow:
    """A client that says something at once, and then the rest byte by byte."""

    def __init__(self, client, at_once=b"", slowly=b""):
        self.client = client
        self._slowly = iter(slowly)
        client.socket.sendall(at_once)

    def go_on(self):
        """Says the next byte, if there is one and anybody to hear it."""
        with contextlib.suppress(OSError, StopIteration):
            self.client.socket.sendall(bytes([next(self._slowly)]))


def with_hello(make):
    """What makes a client of its hello."""

    def made(gateway, version):
        client = gateway.client(version)
        return make(client, client.flight()[0])

    return made


def with_last(make):
    """What makes a client of its last messages, once it has the server's."""

    def made(gateway, version):
        client = gateway.client(version)
        return make(client, last_messages(client))

    return made


def without_reading(gateway, version):
    """A client that has asked, and reads nothing of the answer."""
    client = gateway.client(version, name="00000.endless.example", **SMALL)
    return Slow(client, client.flight()[0])


# Who has not finished the handshake when its time is over.
UNFINISHED = [
    with_hello(lambda client, hello: Slow(client, slowly=hello)),
    with_hello(lambda client, hello: Slow(client, slowly=fragments(hello[RECORD_HEAD_SIZE:], 1))),
    with_hello(lambda client, hello: Slow(client, hello[:3])),
    with_hello(lambda client, hello: Slow(client, hello[:-1])),
    with_hello(lambda client, hello: Slow(client, hello)),
    with_hello(lambda client, hello: Slow(client, hello, CANCELED * 3)),
    with_hello(lambda client, _: Slow(client, CLOSED)),
    with_last(lambda client, last: Slow(client)),
    with_last(lambda client, last: Slow(client, slowly=last)),
    with_last(lambda client, last: Slow(client, last[:-1])),
    without_reading,
]
# How often each of them is there in each version, and how long it takes from a byte to the next.
EACH, BYTE_S = 2, 0.1


def silent(gateway):
    """Nothing was said."""
    return Slow(gateway.client())


def silent_within(gateway):
    """TLS is open, and nothing was said in it."""
    return Slow(gateway.opened())


def slow_within(gateway):
    """TLS is open, and a request has begun in it."""
    client = gateway.opened()
    return Slow(client, client.seal(upgrade()[:20]), client.seal(upgrade()[20:]))


def rest_of(client):
    """What is left to be read by a client whose connection the gateway has ended, in order or by a reset."""
    client.socket.settimeout(AT_ONCE_S)
    rest = b""
    with contextlib.suppress(ConnectionResetError):
        while more := client.socket.recv(1 << 16):
            rest += more
    return rest


def test_who_is_slow_has_until_the_deadline_and_no_longer(io_driver, tmp_path):
    """A handshake that is not done is `timeout`, a request that has not come the end `handshake_timeout`."""

    def scenario(gateway):
        descriptors = gateway.descriptors()
        count = len(UNFINISHED) * len(VERSIONS) * EACH
        with (
            gateway.counting("slow", {"timeout": count, "tls_failed": count, "handshake_timeout": 3}),
            contextlib.ExitStack() as stack,
        ):
            before, start = gateway.counts(), time.monotonic()
            unfinished = [
                make(gateway, version) for make in UNFINISHED for version in VERSIONS.values() for _ in range(EACH)
            ]
            unasked = [make(gateway) for make in (silent, silent_within, slow_within)]
            for slow in unfinished + unasked:
                stack.enter_context(slow.client)
            made = time.monotonic()
            due = start
            while due < start + HANDSHAKE_TIMEOUT_S - EARLY_S:
                for slow in unfinished + unasked:
                    slow.go_on()
                due += BYTE_S
                wait_until(lambda due=due: time.monotonic() >= due, "the time for the next byte")
            assert gateway.counts() == before, "nobody is let go early"
            # Who has said something within TLS is told; the end of the others is all that they get.
            answers = [slow.client.read_to_end() for slow in unasked[1:]]
            assert answers[0] == b"" and answers[1].startswith(b"HTTP/1.1 408 "), answers
            assert unasked[0].client.raw_rest() == b""
            wait_until(lambda: (gateway.counts() - before)["timeout"] == count, "all are let go")
            late_s = time.monotonic() - made - HANDSHAKE_TIMEOUT_S
            print(f"{count} were let go {late_s:.2f} s after the deadline of the last")
            assert late_s < LATE_S
            # Their own ends are still open.
            for slow in unasked:
                slow.client.socket.close()
            wait_until(lambda: gateway.descriptors() <= descriptors, "descriptors are back before they leave")
            chain_size = len(gateway.authority.read("endless.pem")) * 3 // 4
            for slow in unfinished:
                assert len(rest_of(slow.client)) < chain_size // 2

    attack(io_driver, tmp_path, scenario)


def test_who_reads_late_is_served(io_driver, tmp_path):
    """A handshake that the socket has no room for goes on when there is some."""

    def scenario(gateway):
        with gateway.counting("late", {"closed": len(VERSIONS)}):
            for version in VERSIONS.values():
                with gateway.client(version, name="00000.long.example", **SMALL) as client:
                    client.socket.sendall(client.flight()[0])
                    # Nothing tells of a gateway that waits for room.
                    until = time.monotonic() + 0.3
                    wait_until(lambda until=until: time.monotonic() > until, "time has passed")
                    client.handshake().accepted().echo()
                    client.closes()

    attack(io_driver, tmp_path, scenario)


def finish(client):
    """The client sends nothing more, and meets the gateway's end."""
    client.socket.shutdown(socket.SHUT_WR)
    rest_of(client)


def reset(client):
    """The client resets the connection."""
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.socket.close()


CUTS = {"end": finish, "reset": reset}


def cut_points(data):
    """Where to cut messages: within the header of each record, behind it, within the record, and behind that."""
    start = 0
    for _, body in records(data):
        end = start + RECORD_HEAD_SIZE + len(body)
        yield from (start + 1, start + RECORD_HEAD_SIZE, start + RECORD_HEAD_SIZE + len(body) // 2, end - 1, end)
        start = end


@pytest.mark.parametrize("how", CUTS)
def test_a_handshake_that_is_cut_anywhere_is_one_that_was_closed(io_driver, how, tmp_path):
    def cut(gateway, what, expected, make):
        with gateway.counting(what, Counter(expected * EACH)):
            for _ in range(EACH):
                with make() as client:
                    CUTS[how](client)

    def scenario(gateway):
        for name, version in VERSIONS.items():
            with gateway.counting("samples", ["client_gone", "closed", "tls_failed"]):
                with gateway.client(version) as client:
                    hello, _ = client.flight()
                with gateway.client(version) as client:
                    last = last_messages(client)

            def after(data_of, version=version):
                client = gateway.client(version)
                client.socket.sendall(data_of(client))
                return client

            for point in sorted({*cut_points(hello)}):
                sent = lambda client, point=point: client.flight()[0][:point]  # noqa: E731
                cut(gateway, f"{name}, hello[:{point}]", ["closed", "tls_failed"], lambda sent=sent: after(sent))
            for point in sorted({*cut_points(last)} - {len(last)}):
                sent = lambda client, point=point: last_messages(client)[:point]  # noqa: E731
                cut(gateway, f"{name}, last[:{point}]", ["closed", "tls_failed"], lambda sent=sent: after(sent))
            # The handshake is done, and the request is missing; by an end it may have been cut off.
            truncated = ["truncated"] if how == "end" else []
            cut(gateway, f"{name}, open", ["client_gone", *truncated], lambda version=version: gateway.opened(version))
            sent = lambda client: client.handshake().seal(upgrade()[:-1])  # noqa: E731
            cut(gateway, f"{name}, request", ["client_gone", *truncated], lambda sent=sent, after=after: after(sent))
        # Nothing was said that could have been TLS.
        cut(gateway, "nothing", ["client_gone"], gateway.client)

    attack(io_driver, tmp_path, scenario)


# How a client ends its stream, with the alert that says so and without: what is counted beside its end.
PARTINGS = {
    "the alert and the end": (True, False, []),
    "the alert and a reset": (True, True, []),
    "the end": (False, False, ["truncated"]),
    "a reset": (False, True, []),
}
# What a client says last: within a message nothing can follow, behind a Close nothing is waited for.
LAST_WORDS = {
    "between messages": (b"", "client_gone"),
    "within a message": (frame(BINARY, bytes(100))[:50], "client_gone"),
    "behind a Close": (close_frame(1000), "closed"),
}


@pytest.mark.parametrize("is_relay", [False, True], ids=["echo", "relay"])
def test_an_end_without_the_alert_that_closes_is_told_from_one_with(io_driver, is_relay, tmp_path):
    """A reset is no end, and needs no alert to be told from one."""

    def leave(gateway, version, says_so, is_reset, words):
        with contextlib.ExitStack() as sockets:
            upstream = None
            if is_relay:
                client, upstream = gateway.relayed(version)
                sockets.enter_context(upstream)
            else:
                client = gateway.opened(version).accepted()
                client.echo()
            sockets.enter_context(client)
            client.send(words)
            if upstream and words:
                assert len(upstream.recv(len(words), socket.MSG_WAITALL)) == len(words), "all comes before the end"
            if words == close_frame(1000):
                if upstream:
                    upstream.sendall(server_frame(CLOSE, b"\x03\xe8"))
                assert client.read_to_end() == frame(CLOSE, b"\x03\xe8", mask=None)
            if says_so:
                client.say_goodbye()
            if is_reset:
                reset(client)
            else:
                client.socket.shutdown(socket.SHUT_WR)
            if upstream:
                assert upstream.recv(1) == b""
                upstream.close()
            if not is_reset:
                client.socket.settimeout(AT_ONCE_S)
                client.raw_rest()

    def scenario(gateway):
        for name, version in VERSIONS.items():
            for parting, (says_so, is_reset, truncated) in PARTINGS.items():
                for when, (words, end) in LAST_WORDS.items():
                    expected = [end] + (truncated if end == "client_gone" else [])
                    with gateway.counting(f"{name}, {when}, {parting}", Counter(expected)):
                        leave(gateway, version, says_so, is_reset, words)

    attack(io_driver, tmp_path, scenario)


# More than a few records, and than a socket takes at once.
LARGE = bytes(range(256)) * (4 << 10)


@pytest.mark.parametrize("is_relay", [False, True], ids=["echo", "relay"])
def test_who_has_closed_its_half_of_tls_still_gets_what_is_said(io_driver, is_relay, tmp_path):
    """And that ends in order as well, with an alert of ours."""

    def hear_and_answer(upstream, heard):
        while more := upstream.recv(1 << 16):
            heard += more
        upstream.sendall(server_frame(BINARY, LARGE) + server_frame(CLOSE, b"\x03\xe8"))

    def scenario(gateway):
        with gateway.counting("halves", {"client_gone": len(VERSIONS)}):
            for version in VERSIONS.values():
                said, heard = frame(TEXT, b"first") + frame(BINARY, LARGE if is_relay else LARGE[:100_000]), bytearray()
                if not is_relay:
                    with gateway.opened(version).accepted() as client:
                        client.send(said)
                        client.say_goodbye()
                        expected = frame(TEXT, b"first", mask=None) + frame(BINARY, LARGE[:100_000], mask=None)
                        assert client.read_to_end() == expected
                    continue
                client, upstream = gateway.relayed(version)
                with client, upstream:
                    hearing = threading.Thread(target=hear_and_answer, args=[upstream, heard])
                    hearing.start()
                    client.send(said)
                    client.say_goodbye()
                    answer = client.read_to_end()
                    hearing.join()
                assert heard == said
                assert answer == frame(BINARY, LARGE, mask=None) + frame(CLOSE, b"\x03\xe8", mask=None)

    attack(io_driver, tmp_path, scenario)
