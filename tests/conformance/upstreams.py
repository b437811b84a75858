"""Upstreams that fail in every way there is: clients hear of it as is written, and nobody else notices."""

import asyncio
import contextlib
import signal
import socket
import time
from random import Random

import pytest

from client import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Connection, Frame, close_frame, frame, upgrade
from harness import PATIENCE_S, Gateway, wait_until
from upstream import (
    ACCEPTED,
    CONFIG,
    SWITCHING,
    Upstream,
    connects,
    ends,
    handshakes,
    relay,
    route,
    server_frame,
    status,
    until,
)

HEAD = upgrade("/chat/room")
NORMAL, GOING_AWAY, BAD_GATEWAY = b"\x03\xe8", b"\x03\xe9", b"\x03\xf6upstream"


@contextlib.asynccontextmanager
async def connected(gateway, upstream, path="/chat/room"):
    """A client, and the upstream's end of its connection, with which the handshake is done."""
    async with await Connection.open(gateway.ports["a"]) as client:
        await client.send(upgrade(path))
        async with await upstream.accept() as peer:
            assert (await client.response()).status == 101
            yield client, peer


async def join(gateway, upstream, service):
    """A client that is relayed to the upstream, and the upstream's end."""
    client = await Connection.open(gateway.ports["a"])
    await client.send(HEAD)
    peer = await (upstream.take() if service == "tcp" else upstream.accept())
    assert (await client.response()).status == 101
    return client, peer


# Ends of an upstream's connection.
ENDS = {"end": Connection.finish_sending, "reset": Connection.reset}


async def talk(client, peer, rounds):
    """Round trips, after a few of which the two are busy, and served in another way."""
    for _ in range(rounds):
        await client.send(frame(TEXT, b"there"))
        assert await peer.frame() == Frame(True, TEXT, b"there")
        await peer.send(server_frame(TEXT, b"back"))
        assert await client.frame() == Frame(True, TEXT, b"back")


@pytest.mark.parametrize("rounds", [0, 50], ids=["quiet", "busy"])
@pytest.mark.parametrize("how", ENDS)
def test_an_upstream_that_goes_between_frames_is_a_1014(io_driver, how, rounds):
    """The client gets it behind the last frame, and its answer is waited for; half a header is no frame."""

    async def scenario(gateway):
        for half in (b"", b"\x82", b"\x82\x7e\x01"):
            async with connected(gateway, upstream) as (client, peer):
                await talk(client, peer, rounds)
                await peer.send(server_frame(TEXT, b"last words") + half)
                assert await client.frame() == Frame(True, TEXT, b"last words")
                ENDS[how](peer)
                assert await client.frame() == Frame(True, CLOSE, BAD_GATEWAY)
                await client.send(frame(TEXT, b"too late") + close_frame(1014))
                await client.end()

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    assert ends(metrics) == {"upstream_gone": 3}
    assert metrics.by("code", "closes_total", port="a", initiator="gateway") == {"1014": 3}


@pytest.mark.parametrize("rounds", [0, 50], ids=["quiet", "busy"])
@pytest.mark.parametrize("how", ENDS)
def test_an_upstream_that_goes_in_the_middle_of_a_frame_is_just_an_end(io_driver, how, rounds):
    part = server_frame(BINARY, bytes(100))[:50]

    async def scenario(gateway):
        async with connected(gateway, upstream) as (client, peer):
            await talk(client, peer, rounds)
            await peer.send(part)
            assert await client.reader.readexactly(50) == part
            ENDS[how](peer)
            await client.end()

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    assert ends(metrics) == {"upstream_gone": 1}
    assert metrics.value("closes_total", port="a") == 0


def test_an_upstream_that_ends_its_half_still_hears_the_clients_close(io_driver):
    async def scenario(gateway):
        async with connected(gateway, upstream) as (client, peer):
            peer.finish_sending()
            await client.closed(1014)
            await client.send(close_frame(1014))
            assert await peer.frame() == Frame(True, CLOSE, b"\x03\xf6")
            await peer.end()
            await client.end()

    with Upstream() as upstream:
        assert ends(relay(io_driver, route(upstream), scenario)) == {"upstream_gone": 1}


