"""Upstreams that speak TLS, or ought to: who is believed, what clients hear of the others, and what passes through."""

import asyncio
import contextlib
import ssl
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from authority import Authority, tls_of
from client import ANSWER_S, BINARY, CLOSE, TEXT, Connection, Frame, close_frame, frame, upgrade
from tls_client import ALERT, HANDSHAKE, record
from upstream import CONFIG, Upstream, connects, ends, handshakes, relay, route, server_frame, status

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3

DAY = timedelta(days=1)


@pytest.fixture
def believed(tmp_path):
    """The authority whose certificates the gateway believes of upstreams."""
    return Authority(tmp_path)


def tls_route(believed, *upstreams, path="/chat/*", name="", **limits):
    """A route to upstreams that are believed with this authority's certificates, for another name if one is given."""
    name = f', name = "{name}"' if name else ""
    return route(*upstreams, path=path, keys=f'upstream_tls = {{ ca = "{believed.ca}"{name} }}', **limits)


def self_signed(believed):
    """What a server needs that has signed its certificate itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(Encoding.PEM)
    believed.put("self.pem", pem + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(believed.folder / "self.pem")
    return context


def demanding(believed, version):
    """What a server needs that asks clients for a certificate, which the gateway has none of."""
    context = believed.server_context(version=version)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(believed.ca)
    return context


# Who is believed: its context, and the name that the gateway is told to ask for, where it is not the URL's.
BELIEVED = {
    "the URL's name": (lambda believed: believed.server_context(), ""),
    "another name": (lambda believed: believed.server_context("chat", "chat.example"), "chat.example"),
    "a star": (lambda believed: believed.server_context("chat", "*.apps.example"), "chat.apps.example"),
    "TLS 1.2 alone": (lambda believed: believed.server_context(version=V12), ""),
    "TLS 1.3 alone": (lambda believed: believed.server_context(version=V13), ""),
}


@pytest.mark.parametrize("who", BELIEVED)
def test_an_upstream_that_proves_who_it_is_serves(io_driver, believed, who):
    make, name = BELIEVED[who]

    async def scenario(gateway):
        async with upstream.answering(), await Connection.open(gateway.ports["a"]) as client:
            await client.accepted(upgrade("/chat/room"))
            await client.echo(b"hello")
            await client.close()

    with Upstream(tls=make(believed)) as upstream:
        metrics = relay(io_driver, tls_route(believed, upstream, name=name), scenario)
    assert connects(metrics) == {"opened": 1}
    assert ends(metrics) == {"closed": 1}


# Who is not believed: its context, the name to ask for, and the words for it.
STRANGERS = {
    "wrong name": (lambda believed, _: believed.server_context("other", "other.example"), "", "not valid for name"),
    "a star is one label": (
        lambda believed, _: believed.server_context("chat", "*.example"),
        "a.b.example",
        "not valid",
    ),
    "unknown authority": (lambda _, stranger: stranger.server_context(), "", "UnknownIssuer"),
    "expired": (lambda believed, _: believed.server_context(not_after=datetime.now(UTC) - DAY), "", "expired"),
    "not yet valid": (
        lambda believed, _: believed.server_context(not_before=datetime.now(UTC) + DAY),
        "",
        "not valid yet",
    ),
    "self-signed": (lambda believed, _: self_signed(believed), "", "UnknownIssuer"),
}


@pytest.mark.parametrize("who", STRANGERS)
def test_one_that_does_not_is_a_502_and_another_is_tried(io_driver, believed, who, tmp_path):
    make, name, words = STRANGERS[who]
    (tmp_path / "stranger").mkdir()
    context = make(believed, Authority(tmp_path / "stranger"))
    good_context = believed.server_context("good", *([name] if name else []))

    async def scenario(gateway):
        async with bad.answering(), good.answering():
            assert await status(gateway, path="/bad/room") == 502
            # Both have their turn; a client that is sent to the bad one first hears nothing of it.
            for _ in range(4):
                assert await status(gateway) == 101
            fault = upstream_of(await asyncio.to_thread(gateway.status), "chat", bad)["fault"]
            assert words in fault and "tls_failed" in fault, fault

    with Upstream(tls=context) as bad, Upstream(tls=good_context) as good:
        routes = tls_route(believed, bad, path="/bad/*", name=name)
        metrics = relay(io_driver, routes + tls_route(believed, bad, good, name=name, eject_after=1), scenario)
    assert connects(metrics, "bad") == {"tls_failed": 1}
    assert connects(metrics) == {"tls_failed": 1, "opened": 4}
    assert metrics.by("result", "handshakes_total", port="a") == {"upstream_unavailable": 1, "accepted": 4}
    assert ends(metrics) == {"upstream_unavailable": 1, "closed": 4}
    assert bad.count == 2 and good.count == 4
    # What the gateway has to say to an upstream it says by an alert; clients are not to blame.
    assert metrics.value("tls_failures_total") == 0


def upstream_of(status, route, upstream):
    """What the status says of an upstream of a route."""
    (found,) = (one for one in status["upstreams"] if one["route"] == route and one["upstream"] == upstream.url)
    return found


async def hear(peer, size=1):
    """Hears so much of what the gateway says at least."""
    async with asyncio.timeout(ANSWER_S):
        return await peer.reader.readexactly(size)


def speaking(context):
    """A server of TLS that says why it ends a handshake, and goes no further than that."""

    async def serve(peer):
        received, unsent = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(received, unsent, server_side=True)
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                await peer.send(unsent.read())
                received.write(await peer.reader.read(1 << 16))
            except ssl.SSLError:
                await peer.send(unsent.read())
                return

    return serve


async def end_at_once(_peer):
    """Takes the connection, and ends it."""


async def end_after_the_hello(peer):
    await hear(peer, 200)


async def reset_after_the_hello(peer):
    await hear(peer, 200)
    peer.reset()


async def answer_in_plain(peer):
    await hear(peer)
    await peer.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    await peer.gone()


async def say_nothing(peer):
    await peer.gone()


async def stop_in_the_middle(peer):
    await hear(peer)
    await peer.send(record(HANDSHAKE, b"\2\0\0\x60\3\3" + bytes(40)))
    await peer.gone()


async def go_on_byte_by_byte(peer):
    """For as long as it is let."""
    await hear(peer)
    gone = asyncio.create_task(peer.gone())
    for byte in record(HANDSHAKE, b"\2\0\x20\0" + bytes(8192)):
        await peer.send(bytes([byte]))
        if (await asyncio.wait([gone], timeout=0.02))[0]:
            break
    await gone


async def refuse_by_an_alert(peer):
    await hear(peer)
    await peer.send(record(ALERT, bytes([2, 40])))
    await peer.gone()


async def say_garbage(peer):
    await hear(peer)
    await peer.send(b"\xff" * 100)
    await peer.gone()


async def say_an_endless_message(peer):
    """A message of a certificate's type that is as long as it may claim to be."""
    await hear(peer)
    await peer.send(record(HANDSHAKE, b"\x0b\xff\xff\xff" + bytes(16_000)))
    with contextlib.suppress(ConnectionError):
        while True:
            await peer.send(record(HANDSHAKE, bytes(16_000)))
            if peer.is_ended():
                break


