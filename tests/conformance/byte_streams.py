"""`service = "tcp"` before a real Redis, over TCP and over a Unix socket, with clients as noVNC and websockify have."""

import asyncio
import contextlib
import itertools
import os
import random
import signal
import subprocess

import pytest
import websockets
from websockify.websocket import WebSocket, WebSocketWantReadError

from client import BINARY, PING, PONG, TEXT, Connection, close_frame, frame, upgrade
from harness import PATIENCE_S, Gateway, free_port, wait_until

CONFIG = """
[[port]]
number = 0
name = "a"
address = "127.0.0.1"
[[route]]
name = "tcp"
path = "/tcp"
service = "tcp"
upstreams = ["tcp://127.0.0.1:{redis.port}"]
[[route]]
name = "unix"
path = "/unix"
service = "tcp"
upstreams = ["unix://{redis.path}"]
[route.limits]
{limits}
"""

# What the gateway may hold more for a connection that is stuck: a message of the client's that is not whole yet, which
# is as large as the test sends them, its payload on the way, and a few reads.
LARGE_SIZE = 4 << 20
HELD_SIZE_MAX = 2 * LARGE_SIZE + (2 << 20)
# Somebody who cannot send for this long is stuck.
STUCK_AFTER_S = 1.0


class Redis:
    """A Redis on a port and a Unix socket, from entry to exit."""

    def __init__(self, folder):
        self.path = folder / "redis.sock"
        self.port = free_port()
        self._folder = folder

    def __enter__(self):
        self._log = (self._folder / "redis.log").open("w+")
        settings = {"bind": "127.0.0.1", "port": self.port, "unixsocket": self.path, "dir": self._folder, "save": ""}
        options = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", "redis-server", *options],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until(self._answers, "Redis answers")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exception):
        self.process.kill()
        self.process.wait()
        self._log.close()

    def run(self, *arguments):
        """What Redis answers to a command that does not come through the gateway."""
        command = ["redis-cli", "-s", str(self.path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S).stdout.strip()

    def client_count(self):
        """How many clients are connected to it, the one that asks not among them."""
        return len(self.run("CLIENT", "LIST").splitlines()) - 1

    def _answers(self):
        if self.process.poll() is not None:
            self._log.seek(0)
            raise AssertionError(f"Redis ended:\n{self._log.read()}")
        return self.run("PING") == "PONG"


@pytest.fixture
def redis(tmp_path):
    with Redis(tmp_path) as running:
        yield running


@pytest.fixture
def gateway(redis, io_driver):
    with Gateway(CONFIG.format(redis=redis, limits=""), io_driver=io_driver) as running, running.leaving_nothing():
        yield running


@pytest.fixture(params=["tcp", "unix"])
def route(request):
    return request.param


def url(gateway, route):
    return f"ws://127.0.0.1:{gateway.ports['a']}/{route}"


class Websockify:
    """websockify's own client as a byte stream."""

    def __init__(self, url):
        self._socket = WebSocket()
        self._socket.connect(url, protocols=["binary"])
        assert self._socket.protocol == "binary"
        self._rest = b""

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        # It is gone once the peer has ended it.
        if self._socket.socket:
            self._socket.close()

    def send(self, data):
        """Sends bytes as one message."""
        assert self._socket.send(data) == len(data)

    def read(self, size):
        """Exactly this many bytes, or fewer where the connection ends before."""
        parts, missing = [self._rest], size - len(self._rest)
        while missing > 0:
            # What came may not be a whole frame.
            with contextlib.suppress(WebSocketWantReadError):
                if (part := self._socket.recv()) is None:
                    break
                parts.append(part)
                missing -= len(part)
        data = b"".join(parts)
        self._rest = data[size:]
        return data[:size]

    def line(self):
        """One line, without its end."""
        line = b""
        while not line.endswith(b"\r\n"):
            part = self.read(1)
            assert part, f"the end after {line}"
            line += part
        return line[:-2]

    def reply(self):
        """One reply of Redis: a status, a number or a string."""
        kind, rest = (line := self.line())[:1], line[1:]
        if kind == b"$":
            data = self.read(int(rest) + 2)
            assert data.endswith(b"\r\n")
            return data[:-2]
        assert kind in b"+:", line
        return int(rest) if kind == b":" else rest

    def code(self):
        """Reads to the end of the connection, which must hold nothing more, and returns the code of the Close."""
        assert self.read(1) == b""
        return self._socket.close_code

    def close(self):
        """Does the closing handshake."""
        self._socket.shutdown(None, 1000)
        assert self.read(1) == b""


def command(*words):
    """A command as Redis reads it (RESP 2)."""
    words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def test_websockify_holds_a_conversation(gateway, redis, route):
    value = random.Random(route).randbytes(LARGE_SIZE)
    slowly = command("ECHO", "a byte at a time")
    with Websockify(url(gateway, route)) as client:
        client.send(command("PING"))
        assert client.reply() == b"PONG"
        # Pipelined: all in one message, and one in many.
        client.send(b"".join(command("INCRBY", "n", number) for number in range(1000)))
        assert [client.reply() for _ in range(1000)] == list(itertools.accumulate(range(1000)))
        for byte in slowly:
            client.send(bytes([byte]))
        assert client.reply() == b"a byte at a time"
        client.send(command("SET", "large", value))
        assert client.reply() == b"OK"
        client.send(command("GET", "large") + command("STRLEN", "large"))
        assert client.reply() == value
        assert client.reply() == LARGE_SIZE
        client.send(command("INFO"))
        assert f"process_id:{redis.process.pid}\r\n".encode() in client.reply()
        client.close()

    metrics = gateway.at_rest()
    assert metrics.by("initiator", "closes_total") == {"client": 1}
    assert metrics.by("end", "connections_ended_total") == {"closed": 1}
    assert metrics.by("route", "upstream_connects_total", result="opened") == {route: 1}
    assert metrics.value("messages_total", direction="received") == 5 + len(slowly)
    assert metrics.by("opcode", "frames_total", direction="sent").keys() == {"binary", "close"}


class Bridge:
    """Listens for clients of Redis, and takes their bytes through the gateway and back, as users of websockify do."""

    def __init__(self, url):
        self.url = url

    async def __aenter__(self):
        self._serving = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_exception):
        self._server.close()
        await self._server.wait_closed()
        await asyncio.gather(*self._serving)

    async def _serve(self, reader, writer):
        self._serving.add(asyncio.current_task())
        async with websockets.connect(self.url, subprotocols=["binary"], max_size=None) as connection:
            assert connection.subprotocol == "binary"

            async def there():
                while data := await reader.read(1 << 16):
                    await connection.send(data)
                await connection.close()

            going = asyncio.create_task(there())
            async for data in connection:
                writer.write(data)
                await writer.drain()
            writer.close()
            await going

    async def run(self, program, *arguments, stdin=b""):
        """Runs a client of Redis to its end, and returns what it wrote."""
        pipe = asyncio.subprocess.PIPE
        command = ["setpriv", "--pdeathsig", "KILL", "--", program, "-p", str(self.port), *arguments]
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        try:
            out, _ = await process.communicate(stdin)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        assert process.returncode == 0, out
        return out


