"""Certificates by ACME, with the example of deploy/acme: the challenge, the way to https, the renewal.

The test is the ACME server, which fetches the challenge (RFC 8555 section 8.3), and the client that writes files as
certbot does: tokens into folders that it makes and removes, certificates into archive/, links to them in live/.
"""

import contextlib
import http.client
import http.server
import os
import shutil
import socket
import threading
from pathlib import Path

from authority import Authority
from harness import PATIENCE_S, Gateway, wait_until

EXAMPLE = Path(__file__).parents[2] / "deploy/acme/ringway.toml"
HOST = "example.com"
TOKEN = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"
AUTHORIZATION = f"{TOKEN}.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"


class Certbot:
    """What certbot leaves in its folders."""

    def __init__(self, folder, authority):
        self.authority = authority
        self.etc = folder / "letsencrypt"
        self.live = self.etc / "live" / HOST
        self.archive = self.etc / "archive" / HOST
        self.webroot = folder / "webroot"
        self.challenges = self.webroot / ".well-known/acme-challenge"
        self.live.mkdir(parents=True)
        self.archive.mkdir(parents=True)
        self.challenges.mkdir(parents=True)
        self.count = 0

    def renew(self):
        """Puts another certificate in place, link by link."""
        self.count += 1
        self.authority.sign(HOST, HOST)
        for name, made in [("fullchain", "pem"), ("privkey", "key")]:
            file = self.archive / f"{name}{self.count}.pem"
            file.write_bytes(self.authority.read(f"{HOST}.{made}"))
            file.chmod(0o600)
            link = self.live / f"{name}.pem"
            with contextlib.suppress(FileNotFoundError):
                link.unlink()
            link.symlink_to(os.path.relpath(file, self.live))

    def prove(self, token, authorization):
        """Writes a token where the authority will look for it."""
        self.challenges.mkdir(parents=True, exist_ok=True)
        (self.challenges / token).write_text(authorization)

    def clean_up(self):
        """Removes what it has made, the folder as well."""
        shutil.rmtree(self.challenges)


def configuration(certbot, passed_to=None):
    """The example, on free ports and in folders of the test's; its other way where challenges are passed to a port."""
    text = EXAMPLE.read_text()
    text = text[text.index("[[port]]") :]
    first, other = text.index("# What certbot --webroot"), text.index("# Or what answers")
    after = text.index('[[route]]\nname = "to-https"')
    places = [("/var/lib/ringway/acme", str(certbot.webroot))]
    if passed_to is not None:
        lines = [line.removeprefix("# ") for line in text[other:after].splitlines()[1:]]
        text = text[:first] + "\n".join(lines) + "\n" + text[after:]
        places = [("127.0.0.1:8402", f"127.0.0.1:{passed_to}")]
    for old, new in [
        ("number = 80\n", 'number = 0\nname = "http"\n'),
        ("number = 443\n", 'number = 0\nname = "https"\n'),
        ("ports = [80]", 'ports = ["http"]'),
        ("ports = [443]", 'ports = ["https"]'),
        ("/etc/letsencrypt", str(certbot.etc)),
        *places,
    ]:
        assert old in text, f"{old} is not in the example"
        text = text.replace(old, new)
    return text


def fetch(port, path, *, method="GET", host=HOST):
    """One request: status, fields, content."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, headers={"Host": host})
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()
    finally:
        connection.close()


def serial_number(port, authority):
    """That of the certificate which a client gets, which is one for its name by its authority."""
    context = authority.context()
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as plain,
        context.wrap_socket(plain, server_hostname=HOST) as tls,
    ):
        return tls.getpeercert()["serialNumber"]


def test_the_challenge_is_answered_and_all_else_is_sent_to_https(io_driver, tmp_path):
    certbot = Certbot(tmp_path, Authority(tmp_path))
    certbot.renew()
    challenge = f"/.well-known/acme-challenge/{TOKEN}"
    with Gateway(configuration(certbot), io_driver=io_driver) as gateway:
        port = gateway.ports["http"]
        assert fetch(port, challenge)[0] == 404
        certbot.prove(TOKEN, AUTHORIZATION)
        for host in [HOST, f"www.{HOST}", "192.0.2.1"]:
            status, _, content = fetch(port, challenge, host=host)
            assert (status, content) == (200, AUTHORIZATION), host
        status, fields, content = fetch(port, challenge, method="HEAD")
        assert (status, fields["Content-Length"], content) == (200, str(len(AUTHORIZATION)), "")
        for path in [f"{challenge}x", "/.well-known/acme-challenge/", "/.well-known/acme-challenge/.hidden"]:
            assert fetch(port, path)[0] == 404, path

        # certbot removes the folder that it has made, and makes another the next time.
        certbot.clean_up()
        assert fetch(port, challenge)[0] == 404
        certbot.prove("another", "content")
        assert fetch(port, "/.well-known/acme-challenge/another")[2] == "content"

        status, fields, _ = fetch(port, "/a/b?c=d")
        assert (status, fields["Location"]) == (308, f"https://{HOST}/a/b?c=d")
        metrics = gateway.at_rest()
        assert metrics.value("http_requests_total", route="acme", **{"class": "2xx"}) == 5


def test_the_challenge_is_passed_to_who_answers_it(io_driver, tmp_path):
    asked = []

    class Standalone(http.server.BaseHTTPRequestHandler):
        """What certbot --standalone is."""

        def do_GET(self):
            asked.append((self.path, self.headers["Host"]))
            found = self.path == f"/.well-known/acme-challenge/{TOKEN}"
            content = AUTHORIZATION.encode() if found else b"no"
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_arguments):
            pass

    certbot = Certbot(tmp_path, Authority(tmp_path))
    certbot.renew()
    challenge = f"/.well-known/acme-challenge/{TOKEN}"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Standalone) as standalone:
        threading.Thread(target=standalone.serve_forever, daemon=True).start()
        text = configuration(certbot, passed_to=standalone.server_address[1])
        with Gateway(text, io_driver=io_driver) as gateway:
            port = gateway.ports["http"]
            assert fetch(port, challenge)[::2] == (200, AUTHORIZATION)
            assert fetch(port, f"{challenge}x")[0] == 404
            assert asked == [(challenge, HOST), (f"{challenge}x", HOST)]
            assert fetch(port, "/")[0] == 308
        standalone.shutdown()
    # Nobody listens there between two renewals.
    with Gateway(text, io_driver=io_driver) as gateway:
        assert fetch(gateway.ports["http"], challenge)[0] == 502


def test_a_renewed_certificate_is_in_force_without_a_word(io_driver, tmp_path):
    authority = Authority(tmp_path)
    certbot = Certbot(tmp_path, authority)
    certbot.renew()
    with Gateway(configuration(certbot), io_driver=io_driver) as gateway:
        port = gateway.ports["https"]
        first = serial_number(port, authority)
        with (
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as plain,
            authority.context().wrap_socket(plain, server_hostname=HOST) as before,
        ):
            certbot.renew()
            wait_until(lambda: serial_number(port, authority) != first, "the renewed certificate is served")
            # Who was connected stays so.
            before.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
            assert before.recv(64).startswith(b"HTTP/1.1 200 ")
        assert gateway.metrics().value("certificate_reloads_total", result="loaded") == 1