# Frames that no server may send, and what came before them.
BAD_FRAMES = {
    "reserved bits": server_frame(TEXT, b"a", reserved=4),
    "reserved bits on a control frame": server_frame(PING, reserved=1),
    "a reserved opcode": server_frame(3, b"a"),
    "a reserved control opcode": server_frame(11),
    "a masked frame": frame(TEXT, b"a"),
    "a control frame that is too long": server_frame(PING, bytes(126)),
    "a fragmented control frame": server_frame(PING, final=False),
    "a length in too many bytes": server_frame(BINARY, b"a", wide=True),
    "a length with its top bit": server_frame(BINARY, size=1 << 63),
    "a continuation of nothing": server_frame(CONTINUATION, b"a"),
    "a Close of one byte": server_frame(CLOSE, b"\x03"),
    "a Close with a code that may not be sent": server_frame(CLOSE, b"\x03\xee"),
    "a Close without an assigned code": server_frame(CLOSE, b"\x07\xd0"),
    "HTTP": b"HTTP/1.1 200 OK\r\n\r\n",
}


def test_a_frame_that_no_server_may_send_is_a_1014(io_driver):
    """What came before passes, nothing of it does, and the upstream is let go."""

    async def scenario(gateway):
        for name, bad in BAD_FRAMES.items():
            for step in (1, 100_000):
                async with connected(gateway, upstream) as (client, peer):
                    said = server_frame(TEXT, b"good") + bad + server_frame(TEXT, b"behind it")
                    for at in range(0, len(said), step):
                        with contextlib.suppress(ConnectionError):
                            await peer.send(said[at : at + step])
                    assert await client.frame() == Frame(True, TEXT, b"good"), name
                    assert await client.frame() == Frame(True, CLOSE, BAD_GATEWAY), name
                    await client.send(close_frame(1014))
                    await client.end()
                    await peer.gone()
                    assert not peer.received.endswith(close_frame(1014)), name

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    assert ends(metrics) == {"upstream_gone": 2 * len(BAD_FRAMES)}
    assert metrics.value("violations_total") == 0, "clients broke no rule"


def test_a_message_that_another_interrupts_is_a_1014(io_driver):
    async def scenario(gateway):
        async with connected(gateway, upstream) as (client, peer):
            await peer.send(server_frame(TEXT, b"a", final=False) + server_frame(PING) + server_frame(TEXT, b"b"))
            assert await client.frame() == Frame(False, TEXT, b"a")
            assert await client.frame() == Frame(True, PING, b"")
            assert await client.frame() == Frame(True, CLOSE, BAD_GATEWAY)
            await client.end()

    with Upstream() as upstream:
        assert ends(relay(io_driver, route(upstream), scenario)) == {"upstream_gone": 1}


def test_nothing_passes_behind_a_close(io_driver):
    """Of either side, nor when the two cross."""

    async def scenario(gateway):
        async with connected(gateway, upstream) as (client, peer):
            await peer.send(server_frame(CLOSE, NORMAL + b"bye") + server_frame(TEXT, b"behind") + b"\xff" * 20)
            assert await client.frame() == Frame(True, CLOSE, NORMAL + b"bye")
            await client.send(close_frame(1000) + frame(TEXT, b"behind") + b"\xff" * 20)
            assert await peer.frame() == Frame(True, CLOSE, NORMAL)
            await peer.end()
            await client.end()
        async with connected(gateway, upstream) as (client, peer):
            await asyncio.gather(client.send(close_frame(1000)), peer.send(server_frame(CLOSE, b"\x03\xe9")))
            assert await client.frame() == Frame(True, CLOSE, b"\x03\xe9")
            assert await peer.frame() == Frame(True, CLOSE, NORMAL)
            await peer.end()
            await client.end()

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    assert ends(metrics) == {"closed": 2}
    assert metrics.value("violations_total") == 0


