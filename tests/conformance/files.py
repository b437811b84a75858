"""Files and redirects as clients see them: over kept connections, in parts, at every pace; and what is not served."""

import contextlib
import hashlib
import http.client
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness import PATIENCE_S, Gateway, wait_until

CONFIG = """
[gateway]
shards = 2
[limits]
write_timeout_ms = 10000
[[port]]
number = 0
name = "a"
address = "127.0.0.1"
[[route]]
path = "/*"
service = "files"
folder = "{folder}"
precompressed = ["gzip"]
[[route]]
path = "/app/*"
service = "files"
folder = "{folder}"
fallback = "/index.html"
[[route]]
path = "/old/*"
service = "redirect"
redirect = {{ scheme = "https", path = "/new/*" }}
[[route]]
path = "/moved"
service = "redirect"
redirect = {{ host = "www.example.com", status = 301 }}
"""

LARGE_SIZE = 1 << 30
# What a download may add to the memory of the process, however large: buffers of the response, and what the allocator
# keeps.
MEMORY_MAX = 8 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("www")
    (folder / "index.html").write_text("<p>root")
    (folder / "sub").mkdir()
    (folder / "sub/index.html").write_text("<p>sub")
    (folder / "app.js").write_text("let a;")
    (folder / "app.js.gz").write_bytes(b"not looked at")
    (folder / "medium").write_bytes(os.urandom(3_000_000))
    with (folder / "large").open("wb") as large:
        # A hole is read as zeroes, and takes no room.
        large.truncate(LARGE_SIZE)
        for offset in range(0, LARGE_SIZE, 1 << 24):
            large.seek(offset)
            large.write(offset.to_bytes(8))
    yield folder
    (folder / "large").unlink()


@pytest.fixture(scope="module", params=["io_uring", "epoll"])
def gateway(request, folder):
    with Gateway(CONFIG.format(folder=folder), io_driver=request.param) as gateway:
        yield gateway


@contextlib.contextmanager
def connected(gateway):
    connection = http.client.HTTPConnection("127.0.0.1", gateway.ports["a"], timeout=PATIENCE_S)
    try:
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def leaving_nothing(gateway):
    """Checks that what happens inside leaves no connection and no descriptor of a file, and that nothing panicked."""
    before = gateway.descriptors()
    yield
    gateway.at_rest()
    wait_until(lambda: gateway.descriptors() <= before, "descriptors are back")
    assert gateway.metrics().value("panics_total") == 0


def ask(connection, method, path, **fields):
    """The response to one request on a connection, and its whole content."""
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in fields.items()})
    response = connection.getresponse()
    return response, response.read()


def raw(gateway, request):
    """All that comes in answer to these bytes, until the gateway ends the connection."""
    with socket.create_connection(("127.0.0.1", gateway.ports["a"]), timeout=PATIENCE_S) as client:
        client.sendall(request)
        answer = b""
        while part := client.recv(65_536):
            answer += part
        return answer


def test_one_connection_carries_every_kind_of_answer(gateway):
    with leaving_nothing(gateway), connected(gateway) as connection:
        response, content = ask(connection, "GET", "/")
        assert (response.status, content) == (200, b"<p>root")
        assert response.headers["Content-Type"] == "text/html; charset=utf-8"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        etag, modified = response.headers["ETag"], response.headers["Last-Modified"]
        response, content = ask(connection, "HEAD", "/")
        assert (response.status, response.headers["Content-Length"], content) == (200, "7", b"")
        assert response.headers["ETag"] == etag
        for fields in ({"If_None_Match": etag}, {"If_Modified_Since": modified}):
            response, content = ask(connection, "GET", "/", **fields)
            assert (response.status, content) == (304, b"")
        assert ask(connection, "GET", "/", If_Match='"x"')[0].status == 412
        response, content = ask(connection, "GET", "/", Range="bytes=3-5")
        assert (response.status, content) == (206, b"roo")
        assert response.headers["Content-Range"] == "bytes 3-5/7"
        assert ask(connection, "GET", "/", Range="bytes=7-")[0].headers["Content-Range"] == "bytes */7"
        response, content = ask(connection, "GET", "/app.js", Accept_Encoding="gzip")
        assert (response.headers["Content-Encoding"], content) == ("gzip", b"not looked at")
        response, content = ask(connection, "GET", "/sub?a=b")
        assert (response.status, response.headers["Location"]) == (308, "./sub/?a=b")
        assert ask(connection, "GET", "/sub/")[1] == b"<p>sub"
        response, content = ask(connection, "POST", "/app.js")
        assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")
        assert ask(connection, "GET", "/app/some/page", Accept="text/html")[1] == b"<p>root"
        assert ask(connection, "GET", "/app/some/script.js", Accept="*/*")[0].status == 404
        port = connection.sock.getsockname()[1]
        assert ask(connection, "GET", "/missing")[0].status == 404
        assert connection.sock.getsockname()[1] == port, "the connection was kept through all of them"


