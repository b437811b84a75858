"""Whom a client is taken for: PROXY headers, and what proxies say of it in Forwarded and X-Forwarded-For."""

import asyncio
import contextlib
import struct

import pytest

from client import TEXT, Connection, Frame, close_frame, frame, upgrade
from upstream import CONFIG, Upstream, ends, handshakes, relay, route

HEAD = upgrade("/chat/room")


async def told(client, upstream, head):
    """What an upstream is told of a client that sends this, by the names of the fields in lower case."""
    await client.send(head)
    async with await upstream.accept() as peer:
        _, fields = peer.request
        assert (await client.response()).status == 101
        client.reset()
        await peer.end()
        found = {}
        for name, value in fields:
            found.setdefault(name.lower(), []).append(value)
        return found


def head(*lines):
    """An opening handshake with these lines at its end."""
    return HEAD[:-2] + "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


FORGED = [
    "X-Forwarded-For: 192.0.2.1",
    "x-forwarded-for: 192.0.2.1, 192.0.2.2",
    "Forwarded: for=192.0.2.1;proto=https",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: inside.example",
    "X-Forwarded-Port: 443",
    "X-Real-IP: 192.0.2.1",
    "X_Forwarded_For: 192.0.2.1",
]


def test_what_somebody_says_who_is_not_trusted_is_ignored_and_counted(io_driver):
    async def scenario(gateway):
        port = str(gateway.ports["a"])
        for line in [*FORGED, "X-Request-Id: forged"]:
            async with await Connection.open(gateway.ports["a"]) as client:
                fields = await told(client, upstream, head(line))
                assert fields["forwarded"] == ["for=127.0.0.1;host=localhost;proto=http"], line
                assert fields["x-forwarded-for"] == ["127.0.0.1"]
                assert fields["x-forwarded-host"] == ["localhost"]
                assert fields["x-forwarded-proto"] == ["http"]
                assert fields["x-forwarded-port"] == [port]
                assert not {"x-real-ip", "x_forwarded_for"} & fields.keys()
                assert len(fields["x-request-id"]) == 1 and fields["x-request-id"] != ["forged"]

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    assert metrics.value("forwarding_ignored_total", port="a") == len(FORGED)


# What a trusted proxy says, and whom the upstream is told of: the whole chain, and by stickiness the client.
CHAINS = {
    ("X-Forwarded-For: 192.0.2.1",): ("192.0.2.1, 127.0.0.1", "for=192.0.2.1, for=127.0.0.1;host=localhost;proto=http"),
    ("X-Forwarded-For: 1.1.1.1, 192.0.2.1, 10.0.0.2",): (
        "1.1.1.1, 192.0.2.1, 10.0.0.2, 127.0.0.1",
        "for=192.0.2.1, for=127.0.0.1;host=localhost;proto=http",
    ),
    ("X-Forwarded-For: 1.1.1.1", "X-Forwarded-For: 192.0.2.1"): (
        "1.1.1.1, 192.0.2.1, 127.0.0.1",
        "for=192.0.2.1, for=127.0.0.1;host=localhost;proto=http",
    ),
    ('Forwarded: for=1.1.1.1, for="[2001:db8::1]:4711";proto=https, for=10.0.0.2',): (
        "2001:db8::1, 127.0.0.1",
        'for=1.1.1.1, for="[2001:db8::1]:4711";proto=https, for=10.0.0.2, for=127.0.0.1;host=localhost;proto=http',
    ),
    ("Forwarded: for=192.0.2.1", "X-Forwarded-For: 192.0.2.1"): (
        "192.0.2.1, 127.0.0.1",
        "for=192.0.2.1, for=127.0.0.1;host=localhost;proto=http",
    ),
    ("X-Forwarded-For: 192.0.2.1, unknown",): (
        "192.0.2.1, unknown, 127.0.0.1",
        "for=127.0.0.1;host=localhost;proto=http",
    ),
}
# What contradicts itself, or could swallow what is appended, is not believed of anybody.
CONTRADICTIONS = [
    ("Forwarded: for=192.0.2.1", "X-Forwarded-For: 192.0.2.2"),
    ('Forwarded: for=192.0.2.1;host="a',),
]