@pytest.mark.parametrize("rest", ["a frame and a Close", "a Close that had begun"])
def test_a_close_of_the_gateways_does_not_follow_one_of_the_upstreams(io_driver, rest):
    """The client breaks a rule in the middle of a frame for it, behind which the upstream says its own Close."""
    text, reason = server_frame(TEXT, bytes(100)), server_frame(CLOSE, NORMAL + b"a long goodbye")

    async def scenario(gateway):
        async with connected(gateway, upstream) as (client, peer):
            said = text + reason if rest == "a frame and a Close" else reason
            await peer.send(said[:10])
            assert await client.reader.readexactly(10) == said[:10]
            await client.send(frame(TEXT, b"bare", mask=None))
            assert await peer.frame() == Frame(True, CLOSE, b"\x03\xeaunmasked")
            await peer.send(said[10:])
            assert await client.reader.readexactly(len(said) - 10) == said[10:]
            await client.end()
            await peer.end()

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    assert ends(metrics) == {"violation": 1}
    assert metrics.by("kind", "violations_total") == {"unmasked": 1}


def test_a_client_that_breaks_a_rule_reaches_the_upstream_with_none_of_it(io_driver):
    bad = {
        "unmasked": frame(TEXT, b"a", mask=None),
        "reserved_bits": frame(TEXT, b"a", reserved=2),
        "control_too_long": frame(PING, bytes(126)),
        "unexpected_continuation": frame(CONTINUATION, b"a"),
        "length_top_bit": frame(BINARY, size=1 << 63),
        "close_code_invalid": close_frame(1005),
    }

    async def scenario(gateway):
        for kind, sent in bad.items():
            async with connected(gateway, upstream) as (client, peer):
                await client.send(frame(TEXT, b"good") + sent + frame(TEXT, b"behind"))
                assert await peer.frame() == Frame(True, TEXT, b"good")
                # It is told in the client's place, and the client as soon as it has nothing to say to that.
                assert await peer.frame() == Frame(True, CLOSE, b"\x03\xea" + kind.encode())
                peer.finish_sending()
                await client.closed(1002)
                await client.end()
                await peer.end()

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    assert ends(metrics) == {"violation": len(bad)}
    assert metrics.by("kind", "violations_total", port="a") == dict.fromkeys(bad, 1)


@pytest.mark.parametrize("how", ENDS)
def test_a_client_that_goes_takes_its_upstream_along(io_driver, how):
    async def scenario(gateway):
        for part in (b"", frame(TEXT, bytes(100))[:50]):
            async with connected(gateway, upstream) as (client, peer):
                await client.send(part)
                if part:
                    await peer.reader.readexactly(50)
                ENDS[how](client)
                await peer.end()

    with Upstream() as upstream:
        assert ends(relay(io_driver, route(upstream), scenario)) == {"client_gone": 2}


def test_an_upstream_that_never_reads_holds_bounded_memory_and_is_cut(io_driver):
    async def scenario(gateway):
        async with connected(gateway, upstream) as (client, peer):
            peer.writer.transport.pause_reading()
            before, start = gateway.resident_size(), time.monotonic()
            with pytest.raises(ConnectionError):
                async with asyncio.timeout(30):
                    while True:
                        await client.send(frame(BINARY, bytes(1 << 20)))
                        assert gateway.resident_size() - before < 4 << 20
            assert time.monotonic() - start >= 0.9, "it had the write timeout"

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    assert ends(metrics) == {"upstream_gone": 1}
    assert metrics.value("slow_clients_total", port="a") == 0


def test_a_client_that_never_reads_holds_bounded_memory_and_is_cut(io_driver):
    async def scenario(gateway):
        async with connected(gateway, upstream) as (client, peer):
            client.writer.transport.pause_reading()
            before = gateway.resident_size()
            with pytest.raises(ConnectionError):
                async with asyncio.timeout(30):
                    while True:
                        await peer.send(server_frame(BINARY, bytes(1 << 20)))
                        assert gateway.resident_size() - before < 4 << 20

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    assert ends(metrics) == {"slow_client": 1}
    assert metrics.value("slow_clients_total", port="a", outcome="cut") == 1
    assert metrics.value("send_queue_bytes") == 0


