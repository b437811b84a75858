"""`service = "websocket"` between clients and servers that people use: what either says reaches the other as it was."""

import asyncio
import contextlib
import signal
from urllib.parse import urlencode

import pytest
import websockets

import peers
from client import ACCEPT, BINARY, CLOSE, TEXT, Connection, close_frame, frame, upgrade
from harness import PATIENCE_S, Gateway, wait_until

COUNT = 10_000

CONFIG = """
[[port]]
number = 0
name = "a"
address = "127.0.0.1"
[[route]]
name = "relay"
path = "/*"
service = "websocket"
upstreams = ["{upstream}"]
[route.limits]
{limits}
"""

# Of a Close: its code, its reason, and how the code is counted. The last reason is as long as one may be.
CLOSES = [
    (1000, "", "1000"),
    (1001, "going away", "1001"),
    (1011, "é€😀", "1011"),
    (3000, "", "3xxx"),
    (4999, "€" * 41, "4xxx"),
    (None, None, "none"),
]
NO_CODE = 1005

# Somebody who cannot send for this long is stuck, because the other end does not read.
STUCK_AFTER_S = 1.0
# What the gateway may hold more then: a few reads. What the sockets hold is not its own.
HELD_SIZE_MAX = 1 << 20
# More blocks than all sockets on the way take.
TAKEN_MAX = 256
# One that does not read messages soon stops reading bytes.
PAUSING = {"max_size": None, "max_queue": 1, "compression": None, "close_timeout": 1}


@pytest.fixture(scope="module")
def messages(tmp_path_factory):
    return peers.Messages.write(tmp_path_factory.mktemp("messages") / "messages", COUNT, seed=6455)


@pytest.fixture(params=peers.CLIENTS)
def client(request):
    return peers.CLIENTS[request.param]


@pytest.fixture(params=peers.SERVERS)
def server_type(request):
    return peers.SERVERS[request.param]


def relay(io_driver, server, scenario, **limits):
    """Runs the scenario with a gateway before the server: the metrics at rest, and what the scenario returned."""
    limits = "\n".join(f"{key} = {value}" for key, value in limits.items())
    with Gateway(CONFIG.format(upstream=server.upstream, limits=limits), io_driver=io_driver) as gateway:

        async def run():
            async with server:
                return await scenario(gateway, f"ws://127.0.0.1:{gateway.ports['a']}")

        with gateway.leaving_nothing():
            outcome = asyncio.run(run())
        return gateway.at_rest(), outcome


@pytest.mark.parametrize("deflate", [True, False], ids=["deflate", "plain"])
def test_ten_thousand_messages_arrive_in_order_both_ways(io_driver, client, server_type, deflate, messages, tmp_path):
    server = server_type(deflate, tmp_path)

    async def scenario(_gateway, url):
        wanted = {"file": str(messages.file), "messages": messages.shapes, "subprotocols": ["v1", "v2"]}
        [told] = await client([{"url": f"{url}/echo", "action": "echo", "deflate": True, "code": 1000, **wanted}])
        return told, await server.ended()

    metrics, (told, seen) = relay(io_driver, server, scenario)
    assert seen["digest"] == told["digest"]
    assert seen["count"] == told["count"] == COUNT
    assert told["pongs"] == messages.fragmented_count
    # Both ends agree on what was agreed on, which the gateway had no say in.
    assert seen["extensions"] == told["extensions"] == ("permessage-deflate" if deflate else "")
    assert seen["subprotocol"] == told["subprotocol"] == "v2"
    assert seen["code"] == told["code"] == 1000

    assert metrics.by("end", "connections_ended_total") == {"closed": 1}
    assert metrics.by("result", "handshakes_total") == {"accepted": 1}
    assert metrics.by("result", "upstream_connects_total") == {"opened": 1}
    assert metrics.by("initiator", "closes_total") == {"client": 1}
    assert metrics.value("frames_total", direction="received", opcode="ping") == messages.fragmented_count
    assert metrics.value("frames_total", direction="sent", opcode="pong") >= messages.fragmented_count
    for direction in ("received", "sent"):
        assert metrics.value("messages_total", direction=direction) == COUNT
        assert metrics.value("frames_total", direction=direction, opcode="continuation") >= COUNT / 20
        payload_size = metrics.value("payload_bytes_total", direction=direction)
        if deflate:
            assert payload_size < 0.9 * messages.payload_size
        else:
            assert payload_size == messages.payload_size