# What an upstream does that is spoken to in TLS: the result, and the status where there is no other upstream.
BROKEN = {
    end_at_once: ("reset", 502),
    end_after_the_hello: ("reset", 502),
    reset_after_the_hello: ("reset", 502),
    answer_in_plain: ("tls_failed", 502),
    refuse_by_an_alert: ("tls_failed", 502),
    say_garbage: ("tls_failed", 502),
    say_an_endless_message: ("tls_failed", 502),
    say_nothing: ("handshake_timed_out", 504),
    stop_in_the_middle: ("handshake_timed_out", 504),
    go_on_byte_by_byte: ("handshake_timed_out", 504),
}
HANDSHAKE_TIMEOUT_MS = 600


@pytest.mark.parametrize("what", BROKEN, ids=[what.__name__ for what in BROKEN])
def test_one_that_breaks_the_handshake_off_is_told_of_by_a_status_and_another_is_tried(io_driver, believed, what):
    result, expected = BROKEN[what]

    async def scenario(gateway):
        async with bad.serving(what), good.answering():
            start = time.monotonic()
            assert await status(gateway, path="/bad/room") == expected
            elapsed_ms = (time.monotonic() - start) * 1000
            is_timeout = result == "handshake_timed_out"
            print(f"{expected} after {elapsed_ms:.0f} ms")
            assert (elapsed_ms > HANDSHAKE_TIMEOUT_MS - 100) == is_timeout
            assert elapsed_ms < HANDSHAKE_TIMEOUT_MS + 1000
            assert [await status(gateway), await status(gateway)] == [101, 101]

    with Upstream() as bad, Upstream(tls=believed.server_context()) as good:
        bad.url = bad.url.replace("ws:", "wss:")
        timeout = {"handshake_timeout_ms": HANDSHAKE_TIMEOUT_MS}
        routes = tls_route(believed, bad, path="/bad/*", **timeout) + tls_route(believed, bad, good, **timeout)
        metrics = relay(io_driver, routes, scenario)
    assert connects(metrics, "bad") == {result: 1}
    # Both clients: the turn of the good one is over with the first.
    assert connects(metrics) == {result: 2, "opened": 2}
    assert handshakes(metrics) == {"upstream_unavailable": 1, "accepted": 2}
    assert ends(metrics) == {"upstream_unavailable": 1, "closed": 2}


