"""`ringway bench` against servers that do known right and wrong: what it tells, catches and prints, and how it ends."""

import asyncio
import contextlib
import dataclasses
import http
import json
import math
import os
import pty
import re
import ssl
import subprocess

import pytest
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory

from harness import BINARY, PATIENCE_S

# By so much the machine may lengthen a latency that is taken for right, and so often a run is done until it has not.
LONGER_SHARE, LONGER_US, TRIES = 0.1, 2000, 10
# What a server answers with to end the connection without a word.
ABORT = object()


class Server:
    """A WebSocket server as an asynchronous context manager: what `answer(message)` returns is sent, unless `None`."""

    def __init__(self, answer, **options):
        self.answer = answer
        self.options = {"compression": None, "ping_interval": None, **options}

    async def __aenter__(self):
        self.server = await serve(self.converse, "127.0.0.1", 0, **self.options)
        self.port = self.server.sockets[0].getsockname()[1]
        scheme = "wss" if "ssl" in self.options else "ws"
        self.url = f"{scheme}://127.0.0.1:{self.port}/"
        return self

    async def converse(self, connection):
        # A generator that has seen enough of a bad server leaves without a Close.
        with contextlib.suppress(ConnectionClosed):
            async for message in connection:
                answer = await self.answer(message)
                if answer is ABORT:
                    connection.transport.abort()
                elif answer is not None:
                    await connection.send(answer)

    async def __aexit__(self, *_exception):
        self.server.close()
        await self.server.wait_closed()


class Outcome:
    """What a run printed, and its exit code."""

    def __init__(self, code, stdout, stderr):
        self.code, self.stdout, self.stderr = code, stdout.decode(), stderr.decode()

    def json(self):
        """The report of a run without faults."""
        assert self.code == 0, f"exit {self.code}\n{self.stdout}\n{self.stderr}"
        return json.loads(self.stdout)