def test_what_the_client_does_not_offer_is_not_agreed_on(io_driver, client, server_type, tmp_path):
    server = server_type(True, tmp_path)

    async def scenario(_gateway, url):
        [told] = await client([{"url": f"{url}/echo", "action": "close", "deflate": False, "code": 1000}])
        return told, await server.ended()

    _, ends = relay(io_driver, server, scenario)
    for end in ends:
        assert (end["extensions"], end["subprotocol"]) == ("", "")


def test_closes_arrive_as_they_were_sent_by_the_client(io_driver, client, server_type, tmp_path):
    server = server_type(True, tmp_path)

    async def scenario(_gateway, url):
        talks = [{"url": url, "action": "close", "code": code, "reason": reason} for code, reason, _ in CLOSES]
        told = await client(talks)
        return told, [await server.ended() for _ in CLOSES]

    metrics, (told, seen) = relay(io_driver, server, scenario)
    check_closes(metrics, seen, "client")
    # The upstream answers with the same code; what becomes of the reason is its own affair.
    assert [one["code"] for one in told] == [code or NO_CODE for code, _, _ in CLOSES]


def test_closes_arrive_as_they_were_sent_by_the_upstream(io_driver, client, server_type, tmp_path):
    """At once after the 101, so that they come in one read with it, or right after."""
    server = server_type(True, tmp_path)

    async def scenario(_gateway, url):
        queries = [
            urlencode({name: value for name, value in (("code", code), ("reason", reason)) if value})
            for code, reason, _ in CLOSES
        ]
        told = await client([{"url": f"{url}/close?{query}", "action": "closed"} for query in queries])
        return told, [await server.ended() for _ in CLOSES]

    metrics, (told, seen) = relay(io_driver, server, scenario)
    check_closes(metrics, told, "upstream")
    assert [one["code"] for one in seen] == [code or NO_CODE for code, _, _ in CLOSES]


def check_closes(metrics, received, initiator):
    """Every Close came as it was sent, is counted as this side's, and was answered."""
    expected = [(code or NO_CODE, reason or "") for code, reason, _ in CLOSES]
    assert [(one["code"], one["reason"]) for one in received] == expected
    assert metrics.by("initiator", "closes_total") == {initiator: len(CLOSES)}
    assert metrics.by("code", "closes_total") == {label: 1 for _, _, label in CLOSES}
    assert metrics.by("end", "connections_ended_total") == {"closed": len(CLOSES)}
    assert metrics.value("violations_total") == 0


def test_a_refusal_of_the_upstream_reaches_the_client_whole(io_driver, client, server_type, tmp_path):
    server = server_type(True, tmp_path)

    async def scenario(_gateway, url):
        return await client([{"url": f"{url}/refuse/{status}", "action": "refused"} for status in (401, 403)])

    metrics, refusals = relay(io_driver, server, scenario)
    for status, refusal in zip((401, 403), refusals, strict=True):
        assert (refusal["status"], refusal["body"]) == (status, peers.REFUSAL)
        assert refusal["fields"]["www-authenticate"] == peers.CHALLENGE
    assert metrics.by("result", "handshakes_total") == {"upstream_refused": 2}
    assert metrics.by("end", "connections_ended_total") == {"refused": 2}
    assert metrics.by("result", "upstream_connects_total") == {"answered": 2}
    assert metrics.by("class", "http_requests_total", route="relay") == {"4xx": 2}


class Silent:
    """A server of Python's websockets, on a Unix socket, that leaves its only connection to the test."""

    def __init__(self, folder):
        self.path = folder / "upstream.sock"
        self.upstream = f"ws+unix://{self.path}"

    async def __aenter__(self):
        self.connection = asyncio.get_running_loop().create_future()

        async def serve(connection):
            self.connection.set_result(connection)
            await connection.wait_closed()

        self._server = await websockets.unix_serve(serve, str(self.path), **PAUSING)
        return self

    async def __aexit__(self, *_exception):
        self._server.close()
        await self._server.wait_closed()


@contextlib.asynccontextmanager
async def two_ends(server, url, sender):
    """A connection's two ends that nobody reads from: first the one that is to send, then the other."""
    async with websockets.connect(url, **PAUSING) as client:
        ends = [client, await server.connection]
        yield ends if sender == "client" else ends[::-1]


def block(number):
    """A message of 1 MiB that is like no other."""
    return number.to_bytes(8) * (1 << 17)


