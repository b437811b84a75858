"""HTTP/2 on a TLS port: what curl and nghttp2 get through it, and what those get who abuse it."""

import asyncio
import contextlib
import hashlib
import json

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from authority import Authority
from client import ANSWER_S, Bystander, Connection, upgrade
from harness import PATIENCE_S, Gateway
from http2_client import ENHANCE_YOUR_CALM, NO_ERROR, REFUSED_STREAM, Http2
from web_server import WebServer, content

# Requests that a connection may have at a time.
STREAMS_MAX = 128

WRITE_TIMEOUT_S = 1
KEEP_ALIVE_TIMEOUT_S = 1
CLOSE_TIMEOUT_S = 1

# Two ports of one shard, so that what is counted for a bystander stands apart.
CONFIG = """
[gateway]
shards = 1
[limits]
{limits}
[[port]]
number = 0
name = "a"
address = "127.0.0.1"
tls = {{ certificates = [{certificate}] }}
[[port]]
number = 0
name = "bystander"
address = "127.0.0.1"
[[route]]
path = "/echo"
service = "echo"
[[route]]
name = "app"
path = "/*"
service = "http"
websocket = true
upstreams = ["{upstream}"]
"""

# What a connection may make the gateway hold, whatever it sends: the window of its bodies, the answers that wait for
# room, and the allocator's slack.
HELD_SIZE_MAX = 8 << 20


def serve(io_driver, folder, scenario, **limits):
    """Runs a scenario with a gateway before a web server, beside a bystander; afterwards nothing may be left of it.

    Returns the metrics at rest, in which port `a` has what the scenario did.
    """
    server = WebServer()
    gateway = gateway_before(server, io_driver, folder, **limits)

    async def run():
        async with server, Bystander(gateway.ports["bystander"]) as bystander:
            await scenario(gateway, server)
        print(f"bystander: {bystander.count} round trips, the slowest {bystander.slowest_s * 1000:.1f} ms")

    with gateway:
        with gateway.leaving_nothing():
            asyncio.run(run())
        return gateway.at_rest()


def gateway_before(server, io_driver, folder, **limits):
    """A gateway whose port `a` speaks TLS and leads to a web server."""
    authority = Authority(folder)
    lines = "\n".join(f"{key} = {value}" for key, value in limits.items())
    config = CONFIG.format(limits=lines, certificate=authority.sign(), upstream=server.url)
    gateway = Gateway(config, io_driver=io_driver)
    gateway.authority = authority
    return gateway


def connect(gateway, **arguments):
    """A client of HTTP/2."""
    return Http2.open(gateway.ports["a"], gateway.authority, **arguments)


def url(gateway, path):
    return f"https://localhost:{gateway.ports['a']}{path}"