def test_a_byte_stream_that_ends_is_a_1000_and_one_that_breaks_off_a_1014(io_driver):
    async def scenario(gateway):
        for how, code in (("end", 1000), ("reset", 1014)):
            async with await Connection.open(gateway.ports["a"]) as client:
                await client.send(upgrade("/chat/room", sec_websocket_protocol="binary") + frame(TEXT, b"early"))
                response = await client.response()
                assert (response.status, response.fields["sec-websocket-protocol"]) == (101, "binary")
                async with await upstream.take() as peer:
                    assert await peer.reader.readexactly(5) == b"early"
                    await peer.send(b"hello")
                    assert await client.frame() == Frame(True, BINARY, b"hello")
                    ENDS[how](peer)
                    await client.closed(code)
                    await client.send(close_frame(code))
                    await client.end()

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream, service="tcp"), scenario)
    assert ends(metrics) == {"closed": 1, "upstream_gone": 1}
    assert connects(metrics) == {"opened": 2}


def test_what_comes_out_is_what_went_in_whoever_reads_slowly(io_driver):
    """Frames of all sizes, cut anywhere, both ways at once; at first nobody reads, so each side fills up."""
    random = Random(6455)

    def frames(mask):
        sizes = [random.choice([0, 1, 125, 126, 1000, 65_535, 65_536, 300_000]) for _ in range(300)]
        return b"".join(frame(BINARY, random.randbytes(size), mask=mask) for size in sizes)

    async def pour(side, said):
        at = 0
        while at < len(said):
            size = random.choice([1, 7, 1000, 10_000, 200_000])
            await side.send(said[at : at + size])
            at += size

    async def scenario(gateway):
        async with connected(gateway, upstream) as (client, peer):
            there, back = frames(b"\1\2\3\4"), frames(None)
            before = len(peer.received)
            for side in (client, peer):
                side.writer.transport.pause_reading()
            pouring = [asyncio.create_task(pour(client, there)), asyncio.create_task(pour(peer, back))]
            await until(lambda: is_full(gateway), "both sides are full")
            assert not any(task.done() for task in pouring)
            for side in (client, peer):
                side.writer.transport.resume_reading()
            received = await asyncio.gather(client.reader.readexactly(len(back)), peer.reader.readexactly(len(there)))
            await asyncio.gather(*pouring)
            assert received[0] == back and received[1] == there
            assert peer.received[before:] == there
            await client.send(close_frame(1000))
            assert await peer.frame() == Frame(True, CLOSE, NORMAL)
            await peer.send(server_frame(CLOSE, NORMAL))
            await client.closed(1000)

    passed = [0.0]

    async def is_full(gateway):
        """Whether nothing more has passed since the last look."""
        passed.append(gateway.metrics().value("wire_bytes_total", port="a"))
        return passed[-1] == passed[-2]

    with Upstream() as upstream:
        config = CONFIG.replace("write_timeout_ms = 1000", "write_timeout_ms = 20000")
        metrics = relay(io_driver, route(upstream), scenario, config=config)
    assert ends(metrics) == {"closed": 1}
    assert metrics.value("slow_clients_total", outcome="recovered") >= 1
    assert metrics.value("send_queue_bytes") == 0