def test_clients_of_redis_work_through_a_bridge(gateway, redis, route):
    value = random.Random(route).randbytes(LARGE_SIZE)
    keys = range(20_000)

    async def scenario():
        async with Bridge(url(gateway, route)) as bridge:
            assert await bridge.run("redis-cli", "-x", "SET", "large", stdin=value) == b"OK\n"
            assert await bridge.run("redis-cli", "--raw", "GET", "large") == value + b"\n"
            many = b"".join(command("SET", key, f"value {key}") for key in keys)
            report = await bridge.run("redis-cli", "--pipe", stdin=many)
            assert f"errors: 0, replies: {len(keys)}".encode() in report, report
            load = ["-q", "-t", "set,get,lrange_100", "-n", "4000", "-c", "20", "-P", "16", "-d", "500"]
            print((await bridge.run("redis-benchmark", *load)).decode().replace("\r", "\n"))

    asyncio.run(scenario())
    assert redis.run("GET", "19999") == "value 19999"
    ended = gateway.at_rest().by("end", "connections_ended_total")
    assert ended.keys() == {"closed"} and ended["closed"] > 20


def test_text_messages_are_bytes_too_in_however_many_fragments(gateway, route):
    words = command("ECHO", "aé€😀")

    async def scenario():
        async with await Connection.open(gateway.ports["a"]) as client:
            await client.accepted(upgrade(f"/{route}"))
            await client.send(frame(TEXT, words))
            await client.send(frame(TEXT, words[:-5], final=False) + frame(PING, b"within"))
            await client.send(frame(0, words[-5:]))
            before = b""
            while before.count("aé€😀\r\n".encode()) < 2:
                answer = await client.frame()
                assert answer.opcode in (BINARY, PONG)
                before += answer.payload if answer.opcode == BINARY else b""
            await client.close()

    asyncio.run(scenario())
    assert gateway.at_rest().by("end", "connections_ended_total") == {"closed": 1}