def test_a_redirect_answers_every_method_and_stays_with_the_host_that_was_asked(gateway):
    with leaving_nothing(gateway), connected(gateway) as connection:
        for method in ("GET", "HEAD", "POST", "DELETE"):
            response, content = ask(connection, method, "/old/a%20b?c=d")
            assert (response.status, content) == (308, b""), method
            assert response.headers["Location"] == "https://127.0.0.1/new/a%20b?c=d", method
        response, _ = ask(connection, "GET", "/old/x", Host="name.example:8080")
        assert response.headers["Location"] == "https://name.example/new/x"
        response, _ = ask(connection, "GET", "/moved")
        assert response.status == 301
        assert response.headers["Location"] == f"http://www.example.com:{gateway.ports['a']}/moved"
    assert raw(gateway, b"GET /old/x HTTP/1.0\r\n\r\n").split()[1] == b"400"
    for target in (b"//evil.example/old", b"/old//evil.example", b"/old/\\evil.example", b"/old/%0d%0aX:y"):
        answer = raw(gateway, b"GET %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % target)
        assert answer.split()[1] == b"404" and b"evil" not in answer.lower(), answer


def test_an_opening_handshake_finds_no_route(gateway):
    request = (
        b"GET %s HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    for path in (b"/", b"/old/x"):
        assert raw(gateway, request % path).startswith(b"HTTP/1.1 404 ")


def test_http_1_0_gets_the_whole_and_the_end_of_the_connection(gateway, folder):
    head, _, content = raw(gateway, b"GET /medium HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")
    assert head.split()[1] == b"200"
    assert b"content-length: 3000000" in head.lower()
    assert content == (folder / "medium").read_bytes()


def test_a_gibibyte_takes_no_memory(gateway):
    with leaving_nothing(gateway), connected(gateway) as connection:
        ask(connection, "GET", "/medium")
        before = gateway.resident_size()
        connection.request("GET", "/large")
        response = connection.getresponse()
        offset = most = 0
        while part := response.read(1 << 20):
            if offset % (1 << 24) == 0:
                assert part[:8] == offset.to_bytes(8)
                most = max(most, gateway.resident_size())
            offset += len(part)
        assert offset == LARGE_SIZE
        print(f"1 GiB: {(most - before) >> 10} KiB more at most")
        assert most - before < MEMORY_MAX


def test_clients_that_do_not_read_hold_little_and_go_on_where_they_stopped(gateway, folder):
    expected = hashlib.sha256((folder / "medium").read_bytes()).digest()
    count = 20
    with leaving_nothing(gateway), contextlib.ExitStack() as stack:
        before = gateway.resident_size()
        clients = []
        for _ in range(count):
            client = stack.enter_context(socket.socket())
            # So that little of the file is in the kernel's buffers.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(PATIENCE_S)
            client.connect(("127.0.0.1", gateway.ports["a"]))
            client.sendall(b"GET /medium HTTP/1.0\r\n\r\n")
            clients.append(client)
        for client in clients:
            # The response has begun.
            assert client.recv(1, socket.MSG_PEEK)
        # Others are served meanwhile.
        with connected(gateway) as connection:
            assert ask(connection, "GET", "/")[1] == b"<p>root"
        grown = gateway.resident_size() - before
        print(f"{count} clients that do not read: {grown // count >> 10} KiB each")
        assert grown < count * (1 << 20)
        for client in clients:
            answer = b""
            while part := client.recv(1 << 20):
                answer += part
            assert hashlib.sha256(answer.partition(b"\r\n\r\n")[2]).digest() == expected


def test_two_hundred_at_once_get_what_they_asked_for(gateway, folder):
    expected = hashlib.sha256((folder / "medium").read_bytes()).digest()
    together = threading.Barrier(200, timeout=PATIENCE_S)

    def download(_):
        with connected(gateway) as connection:
            together.wait()
            response, content = ask(connection, "GET", "/medium")
            assert response.status == 200
            return hashlib.sha256(content).digest()

    with leaving_nothing(gateway), ThreadPoolExecutor(200) as pool:
        assert set(pool.map(download, range(200))) == {expected}


def test_clients_that_leave_in_the_middle_leave_nothing(gateway):
    with leaving_nothing(gateway):
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", gateway.ports["a"]), timeout=PATIENCE_S) as client:
                client.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
                assert client.recv(65_536)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_file_that_is_cut_breaks_the_response_off(gateway, folder, version):
    file = Path(folder) / f"cut-{version}"
    with file.open("wb") as content:
        content.truncate(200 << 20)
    with socket.create_connection(("127.0.0.1", gateway.ports["a"]), timeout=PATIENCE_S) as client:
        client.sendall(f"GET /{file.name} HTTP/{version}\r\nHost: a\r\n\r\n".encode())
        taken = len(client.recv(65_536))
        os.truncate(file, 0)
        is_reset = False
        try:
            while part := client.recv(1 << 20):
                taken += len(part)
        except ConnectionResetError:
            is_reset = True
    assert taken < 200 << 20
    assert is_reset or version == "1.1", "HTTP/1.0 could take an end for the end of the file"
    wait_until(lambda: "a file could not be read to its end" in gateway.log(), "the log tells")


def test_what_may_not_be_read_is_a_403_and_is_told(folder, tmp_path):
    (tmp_path / "closed").write_text("x")
    (tmp_path / "closed").chmod(0)
    tmp_path.chmod(0o755)
    config = CONFIG.format(folder=tmp_path)
    # Root may read everything, unless it lays the capabilities for that down.
    wrapper = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all", "--"]
    with Gateway(config, wrapper=wrapper if os.geteuid() == 0 else ()) as gateway, connected(gateway) as connection:
        assert ask(connection, "GET", "/closed")[0].status == 403
        assert "Permission denied" in gateway.log()


def test_a_folder_that_is_not_there_is_a_fault(tmp_path):
    gateway = Gateway(CONFIG.format(folder=tmp_path / "missing"))
    gateway.start()
    try:
        assert gateway.process.wait(PATIENCE_S) == 78
        assert "cannot be served from: entity not found" in gateway.log()
    finally:
        gateway.__exit__()
