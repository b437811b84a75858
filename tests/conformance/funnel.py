"""20,000 mixed connections over two ports, and a real Prometheus that must have counted the end of each exactly."""

import asyncio
import os
import random
import resource
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from client import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Connection,
    Frame,
    close_frame,
    frame,
    upgrade,
)
from harness import Gateway
from prometheus import Prometheus, check_metrics

CONNECTIONS = 20_000
PORTS = ["a", "b"]

# Connections that are open at once: those that wait for a timeout have their own share, or they would hold up the rest.
# The busy ones are few, so that one turn of the loop that drives them is short against every timeout of the gateway.
BUSY_MAX = 100
WAITING_MAX = 1000

HANDSHAKE_TIMEOUT_MS = 5000

CONFIG = f"""
[limits]
handshake_timeout_ms = {HANDSHAKE_TIMEOUT_MS}
request_head_size_max = 4096
request_head_count_max = 50
[[port]]
number = 0
name = "a"
address = "127.0.0.1"
[[port]]
number = 0
name = "b"
address = "127.0.0.1"
[[route]]
name = "echo"
path = "/echo"
service = "echo"
[[route]]
name = "small"
path = "/small"
service = "echo"
limits = {{ message_size_max = 1024, frame_size_max = 1024 }}
[[route]]
name = "rate"
path = "/rate"
service = "echo"
limits = {{ messages_per_s = 10 }}
[[route]]
name = "pinged"
path = "/pinged"
service = "echo"
limits = {{ ping_interval_ms = 500 }}
[[route]]
name = "unanswered"
path = "/unanswered"
service = "echo"
limits = {{ ping_interval_ms = 500, pong_timeout_ms = 500 }}
[[route]]
name = "idle"
path = "/idle"
service = "echo"
limits = {{ idle_timeout_ms = 500 }}
[[route]]
name = "stuck"
path = "/stuck"
service = "echo"
limits = {{ write_timeout_ms = 500 }}
[[route]]
name = "picky"
path = "/picky"
service = "echo"
origins = ["https://example.com"]
[[route]]
name = "page"
path = "/"
service = "page"
"""


@dataclass(frozen=True)
class Kind:
    """What a client does, and how the gateway must count it."""

    name: str
    weight: int
    drive: Callable
    end: str
    # The handshake's result, `None` where the client left before there was one.
    handshake: str | None = None
    violation: str | None = None
    # Who closed first, and with which code; `None` where no Close was exchanged.
    close: tuple[str, str] | None = None
    # The class of the HTTP answer where it is not the 101 of an accepted handshake.
    http: str | None = None
    # Whether the client sits and waits for a timeout of the gateway.
    waits: bool = False

    @property
    def answer(self):
        """The class of the one HTTP answer that this kind gets, if it gets one."""
        return "1xx" if self.handshake == "accepted" else self.http


def clean(name, code, weight=1):
    """Echoes and closes as it should, with a code or with none."""

    async def drive(client, rng):
        await client.accepted()
        for _ in range(rng.randrange(6)):
            await client.echo(rng.randbytes(rng.choice([0, 1, 20, 125, 126, 1000, 5000, 65536])))
        await client.close(code)

    label = "none" if code is None else str(code) if code < 3000 else f"{code // 1000}xxx"
    return Kind(name, weight, drive, "closed", "accepted", close=("client", label))


def refusal(name, head, status, result, *, end="refused"):
    """Sends a head that must be refused with this status, and stays until the end of file."""

    async def drive(client, _rng):
        await client.refused(head, status)

    return Kind(name, 1, drive, end, result, http=f"{status // 100}xx")


def violation(name, sent, code=1002, *, path="/echo", end="violation"):
    """Breaks the rule of this name after an echo, expects this code, and answers the Close."""

    async def drive(client, _rng):
        await client.accepted(upgrade(path))
        await client.echo(b"before")
        await client.send(sent)
        await client.closed(code)
        await client.send(close_frame(code))
        await client.end()

    return Kind(name, 1, drive, end, "accepted", violation=name, close=("gateway", str(code)))


def gone(name, head, sent, how):
    """Leaves without a Close: after `sent`, by a reset or by the end of file."""

    async def drive(client, _rng):
        if head:
            await client.accepted(head)
        if sent:
            await client.send(sent)
        if how == "reset":
            client.reset()
        elif how == "half-close":
            client.finish_sending()
            await client.gone()

    return Kind(name, 1, drive, "client_gone", "accepted" if head else None)