async def bench(*arguments, **options):
    """Runs `ringway bench` to its end."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    process = await asyncio.create_subprocess_exec(BINARY, "bench", *map(str, arguments), **options)
    try:
        async with asyncio.timeout(PATIENCE_S * 2):
            stdout, stderr = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        raise
    return Outcome(process.returncode, stdout or b"", stderr or b"")


async def honest(message):
    return message


# The milliseconds that messages are held, in turn.
HOLDS = {"10 ms": [10], "25 ms": [25], "100 ms": [100], "2 % of 100 ms among 10": [10] * 49 + [100]}


@pytest.mark.parametrize("name", HOLDS)
@pytest.mark.parametrize("pace", ["closed loop", "open loop"])
def test_known_delays_are_told_to_the_99th_percentile(name, pace):
    """The server takes note how long it held each message in truth; nothing may be told shorter than that was."""
    # An open loop with a message in 200 ms on each connection: none waits for the one before it.
    paces = {"closed loop": ["--duration=2s"], "open loop": ["--rate=80", "--duration=3s"]}

    async def run():
        held_us = []

        async def hold(message):
            clock = asyncio.get_running_loop()
            start, hold_ms = clock.time(), HOLDS[name][len(held_us) % len(HOLDS[name])]
            # A place is taken at once: others come while this one is held.
            place = len(held_us)
            held_us.append(math.nan)
            await asyncio.sleep(hold_ms / 1000)
            held_us[place] = (clock.time() - start) * 1e6
            return message

        async with Server(hold) as server:
            report = await bench("echo", server.url, "--connections=16", "--warmup=0s", "--json", *paces[pace])
        latency_us = report.json()["latency_us"]
        assert report.json()["messages"] == len(held_us)
        held_us.sort()
        return {p: (held_us[math.ceil(len(held_us) * p / 100) - 1], latency_us[f"p{p}"]) for p in (50, 90, 99)}

    for _ in range(TRIES):
        percentiles = asyncio.run(run())
        print(f"held and told, µs: {percentiles}")
        # The histogram tells three digits.
        assert all(told >= held * 0.999 for held, told in percentiles.values()), percentiles
        if all(told <= held * (1 + LONGER_SHARE) + LONGER_US for held, told in percentiles.values()):
            return
    raise AssertionError(f"in none of {TRIES} runs latencies were as long as messages were held")


def test_a_stall_is_charged_with_all_that_had_to_wait():
    """A server stands still for 1 s of 4: at a rate a quarter of all messages waits, in a closed loop hardly any."""

    async def run(*pace):
        clock = asyncio.get_running_loop()
        count, gate = 0, clock.create_future()
        gate.set_result(None)

        async def stall_once(message):
            nonlocal count, gate
            count += 1
            if count == 200:
                gate = clock.create_future()
                clock.call_later(1, gate.set_result, None)
            await asyncio.shield(gate)
            return message

        async with Server(stall_once) as server:
            arguments = ["--connections=4", "--duration=4s", "--warmup=0s", "--json", *pace]
            return (await bench("echo", server.url, *arguments)).json()

    at_rate = asyncio.run(run("--rate=200"))
    assert at_rate["messages"] == 800
    # Of 200 messages due while it stood still 80, a tenth of all, had to wait 600 ms or longer.
    assert at_rate["latency_us"]["p90"] >= 600_000, at_rate
    assert at_rate["latency_us"]["max"] >= 990_000, at_rate
    closed = asyncio.run(run())
    assert closed["latency_us"]["p90"] < 600_000 and closed["latency_us"]["max"] >= 990_000, closed


async def reverse(message):
    return message[::-1]


async def shorten(message):
    return message[:-1]


async def be_late(message):
    await asyncio.sleep(3)
    return message


async def be_silent(_message):
    return None


async def abort(_message):
    return ABORT


WRONGS = {"content": reverse, "length": shorten, "late": be_late, "silent": be_silent, "gone": abort}


@pytest.mark.parametrize("name", WRONGS)
def test_a_server_that_does_wrong_is_caught(name):
    """The exit code and the text for people say so, and the JSON for machines."""
    fault = "late" if name == "silent" else name

    async def run(*form):
        async with Server(WRONGS[name]) as server:
            load = ["--connections=3", "--warmup=0s", "--duration=100ms", "--grace=500ms"]
            return await bench("echo", server.url, *load, *form)

    text = asyncio.run(run())
    assert text.code == 1 and re.search(rf"^ +faults +3 {fault}$", text.stdout, re.MULTILINE), text.stdout
    report = asyncio.run(run("--json"))
    decoded = json.loads(report.stdout)
    assert report.code == 1 and decoded["errors"] == 3 and decoded["faults"] == {fault: 3}, decoded


def test_a_server_that_refuses_is_an_error_that_says_why():
    def refuse(connection, _request):
        return connection.respond(http.HTTPStatus.FORBIDDEN, "not you\n")

    async def run():
        async with Server(honest, process_request=refuse) as server:
            return await bench("echo", server.url, "--json")

    outcome = asyncio.run(run())
    assert (outcome.code, outcome.stdout) == (1, "") and "403" in outcome.stderr, outcome.stderr


LATENCY_KEYS = {"mean", "p50", "p90", "p99", "p999", "max"}


def test_reports_have_the_keys_that_scripts_rely_on():
    async def run(scenario, *arguments):
        async with Server(honest) as server:
            load = ["--connections=2", "--warmup=0s", "--duration=200ms", f"--server-pid={os.getpid()}", "--json"]
            return (await bench(scenario, server.url, *load, *arguments)).json()

    echo = asyncio.run(run("echo", "--size=30", "--in-flight=3", "--text"))
    assert (echo["scenario"], echo["connections"], echo["size"], echo["in_flight"]) == ("echo", 2, 30, 3)
    connect = asyncio.run(run("connect"))
    for report in (echo, connect):
        assert report["messages"] > 0 and report["messages_per_second"] > 0 and report["errors"] == 0
        assert set(report["latency_us"]) == LATENCY_KEYS
        assert {"cpu_us_per_message", "rss_bytes", "descriptors"} <= set(report["server"])
        assert {"cpu_us_per_message", "limited"} <= set(report["client"])
    idle = asyncio.run(run("idle"))
    assert idle["scenario"] == "idle" and idle["server"]["bytes_per_connection"] is not None


def test_a_comparison_has_the_keys_that_scripts_rely_on():
    async def run():
        async with Server(honest) as first, Server(honest) as second:
            cases = ["--case=2:20:1", "--case=2:100:4:text", "--case=connect:2"]
            servers = [f"a={first.url}", f"b={second.url}"]
            return (await bench("compare", *servers, "--rounds=3", "--slice=100ms", "--json", *cases)).json()

    comparison = asyncio.run(run())
    assert comparison["rounds"] == 3
    assert [case["case"] for case in comparison["cases"]] == ["2:20:1", "2:100:4:text", "connect:2"]
    for case in comparison["cases"]:
        (pair,) = case["pairs"]
        assert (pair["first"], pair["second"]) == ("a", "b")
        assert 0 < pair["ratio"]["min"] <= pair["ratio"]["median"] <= pair["ratio"]["max"]


@pytest.mark.parametrize("scenario", ["echo", "connect"])
def test_threads_make_one_load(scenario):
    async def run():
        async with Server(honest) as server:
            load = ["--connections=5", "--threads=3", "--warmup=0s", "--duration=500ms", "--json"]
            return (await bench(scenario, server.url, *load)).json()

    report = asyncio.run(run())
    assert report["connections"] == 5 and report["messages"] >= 5 and report["errors"] == 0, report


def test_a_terminal_is_shown_progress_and_bars_and_a_pipe_plain_text():
    async def run(is_terminal):
        async with Server(honest) as server:
            command = ["echo", server.url, "--connections=2", "--warmup=0s", "--duration=1200ms"]
            if not is_terminal:
                return await bench(*command)
            ours, theirs = pty.openpty()
            try:
                outcome = await bench(*command, stdout=theirs, stderr=theirs)
            finally:
                os.close(theirs)
            # All was written before the process ended, and fits in the terminal's buffer.
            shown = os.read(ours, 1 << 16)
            os.close(ours)
            return Outcome(outcome.code, shown, b"")

    piped = asyncio.run(run(is_terminal=False))
    assert piped.code == 0 and "#" in piped.stdout and "\x1b" not in piped.stdout + piped.stderr, piped.stdout
    shown = asyncio.run(run(is_terminal=True))
    print(shown.stdout)
    progress, _, summary = shown.stdout.rpartition("\r\x1b[K")
    assert shown.code == 0 and "█" in summary and "\x1b" not in summary, summary
    assert re.search(r"\r\x1b\[K\d\.\d of 1\.2 s, \d+ messages/s, p50 .*, p99 .*, 0 errors", progress), progress


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """The folder of a certificate for 127.0.0.1, which is its own authority, and its key: `cert.pem`, `key.pem`."""
    folder = tmp_path_factory.mktemp("certificate")
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    names = ["-subj", "/CN=bench", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE"]
    command = ["openssl", "req", "-x509", *kind, *names, "-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def in_tls(folder, tickets=True):
    """What makes a server one of TLS 1.3, whose sessions can be resumed or not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    if not tickets:
        context.num_tickets = 0
    return {"ssl": context}