@pytest.mark.parametrize("sender", ["client", "upstream"])
def test_who_does_not_read_stops_the_other_and_loses_nothing(io_driver, sender, tmp_path):
    server = Silent(tmp_path)

    async def scenario(gateway, url):
        async with two_ends(server, url, sender) as (writing, reading):
            size = gateway.resident_size()
            count = 0
            with contextlib.suppress(TimeoutError):
                while count < TAKEN_MAX:
                    cpu_s = gateway.cpu_s()
                    async with asyncio.timeout(STUCK_AFTER_S):
                        count += 1
                        await writing.send(block(count - 1))
            idle_cpu_s, held = gateway.cpu_s() - cpu_s, gateway.resident_size() - size
            print(f"stuck after {count} MiB; the gateway holds {held >> 10} KiB, and used {idle_cpu_s} s meanwhile")
            assert count < TAKEN_MAX and held < HELD_SIZE_MAX and idle_cpu_s < STUCK_AFTER_S / 4
            for number in range(count):
                assert await reading.recv() == block(number)
            await writing.send("and on")
            assert await reading.recv() == "and on"
        return count + 1

    metrics, count = relay(io_driver, server, scenario)
    assert metrics.value("messages_total", direction="received" if sender == "client" else "sent") == count
    assert metrics.value("slow_clients_total", outcome="cut") == metrics.value("send_queue_bytes") == 0
    assert metrics.value("slow_clients_total", outcome="recovered") > 0 or sender == "client"
    assert metrics.by("end", "connections_ended_total") == {"closed": 1}


@pytest.mark.parametrize(("sender", "end"), [("client", "upstream_gone"), ("upstream", "slow_client")])
def test_who_never_reads_is_cut_at_the_write_timeout(io_driver, sender, end, tmp_path):
    server = Silent(tmp_path)

    async def scenario(_gateway, url):
        async with two_ends(server, url, sender) as (writing, _reading):
            with pytest.raises(websockets.ConnectionClosedError):
                async with asyncio.timeout(PATIENCE_S):
                    for number in range(TAKEN_MAX):
                        await writing.send(block(number))

    metrics, _ = relay(io_driver, server, scenario, write_timeout_ms=500)
    assert metrics.by("end", "connections_ended_total") == {end: 1}
    assert metrics.value("slow_clients_total", outcome="cut") == (sender == "upstream")
    assert metrics.value("send_queue_bytes") == 0


def test_quiet_ends_are_kept_and_only_the_client_is_pinged(io_driver, tmp_path):
    server = Silent(tmp_path)

    async def scenario(gateway, url):
        async with two_ends(server, url, "client") as (client, upstream):
            await asyncio.to_thread(
                wait_until, lambda: gateway.metrics().value("ping_round_trip_seconds_count") >= 3, "pings are answered"
            )
            for one, other in ((client, upstream), (upstream, client)):
                await one.send("still here")
                assert await other.recv() == "still here"

    metrics, _ = relay(io_driver, server, scenario, ping_interval_ms=200)
    assert metrics.value("frames_total", direction="sent", opcode="ping") >= 3
    assert metrics.by("end", "connections_ended_total") == {"closed": 1}


class Raw:
    """A server that does the opening handshake, and then with the bytes of its only connection what a test says."""

    HEAD = (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
    ).encode()

    def __init__(self, handle):
        self.handle = handle
        self._socket = peers.bound_socket()
        self.upstream = f"ws://127.0.0.1:{self._socket.getsockname()[1]}"

    async def __aenter__(self):
        self.outcome = asyncio.get_running_loop().create_future()

        async def serve(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self.HEAD)
            self.outcome.set_result(await self.handle(reader, writer))
            writer.close()

        self._server = await asyncio.start_server(serve, sock=self._socket)
        return self

    async def __aexit__(self, *_exception):
        self._server.close()
        await self._server.wait_closed()


# More than sockets take at once, so that it is still on its way when its sender has ended.
LARGE = bytes(range(256)) * (8 << 12)


def test_a_client_that_ended_its_half_still_gets_what_the_upstream_says(io_driver):
    """And what it said before reaches the upstream as it was, also what came with the opening handshake."""
    sent = [frame(TEXT, b"early"), frame(BINARY, LARGE), frame(TEXT, b"last")]

    async def answer_at_the_end(reader, writer):
        received = await reader.read()
        writer.write(frame(BINARY, LARGE, mask=None) + frame(CLOSE, b"\x03\xe8", mask=None))
        return received

    server = Raw(answer_at_the_end)

    async def scenario(gateway, _url):
        async with await Connection.open(gateway.ports["a"]) as client:
            await client.accepted(upgrade() + sent[0])
            for one in sent[1:]:
                await client.send(one)
            client.finish_sending()
            answer = await client.frame()
            assert (answer.opcode, answer.payload) == (BINARY, LARGE)
            await client.closed(1000)
            await client.end()
        return await server.outcome

    metrics, received = relay(io_driver, server, scenario)
    assert received == b"".join(sent)
    assert metrics.by("end", "connections_ended_total") == {"client_gone": 1}


