"""Hostile clients, with TLS and without: each is answered as it should be, nobody else notices, nothing stays."""

import asyncio
import contextlib
import os
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter

import pytest

from authority import tls_of
from client import (
    BINARY,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Bystander,
    Connection,
    close_frame,
    frame,
    upgrade,
)
from harness import Gateway, wait_until
from tls_client import TlsClient

HANDSHAKE_TIMEOUT_S = 3

CONFIG = f"""
[gateway]
shards = 1
[limits]
handshake_timeout_ms = {HANDSHAKE_TIMEOUT_S * 1000}
write_timeout_ms = 1500
close_timeout_ms = 1500
request_head_size_max = 16384
request_head_count_max = 100
message_size_max = "1MiB"
frame_size_max = "1MiB"
[[port]]
number = 0
name = "a"
address = "127.0.0.1"
{{tls}}
[[route]]
path = "/echo"
service = "echo"
[[route]]
path = "/"
service = "page"
"""

# What a client of TLS is told that there is no room for: the fatal alert `internal_error` (RFC 8446 section 6).
OVERLOAD_ALERT = bytes([21, 3, 3, 0, 2, 2, 80])

# What an attack may leave behind: buffers that the gateway keeps for the next connections, and the allocator's slack.
LEFT_SIZE_MAX = 4 << 20
# No descriptor may stay; admin scrapes and the bystander come and go meanwhile.
LEFT_DESCRIPTORS_MAX = 0


class Target(Gateway):
    """A gateway whose port speaks TLS where an authority is given, and clients that speak as it does."""

    def __init__(self, authority, **arguments):
        super().__init__(CONFIG.format(tls=tls_of(authority)), **arguments)
        self.scheme = "http" if authority is None else "https"
        self.context = authority and authority.context()

    async def connect(self, **arguments):
        """A client that may ask at once."""
        return await Connection.open(self.ports["a"], tls=self.context, **arguments)

    async def connect_silently(self):
        """A client that has said nothing yet, not even what begins TLS."""
        return await Connection.open(self.ports["a"])

    @contextlib.contextmanager
    def opened(self):
        """A blocking socket on which a WebSocket is open, and what makes that which is sent of a frame.

        A thread may read the socket to its end while another sends, as nobody has to make out what comes.
        """
        port = self.ports["a"]
        if self.context is None:
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(upgrade())
                assert client.recv(4096).startswith(b"HTTP/1.1 101")
                yield client, lambda frames: frames
        else:
            with TlsClient(port, self.context) as client:
                client.accepted()
                yield client.socket, client.seal


@pytest.fixture
def gateway(authority, io_driver):
    with Target(authority, io_driver=io_driver) as running:
        yield running


def attack(gateway, scenario):
    """Runs the scenario beside a bystander, and checks that afterwards the gateway is as it was before."""

    async def both():
        # The first connections fill pools and page in code: that is no one's attack.
        for _ in range(20):
            async with await gateway.connect() as client:
                await client.accepted()
                await client.echo(bytes(100_000))
                await client.close()
        await asyncio.to_thread(gateway.at_rest)
        descriptors, size = gateway.descriptor_count(), gateway.resident_size()
        async with Bystander(gateway.ports["a"], tls=gateway.context) as bystander:
            await scenario(gateway)
        print(f"bystander: {bystander.count} round trips, the slowest {bystander.slowest_s * 1000:.1f} ms")
        return descriptors, size

    descriptors, size = asyncio.run(both())
    metrics = gateway.at_rest()
    wait_until(lambda: gateway.descriptor_count() <= descriptors + LEFT_DESCRIPTORS_MAX, "descriptors are back")
    # What large messages leave free in the heap is given back within seconds, not at once.
    wait_until(lambda: gateway.resident_size() - size <= LEFT_SIZE_MAX, "memory is given back")
    left = gateway.resident_size() - size
    print(f"memory: {size >> 10} KiB before, {left >> 10:+} KiB after; {descriptors} descriptors before and after")
    return metrics


async def slowhttptest(gateway, *arguments):
    """Runs slowhttptest with 400 connections until none is left, and returns what it reports."""
    url = f"{gateway.scheme}://127.0.0.1:{gateway.ports['a']}/"
    command = ["slowhttptest", *arguments, "-c", "400", "-r", "400", "-i", "1", "-l", "60", "-p", "5"]
    run = await asyncio.to_thread(subprocess.run, [*command, "-u", url], capture_output=True, text=True, timeout=120)
    report = run.stdout + run.stderr
    assert "No open connections left" in report, f"connections stayed open:\n{report[-1500:]}"
    return report


def test_slow_heads_end_at_the_deadline(gateway):
    async def scenario(gateway):
        start = time.monotonic()
        await slowhttptest(gateway, "-H")
        assert time.monotonic() - start < HANDSHAKE_TIMEOUT_S + 10

    metrics = attack(gateway, scenario)
    # slowhttptest also probes whether the server still answers.
    assert metrics.value("connections_ended_total", end="handshake_timeout") >= 400