def test_what_a_trusted_proxy_says_is_read_from_the_right(io_driver):
    async def scenario(gateway):
        for lines, (chain, forwarded) in CHAINS.items():
            async with await Connection.open(gateway.ports["a"]) as client:
                fields = await told(client, upstream, head(*lines))
                assert fields["x-forwarded-for"] == [chain], lines
                assert fields["forwarded"] == [forwarded], lines
        for lines in CONTRADICTIONS:
            async with await Connection.open(gateway.ports["a"]) as client:
                fields = await told(client, upstream, head(*lines))
                assert fields["x-forwarded-for"] == ["127.0.0.1"], lines
                assert fields["forwarded"] == ["for=127.0.0.1;host=localhost;proto=http"], lines
        async with await Connection.open(gateway.ports["a"]) as client:
            lines = ["X-Forwarded-Proto: https", "X-Forwarded-Host: public.example", "X-Real-IP: 192.0.2.9"]
            fields = await told(client, upstream, head(*lines))
            assert fields["x-forwarded-proto"] == ["https"] and fields["x-forwarded-host"] == ["public.example"]
            assert fields["x-real-ip"] == ["192.0.2.9"] and "x-forwarded-port" not in fields

    with Upstream() as upstream:
        routes = route(upstream, keys='trusted = ["127.0.0.1", "10.0.0.0/8"]')
        metrics = relay(io_driver, routes, scenario)
    assert metrics.value("forwarding_ignored_total", port="a") == len(CONTRADICTIONS)


PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize("is_trusted", [True, False])
def test_ids_are_passed_on_or_begun(io_driver, is_trusted):
    async def scenario(gateway):
        async def ids(*lines):
            async with await Connection.open(gateway.ports["a"]) as client:
                fields = await told(client, upstream, head(*lines))
                (request,), (trace,) = fields["x-request-id"], fields["traceparent"]
                return request, trace, fields.get("tracestate")

        first, second = await ids(), await ids()
        for request, trace, state in (first, second):
            version, trace_id, parent_id, flags = trace.split("-")
            assert (version, flags, state) == ("00", "00", None)
            assert request == trace_id and len(bytes.fromhex(trace_id)) == 16 and len(bytes.fromhex(parent_id)) == 8
        assert first[0] != second[0]
        request, trace, state = await ids("x-request-id: a-1", f"traceparent: {PARENT}", "tracestate: a=b")
        assert (trace, state) == (PARENT, ["a=b"])
        assert (request == "a-1") == is_trusted
        for bad in ("", "a b", 'a"', "a" * 129, "a\r\nx-request-id: b"):
            assert len((await ids(f"x-request-id: {bad}"))[0]) == 32, bad
        for bad in (PARENT[:-1], PARENT.upper(), f"{PARENT}\r\ntraceparent: {PARENT}"):
            _, trace, state = await ids(f"traceparent: {bad}", "tracestate: a=b")
            assert trace.endswith("-00") and state is None, bad

    with Upstream() as upstream:
        keys = 'trusted = ["127.0.0.1"]' if is_trusted else ""
        relay(io_driver, route(upstream, keys=keys), scenario)


SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v2(command=0x21, family=0x11, addresses=b"\xc0\0\2\x01\xc0\0\2\x02\x12\x67\0\x50", tlvs=b"", size=None):
    """A header of version 2: by default PROXY over TCP from 192.0.2.1."""
    rest = addresses + tlvs
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest) if size is None else size) + rest


def tlv(kind, value):
    return struct.pack("!BH", kind, len(value)) + value


V6 = bytes.fromhex("20010db8000000000000000000000001") * 2 + b"\x12\x67\0\x50"
MAPPED = bytes(10) + b"\xff\xff\xc0\0\2\x07"