@pytest.mark.parametrize("last_words", ["QUIT", "CLIENT KILL"])
def test_an_end_that_redis_makes_is_an_end_in_order(gateway, redis, route, last_words):
    with Websockify(url(gateway, route)) as client:
        client.send(command("CLIENT", "ID"))
        number = client.reply()
        if last_words == "QUIT":
            client.send(command("QUIT"))
            assert client.reply() == b"OK"
        else:
            assert redis.run("CLIENT", "KILL", "ID", str(number)) == "1"
        assert client.code() == 1000

    metrics = gateway.at_rest()
    assert metrics.by("initiator", "closes_total") == {"gateway": 1}
    assert metrics.by("code", "closes_total") == {"1000": 1}
    assert metrics.by("end", "connections_ended_total") == {"closed": 1}


@pytest.mark.parametrize("way", ["close", "end", "reset"])
def test_redis_is_rid_of_a_client_that_has_left(gateway, redis, route, way):
    async def scenario():
        async with await Connection.open(gateway.ports["a"]) as client:
            await client.accepted(upgrade(f"/{route}"))
            await client.send(frame(BINARY, command("PING")))
            assert (await client.frame()).payload == b"+PONG\r\n"
            assert await asyncio.to_thread(redis.client_count) == 1
            if way == "close":
                await client.close()
            elif way == "end":
                client.finish_sending()
                # Redis ends what its client has ended, and that is passed on.
                assert await client.closed(1000) == []
                await client.end()
            else:
                client.reset()
        await asyncio.to_thread(wait_until, lambda: redis.client_count() == 0, "Redis has let the client go")

    asyncio.run(scenario())
    end = "closed" if way == "close" else "client_gone"
    assert gateway.at_rest().by("end", "connections_ended_total") == {end: 1}


def test_a_redis_that_is_gone_is_a_502(gateway, redis, route):
    redis.process.kill()
    redis.process.wait()

    async def scenario():
        async with await Connection.open(gateway.ports["a"]) as client:
            await client.refused(upgrade(f"/{route}"), 502)

    asyncio.run(scenario())
    metrics = gateway.at_rest()
    assert metrics.by("result", "upstream_connects_total", route=route) == {"refused": 1}
    assert metrics.by("result", "handshakes_total") == {"upstream_unavailable": 1}
    assert metrics.by("end", "connections_ended_total") == {"upstream_unavailable": 1}


def test_a_redis_that_does_not_read_stops_the_client_and_gets_everything(gateway, redis, route):
    """It is stopped like a machine that is overloaded, and goes on later."""
    value = os.urandom(LARGE_SIZE)

    async def scenario():
        async with websockets.connect(url(gateway, route), subprotocols=["binary"]) as client:
            await client.send(command("PING"))
            assert await client.recv() == b"+PONG\r\n"
            size, count = gateway.resident_size(), 0
            redis.process.send_signal(signal.SIGSTOP)
            try:
                with contextlib.suppress(TimeoutError):
                    while count < 64:
                        async with asyncio.timeout(STUCK_AFTER_S):
                            count += 1
                            await client.send(command("SET", count, value))
                held = gateway.resident_size() - size
                print(f"stuck after {count} values of {LARGE_SIZE >> 20} MiB; the gateway holds {held >> 10} KiB")
                assert count < 64 and held < HELD_SIZE_MAX
            finally:
                redis.process.send_signal(signal.SIGCONT)
            answers = b""
            while len(answers) < count * 5:
                answers += await client.recv()
            assert answers == b"+OK\r\n" * count
        return count

    count = asyncio.run(scenario())
    assert int(redis.run("DBSIZE")) == count
    assert gateway.at_rest().by("end", "connections_ended_total") == {"closed": 1}


