"""One `http` route with `websocket = true` serves whole applications: Socket.IO, and a site of Vite's in Chromium."""

import contextlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from authority import Authority, tls_of
from harness import PATIENCE_S, Gateway, free_port, wait_until

HERE = Path(__file__).parent

CONFIG = """
[[port]]
number = 0
name = "a"
address = "127.0.0.1"
{tls}
[[route]]
name = "app"
path = "/*"
service = "http"
websocket = true
upstreams = {upstreams}
{keys}
"""


@contextlib.contextmanager
def program(command, says, **arguments):
    """A program that runs from when it says so, until it is left."""
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **arguments,
    ) as process:
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if says in line:
                    break
            else:
                raise AssertionError(f"{command} said {lines}")
            yield process
        finally:
            process.kill()


def socket_io(port, name="one"):
    """Socket.IO's own server."""
    return program(["node", HERE / "servers/socket_io.cjs", str(port), name], "listening")


def talk(gateway, authority, transports, *arguments):
    """What Socket.IO's own client prints that talks to the gateway; fails where the client does."""
    url = f"{'https' if authority else 'http'}://localhost:{gateway.ports['a']}"
    command = ["node", HERE / "clients/socket_io.cjs", url, transports, *arguments]
    environment = os.environ | ({"NODE_EXTRA_CA_CERTS": str(authority.ca)} if authority else {})
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    print(result.stdout, result.stderr)
    return result


def serving(*ports, authority=None, keys="", **arguments):
    """A gateway before these ports."""
    upstreams = [f"http://127.0.0.1:{port}" for port in ports]
    return Gateway(CONFIG.format(tls=tls_of(authority), upstreams=upstreams, keys=keys), **arguments)


@pytest.mark.parametrize("transports", ["polling", "websocket", "polling,websocket"])
def test_socket_io_talks_by_every_transport(io_driver, authority, transports):
    port = free_port()
    with socket_io(port), serving(port, authority=authority, io_driver=io_driver) as gateway:
        result = talk(gateway, authority, transports)
        assert result.returncode == 0
        assert json.loads(result.stdout)["transport"] == transports.split(",")[-1]
        metrics = gateway.at_rest()
        opened = metrics.value("handshakes_total", port="a", result="accepted")
        assert opened == (0 if transports == "polling" else 4)
        polled = metrics.value("http_requests_total", port="a", route="app", **{"class": "2xx"})
        assert (polled > 0) == (transports != "websocket")
        assert metrics.value("http_requests_total", port="a", **{"class": "5xx"}) == 0


@pytest.mark.parametrize("balance", ["cookie:session", "address"])
def test_who_polls_stays_with_one_of_two_servers(io_driver, balance):
    ports = [free_port(), free_port()]
    keys = f'balance = "{balance}"'
    with (
        socket_io(ports[0], "one"),
        socket_io(ports[1], "two"),
        serving(*ports, keys=keys, io_driver=io_driver) as gateway,
    ):
        assert talk(gateway, None, "polling").returncode == 0
        # The upgrade of a session goes where the session is, too.
        assert talk(gateway, None, "polling,websocket").returncode == 0


def test_who_polls_by_turns_is_lost_which_the_test_above_would_show(io_driver):
    ports = [free_port(), free_port()]
    with socket_io(ports[0]), socket_io(ports[1]), serving(*ports, io_driver=io_driver) as gateway:
        assert talk(gateway, None, "polling").returncode == 1


@pytest.mark.parametrize("transports", ["polling", "websocket"])
@pytest.mark.parametrize("who", ["server", "gateway"])
def test_socket_io_comes_back(io_driver, transports, who):
    port, admin = free_port(), free_port()
    ports = {"a": free_port()}
    config = CONFIG.format(tls="", upstreams=[f"http://127.0.0.1:{port}"], keys="")
    config = config.replace("number = 0", f"number = {ports['a']}")
    command = ["node", HERE / "clients/socket_io.cjs", f"http://localhost:{ports['a']}", transports, "again"]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(contextlib.ExitStack())
        server.enter_context(socket_io(port))
        gateway = stack.enter_context(contextlib.ExitStack())
        gateway.enter_context(Gateway(config, io_driver=io_driver, admin=admin))
        client = stack.enter_context(program(command, "connected"))
        if who == "server":
            server.close()
            assert client.stdout.readline() == "cut off\n"
            server.enter_context(socket_io(port))
        else:
            gateway.close()
            assert client.stdout.readline() == "cut off\n"
            gateway.enter_context(Gateway(config, io_driver=io_driver, admin=admin))
        assert client.stdout.readline() == "connected again\n"
        assert client.wait(PATIENCE_S) == 0


VITE = {
    "index.html": '<!doctype html><title>site</title><link rel="icon" href="data:,"><p id="words"></p>'
    '<script type="module" src="/main.js"></script>',
    "main.js": """import './style.css';
import { words } from './words.js';
const show = (text) => (document.querySelector('#words').textContent = text);
show(words);
if (import.meta.hot) import.meta.hot.accept('./words.js', (changed) => show(changed.words));
""",
    "words.js": "export const words = 'before';\n",
    "style.css": "p { font: 4rem sans-serif; color: teal; }\n",
}


def test_a_site_of_vites_reloads_while_it_is_looked_at(io_driver, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    for name, content in VITE.items():
        (site / name).write_text(content)
    authority = Authority(tmp_path)
    port = free_port()
    vite = Path(os.environ["NODE_PATH"]) / "vite/bin/vite.js"
    command = ["node", vite, "--host", "127.0.0.1", "--port", str(port), "--strictPort", "--clearScreen", "false"]
    with (
        # In CI it takes the pipe for a terminal, and puts colours between the words.
        program(command, "Local:", cwd=site, env=os.environ | {"NO_COLOR": "1"}),
        serving(port, authority=authority, io_driver=io_driver) as gateway,
    ):
        url = f"https://localhost:{gateway.ports['a']}/"
        screenshot = tmp_path / "site.png"
        result = subprocess.run(
            ["node", HERE / "clients/vite.cjs", url, site / "words.js", screenshot],
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"RINGWAY_TRUSTED_KEY": authority.key_hash("edge")},
        )
        print(result.stdout, result.stderr, screenshot)
        assert result.returncode == 0
        assert screenshot.stat().st_size > 1000
        wait_until(lambda: gateway.metrics().value("connections_active") == 0, "the browser is gone")
        metrics = gateway.at_rest()
        assert metrics.value("handshakes_total", port="a", result="accepted") >= 1
        assert metrics.value("panics_total") == 0