@pytest.mark.parametrize("version", [V12, V13], ids=["1.2", "1.3"])
def test_one_that_wants_a_certificate_of_ours_is_known_by_its_alert(io_driver, believed, version):
    """In TLS 1.3 that comes when the request is on its way already, so that nobody else may be asked."""

    async def scenario(gateway):
        async with bad.serving(speaking(demanding(believed, version))), good.answering():
            statuses = [await status(gateway) for _ in range(4)]
            assert sorted(statuses) == ([101] * 4 if version == V12 else [101] * 3 + [502])
            fault = upstream_of(await asyncio.to_thread(gateway.status), "chat", bad)["fault"]
            print(fault)
            assert "tls_failed" in fault and ("HandshakeFailure" if version == V12 else "CertificateRequired") in fault

    with Upstream() as bad, Upstream(tls=believed.server_context("good")) as good:
        bad.url = bad.url.replace("ws:", "wss:")
        metrics = relay(io_driver, tls_route(believed, bad, good, eject_after=1), scenario)
    assert connects(metrics) == {"tls_failed": 1, "opened": 4 if version == V12 else 3}


def test_one_that_speaks_tls_where_it_is_spoken_to_in_plain_is_a_502(io_driver, believed):
    """It has been sent the request, so nobody else is asked."""

    async def scenario(gateway):
        async with bad.serving(speaking(believed.server_context())), good.answering():
            assert sorted([await status(gateway), await status(gateway)]) == [101, 502]

    with Upstream() as bad, Upstream() as good:
        metrics = relay(io_driver, route(bad, good), scenario)
    # OpenSSL knows plain HTTP, and has no alert for it.
    assert connects(metrics) == {"reset": 1, "opened": 1}
    assert ends(metrics) == {"upstream_unavailable": 1, "closed": 1}


def test_an_alert_in_place_of_an_answer_is_a_502(io_driver):
    async def scenario(gateway):
        async with upstream.serving(refuse_by_an_alert):
            assert await status(gateway) == 502

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    assert connects(metrics) == {"bad_handshake": 1}