def test_a_quiet_client_is_pinged_and_its_upstream_is_not(io_driver):
    """Who does not answer is told and let go, and the upstream hears the end."""

    async def scenario(gateway):
        async with connected(gateway, upstream) as (client, peer):
            before = len(peer.received)
            ping = await client.frame()
            assert ping.opcode == PING
            await client.send(frame(PONG, ping.payload))
            # A pong that was not asked for is an upstream's to ignore (RFC 6455 section 5.5.3).
            assert (await peer.frame()).opcode == PONG
            await talk(client, peer, 3)
            before = len(peer.received)
            pings = await client.closed(1011)
            assert [ping.opcode for ping in pings] == [PING]
            await client.end()
            await peer.end()
            assert len(peer.received) == before

    with Upstream() as upstream:
        limits = "[limits]\nping_interval_ms = 300\npong_timeout_ms = 300"
        metrics = relay(io_driver, route(upstream), scenario, config=CONFIG.replace("[limits]", limits))
    assert ends(metrics) == {"pong_timeout": 1}
    assert metrics.value("ping_round_trip_seconds_count", port="a") == 1


def test_an_idle_connection_is_a_1001_for_both(io_driver):
    async def scenario(gateway):
        async with connected(gateway, upstream) as (client, peer):
            await client.closed(1001)
            assert await peer.frame() == Frame(True, CLOSE, GOING_AWAY)
            await client.send(close_frame(1001))
            await peer.send(server_frame(CLOSE, GOING_AWAY))
            await client.end()
            await peer.end()

    with Upstream() as upstream:
        config = CONFIG.replace("[limits]", "[limits]\nidle_timeout_ms = 500")
        assert ends(relay(io_driver, route(upstream), scenario, config=config)) == {"idle": 1}


def test_a_connection_on_which_only_the_upstream_speaks_is_not_idle(io_driver):
    async def scenario(gateway):
        async with connected(gateway, upstream) as (client, peer):
            start = time.monotonic()
            while time.monotonic() - start < 1.5:
                # It is silence, shorter than the timeout, that nobody is to be let go for.
                await asyncio.sleep(0.1)
                await peer.send(server_frame(TEXT, b"tick"))
                assert await client.frame() == Frame(True, TEXT, b"tick")
            assert await client.frame() == Frame(True, CLOSE, GOING_AWAY)
            assert await peer.frame() == Frame(True, CLOSE, GOING_AWAY)
            await client.send(close_frame(1001))
            await peer.send(server_frame(CLOSE, GOING_AWAY))
            await client.end()
            await peer.end()

    with Upstream() as upstream:
        config = CONFIG.replace("[limits]", "[limits]\nidle_timeout_ms = 500")
        assert ends(relay(io_driver, route(upstream), scenario, config=config)) == {"idle": 1}


def test_a_close_that_the_upstream_does_not_answer_is_answered_in_its_place(io_driver):
    async def scenario(gateway):
        async with connected(gateway, upstream) as (client, peer):
            await client.send(close_frame(1000))
            assert await peer.frame() == Frame(True, CLOSE, NORMAL)
            assert await client.frame() == Frame(True, CLOSE, BAD_GATEWAY)
            await client.end()
            await peer.end()

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    assert ends(metrics) == {"upstream_gone": 1}
    assert metrics.by("initiator", "closes_total", port="a") == {"client": 1}


def test_a_client_whose_upstream_does_not_read_is_told(io_driver):
    async def scenario(gateway):
        async with connected(gateway, upstream) as (client, peer):
            peer.writer.transport.pause_reading()
            sending = asyncio.create_task(client.send(frame(BINARY, bytes(15 << 20))))
            assert await client.frame() == Frame(True, CLOSE, BAD_GATEWAY)
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await sending

    with Upstream() as upstream:
        assert ends(relay(io_driver, route(upstream), scenario)) == {"upstream_gone": 1}


@pytest.mark.parametrize("from_upstream", [True, False])
def test_who_ends_in_the_middle_of_a_frame_is_not_waited_for_to_answer(io_driver, from_upstream):
    """A Close of the gateway's that found no place any more was heard by nobody."""

    async def scenario(gateway):
        async with connected(gateway, upstream) as (client, peer):
            leaver, other = (peer, client) if from_upstream else (client, peer)
            said = server_frame(TEXT, bytes(100)) if from_upstream else frame(TEXT, bytes(100))
            await leaver.send(said[:50])
            assert len(await other.reader.readexactly(50)) == 50
            # The one that is between frames hears at once that it has been idle; the other one's Close waits.
            assert await leaver.frame() == Frame(True, CLOSE, GOING_AWAY)
            start = time.monotonic()
            leaver.finish_sending()
            await other.end()
            assert time.monotonic() - start < 0.7, "it waited for the close timeout"

    with Upstream() as upstream:
        config = CONFIG.replace("[limits]", "[limits]\nidle_timeout_ms = 500")
        relay(io_driver, route(upstream), scenario, config=config)