async def fragments_with_pings(client, rng):
    await client.accepted()
    sent, payload = b"", b""
    for index in range(rng.randrange(1, 20)):
        part = rng.randbytes(rng.randrange(50))
        payload += part
        sent += frame(CONTINUATION if index else BINARY, part, final=False) + frame(PING, b"now")
    await client.send(sent + frame(CONTINUATION, b"") + close_frame(1000))
    before = await client.closed(1000)
    assert [answer.opcode for answer in before if answer.opcode != PONG] == [BINARY], before
    assert Frame(True, BINARY, payload) in before and Frame(True, PONG, b"now") in before, before
    await client.end()


async def half_close_after_close(client, _rng):
    await client.accepted()
    await client.send(close_frame(1000))
    client.finish_sending()
    await client.closed(1000)
    await client.end()


async def frames_with_the_head(client, _rng):
    await client.send(upgrade() + frame(TEXT, b"early"))
    response = await client.response()
    assert response.status == 101, response
    assert await client.frame() == Frame(True, TEXT, b"early")
    await client.close()


async def page(client, _rng):
    await client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    response = await client.response()
    assert response.status == 200 and b"<html" in response.body, response
    await client.end()


async def too_fast(client, _rng):
    await client.accepted(upgrade("/rate"))
    await client.send(frame(TEXT, b"x") * 200)
    await client.closed(1008)
    await client.send(close_frame(1008))
    await client.end()


async def silent(client, _rng):
    await client.gone()


async def half_a_head(client, _rng):
    await client.refused(upgrade()[:40], 408)


async def one_byte_at_a_time(client, _rng):
    """Bytes that arrive do not put the deadline off; the answer comes while the client still sends."""

    async def drip():
        for byte in upgrade(without=["host"], host="x" * 1000):
            await client.send(bytes([byte]))
            await asyncio.sleep(0.05)

    dripping = asyncio.create_task(drip())
    try:
        assert (await client.response()).status == 408
    finally:
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)
    client.finish_sending()
    await client.gone()


async def no_pong(client, _rng):
    await client.accepted(upgrade("/unanswered"))
    assert (await client.frame()).opcode == PING
    await client.gone()


async def pongs(client, _rng):
    await client.accepted(upgrade("/pinged"))
    for _ in range(3):
        ping = await client.frame()
        assert ping.opcode == PING, ping
        await client.send(frame(PONG, ping.payload))
    await client.send(close_frame(1000))
    await client.closed(1000)
    await client.end()


async def says_nothing(client, _rng):
    await client.accepted(upgrade("/idle"))
    await client.closed(1001)
    await client.send(close_frame(1001))
    await client.end()


async def never_reads(client, _rng):
    await client.accepted(upgrade("/stuck"))
    message = frame(BINARY, bytes(1 << 20))
    client.writer.transport.pause_reading()
    try:
        async with asyncio.timeout(60):
            while True:
                await client.send(message)
    except ConnectionError:
        pass