def test_every_scenario_speaks_tls(certificate):
    """And the server saw resumed sessions where they were asked for, else full ones alone."""
    were_reused = []

    async def run(scenario, *arguments):
        were_reused.clear()

        def note(connection, _request):
            were_reused.append(connection.transport.get_extra_info("ssl_object").session_reused)

        async with Server(honest, **in_tls(certificate), process_request=note) as server:
            load = ["--connections=2", "--warmup=0s", "--duration=300ms", "--json", *arguments]
            return (await bench(scenario, server.url, *load)).json()

    ca = f"--ca={certificate / 'cert.pem'}"
    for trust in (ca, "--insecure"):
        assert asyncio.run(run("echo", "--size=30", "--in-flight=3", trust))["messages"] > 0
    assert asyncio.run(run("echo", "--size=200000", "--in-flight=2", ca))["messages"] > 0
    assert asyncio.run(run("idle", ca))["messages"] == 2
    full = asyncio.run(run("connect", ca))
    assert full["messages"] == len(were_reused) > 2 and not any(were_reused), were_reused
    resumed = asyncio.run(run("connect", ca, "--resume"))
    # The first of each connection at a time got the tickets, and does not count.
    assert resumed["messages"] == sum(were_reused) > 0 and were_reused.count(False) <= 2, were_reused
    assert set(full) == set(resumed) and set(full["latency_us"]) == LATENCY_KEYS