@pytest.mark.parametrize("service", ["websocket", "tcp"])
def test_an_upstream_on_a_unix_socket_is_as_any_other(io_driver, service, tmp_path):
    async def scenario(gateway):
        for _ in range(2):
            client, peer = await join(gateway, upstream, service)
            async with client, peer:
                peer.finish_sending()
                await client.closed(1000 if service == "tcp" else 1014)
                await client.send(close_frame(1000))
                await client.end()
        upstream.stop()
        assert await status(gateway) == 502
        (tmp_path / "socket").unlink()
        assert await status(gateway) == 502

    with Upstream(path=tmp_path / "socket") as upstream:
        metrics = relay(io_driver, route(upstream, service=service), scenario)
    assert connects(metrics) == {"opened": 2, "refused": 2}


def test_an_upstream_that_says_nothing_is_a_504_and_no_other_is_asked(io_driver):
    """Nothing is tried again once a byte was sent, however the first one ends."""

    async def scenario(gateway):
        async with other.answering():
            for answer, expected in ((b"", 504), (b"HTTP/1.1 101 Sw", 504), (None, 502)):
                async with await Connection.open(gateway.ports["a"]) as client:
                    start = time.monotonic()
                    await client.send(HEAD)
                    async with await silent.accept(answer or b"") as peer:
                        if answer is None:
                            peer.reset()
                        assert (await client.response()).status == expected
                        assert expected != 504 or 0.9 <= time.monotonic() - start < 5
                        await client.end()
                # The other one has its turn.
                assert await status(gateway) == 101
        assert other.count == 3

    with Upstream() as silent, Upstream() as other:
        metrics = relay(io_driver, route(silent, other), scenario)
    assert connects(metrics) == {"handshake_timed_out": 2, "reset": 1, "opened": 3}
    assert ends(metrics) == {"upstream_unavailable": 3, "closed": 3}
    assert handshakes(metrics) == {"upstream_unavailable": 3, "accepted": 3}


def test_a_101_that_comes_too_slowly_is_a_504(io_driver):
    """Bytes that arrive do not move the deadline."""

    async def scenario(gateway):
        async with await Connection.open(gateway.ports["a"]) as client:
            await client.send(HEAD)
            async with await upstream.accept(b"") as peer:
                drip = asyncio.create_task(dripping(peer))
                assert (await client.response()).status == 504
                drip.cancel()
                await asyncio.gather(drip, return_exceptions=True)
                await client.end()

    async def dripping(peer):
        for byte in SWITCHING.encode():
            await peer.send(bytes([byte]))
            # A slow sender is what this is about.
            await asyncio.sleep(0.05)

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    assert connects(metrics) == {"handshake_timed_out": 1}


def test_an_upstream_whose_queue_is_full_is_a_504_or_the_next_is_tried(io_driver):
    """A listener that never accepts drops every further SYN."""

    async def scenario(gateway):
        with socket.create_connection((full.address, full.port)):
            start = time.monotonic()
            async with await Connection.open(gateway.ports["a"]) as client:
                await client.send(upgrade("/alone/x"))
                assert (await client.response()).status == 504
                await client.end()
            assert 0.9 <= time.monotonic() - start < 5
            async with other.answering():
                assert await status(gateway) == 101

    with Upstream(backlog=0) as full, Upstream() as other:
        metrics = relay(io_driver, route(full, path="/alone/*") + route(full, other), scenario)
    assert connects(metrics, "alone") == {"timed_out": 1}
    assert connects(metrics) == {"timed_out": 1, "opened": 1}
    assert ends(metrics) == {"upstream_unavailable": 1, "closed": 1}