def test_slow_bodies_are_refused_at_their_head(gateway):
    async def scenario(gateway):
        start = time.monotonic()
        await slowhttptest(gateway, "-B")
        assert time.monotonic() - start < HANDSHAKE_TIMEOUT_S + 10

    metrics = attack(gateway, scenario)
    assert (
        metrics.value("connections_ended_total", end="http_done")
        + metrics.value("connections_ended_total", end="refused")
        >= 400
    )


def test_connections_that_send_nothing_end_at_the_deadline(gateway):
    async def scenario(gateway):
        clients = await asyncio.gather(*(gateway.connect_silently() for _ in range(1000)))
        start = time.monotonic()
        await asyncio.gather(*(client.gone() for client in clients))
        assert time.monotonic() - start < HANDSHAKE_TIMEOUT_S + 5
        for client in clients:
            client.reset()

    metrics = attack(gateway, scenario)
    assert metrics.value("connections_ended_total", end="handshake_timeout") == 1000


def test_connect_and_reset_churn_leaves_nothing(gateway):
    async def scenario(gateway):
        async def churn():
            for _ in range(100):
                client = await gateway.connect_silently()
                client.reset()

        await asyncio.gather(*(churn() for _ in range(50)))

    metrics = attack(gateway, scenario)
    assert metrics.value("connections_ended_total", end="client_gone") == 5000


def test_a_ping_flood_costs_bounded_memory(gateway):
    count = 200_000

    async def scenario(gateway):
        async with await gateway.connect() as client:
            await client.accepted()
            burst = frame(PING, b"x" * 125) * 1000

            async def flood():
                for _ in range(count // 1000):
                    await client.send(burst)
                await client.send(close_frame(1000))

            flooding = asyncio.create_task(flood())
            before = await client.closed(1000)
            await flooding
            await client.end()
            assert all(answer.opcode == PONG for answer in before)
            assert 0 < len(before) <= count

    attack(gateway, scenario)


def test_a_ping_flood_without_reading_costs_bounded_memory(gateway):
    async def scenario(gateway):
        await send_until_cut(gateway, frame(PING, b"x" * 125) * 1000)

    metrics = attack(gateway, scenario)
    assert metrics.value("connections_ended_total", end="slow_client") == 1


def test_a_client_that_never_reads_is_paused_and_cut(gateway):
    async def scenario(gateway):
        await asyncio.gather(*(send_until_cut(gateway, frame(BINARY, bytes(1 << 20))) for _ in range(5)))

    metrics = attack(gateway, scenario)
    assert metrics.value("connections_ended_total", end="slow_client") == 5


async def send_until_cut(gateway, message):
    """Sends and never reads; fails if the gateway takes endlessly or keeps much in memory."""
    async with await gateway.connect(receive_buffer_size=4096) as client:
        await client.accepted()
        client.writer.transport.pause_reading()
        before = gateway.resident_size()
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(60):
                while True:
                    await client.send(message)
                    assert gateway.resident_size() - before < 64 << 20


@pytest.mark.parametrize("last_word", [b"", close_frame(1000)], ids=["open", "closing"])
def test_a_client_that_sends_as_fast_as_it_is_answered_does_not_have_the_shard_to_itself(gateway, last_word):
    """Threads on a blocking socket: asyncio would leave the gateway time to breathe."""

    def flood(gateway, until):
        with gateway.opened() as (client, seal):
            client.settimeout(1)
            if last_word:
                client.sendall(seal(last_word))
            reader = threading.Thread(target=read_to_end, args=[client])
            reader.start()
            # The gateway ends a connection that goes on sending after its Close.
            with contextlib.suppress(OSError):
                message = frame(BINARY, bytes(100_000))
                while time.monotonic() < until:
                    client.sendall(seal(message))
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
            reader.join()

    def read_to_end(client):
        with contextlib.suppress(OSError):
            while client.recv(1 << 20):
                pass

    async def scenario(gateway):
        await asyncio.to_thread(flood, gateway, time.monotonic() + 3)

    attack(gateway, scenario)


def test_endless_fragments_end_with_1009(gateway):
    async def scenario(gateway):
        async with await gateway.connect() as client:
            await client.accepted()
            await client.send(frame(BINARY, b"x" * 64, final=False))

            async def flood():
                with contextlib.suppress(ConnectionError):
                    while True:
                        await client.send(frame(CONTINUATION, b"x" * 64, final=False) * 100)

            flooding = asyncio.create_task(flood())
            await client.closed(1009)
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)

    metrics = attack(gateway, scenario)
    assert metrics.value("violations_total", kind="message_too_big") == 1