def test_a_client_that_does_not_read_stops_redis_and_gets_everything(gateway, redis, route):
    value = os.urandom(LARGE_SIZE)
    count = 16

    async def scenario():
        async with await Connection.open(gateway.ports["a"], receive_buffer_size=4096) as client:
            await client.accepted(upgrade(f"/{route}"))
            await client.send(frame(BINARY, command("SET", "large", value)))
            assert (await client.frame()).payload == b"+OK\r\n"
            size = gateway.resident_size()
            client.writer.transport.pause_reading()
            await client.send(frame(BINARY, command("GET", "large") * count))
            await asyncio.to_thread(
                wait_until, lambda: gateway.metrics().value("send_queue_bytes") > 0, "something waits for the client"
            )
            held = gateway.resident_size() - size
            print(f"the gateway holds {held >> 10} KiB of {count * LARGE_SIZE >> 20} MiB")
            assert held < HELD_SIZE_MAX
            client.writer.transport.resume_reading()
            got = bytearray()
            expected = (b"$%d\r\n%s\r\n" % (LARGE_SIZE, value)) * count
            while len(got) < len(expected):
                got += (await client.frame()).payload
            assert got == expected
            await client.close()

    asyncio.run(scenario())
    metrics = gateway.at_rest()
    assert metrics.value("slow_clients_total", outcome="recovered") > 0
    assert metrics.value("send_queue_bytes") == 0
    assert metrics.by("end", "connections_ended_total") == {"closed": 1}


def test_pings_of_a_client_that_does_not_read_cost_bounded_memory(gateway, route):
    """Their pongs cannot be sent, so nothing more is read."""

    async def scenario():
        async with await Connection.open(gateway.ports["a"], receive_buffer_size=4096) as client:
            await client.accepted(upgrade(f"/{route}"))
            size, count = gateway.resident_size(), 0
            pings = frame(PING, b"x" * 125) * 1000
            client.writer.transport.pause_reading()
            with contextlib.suppress(TimeoutError):
                while count < 2000:
                    async with asyncio.timeout(STUCK_AFTER_S):
                        count += 1
                        await client.send(pings)
            held = gateway.resident_size() - size
            print(f"stuck after {count * len(pings) >> 20} MiB of pings; the gateway holds {held >> 10} KiB")
            assert count < 2000 and held < HELD_SIZE_MAX
            client.writer.transport.resume_reading()
            closing = asyncio.create_task(client.send(close_frame(1000)))
            pongs = await client.closed(1000)
            assert pongs == [pongs[0]] * count * 1000 and pongs[0].opcode == PONG
            await closing
            await client.end()

    asyncio.run(scenario())
    assert gateway.at_rest().by("end", "connections_ended_total") == {"closed": 1}


@pytest.mark.parametrize(("stuck", "end"), [("redis", "upstream_gone"), ("client", "slow_client")])
def test_who_never_reads_is_cut_at_the_write_timeout(io_driver, redis, stuck, end):
    config = CONFIG.format(redis=redis, limits="write_timeout_ms = 500")
    message = command("SET", "large", bytes(LARGE_SIZE)) + command("GET", "large") * 16
    if stuck == "redis":
        redis.process.send_signal(signal.SIGSTOP)

    async def scenario():
        async with await Connection.open(gateway.ports["a"], receive_buffer_size=4096) as client:
            await client.accepted(upgrade("/unix"))
            client.writer.transport.pause_reading()
            with pytest.raises(ConnectionError):
                async with asyncio.timeout(PATIENCE_S):
                    while True:
                        await client.send(frame(BINARY, message))

    with Gateway(config, io_driver=io_driver) as gateway, gateway.leaving_nothing():
        asyncio.run(scenario())
        assert gateway.at_rest().by("end", "connections_ended_total") == {end: 1}