def test_an_upstream_that_restarts_is_used_again(io_driver):
    """Its clients hear of the end, those that come meanwhile get a 502, those that come later are served."""

    async def scenario(gateway):
        async with await Connection.open(gateway.ports["a"]) as client:
            async with first.answering():
                await client.accepted(HEAD)
                await client.echo(b"before")
            first.stop()
            assert await client.frame() == Frame(True, CLOSE, BAD_GATEWAY)
            await client.send(close_frame(1014))
            await client.end()
        assert await status(gateway) == 502
        with Upstream(port=first.port) as second:
            async with second.answering():
                assert await status(gateway) == 101

    with Upstream() as first:
        metrics = relay(io_driver, route(first), scenario)
    assert connects(metrics) == {"opened": 2, "refused": 1}
    assert ends(metrics) == {"upstream_gone": 1, "upstream_unavailable": 1, "closed": 1}


def test_whatever_goes_wrong_at_once_the_books_add_up(io_driver):
    """Clients and upstreams of every kind together, from a seed."""
    count, random = 500, Random(1014)
    answers = {
        "accepts": ACCEPTED,
        "refuses": b"HTTP/1.1 403 x\r\nContent-Length: 5\r\n\r\nhello",
        "refuses and breaks off": b"HTTP/1.1 403 x\r\nContent-Length: 5\r\n\r\nhe",
        "makes no sense": SWITCHING.replace("Upgrade", "Update").encode() + b"\r\n",
        "breaks off": SWITCHING.encode(),
        "hangs": b"",
    }
    leave = [Connection.reset, Connection.finish_sending]

    def talk_of(mask, bad):
        """What one side says before it leaves: frames, in some cases wrong, in some cut off, in some with a Close."""
        said = b"".join(
            frame(BINARY, random.randbytes(random.choice([0, 10, 200, 70_000])), mask=mask)
            for _ in range(random.randrange(6))
        )
        last = random.choice([frame(CLOSE, NORMAL, mask=mask), bad, b"", frame(BINARY, bytes(50), mask=mask)[:20]])
        return said + last

    async def serve(peer):
        await peer.head()
        kind = random.choice([*answers, "accepts", "accepts", "accepts"])
        await peer.send(answers[kind])
        if kind == "accepts":
            await peer.send(talk_of(None, server_frame(3)))
        if kind == "accepts" and random.random() < 0.7:
            # It waits for its client to go.
            await peer.gone()
        elif kind == "hangs":
            await peer.gone()
        else:
            random.choice(leave)(peer)
            await peer.gone()

    async def come(gateway, places):
        async with places, await Connection.open(gateway.ports["a"]) as client:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await client.send(HEAD + talk_of(b"\1\2\3\4", frame(TEXT, b"a", mask=None)))
                if random.random() < 0.1:
                    client.reset()
                await client.response()
                if random.random() < 0.5:
                    await client.send(close_frame(1000))
                random.choice(leave)(client)
                await client.gone()

    async def scenario(gateway):
        places = asyncio.Semaphore(100)
        async with upstream.serving(serve):
            await asyncio.gather(*(come(gateway, places) for _ in range(count)))

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    ended, answered, tried = ends(metrics), handshakes(metrics), connects(metrics)
    print(ended, answered, tried, sep="\n")
    assert sum(ended.values()) == count
    assert answered["accepted"] == tried["opened"] and answered["upstream_refused"] == tried["answered"]
    failed = sum(tried.get(result, 0) for result in ("bad_handshake", "reset", "handshake_timed_out"))
    assert answered["upstream_unavailable"] == failed
    assert sum(tried.values()) == upstream.count
    assert len(ended) >= 5 and len(tried) >= 5, "the seed has some of everything"


# How many are connected when the gateway is told to stop.
CLIENTS = 50