KINDS = [
    clean("closed with 1000", 1000, 40),
    clean("closed with 1001", 1001, 5),
    clean("closed without a code", None, 5),
    clean("closed with 3001", 3001, 2),
    clean("closed with 4999", 4999, 2),
    Kind("fragments and pings", 5, fragments_with_pings, "closed", "accepted", close=("client", "1000")),
    Kind("half-close after Close", 3, half_close_after_close, "closed", "accepted", close=("client", "1000")),
    Kind("frames with the head", 3, frames_with_the_head, "closed", "accepted", close=("client", "1000")),
    Kind("the page", 5, page, "http_done", http="2xx"),
    # Refusals.
    refusal("no key", upgrade(without=["sec-websocket-key"]), 400, "bad_request"),
    refusal("a short key", upgrade(sec_websocket_key="c2hvcnQ="), 400, "bad_request"),
    refusal(
        "two keys",
        upgrade().replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"),
        400,
        "bad_request",
    ),
    refusal("no Host", upgrade(without=["host"]), 400, "bad_request"),
    refusal("two Hosts", upgrade().replace(b"\r\n\r\n", b"\r\nHost: other\r\n\r\n"), 400, "bad_request"),
    refusal("a bare line feed", upgrade().replace(b"\r\nupgrade", b"\nupgrade"), 400, "bad_request"),
    refusal("a folded field", upgrade().replace(b"\r\nupgrade", b"\r\n folded\r\nupgrade"), 400, "bad_request"),
    refusal("a space before a colon", upgrade().replace(b"upgrade:", b"upgrade :"), 400, "bad_request"),
    refusal("a body", upgrade(content_length="5") + b"hello", 400, "bad_request"),
    refusal("two framings", upgrade(content_length="0", transfer_encoding="chunked"), 400, "bad_request"),
    refusal("POST", upgrade().replace(b"GET", b"POST"), 405, "bad_request"),
    refusal("version 12", upgrade(sec_websocket_version="12"), 426, "bad_version"),
    refusal(
        "two versions", upgrade().replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Version: 8\r\n\r\n"), 400, "bad_request"
    ),
    refusal("a bad subprotocol list", upgrade(sec_websocket_protocol="a b,"), 400, "bad_request"),
    refusal("no upgrade asked for", upgrade(without=["upgrade", "connection"]), 426, "not_upgrade"),
    refusal(
        "POST, and no upgrade asked for",
        upgrade(without=["upgrade", "connection"]).replace(b"GET", b"POST"),
        405,
        "bad_request",
    ),
    refusal("HTTP/1.0", upgrade().replace(b"HTTP/1.1", b"HTTP/1.0"), 426, "not_upgrade"),
    refusal("HTTP/3.0", upgrade().replace(b"HTTP/1.1", b"HTTP/3.0"), 505, "bad_request"),
    refusal("no route", upgrade("/nowhere"), 404, "no_route"),
    refusal("another Origin", upgrade("/picky", origin="https://example.com.evil.net"), 403, "origin"),
    refusal("a large head", upgrade(cookie="x" * 5000), 431, "too_large"),
    refusal("many fields", upgrade(**{f"x_{index}": "y" for index in range(60)}), 431, "too_large"),
    refusal("TLS", bytes.fromhex("1603010200010001fc0303") + bytes(517), 400, "bad_request", end="tls_failed"),
    refusal("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "bad_request"),
    # Broken rules of RFC 6455, by the names of the metric.
    violation("unmasked", frame(TEXT, b"x", mask=None)),
    violation("reserved_bits", frame(TEXT, b"x", reserved=4)),
    violation("reserved_opcode", frame(3, b"x")),
    violation("non_minimal_length", frame(BINARY, b"x" * 200, wide=True)),
    violation("length_top_bit", frame(BINARY, b"", size=1 << 63)),
    violation("control_too_long", frame(PING, b"x" * 126)),
    violation("control_fragmented", frame(PING, b"x", final=False)),
    violation("unexpected_continuation", frame(CONTINUATION, b"x")),
    violation("message_interrupted", frame(TEXT, b"x", final=False) + frame(TEXT, b"y")),
    violation("invalid_utf8", frame(TEXT, b"\xce\xba\xed\xa0\x80", final=False), 1007),
    violation("close_payload_one_byte", frame(CLOSE, b"\x03")),
    violation("close_code_invalid", close_frame(1005)),
    violation("close_reason_invalid_utf8", close_frame(1000, b"\xff"), 1007),
    violation("frame_too_big", frame(BINARY, b"", size=1 << 62), 1009, end="message_too_big"),
    violation(
        "message_too_big",
        frame(BINARY, bytes(600), final=False) + frame(CONTINUATION, bytes(600)),
        1009,
        path="/small",
        end="message_too_big",
    ),
    Kind("rate_exceeded", 1, too_fast, "limit", "accepted", "rate_exceeded", close=("gateway", "1008")),
    # Clients that go without a word, at every stage.
    gone("reset at once", None, b"", "reset"),
    gone("closed at once", None, b"", "close"),
    gone("reset in the head", None, upgrade()[:50], "reset"),
    gone("end of file in the head", None, upgrade()[:50], "half-close"),
    gone("reset after the handshake", upgrade(), b"", "reset"),
    gone("closed after the handshake", upgrade(), b"", "close"),
    gone("half-close after the handshake", upgrade(), b"", "half-close"),
    gone("reset in a frame's head", upgrade(), frame(BINARY, b"x" * 200)[:3], "reset"),
    gone("end of file in a payload", upgrade(), frame(BINARY, b"x" * 200)[:100], "half-close"),
    gone("reset between fragments", upgrade(), frame(TEXT, b"x", final=False), "reset"),
    gone("reset before the echo is read", upgrade(), frame(BINARY, b"x" * 5000), "reset"),
    # Those that wait.
    Kind("silent", 1, silent, "handshake_timeout", waits=True),
    Kind("half a head", 1, half_a_head, "handshake_timeout", "timeout", http="4xx", waits=True),
    Kind("one byte at a time", 1, one_byte_at_a_time, "handshake_timeout", "timeout", http="4xx", waits=True),
    Kind("no pong", 1, no_pong, "pong_timeout", "accepted", close=("gateway", "1011"), waits=True),
    Kind("pongs", 1, pongs, "closed", "accepted", close=("client", "1000"), waits=True),
    Kind("idle", 1, says_nothing, "idle", "accepted", close=("gateway", "1001"), waits=True),
]
# Fewer than the weights would give: each costs megabytes.
NEVER_READS = Kind("never reads", 0, never_reads, "slow_client", "accepted", waits=True)
NEVER_READS_COUNT = 10


def test_the_funnel_adds_up_in_prometheus(io_driver):
    seed = int(os.environ.get("RINGWAY_SEED", random.randrange(1 << 32)))
    print(f"RINGWAY_SEED={seed}")
    plan = make_plan(random.Random(seed))
    allow_descriptors(CONNECTIONS)
    with Gateway(CONFIG, io_driver=io_driver) as gateway, Prometheus(gateway.admin) as prometheus:
        asyncio.run(carry_out(plan, gateway.ports, seed))
        scraped = gateway.at_rest()
        prometheus.wait_for_scrape_after(time.time())
        check_counts(plan, prometheus)
        check_every_scrape(prometheus)
        assert check_metrics(scraped.text) == ""


def make_plan(rng):
    """The kind and the port of every connection, in the order in which they start."""
    kinds = rng.choices(KINDS, [kind.weight for kind in KINDS], k=CONNECTIONS - NEVER_READS_COUNT)
    # However the dice fall, every kind comes on every port.
    plan = [(kind, PORTS[index % len(PORTS)]) for index, kind in enumerate(kinds)]
    every = [(kind, port) for kind in KINDS for port in PORTS]
    plan[: len(every)] = every
    plan += [(NEVER_READS, rng.choice(PORTS)) for _ in range(NEVER_READS_COUNT)]
    rng.shuffle(plan)
    return plan


async def carry_out(plan, ports, seed):
    """Runs every connection of the plan; fails with all that went otherwise than it should have."""
    busy, waiting = asyncio.Semaphore(BUSY_MAX), asyncio.Semaphore(WAITING_MAX)

    async def one(index, kind, port):
        async with waiting if kind.waits else busy, await Connection.open(ports[port]) as client:
            await kind.drive(client, random.Random(seed + index))

    runs = (one(index, kind, port) for index, (kind, port) in enumerate(plan))
    outcomes = await asyncio.gather(*runs, return_exceptions=True)
    faults = Counter(
        f"{kind.name}: {type(outcome).__name__}: {outcome}"
        for (kind, _), outcome in zip(plan, outcomes, strict=True)
        if outcome is not None
    )
    assert not faults, "\n" + "\n".join(f"{count}x {fault}" for fault, count in faults.most_common())


def check_counts(plan, prometheus):
    """Every count that the plan implies, for each port, is what Prometheus has, and nothing else is counted."""
    expected = {
        ("connections_accepted_total",): Counter((port,) for _, port in plan),
        ("connections_ended_total", "end"): Counter((port, kind.end) for kind, port in plan),
        ("handshakes_total", "result"): Counter((port, kind.handshake) for kind, port in plan if kind.handshake),
        ("violations_total", "kind"): Counter((port, kind.violation) for kind, port in plan if kind.violation),
        ("closes_total", "initiator", "code"): Counter((port, *kind.close) for kind, port in plan if kind.close),
        ("http_requests_total", "class"): Counter((port, kind.answer) for kind, port in plan if kind.answer),
        ("connections_active",): Counter(),
        ("handshakes_in_progress",): Counter(),
        ("panics_total",): Counter(),
        ("handshake_duration_seconds_count",): Counter((port,) for kind, port in plan if kind.handshake == "accepted"),
        ("connection_duration_seconds_count",): Counter((port,) for _, port in plan),
    }
    faults = []
    for (name, *labels), counts in expected.items():
        by = ["port", *labels]
        found = prometheus.counts(f"sum by ({', '.join(by)}) (ringway_{name})", *by)
        for key in sorted({*counts, *found}):
            if counts[key] != found.get(key, 0):
                faults.append(f"{name}{key}: {counts[key]} expected, {found.get(key, 0)} counted")
    assert not faults, "\n" + "\n".join(faults)
    print(f"{len(plan)} connections of {len(KINDS) + 1} kinds, all counted as they should be")


def check_every_scrape(prometheus):
    """No scrape of the whole run shows a port with more connections ended than accepted."""
    accepted, ended = {}, Counter()
    for element in prometheus.query("ringway_connections_accepted_total[1h]"):
        for moment, value in element["values"]:
            accepted[element["metric"]["port"], moment] = int(value)
    for element in prometheus.query("ringway_connections_ended_total[1h]"):
        for moment, value in element["values"]:
            ended[element["metric"]["port"], moment] += int(value)
    assert accepted, "no scrape is stored"
    faults = [f"{key}: {ended[key]} ended of {count}" for key, count in accepted.items() if ended[key] > count]
    assert not faults, faults
    print(f"{len(accepted) // len(PORTS)} scrapes of a run of {CONNECTIONS} connections agree with themselves")


def allow_descriptors(count):
    """Raises the limit on this process's descriptors, where it is lower and may be raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, count), hard), hard))