# Headers that are believed, and the client that the upstream is told of.
GOOD_HEADERS = {
    "version 1": (b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 80\r\n", "192.0.2.1"),
    "version 1, IPv6": (b"PROXY TCP6 2001:db8::1 2001:db8::2 4711 80\r\n", "2001:db8::1"),
    "version 1, mapped": (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 4711 80\r\n", "192.0.2.7"),
    "version 1, unknown": (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
    "version 1, unknown with addresses": (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", "127.0.0.1"),
    "version 2": (v2(), "192.0.2.1"),
    "version 2, IPv6": (v2(family=0x21, addresses=V6), "2001:db8::1"),
    "version 2, mapped": (v2(family=0x21, addresses=MAPPED * 2 + b"\x12\x67\0\x50"), "192.0.2.7"),
    "version 2, LOCAL": (v2(command=0x20), "127.0.0.1"),
    "version 2, LOCAL without addresses": (v2(command=0x20, family=0, addresses=b""), "127.0.0.1"),
    "version 2, UNSPEC": (v2(family=0), "127.0.0.1"),
    "version 2, a Unix socket": (v2(family=0x31, addresses=bytes(216)), "127.0.0.1"),
    "version 2, TLVs": (v2(tlvs=tlv(1, b"http/1.1") + tlv(2, b"a.example") + tlv(4, bytes(1000))), "192.0.2.1"),
    "version 2, as long as may be": (v2(tlvs=tlv(4, bytes(2048 - 12 - 3))), "192.0.2.1"),
}
BAD_HEADERS = {
    "no header": b"",
    "TLS": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
    "version 1, a bad address": b"PROXY TCP4 192.0.2.256 192.0.2.2 4711 80\r\n",
    "version 1, the wrong family": b"PROXY TCP4 2001:db8::1 2001:db8::2 4711 80\r\n",
    "version 1, a bad port": b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 80\r\n",
    "version 1, a leading zero": b"PROXY TCP4 192.0.2.1 192.0.2.2 04711 80\r\n",
    "version 1, two spaces": b"PROXY TCP4  192.0.2.1 192.0.2.2 4711 80\r\n",
    "version 1, a bare LF": b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 80\n",
    "version 1, too long": b"PROXY UNKNOWN " + b"x" * 94,
    "version 1, another protocol": b"PROXY UDP4 192.0.2.1 192.0.2.2 4711 80\r\n",
    "version 1, in lower case": b"proxy TCP4 192.0.2.1 192.0.2.2 4711 80\r\n",
    "version 2, another version": v2(command=0x11),
    "version 2, another command": v2(command=0x22),
    "version 2, another family": v2(family=0x41),
    "version 2, too short": v2(addresses=bytes(11)),
    "version 2, too long": v2(size=2049),
    "version 2, longest": v2(size=0xFFFF),
    "version 2, a TLV beyond the end": v2(tlvs=b"\x04\0\x09abc"),
    "version 2, half a TLV": v2(tlvs=b"\x04\0"),
    "version 2, a wrong checksum": v2(tlvs=tlv(3, b"\1\2\3\4")),
}
PROXIED = CONFIG.replace('name = "a"\n', 'name = "a"\nproxy_protocol = { trusted = ["127.0.0.1"] }\n')


def test_a_proxy_header_says_who_the_client_is(io_driver):
    async def scenario(gateway):
        for name, (header, address) in GOOD_HEADERS.items():
            for step in (5, 100_000):
                async with await Connection.open(gateway.ports["a"]) as client:
                    for at in range(0, len(header), step):
                        await client.send(header[at : at + step])
                    fields = await told(client, upstream, head("X-Forwarded-For: 203.0.113.9"))
                    assert fields["x-forwarded-for"] == [address], name

    with Upstream() as upstream:
        # The proxy is trusted, the clients that it speaks for are not; the one that it is itself is.
        routes = route(upstream)
        metrics = relay(io_driver, routes, scenario, config=PROXIED)
    assert ends(metrics) == {"client_gone": 2 * len(GOOD_HEADERS)}
    assert metrics.value("forwarding_ignored_total", port="a") == 2 * len(GOOD_HEADERS)


def test_a_header_in_the_segment_of_the_request_and_its_frames(io_driver):
    async def scenario(gateway):
        async with await Connection.open(gateway.ports["a"]) as client:
            await client.send(v2() + HEAD + frame(TEXT, b"early"))
            async with await upstream.accept() as peer:
                assert ("X-Forwarded-For", "192.0.2.1") in peer.request[1]
                assert await peer.frame() == Frame(True, TEXT, b"early")
                client.reset()

    with Upstream() as upstream:
        relay(io_driver, route(upstream), scenario, config=PROXIED)


def test_without_a_good_proxy_header_a_connection_is_closed_and_counted(io_driver):
    """Nothing is answered: it may be anything but HTTP."""

    async def scenario(gateway):
        for name, header in BAD_HEADERS.items():
            async with await Connection.open(gateway.ports["a"]) as client:
                await client.send(header + HEAD)
                async with asyncio.timeout(10):
                    with contextlib.suppress(ConnectionResetError):
                        assert await client.reader.read() == b"", name
        assert not await upstream.is_asked()

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario, config=PROXIED)
    assert ends(metrics) == {"proxy_header_invalid": len(BAD_HEADERS)}
    assert handshakes(metrics) == {}


def test_a_proxy_header_that_never_ends_is_cut_at_the_handshake_timeout(io_driver):
    parts = [b"PROXY TCP4 192.0.2.1 ", v2()[:20], SIGNATURE[:3]]

    async def scenario(gateway):
        clients = [await Connection.open(gateway.ports["a"]) for _ in [*parts, b""]]
        for client, part in zip(clients, [*parts, b""], strict=True):
            await client.send(part)
        for client in clients:
            async with client:
                await client.gone()

    with Upstream() as upstream:
        config = PROXIED.replace("[limits]", "[limits]\nhandshake_timeout_ms = 500")
        metrics = relay(io_driver, route(upstream), scenario, config=config)
    assert ends(metrics) == {"proxy_header_invalid": len(parts), "handshake_timeout": 1}


def test_who_comes_from_another_network_is_closed_and_counted(io_driver):
    async def scenario(gateway):
        async with await Connection.open(gateway.ports["a"]) as client:
            # The gateway may be gone before anything is sent.
            with contextlib.suppress(ConnectionError):
                await client.send(v2() + HEAD)
            await client.gone()
        assert not await upstream.is_asked()

    with Upstream() as upstream:
        config = PROXIED.replace('trusted = ["127.0.0.1"]', 'trusted = ["127.0.0.2", "10.0.0.0/8", "::1"]')
        metrics = relay(io_driver, route(upstream), scenario, config=config)
    assert ends(metrics) == {"proxy_header_invalid": 1}


def test_trust_is_judged_by_the_client_that_the_proxy_speaks_for(io_driver):
    """A chain of two: a balancer with PROXY headers, and before it a proxy that is trusted."""

    async def scenario(gateway):
        for header, chain in ((v2(), "203.0.113.9, 192.0.2.1"), (v2(command=0x20), "127.0.0.1")):
            async with await Connection.open(gateway.ports["a"]) as client:
                await client.send(header)
                fields = await told(client, upstream, head("X-Forwarded-For: 203.0.113.9"))
                assert fields["x-forwarded-for"] == [chain]

    with Upstream() as upstream:
        routes = route(upstream, keys='trusted = ["192.0.2.1"]')
        metrics = relay(io_driver, routes, scenario, config=PROXIED)
    assert metrics.value("forwarding_ignored_total", port="a") == 1


def test_a_proxy_header_on_a_port_without_them_is_a_400(io_driver):
    async def scenario(gateway):
        for header in (b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 80\r\n", v2(), v2(command=0x20)):
            async with await Connection.open(gateway.ports["a"]) as client:
                await client.refused(header + HEAD + close_frame(1000), 400)

    with Upstream() as upstream:
        metrics = relay(io_driver, route(upstream), scenario)
    assert handshakes(metrics) == {"bad_request": 3} and ends(metrics) == {"refused": 3}