@pytest.mark.parametrize("service", ["websocket", "tcp"])
def test_a_gateway_that_stops_asks_both_sides_to_leave_and_resets_nobody(io_driver, service):
    async def leave(client, peer):
        async with client, peer:
            await client.send(close_frame(1001))
            if service == "websocket":
                await peer.send(server_frame(CLOSE, GOING_AWAY))
            await peer.end()
            await client.end()

    async def scenario(gateway):
        pairs = [await join(gateway, upstream, service) for _ in range(CLIENTS)]
        if service == "websocket":
            # Half of them are busy.
            await asyncio.gather(*(talk(*pair, 20) for pair in pairs[::2]))
        gateway.signal(signal.SIGTERM)
        for client, peer in pairs:
            await client.closed(1001)
            if service == "websocket":
                assert await peer.frame() == Frame(True, CLOSE, GOING_AWAY)
        for client, peer in pairs[1:]:
            await leave(client, peer)
        # One is left, so the gateway is still here to be asked.
        wait_until(lambda: gateway.metrics().value("connections_active") == 1, "the others have left")
        metrics = gateway.metrics()
        metrics.check_funnel()
        assert ends(metrics) == {"drained": CLIENTS - 1}
        assert metrics.value("upstream_connections_active") == 1
        await leave(*pairs[0])

    with Upstream() as upstream:
        stop(io_driver, route(upstream, service=service), scenario)


def test_a_gateway_that_stops_cuts_off_whoever_does_not_leave(io_driver):
    """The closing timeout is for both sides, and a handshake under way is answered with a 503."""

    async def scenario(gateway):
        client, peer = await join(gateway, upstream, "websocket")
        async with client, peer, await Connection.open(gateway.ports["a"]) as late:
            await late.send(HEAD)
            async with await upstream.take() as asked:
                await asked.head()
                gateway.signal(signal.SIGTERM)
                response = await late.response()
                assert response.status == 503 and response.fields["retry-after"], response
                await late.end()
                await asked.gone()
            await client.closed(1001)
            await client.send(close_frame(1001))
            assert await peer.frame() == Frame(True, CLOSE, GOING_AWAY)
            # The upstream says nothing.
            await client.gone()
            await peer.gone()

    with Upstream() as upstream:
        stop(io_driver, route(upstream), scenario)


@pytest.mark.parametrize("side", ["client", "upstream"])
def test_a_gateway_that_stops_in_the_middle_of_a_frame_says_one_close(io_driver, side):
    """Its own Close waits for the frame's end, and the sender's, which follows at once, is not passed on too."""

    async def scenario(gateway):
        client, peer = await join(gateway, upstream, "websocket")
        async with client, peer:
            sender, receiver = (client, peer) if side == "client" else (peer, client)
            mask = b"\1\2\3\4" if side == "client" else None
            said = frame(BINARY, bytes(100), mask=mask) + frame(CLOSE, NORMAL, mask=mask)
            await sender.send(said[:50])
            await receiver.reader.readexactly(50)
            gateway.signal(signal.SIGTERM)
            assert (await sender.frame()).opcode == CLOSE
            await sender.send(said[50:])
            await receiver.reader.readexactly(len(said) - len(frame(CLOSE, NORMAL, mask=mask)) - 50)
            assert await receiver.frame() == Frame(True, CLOSE, GOING_AWAY)
            await receiver.send(frame(CLOSE, NORMAL, mask=b"\1\2\3\4" if side == "upstream" else None))
            await receiver.end()
            await sender.end()

    with Upstream() as upstream:
        stop(io_driver, route(upstream), scenario)


def stop(io_driver, routes, scenario):
    """Runs a scenario that tells its gateway to stop, which must then end well and soon."""
    with Gateway(CONFIG + routes, io_driver=io_driver) as gateway:
        start = time.monotonic()
        asyncio.run(scenario(gateway))
        assert gateway.process.wait(PATIENCE_S) == 0
        assert time.monotonic() - start < PATIENCE_S
        assert "panicked" not in gateway.log()