# Whether the client speaks TLS, and whether the upstream does.
SIDES = {
    "plain to plain": (False, False),
    "TLS to plain": (True, False),
    "plain to TLS": (False, True),
    "TLS to TLS": (True, True),
}
# Around the places where a frame's header grows, and where records end and what is sent at once does; and large ones.
SIZES = [0, 1, 125, 126, 16_383, 16_384, 16_385, 49_152, 49_153, 65_535, 65_536, 1 << 20, 4 << 20]


def content(size, seed=0):
    """Bytes that are nowhere the same for long, and others with another seed."""
    unit = b"".join((number + seed).to_bytes(3) for number in range(1 << 14))
    return (unit * (size // len(unit) + 1))[:size]


class Sides:
    """A gateway's two sides, either in TLS or not, with an authority for both."""

    def __init__(self, believed, sides, **limits):
        self.is_client_tls, is_upstream_tls = SIDES[sides]
        self._tls = believed.context() if self.is_client_tls else None
        line = tls_of(believed) if self.is_client_tls else ""
        self.config = CONFIG.replace('name = "a"\n', f'name = "a"\n{line}\n')
        self.upstream = Upstream(tls=believed.server_context("upstream") if is_upstream_tls else None)
        self.routes = (
            tls_route(believed, self.upstream, **limits) if is_upstream_tls else route(self.upstream, **limits)
        )

    @contextlib.asynccontextmanager
    async def joined(self, gateway):
        """A client, and the upstream's end of its connection."""
        async with await Connection.open(gateway.ports["a"], tls=self._tls) as client:
            await client.send(upgrade("/chat/room"))
            async with await self.upstream.accept() as peer:
                assert (await client.response()).status == 101
                yield client, peer

    def relay(self, io_driver, scenario):
        """Runs the scenario, and returns the metrics at rest."""
        with self.upstream:
            return relay(io_driver, self.routes, scenario, config=self.config)


@pytest.fixture(params=SIDES)
def sides(request, believed):
    """A gateway's two sides, in each way that TLS may be on them."""
    return Sides(believed, request.param)


def test_what_either_says_reaches_the_other_as_it_was(io_driver, sides):
    """Both speak at once, in messages of all sizes, and in order."""

    async def scenario(gateway):
        async with sides.joined(gateway) as (client, peer):

            async def say(side, make, seed):
                for size in SIZES:
                    await side.send(make(BINARY, content(size, seed)))

            async def hear(side, seed):
                for size in SIZES:
                    heard = await side.frame()
                    assert heard.opcode == BINARY and heard.payload == content(size, seed), f"{size} bytes"

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(say(client, frame, 1))
                tasks.create_task(say(peer, server_frame, 2))
                tasks.create_task(hear(peer, 1))
                tasks.create_task(hear(client, 2))
            # Close to each other, as busy ones come.
            for number in range(200):
                await client.send(frame(TEXT, b"%d" % number))
                assert await peer.frame() == Frame(True, TEXT, b"%d" % number)
                await peer.send(server_frame(TEXT, b"%d back" % number))
                assert await client.frame() == Frame(True, TEXT, b"%d back" % number)
            await client.send(close_frame(1000, b"done"))
            assert await peer.frame() == Frame(True, CLOSE, b"\x03\xe8done")
            await peer.send(server_frame(CLOSE, b"\x03\xe8"))
            await client.closed(1000)
            await client.end()

    metrics = sides.relay(io_driver, scenario)
    assert ends(metrics) == {"closed": 1}
    for direction in ("received", "sent"):
        assert metrics.value("payload_bytes_total", port="a", direction=direction) > sum(SIZES)
        assert metrics.value("messages_total", port="a", direction=direction) == len(SIZES) + 200
    assert metrics.value("tls_failures_total") == metrics.value("tls_truncated_total") == 0


# Somebody who cannot send for this long is stuck, because the other end does not read. The gateway holds a few reads
# then, and what sockets hold is not its own.
STUCK_AFTER_S, HELD_SIZE_MAX, TAKEN_MAX = 0.5, 1 << 20, 64


@pytest.mark.parametrize("sender", ["client", "upstream"])
def test_who_does_not_read_stops_the_other_and_loses_nothing(io_driver, sender, sides):
    async def scenario(gateway):
        async with sides.joined(gateway) as (client, peer):
            writer, reader, make = (client, peer, frame) if sender == "client" else (peer, client, server_frame)
            size, count = gateway.resident_size(), 0
            with contextlib.suppress(TimeoutError):
                while count < TAKEN_MAX:
                    cpu_s = gateway.cpu_s()
                    async with asyncio.timeout(STUCK_AFTER_S):
                        count += 1
                        await writer.send(make(BINARY, content(1 << 20, count)))
            held, used_s = gateway.resident_size() - size, gateway.cpu_s() - cpu_s
            print(f"stuck after {count} MiB; the gateway holds {held >> 10} KiB, and used {used_s:.2f} s meanwhile")
            assert count < TAKEN_MAX and held < HELD_SIZE_MAX and used_s < STUCK_AFTER_S / 4
            for number in range(1, count + 1):
                assert (await reader.frame()).payload == content(1 << 20, number), number
            await writer.send(make(TEXT, b"and on"))
            assert await reader.frame() == Frame(True, TEXT, b"and on")
            await client.send(close_frame(1000))
            await peer.frame()
            await peer.send(server_frame(CLOSE, b"\x03\xe8"))
            await client.closed(1000)

    metrics = sides.relay(io_driver, scenario)
    assert ends(metrics) == {"closed": 1}
    assert metrics.value("send_queue_bytes") == metrics.value("slow_clients_total", outcome="cut") == 0


def leave_in_order(connection):
    """Ends a connection, in TLS with the alert that says so."""
    connection.writer.close()


def leave_without_a_word(connection):
    """Ends a connection, in TLS without the alert."""
    connection.writer.transport.abort()


LEAVES = [leave_in_order, leave_without_a_word, Connection.reset]


def test_closes_and_ends_pass_in_both_directions(io_driver, sides):
    async def scenario(gateway):
        # A Close of the upstream's.
        async with sides.joined(gateway) as (client, peer):
            await peer.send(server_frame(CLOSE, b"\x0b\xb8over"))
            assert await client.frame() == Frame(True, CLOSE, b"\x0b\xb8over")
            await client.send(close_frame(3000))
            assert await peer.frame() == Frame(True, CLOSE, b"\x0b\xb8")
            await client.end()
        # One of the client's.
        async with sides.joined(gateway) as (client, peer):
            await client.send(close_frame(4000, b"over"))
            assert await peer.frame() == Frame(True, CLOSE, b"\x0f\xa0over")
            await peer.send(server_frame(CLOSE, b"\x0f\xa0"))
            await client.closed(4000)
            await client.end()
        # The upstream's end, behind what it said before.
        for leave in LEAVES:
            async with sides.joined(gateway) as (client, peer):
                await peer.send(server_frame(BINARY, content(300_000)))
                assert (await client.frame()).payload == content(300_000)
                leave(peer)
                await client.closed(1014)
                await client.send(close_frame(1014))
                await client.end()
        # The client's.
        for leave in LEAVES:
            async with sides.joined(gateway) as (client, peer):
                await client.send(frame(BINARY, content(300_000)))
                assert (await peer.frame()).payload == content(300_000)
                leave(client)
                await peer.gone()

    metrics = sides.relay(io_driver, scenario)
    assert ends(metrics) == {"closed": 2, "upstream_gone": len(LEAVES), "client_gone": len(LEAVES)}
    for initiator in ("client", "upstream"):
        assert metrics.value("closes_total", port="a", initiator=initiator) == 1
    # What upstreams do is not counted there.
    assert metrics.value("tls_truncated_total") == sides.is_client_tls