@pytest.mark.parametrize("code", [1014, None], ids=["between frames", "within a frame"])
def test_an_upstream_that_ended_without_a_close_still_gets_what_the_client_said(io_driver, code):
    """The client is told where it can be: within a frame no other can begin."""
    sent, whole = frame(BINARY, LARGE), frame(TEXT, b"last", mask=None)

    async def end_first(reader, writer):
        writer.write(frame(BINARY, LARGE, mask=None) + (whole if code else whole[:-1]))
        writer.write_eof()
        return await reader.read()

    server = Raw(end_first)

    async def scenario(gateway, _url):
        async with await Connection.open(gateway.ports["a"]) as client:
            await client.accepted()
            sending = asyncio.create_task(client.send(sent))
            assert (await client.frame()).payload == LARGE
            if code:
                assert len(await client.closed(code)) == 1
            else:
                assert await client.reader.read() == whole[:-1]
            await sending
            await client.send(close_frame(code or 1001))
            await client.end()
        return await server.outcome

    metrics, received = relay(io_driver, server, scenario)
    assert received == sent + close_frame(code or 1001)
    assert metrics.by("end", "connections_ended_total") == {"upstream_gone": 1}


@pytest.mark.parametrize("last_words", ["a Close", "its end", "nothing"])
def test_a_client_that_breaks_a_rule_still_gets_the_answers_to_what_came_before(io_driver, last_words):
    """The upstream is told in its place; where it does not end soon, the client gets the gateway's own Close."""
    bad = frame(TEXT, b"bad", reserved=4)

    async def answer(reader, writer):
        received = await reader.readexactly(len(frame(TEXT, b"good")))
        opcode, _, *key, first, second = await reader.readexactly(8)
        writer.write(frame(TEXT, b"answer", mask=None))
        if last_words == "a Close":
            writer.write(frame(CLOSE, b"\x03\xeaended", mask=None))
        elif last_words == "its end":
            writer.write_eof()
        await reader.read()
        return received, (opcode & 0x0F, int.from_bytes([first ^ key[0], second ^ key[1]]))

    server = Raw(answer)

    async def scenario(gateway, _url):
        async with await Connection.open(gateway.ports["a"]) as client:
            await client.accepted()
            await client.send(frame(TEXT, b"good") + bad)
            [answer] = await client.closed(1002)
            assert (answer.opcode, answer.payload) == (TEXT, b"answer")
            await client.end()
        return await server.outcome

    metrics, (received, close) = relay(io_driver, server, scenario, close_timeout_ms=1000)
    assert received == frame(TEXT, b"good")
    assert close == (CLOSE, 1002)
    assert metrics.by("initiator", "closes_total") == {"gateway": 1}
    assert metrics.by("code", "closes_total") == {"1002": 1}
    assert metrics.by("end", "connections_ended_total") == {"violation": 1}
    assert metrics.value("frames_total", direction="sent", opcode="close") == 1


def test_a_close_that_is_on_its_way_when_the_gateway_asks_to_leave_is_the_only_one(io_driver):
    close = frame(CLOSE, b"\x03\xe8done", mask=None)

    async def interrupt_itself(reader, writer):
        writer.write(close[:-1])
        # The gateway's own Close, with 1001: the client's is queued behind the one that is not whole yet.
        leaving = await reader.readexactly(8)
        writer.write(close[-1:])
        await reader.read()
        return leaving[0]

    server = Raw(interrupt_itself)

    async def scenario(gateway):
        async with server, await Connection.open(gateway.ports["a"]) as client:
            await client.accepted()
            # What is there of it is passed on at once.
            start = await client.reader.readexactly(len(close) - 1)
            gateway.signal(signal.SIGTERM)
            assert start + await client.reader.readexactly(1) == close
            await client.send(close_frame(1000))
            await client.end()
            assert await server.outcome == 0x80 | CLOSE

    with Gateway(CONFIG.format(upstream=server.upstream, limits=""), io_driver=io_driver) as gateway:
        asyncio.run(scenario(gateway))
        assert gateway.process.wait(PATIENCE_S) == 0