def test_empty_fragments_cost_no_memory(gateway):
    async def scenario(gateway):
        async with await gateway.connect() as client:
            await client.accepted()
            await client.send(frame(TEXT, b"", final=False))
            before = gateway.resident_size()
            for _ in range(200):
                await client.send(frame(CONTINUATION, b"", final=False) * 1000)
            await client.send(frame(CONTINUATION, b"end"))
            answer = await client.frame()
            assert (answer.opcode, answer.payload) == (TEXT, b"end")
            assert gateway.resident_size() - before < 1 << 20
            await client.close()

    attack(gateway, scenario)


@pytest.mark.parametrize(("size", "code"), [(1 << 62, 1009), ((1 << 20) + 1, 1009), (1 << 63, 1002)])
def test_a_frame_that_claims_too_much_is_refused_at_its_header(gateway, size, code):
    async def scenario(gateway):
        async with await gateway.connect() as client:
            await client.accepted()
            before = gateway.resident_size()
            await client.send(frame(BINARY, b"", size=size))
            await client.closed(code)
            assert gateway.resident_size() - before < 1 << 20
            await client.send(close_frame(code))
            await client.end()

    attack(gateway, scenario)


@pytest.mark.parametrize("endless", [b"X: y\r\n" * 1000, b"x" * 8192], ids=["many", "long"])
def test_an_unbounded_head_is_refused(gateway, endless):
    async def scenario(gateway):
        async with await gateway.connect() as client:
            await client.send(upgrade()[:-2] + b"Cookie: ")

            async def flood():
                with contextlib.suppress(ConnectionError):
                    while True:
                        await client.send(endless)

            flooding = asyncio.create_task(flood())
            assert (await client.response()).status == 431
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)

    metrics = attack(gateway, scenario)
    assert metrics.value("handshakes_total", result="too_large") == 1


def test_at_the_limit_on_connections_it_refuses_politely_and_recovers(authority, io_driver):
    """Under `prlimit --nofile` the gateway derives its limit, and keeps a reserve for the admin endpoint."""

    async def scenario(gateway):
        limit = int(gateway.metrics().value("connections_limit", port="a"))
        assert 50 < limit < 400, limit
        clients = [await (await gateway.connect()).accepted() for _ in range(limit)]
        for _ in range(100):
            if authority:
                with pytest.raises(ssl.SSLError, match="TLSV1_ALERT_INTERNAL_ERROR"):
                    await gateway.connect()
                continue
            async with await gateway.connect() as refused:
                response = await refused.refused(upgrade(), 503)
                assert response.fields.get("retry-after"), response
        assert await asyncio.to_thread(gateway.get, "/live")
        assert (await asyncio.to_thread(gateway.metrics)).value("connections_ended_total", end="limit") == 100
        await leave(clients)
        await asyncio.to_thread(gateway.at_rest)
        async with await gateway.connect() as client:
            await client.accepted()
            await client.close()

    with Target(authority, io_driver=io_driver, wrapper=["prlimit", "--nofile=400:400", "--"]) as gateway:
        asyncio.run(scenario(gateway))
        assert gateway.at_rest().value("handshakes_total", result="limit") == 100


def test_with_the_descriptor_table_full_it_refuses_without_spinning_and_recovers(authority, io_driver):
    """The limit is lowered to what is open, as if other parts of the process had taken the rest."""

    async def scenario(gateway):
        clients = [await (await gateway.connect()).accepted() for _ in range(20)]
        highest = max(map(int, os.listdir(f"/proc/{gateway.process.pid}/fd")))
        set_descriptors(gateway, highest + 1)
        cpu_s, start = gateway.cpu_s(), time.monotonic()
        answers = Counter()
        for _ in range(50):
            async with await gateway.connect_silently() as late:
                # Nothing is sent that the gateway could leave unread, so its answer cannot be lost to a reset.
                if authority:
                    answers[await late.reader.readexactly(len(OVERLOAD_ALERT))] += 1
                else:
                    answers[(await late.response()).status] += 1
                await late.end()
            await clients[0].echo(b"still here")
        used = (gateway.cpu_s() - cpu_s) / (time.monotonic() - start)
        print(f"{answers}, {used:.0%} of a core meanwhile")
        assert answers == {OVERLOAD_ALERT if authority else 503: 50}
        await leave(clients)
        async with await gateway.connect() as client:
            await client.accepted()
            await client.close()

    with Target(authority, io_driver=io_driver) as gateway:
        asyncio.run(scenario(gateway))
        set_descriptors(gateway, 1000)
        metrics = gateway.at_rest()
        assert metrics.value("accept_errors_total", reason="descriptors") >= 50
        assert metrics.by("end", "connections_ended_total") == {"closed": 21, "limit": 50}


def set_descriptors(gateway, limit):
    command = ["prlimit", f"--pid={gateway.process.pid}", f"--nofile={limit}:"]
    subprocess.run(command, check=True)


async def leave(clients):
    for client in clients:
        async with client:
            await client.close()