async def command(*words):
    """What a program prints that has to succeed; it ends with the test, whatever becomes of that."""
    words = ["setpriv", "--pdeathsig", "KILL", "--", *map(str, words)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    try:
        async with asyncio.timeout(2 * ANSWER_S):
            out, errors = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert process.returncode == 0, f"{words} ended with {process.returncode}: {out[-1000:]} {errors[-1000:]}"
    return out.decode()


def curl(gateway, *arguments):
    """curl, which speaks HTTP/2 and believes the test's authority alone."""
    return command("curl", "--silent", "--show-error", "--http2", "--cacert", gateway.authority.ca, *arguments)


def ends(metrics):
    return metrics.by("end", "connections_ended_total", port="a")


def answers(metrics):
    """How many responses of each class there were, which the counts of requests by route add up to."""
    return metrics.by("class", "http_requests_total", port="a")


async def is_served(client):
    """Sees that this client still gets what it asks for."""
    stream = await client.fetch("/size/1000")
    assert (stream.status, bytes(stream.body)) == (200, content(1000))


def check_content(stream, size):
    assert (stream.status, stream.size, stream.reset) == (200, size, None), stream
    assert stream.digest.digest() == hashlib.sha256(content(size)).digest()


def test_curl_fetches_and_sends_by_http2(io_driver, tmp_path):
    """Two hundred files on one connection, a body of 32 MiB both ways, HEAD, and a refusal."""
    body = tmp_path / "body"
    body.write_bytes(content(32 << 20))

    async def scenario(gateway, server):
        written = "%{http_version} %{response_code} %{size_download} %{num_connects}\n"
        files = url(gateway, "/size/[10001-10200]")
        out = await curl(gateway, "--parallel", "--parallel-max", "100", "-o", "/dev/null", "-w", written, files)
        lines = [line.split() for line in out.splitlines()]
        assert [line[:2] for line in lines] == [["2", "200"]] * 200
        assert sorted(int(line[2]) for line in lines) == list(range(10001, 10201))
        assert sum(int(line[3]) for line in lines) == gateway.metrics().value("connections_accepted_total", port="a")

        told = json.loads(await curl(gateway, "--upload-file", body, url(gateway, "/digest")))
        assert told == {"size": 32 << 20, "digest": hashlib.sha256(content(32 << 20)).hexdigest(), "trailers": {}}
        await curl(gateway, "-o", tmp_path / "copy", url(gateway, f"/size/{32 << 20}"))
        assert (tmp_path / "copy").read_bytes() == content(32 << 20)

        head = await curl(gateway, "--head", url(gateway, "/size/12345"))
        assert head.startswith("HTTP/2 200") and "content-length: 12345" in head, head
        with body.open("ab") as file:
            file.write(b"1")
        # curl before 8.0 takes the RST_STREAM behind an early answer, which says no error, for one.
        out = await command("nghttp", "--verbose", "--no-verify-peer", "--data", body, url(gateway, "/digest"))
        assert "recv (stream_id=13) :status: 413" in out and "error_code=NO_ERROR" in out, out
        assert server.asked["digest"] == 1, "what is too large is nobody else's affair"

    metrics = serve(io_driver, tmp_path, scenario, request_body_size_max=32 << 20)
    assert answers(metrics) == {"2xx": 203, "4xx": 1}
    assert set(ends(metrics)) == {"http_done"}


def test_h2load_gets_every_answer(io_driver, tmp_path):
    """Ten connections with a hundred requests at a time each."""
    body = tmp_path / "body"
    body.write_bytes(content(2000))

    async def scenario(gateway, _server):
        for arguments in (["/size/3000"], ["-d", str(body), "/digest"]):
            path = arguments.pop()
            out = await command("h2load", "-n", "2000", "-c", "10", "-m", "100", *arguments, url(gateway, path))
            print("\n".join(line for line in out.splitlines() if line.startswith(("finished", "requests", "status"))))
            assert "Application protocol: h2" in out
            counts = "2000 total, 2000 started, 2000 done, 2000 succeeded, 0 failed, 0 errored, 0 timeout"
            assert counts in out and "status codes: 2000 2xx, 0 3xx, 0 4xx, 0 5xx" in out, out

    metrics = serve(io_driver, tmp_path, scenario)
    assert answers(metrics) == {"2xx": 4000}
    assert ends(metrics) == {"http_done": 20}


def test_large_bodies_both_ways_at_once_arrive_as_they_were(io_driver, tmp_path):
    """Forty streams share one connection."""
    sizes = [(1 << 20) + number for number in range(20)]

    async def scenario(gateway, server):
        async with await connect(gateway) as client:
            downloads = [client.request(f"/size/{size}") for size in sizes]
            uploads = [client.request("/digest", has_body=True, method="POST") for _ in sizes]
            sending = zip(uploads, sizes, strict=True)
            await asyncio.gather(*(client.send_body(stream_id, content(size)) for stream_id, size in sending))
            for stream, size in zip(await client.answered(*downloads), sizes, strict=True):
                check_content(stream, size)
            for stream, size in zip(await client.answered(*uploads), sizes, strict=True):
                told = json.loads(stream.body)
                assert (told["size"], told["digest"]) == (size, hashlib.sha256(content(size)).hexdigest())
        assert server.asked == {"size": 20, "digest": 20}

    metrics = serve(io_driver, tmp_path, scenario)
    assert answers(metrics) == {"2xx": 40}
    assert metrics.value("connections_accepted_total", port="a") == 1


def test_trailers_and_heads_alone_pass(io_driver, tmp_path):
    async def scenario(gateway, _server):
        async with await connect(gateway) as client:
            stream = await client.fetch("/chunks/100000", te="trailers")
            check_content(stream, 100_000)
            assert stream.trailers == {"x-sum": hashlib.sha256(content(100_000)).hexdigest()}
            stream = await client.fetch(
                "/digest", method="POST", body=content(70_000), trailers={"x-sum": "7"}, trailer="x-sum"
            )
            told = json.loads(stream.body)
            assert (told["size"], told["trailers"]) == (70_000, {"x-sum": "7"})
            stream = await client.fetch("/size/4321", method="HEAD")
            assert (stream.status, stream.fields["content-length"], stream.size) == (200, "4321", 0)
            # What is for one connection alone does not come through.
            assert not {"connection", "transfer-encoding", "keep-alive"} & set(stream.fields)

    metrics = serve(io_driver, tmp_path, scenario)
    assert answers(metrics) == {"2xx": 3}


def test_cookies_are_one_field_to_the_upstream(io_driver, tmp_path):
    """Browsers send them as a field each."""

    async def scenario(gateway, server):
        async with await connect(gateway) as client:
            await is_served(client)
            assert "cookie" not in server.latest
            stream_id = client.take_id()
            crumbs = [("cookie", "a=b"), ("cookie", "c=d; e=f"), ("x-other", "g"), ("cookie", "h=i")]
            client.write(HeadersFrame(stream_id, client.encode("/size/1", crumbs), flags=["END_HEADERS", "END_STREAM"]))
            [stream] = await client.answered(stream_id)
            assert (stream.status, server.latest["cookie"]) == (200, "a=b; c=d; e=f; h=i")

    serve(io_driver, tmp_path, scenario)


def test_a_websocket_opens_on_the_port_that_speaks_http2(io_driver, tmp_path):
    """Browsers open it by HTTP/1.1, on a connection of its own, as no extended CONNECT is announced (RFC 8441)."""

    async def scenario(gateway, _server):
        async with await connect(gateway) as client:
            assert SettingsFrame.ENABLE_CONNECT_PROTOCOL not in client.settings
            await is_served(client)
            context = gateway.authority.context()
            context.set_alpn_protocols(["http/1.1"])
            async with await Connection.open(gateway.ports["a"], tls=context) as socket:
                await socket.accepted(upgrade("/echo"))
                await socket.echo(b"beside HTTP/2")
                await is_served(client)
                await socket.close()

    metrics = serve(io_driver, tmp_path, scenario)
    assert metrics.by("result", "handshakes_total", port="a") == {"accepted": 1}


def test_a_response_that_is_given_up_is_not_fetched_further(io_driver, tmp_path):
    async def scenario(gateway, server):
        async with await connect(gateway) as client:
            held = client.request("/hold")
            endless = client.request("/endless")
            await client.until(lambda: client.streams[endless].size > 1 << 20, "a mebibyte of what has no end")
            assert server.under_way["endless"] == 1
            client.reset_stream(endless)
            await server.until(lambda: server.under_way["endless"] == 0, "the upstream is left")
            await is_served(client)
            server.release()
            [stream] = await client.answered(held)
            assert (stream.status, bytes(stream.body)) == (200, b"held")
            assert not client.goaways

    metrics = serve(io_driver, tmp_path, scenario)
    assert answers(metrics) == {"2xx": 3}


def test_a_body_too_large_is_refused_while_others_go_on(io_driver, tmp_path):
    """By what its head says of its size, or when it has come."""
    size_max = 100_000

    async def scenario(gateway, server):
        async with await connect(gateway) as client:
            download = client.request(f"/size/{4 << 20}")
            upload = client.request("/digest", has_body=True, method="POST")
            await server.until(lambda: server.asked["digest"] == 1, "it is asked for")
            stated = client.request("/digest", has_body=True, method="POST", content_length=str(size_max + 1))
            [stream] = await client.answered(stated)
            assert (stream.status, server.asked["digest"]) == (413, 1)
            grown = client.request("/digest", has_body=True, method="POST")
            await client.send_body(grown, content(size_max + 1))
            [stream] = await client.answered(grown)
            assert stream.status == 413
            await client.send_body(upload, content(size_max))
            [downloaded, uploaded] = await client.answered(download, upload)
            check_content(downloaded, 4 << 20)
            assert json.loads(uploaded.body)["size"] == size_max
            assert not client.goaways

    metrics = serve(io_driver, tmp_path, scenario, request_body_size_max=size_max)
    assert answers(metrics) == {"2xx": 2, "4xx": 2}


def test_a_body_that_does_not_come_is_waited_for_no_longer_than_it_may(io_driver, tmp_path):
    async def scenario(gateway, server):
        async with await connect(gateway) as client:
            held = client.request("/hold")
            silent = client.request("/digest", has_body=True, method="POST")
            [stream] = await client.answered(silent)
            assert stream.status == 408
            server.release()
            [stream] = await client.answered(held)
            assert stream.status == 200

    metrics = serve(io_driver, tmp_path, scenario, body_timeout_ms=1000)
    assert answers(metrics) == {"2xx": 1, "4xx": 1}


def test_requests_beyond_the_limit_are_refused_and_can_be_sent_again(io_driver, tmp_path):
    async def scenario(gateway, server):
        async with await connect(gateway) as client:
            assert client.settings[SettingsFrame.MAX_CONCURRENT_STREAMS] == STREAMS_MAX
            sent = [client.request("/hold") for _ in range(200)]
            refused = sent[STREAMS_MAX:]
            for stream in await client.answered(*refused):
                # Nobody has seen it, so that it is safe to ask again (RFC 9113 section 8.7).
                assert (stream.status, stream.reset) == (None, REFUSED_STREAM)
            await server.until(lambda: server.under_way["hold"] == STREAMS_MAX, "the others are asked for")
            server.release()
            again = [client.request("/hold") for _ in refused[:1]]
            for stream in await client.answered(*sent[:STREAMS_MAX]):
                assert (stream.status, bytes(stream.body)) == (200, b"held")
            again += [client.request("/hold") for _ in refused[1:]]
            answered = [stream for stream in await client.answered(*again) if stream.status == 200]
            # The first may have come before there was room.
            assert len(answered) >= len(refused) - 1
            assert not client.goaways

    metrics = serve(io_driver, tmp_path, scenario)
    assert answers(metrics)["2xx"] in (199, 200)


def test_streams_under_way_outlast_a_drain(io_driver, tmp_path):
    """Two GOAWAYs (RFC 9113 section 6.8): what was sent in between is answered, what comes later is not."""
    server = WebServer()
    gateway = gateway_before(server, io_driver, tmp_path, close_timeout_ms=20_000)

    async def scenario():
        async with server, await connect(gateway, is_granting=False) as client:
            client.answers_pings = False
            held, download = client.request("/hold"), client.request(f"/size/{1 << 20}")
            await server.until(lambda: server.under_way["hold"] == 1, "it is asked for")
            await client.until(lambda: client.streams[download].size > 0, "the download has begun")
            gateway.process.terminate()
            await client.until(lambda: client.goaways, "a GOAWAY")
            assert client.goaways == [(2**31 - 1, NO_ERROR)]
            late = client.streams[client.request("/size/1")]
            # Its content has to wait, as the download has left no room.
            await client.until(lambda: late.status, "the answer to what was sent in between")
            assert late.status == 503 and "retry-after" in late.fields
            client.answer_pings()
            await client.until(lambda: len(client.goaways) == 2, "the other GOAWAY")
            ignored = client.request("/size/2")
            assert client.goaways[1] == (ignored - 2, NO_ERROR)
            server.release()
            client.is_granting = True
            size = client.streams[download].size
            client.grant(1 << 20)
            client.grant(1 << 20, download)
            [stream, _] = await client.answered(held, download)
            assert (stream.status, bytes(stream.body)) == (200, b"held")
            assert size < 1 << 20 and late.is_ended
            check_content(client.streams[download], 1 << 20)
            await client.gone()
            assert client.streams[ignored].status is None
        assert server.asked["size"] == 1

    with gateway:
        asyncio.run(scenario())
        assert gateway.process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("answers_pings", [True, False], ids=["answering", "silent"])
def test_an_idle_connection_is_let_go(io_driver, tmp_path, answers_pings):
    """With a GOAWAY that says no error, after its time, and no sooner; also one that does not hear it."""

    # Looked at once a second.
    latest = KEEP_ALIVE_TIMEOUT_S + (0 if answers_pings else CLOSE_TIMEOUT_S) + 4

    async def is_let_go(client):
        client.answers_pings = answers_pings
        since = asyncio.get_running_loop().time()
        await client.gone()
        assert KEEP_ALIVE_TIMEOUT_S - 0.1 <= asyncio.get_running_loop().time() - since < latest
        assert client.goaways[0] == (2**31 - 1, NO_ERROR)
        assert len(client.goaways) == (2 if answers_pings else 1)

    async def scenario(gateway, server):
        async with await connect(gateway) as client:
            held = client.request("/hold")
            await server.until(lambda: server.under_way["hold"] == 1, "it is asked for")
            # It is not idle while it waits for an answer, however long that takes.
            async with await connect(gateway) as other:
                await is_served(other)
                await is_let_go(other)
            server.release()
            [stream] = await client.answered(held)
            assert stream.status == 200
            await is_let_go(client)

    limits = {"keep_alive_timeout_ms": KEEP_ALIVE_TIMEOUT_S * 1000, "close_timeout_ms": CLOSE_TIMEOUT_S * 1000}
    metrics = serve(io_driver, tmp_path, scenario, **limits)
    assert ends(metrics) == {"http_done": 2}


@pytest.mark.parametrize("window", [0, 65535])
def test_a_client_that_grants_no_room_is_cut(io_driver, tmp_path, window):
    """All its streams wait for room for the rest of a response, which it never gives."""

    async def scenario(gateway, server):
        size = gateway.resident_size()
        settings = {SettingsFrame.INITIAL_WINDOW_SIZE: window}
        async with await connect(gateway, settings=settings, is_granting=False) as client:
            since = asyncio.get_running_loop().time()
            for _ in range(100):
                client.request("/endless")
            await client.until(lambda: client.frames[HeadersFrame] == 100, "every head")
            held = gateway.resident_size() - size
            await client.gone()
            took = asyncio.get_running_loop().time() - since
        print(f"{held >> 10} KiB held for 100 streams, cut after {took:.1f} s")
        assert held < 100 * (256 << 10)
        assert WRITE_TIMEOUT_S <= took < WRITE_TIMEOUT_S + 4
        await server.until(lambda: server.under_way["endless"] == 0, "the upstream is left")

    metrics = serve(io_driver, tmp_path, scenario, write_timeout_ms=WRITE_TIMEOUT_S * 1000)
    assert ends(metrics) == {"slow_client": 1}
    assert metrics.value("slow_clients_total", port="a", outcome="cut") == 1


def test_what_has_been_answered_and_is_not_read_is_cut_as_well(io_driver, tmp_path):
    """However much else the client asks for and gets."""

    async def scenario(gateway, _server):
        settings = {SettingsFrame.INITIAL_WINDOW_SIZE: 1}
        async with await connect(gateway, settings=settings, is_granting=False) as client:
            since = asyncio.get_running_loop().time()
            for _ in range(100):
                client.request("/size/1000")
            async with asyncio.timeout(WRITE_TIMEOUT_S + 4):
                while not client.is_gone:
                    asking = client.request("/size/1", method="HEAD")
                    await client.until_gone_or(lambda asking=asking: client.streams[asking].is_over)
            took = asyncio.get_running_loop().time() - since
        assert took >= WRITE_TIMEOUT_S

    metrics = serve(io_driver, tmp_path, scenario, write_timeout_ms=WRITE_TIMEOUT_S * 1000)
    assert ends(metrics) == {"slow_client": 1}


def test_rapid_reset_ends_the_connection(io_driver, tmp_path):
    """CVE-2023-44487: ten thousand requests, each given up with the same write."""
    count = 10_000

    async def scenario(gateway, server):
        size = gateway.resident_size()
        async with await connect(gateway) as other, await connect(gateway) as client:
            for _ in range(count):
                client.reset_stream(client.request("/hold"))
            await is_served(other)
            await client.gone()
            await is_served(other)
            held = gateway.resident_size() - size
            print(f"{server.asked['hold']} of {count} came to the upstream, {held >> 10} KiB held")
            assert client.goaways[-1][1] == ENHANCE_YOUR_CALM
            assert server.asked["hold"] <= 1000
            assert held < HELD_SIZE_MAX
            await server.until(lambda: server.under_way["hold"] == 0, "what was given up is left")
        server.release()

    metrics = serve(io_driver, tmp_path, scenario)
    assert metrics.value("connections_ended_total", port="a") == 2


def test_a_head_without_end_ends_the_connection(io_driver, tmp_path):
    """CVE-2024-27316: CONTINUATION frames that never say that they were the last."""

    async def scenario(gateway, server):
        size = gateway.resident_size()
        async with await connect(gateway) as other:
            for part in (b"", b"\x40\x01a\x7f\x81\x7f" + b"b" * 16000):
                async with await connect(gateway) as client:
                    stream_id = client.take_id()
                    client.write(HeadersFrame(stream_id, client.encode("/size/1")))
                    frame = ContinuationFrame(stream_id, part).serialize()
                    with contextlib.suppress(ConnectionError):
                        for _ in range(10_000):
                            if client.is_gone:
                                break
                            await client.send(frame)
                    await client.gone()
                    assert client.goaways[-1][1] != NO_ERROR
            await is_served(other)
        assert server.asked == {"size": 1}
        held = gateway.resident_size() - size
        print(f"{held >> 10} KiB held")
        assert held < HELD_SIZE_MAX

    serve(io_driver, tmp_path, scenario)


def test_a_head_too_large_is_refused_alone(io_driver, tmp_path):
    """With 431, for its bytes or for its count, while the connection goes on."""

    async def scenario(gateway, server):
        async with await connect(gateway) as client:
            assert client.settings[SettingsFrame.MAX_HEADER_LIST_SIZE] == 16 << 10
            # Beside the host.
            for fields in ({"x_long": "a" * (16 << 10)}, {f"x_{number}": "a" for number in range(100)}):
                stream = await client.fetch("/size/1", **fields)
                assert stream.status == 431
            for fields in ({"x_long": "a" * (15 << 10)}, {f"x_{number}": "a" for number in range(99)}):
                assert (await client.fetch("/size/1", **fields)).status == 200
            assert not client.goaways
        assert server.asked["size"] == 2

    serve(io_driver, tmp_path, scenario)


FLOODS = {
    "ping": PingFrame(opaque_data=b"flooding"),
    "settings": SettingsFrame(settings={SettingsFrame.INITIAL_WINDOW_SIZE: 65535}),
    "priority": PriorityFrame(1, depends_on=3, stream_weight=7),
    "window": WindowUpdateFrame(0, window_increment=1),
    "empty": DataFrame(1),
}


@pytest.mark.parametrize("is_reading", [True, False], ids=["reading", "deaf"])
@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_costs_bounded_memory(io_driver, tmp_path, flood, is_reading):
    """Of frames that want an answer, which a client may not read, or that do next to nothing."""
    burst = FLOODS[flood].serialize() * 1000

    async def scenario(gateway, _server):
        async with await connect(gateway) as other:
            await is_served(other)
            size = highest = gateway.resident_size()
            async with await connect(gateway, is_reading=is_reading) as client:
                client.request("/digest", has_body=True, method="POST")
                sent = 0
                with contextlib.suppress(ConnectionError, TimeoutError):
                    async with asyncio.timeout(WRITE_TIMEOUT_S + 4):
                        while sent < 200 and not client.is_gone:
                            await client.send(burst)
                            sent += 1
                            highest = max(highest, gateway.resident_size())
                await is_served(other)
                print(f"{sent * 1000} frames sent, {(highest - size) >> 10} KiB held")
                assert highest - size < HELD_SIZE_MAX
            await is_served(other)

    serve(io_driver, tmp_path, scenario, write_timeout_ms=WRITE_TIMEOUT_S * 1000)
