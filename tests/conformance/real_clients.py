"""Clients that people use echo text and binary of all sizes and close cleanly, over `ws://` and over `wss://`.

They are Chromium, Node, Python and Java.
"""

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
import websockets

from authority import tls_of
from harness import Gateway, wait_until

CLIENTS = Path(__file__).parent / "clients"

# Around the two places where a frame's header grows (RFC 6455 section 5.2), and up to the default limit.
SIZES = [0, 1, 125, 126, 65535, 65536, 1 << 20, 16 << 20]

CONFIG = """
[[port]]
number = 0
name = "a"
address = "127.0.0.1"
{tls}
[[route]]
path = "/echo"
service = "echo"
[[route]]
path = "/"
service = "page"
"""

# Each is run with the URL and the sizes as arguments, echoes text and binary of every size, closes with 1000, and
# exits with 0 only if all came back as it was sent and the closing handshake was clean.
NODE = ["node", str(CLIENTS / "ws.cjs")]
JAVA = ["java", "-Xmx1g"]
JAVA_PROGRAM = str(CLIENTS / "Echo.java")
CHROMIUM = ["node", str(CLIENTS / "chromium.cjs")]


@pytest.fixture
def gateway(authority):
    with Gateway(CONFIG.format(tls=tls_of(authority))) as running:
        running.url = f"{'wss' if authority else 'ws'}://127.0.0.1:{running.ports['a']}/echo"
        yield running


def test_node_echoes_every_size_and_closes_cleanly(gateway, authority):
    run(NODE, gateway, {"NODE_EXTRA_CA_CERTS": authority.ca} if authority else {})
    check_one_clean_connection(gateway)


def test_java_echoes_every_size_and_closes_cleanly(gateway, authority, tmp_path):
    trust = []
    if authority:
        store = ["-keystore", tmp_path / "ca.p12", "-storepass", "only certificates"]
        subprocess.run(["keytool", "-importcert", "-noprompt", "-file", authority.ca, *store], check=True)
        trust = [
            f"-Djavax.net.ssl.trustStore={tmp_path}/ca.p12",
            "-Djavax.net.ssl.trustStorePassword=only certificates",
        ]
    run([*JAVA, *trust, JAVA_PROGRAM], gateway)
    check_one_clean_connection(gateway)


def test_chromium_opens_the_page_and_echoes_every_size_from_it(gateway, authority):
    run(CHROMIUM, gateway, {"RINGWAY_TRUSTED_KEY": authority.key_hash("edge")} if authority else {})
    metrics = check_messages(gateway)
    # The page came over HTTP, its own WebSocket leaves with it, and a browser also connects ahead of need.
    ended = metrics.by("end", "connections_ended_total", port="a")
    assert ended["closed"] >= 1 and not set(ended) - {"closed", "http_done", "client_gone"}, ended


def test_python_websockets_echoes_every_size_and_closes_cleanly(gateway, authority):
    async def echo():
        context = authority and authority.context()
        async with websockets.connect(gateway.url, max_size=None, ssl=context) as client:
            for size in SIZES:
                for message in (text(size), os.urandom(size)):
                    await client.send(message)
                    assert await client.recv() == message, f"another echo at {size} bytes"
        assert client.close_code == 1000

    asyncio.run(echo())
    check_one_clean_connection(gateway)


def run(program, gateway, environment=None):
    """Runs a client program to its end."""
    command = [*program, gateway.url, *map(str, SIZES)]
    environment = os.environ | (environment or {})
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280, env=environment
    )
    print(result.stdout, result.stderr)
    assert result.returncode == 0


def text(size):
    """Text of `size` bytes with characters of every length that UTF-8 has."""
    unit = "aé€😀"
    whole, rest = divmod(size, len(unit.encode()))
    return unit * whole + "x" * rest


def check_one_clean_connection(gateway):
    """One connection was accepted, and it ended with the closing handshake."""
    metrics = check_messages(gateway)
    assert metrics.by("end", "connections_ended_total", port="a") == {"closed": 1}
    # A browser that ends leaves TLS as it is.
    assert metrics.value("tls_truncated_total") == 0
    for direction in ("received", "sent"):
        assert metrics.value("messages_total", port="a", direction=direction) == 2 * len(SIZES)
        assert metrics.value("payload_bytes_total", port="a", direction=direction) == 2 * sum(SIZES)


def check_messages(gateway):
    """One Close with 1000 came from a client, nobody broke a rule, and all that was echoed is counted both ways."""
    wait_until(lambda: closes(gateway.metrics()) == 1, "the Close is counted")
    metrics = gateway.at_rest()
    assert closes(metrics) == 1
    assert metrics.value("violations_total", port="a") == 0
    assert metrics.value("tls_failures_total") == 0
    # Each of them speaks the newest version.
    kinds = set(metrics.by("kind", "tls_handshakes_total", port="a"))
    assert kinds <= {"tls13_full", "tls13_resumed"} and bool(kinds) == gateway.url.startswith("wss:"), kinds
    for direction in ("received", "sent"):
        assert metrics.value("messages_total", port="a", direction=direction) >= 2 * len(SIZES)
        assert metrics.value("payload_bytes_total", port="a", direction=direction) >= 2 * sum(SIZES)
    return metrics


def closes(metrics):
    return metrics.value("closes_total", port="a", initiator="client", code="1000")