def test_servers_in_tls_and_without_are_compared(certificate):
    async def run():
        async with Server(honest) as first, Server(honest, **in_tls(certificate)) as second:
            cases = ["--case=2:20:1", "--case=connect:2"]
            servers = [f"a={first.url}", f"b={second.url}"]
            trust = f"--ca={certificate / 'cert.pem'}"
            return await bench("compare", *servers, trust, "--resume", "--rounds=2", "--slice=200ms", "--json", *cases)

    comparison = asyncio.run(run()).json()
    names = [[server["name"] for server in case["servers"]] for case in comparison["cases"]]
    assert names == [["a", "b"], ["a", "b"]]


def test_a_server_that_does_not_resume_is_caught(certificate):
    async def run():
        async with Server(honest, **in_tls(certificate, tickets=False)) as server:
            load = ["--connections=2", "--warmup=0s", "--duration=300ms", "--insecure", "--resume", "--json"]
            return await bench("connect", server.url, *load)

    outcome = asyncio.run(run())
    assert outcome.code == 1 and json.loads(outcome.stdout)["faults"] == {"not_resumed": 2}, outcome.stdout


def test_whom_to_believe_is_said_before_anything_is_sent(certificate, tmp_path):
    """What is missing, in vain or unreadable is a mistake of whoever typed it; what is not believed is a failure."""
    nothing = tmp_path / "empty.pem"
    nothing.touch()
    mistakes = {
        "--ca FILE, the authorities to believe, or --insecure": ["wss://127.0.0.1:9/"],
        "--ca and --insecure are for wss://": ["ws://127.0.0.1:9/", "--insecure"],
        "--resume is for wss://": ["ws://127.0.0.1:9/", "--resume"],
        "the file holds no certificate in PEM": ["wss://127.0.0.1:9/", f"--ca={nothing}"],
        "the file cannot be read": ["wss://127.0.0.1:9/", f"--ca={tmp_path / 'missing.pem'}"],
        "cannot be used with": ["wss://127.0.0.1:9/", "--insecure", f"--ca={certificate / 'cert.pem'}"],
    }
    for words, arguments in mistakes.items():
        outcome = asyncio.run(bench("connect", *arguments))
        assert outcome.code == 2 and words in outcome.stderr, outcome.stderr

    async def run(host):
        async with Server(honest, **in_tls(certificate)) as server:
            trust = f"--ca={certificate / 'cert.pem'}"
            return await bench("echo", f"wss://{host}:{server.port}/", trust, "--warmup=0s", "--duration=100ms")

    assert asyncio.run(run("127.0.0.1")).code == 0
    misnamed = asyncio.run(run("localhost"))
    assert misnamed.code == 1 and "not valid for name" in misnamed.stderr, misnamed.stderr


class Compression(ServerPerMessageDeflateFactory):
    """permessage-deflate of a server, whose frames leave as `encode(extension, frame)` makes them."""

    def __init__(self, encode=None):
        super().__init__()
        self.encode = encode

    def process_request_params(self, *offered):
        parameters, extension = super().process_request_params(*offered)
        if self.encode:
            extension.encode = lambda frame: self.encode(extension, frame)
        return parameters, extension


def send_plain(_extension, frame):
    return frame


def send_garbage(extension, frame):
    compressed = PerMessageDeflate.encode(extension, frame)
    return dataclasses.replace(compressed, data=b"\xff" * 50) if compressed.rsv1 else compressed


async def in_fragments(message):
    return [message[:500], message[500:600], message[600:]]


async def bench_deflate(answer, *arguments, encode=None, **options):
    """Runs `bench echo --deflate` against a server that compresses so."""
    async with Server(answer, extensions=[Compression(encode)], **options) as server:
        load = ["--connections=3", "--warmup=0s", "--duration=200ms", "--text", "--json", *arguments]
        return await bench("echo", server.url, *load)


@pytest.mark.parametrize("mode", ["shared", "dedicated"])
def test_messages_go_compressed_and_come_back_so_or_not(mode):
    """Messages are JSON, whatever their size, and what is told of the answers' size is what they had."""
    messages = []

    async def note(message):
        messages.append(message)
        return message

    def run(size, answer, encode=None):
        messages.clear()
        arguments = [f"--deflate={mode}", f"--size={size}", "--in-flight=3"]
        report = asyncio.run(bench_deflate(answer, *arguments, encode=encode)).json()
        assert report["messages"] >= 9 and report["deflate"] == mode, report
        return report.get("bytes_per_answer")

    for size in (0, 1, 7, 8, 9, 125, 1024, 100_000):
        run(size, note)
        assert {len(message) for message in messages} == {size}
    # The number stands in place of the beginning, and the end is cut off.
    records = [json.loads(record + "}") for record in messages[0].split("},")[1:-1]]
    assert len(records) > 400 and all(record["status"] for record in records)

    assert run(1024, in_fragments) < 400
    assert run(1024, honest, encode=send_plain) == 1024
    # In a context hardly anything is left of a message that was there before.
    least, most = (1, 100) if mode == "dedicated" else (300, 400)
    assert least < run(1024, honest) < most


COMPRESSED_WRONGS = {"content": (reverse, None), "length": (shorten, None), "violation": (honest, send_garbage)}


@pytest.mark.parametrize("fault", COMPRESSED_WRONGS)
def test_a_wrong_answer_is_caught_however_it_is_compressed(fault):
    answer, encode = COMPRESSED_WRONGS[fault]
    outcome = asyncio.run(bench_deflate(answer, "--deflate", encode=encode))
    assert outcome.code == 1 and json.loads(outcome.stdout)["faults"] == {fault: 3}, outcome.stdout


def test_a_server_that_does_not_agree_on_compression_is_an_error_that_says_so():
    def choose(extensions):
        def process_response(_connection, _request, response):
            if extensions:
                response.headers["Sec-WebSocket-Extensions"] = extensions

        return process_response

    async def run(extensions, *arguments):
        async with Server(honest, process_response=choose(extensions)) as server:
            return await bench("echo", server.url, "--json", *arguments)

    none_kept = "permessage-deflate; server_no_context_takeover"
    otherwise = "parameters of permessage-deflate do not answer the offer"
    for extensions, arguments, words in [
        (None, ["--deflate"], "does not agree on permessage-deflate"),
        (None, ["--deflate=dedicated"], "does not agree on permessage-deflate"),
        ("permessage-deflate", ["--deflate"], otherwise),
        (f"{none_kept}; client_max_window_bits=15", ["--deflate"], otherwise),
        (none_kept, [], "extension that was not offered"),
    ]:
        outcome = asyncio.run(run(extensions, *arguments))
        assert (outcome.code, outcome.stdout) == (1, "") and words in outcome.stderr, outcome.stderr
    mistake = asyncio.run(bench("echo", "ws://127.0.0.1:9/", "--deflate=all"))
    assert mistake.code == 2 and "possible values: shared, dedicated" in mistake.stderr, mistake.stderr


def test_servers_that_compress_are_compared():
    async def run(*arguments):
        plain = Server(honest, extensions=[Compression(send_plain)])
        async with Server(honest, extensions=[Compression()]) as first, plain as second:
            servers = [f"a={first.url}", f"b={second.url}"]
            return await bench("compare", *servers, "--rounds=2", "--slice=100ms", "--case=2:1024:2:text", *arguments)

    comparison = asyncio.run(run("--deflate", "--json")).json()
    (case,) = comparison["cases"]
    assert comparison["deflate"] == "shared" and case["case"] == "2:1024:2:text"
    compressed, plain = [server["bytes_per_answer"] for server in case["servers"]]
    assert compressed < 400 and plain == 1024, case
    shown = asyncio.run(run("--deflate"))
    assert shown.code == 0 and "answers of 1024 B" in shown.stdout, shown.stdout
