"""TLS as clients see it: what they are offered, what they are refused, and what becomes of those that break it."""

import contextlib
import re
import socket
import ssl
import subprocess
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from authority import Authority
from client import upgrade
from harness import Gateway, wait_until
from tls_client import (
    TlsClient,
)

HANDSHAKE_TIMEOUT_S = 2

CONFIG = f"""
[gateway]
shards = {{shards}}
[limits]
handshake_timeout_ms = {HANDSHAKE_TIMEOUT_S * 1000}
close_timeout_ms = 1000
[[port]]
number = 0
name = "secure"
address = "127.0.0.1"
tls = {{{{ certificates = [{{certificates}}] }}}}
[[port]]
number = 0
name = "newest"
address = "127.0.0.1"
tls = {{{{ certificates = [{{certificates}}], versions = ["1.3"] }}}}
[[port]]
number = 0
name = "plain"
address = "127.0.0.1"
[[route]]
path = "/echo"
service = "echo"
[[route]]
path = "/"
service = "page"
"""

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
VERSIONS = {"tls12": V12, "tls13": V13}

# What all that go wrong together may leave in memory: what the allocator keeps.
LEFT_SIZE_MAX = 4 << 20

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Secure(Gateway):
    """A gateway with an authority's certificates for several names, and ports of TLS with all of them."""

    def __init__(self, folder, *, shards=1, **arguments):
        self.authority = Authority(folder)
        yesterday = datetime.now(UTC) - timedelta(days=1)
        certificates = [
            self.authority.sign("edge"),
            self.authority.sign("chat", "chat.example", "*.apps.example", is_rsa=True),
            self.authority.sign("old", "old.example", not_after=yesterday),
        ]
        super().__init__(CONFIG.format(shards=shards, certificates=", ".join(certificates)), **arguments)

    def client(self, *, version=None, port="secure", **arguments):
        """A client that trusts the authority."""
        return TlsClient(self.ports[port], self.authority.context(version=version), **arguments)

    def openssl(self, *arguments, name="localhost", port="secure", trusts=True):
        """Runs openssl's client, which asks for the page and goes when the gateway does: its words, and if it failed.

        It believes the authority alone, and nobody where it does not trust that.
        """
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{self.ports[port]}", "-ign_eof"]
        command += ["-CAfile", self.authority.ca] if trusts else ["-no-CAfile"]
        command += ["-no-CApath", "-no-CAstore", "-verify_return_error", "-verify_hostname", name]
        command += [*arguments] if "-noservername" in arguments else ["-servername", name, *arguments]
        run = subprocess.run(command, input=REQUEST, capture_output=True, timeout=60)
        return (run.stdout + run.stderr).decode(errors="replace"), run.returncode != 0

    def served(self, *arguments, **how):
        """Has openssl's client be served the page, and returns what it wrote."""
        said, _ = self.openssl(*arguments, **how)
        assert "HTTP/1.1 200 OK" in said, said
        return said


@pytest.fixture
def gateway(io_driver, tmp_path):
    with Secure(tmp_path, io_driver=io_driver) as running:
        yield running


def handshakes(metrics):
    """The kinds of handshakes that succeeded."""
    return metrics.by("kind", "tls_handshakes_total")


def failures(metrics, port="secure"):
    """Why TLS failed on a port."""
    return metrics.by("kind", "tls_failures_total", port=port)


def ends(metrics, port="secure"):
    """How the connections of a port ended."""
    return metrics.by("end", "connections_ended_total", port=port)


def at_rest(gateway):
    """The metrics when nobody is there: each failure is an end, and each such end has its reason."""
    metrics = gateway.at_rest()
    for port in metrics.by("port", "port_up"):
        assert sum(failures(metrics, port).values()) == ends(metrics, port).get("tls_failed", 0)
    assert metrics.value("handshakes_in_progress") == 0
    assert metrics.value("panics_total") == 0, gateway.log()
    return metrics


SUITES = {
    "-ciphersuites": ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"],
    "-cipher": ["AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305"],
}


def test_both_versions_are_spoken_with_every_cipher_that_is_any_good(gateway):
    for cipher in SUITES["-ciphersuites"]:
        for port in ("secure", "newest"):
            said = gateway.served("-tls1_3", "-ciphersuites", cipher, port=port)
            assert f"New, TLSv1.3, Cipher is {cipher}" in said, said
    for name, key in (("localhost", "ECDSA"), ("chat.example", "RSA")):
        for cipher in SUITES["-cipher"]:
            said = gateway.served("-tls1_2", "-cipher", f"ECDHE-{key}-{cipher}", name=name)
            assert f"New, TLSv1.2, Cipher is ECDHE-{key}-{cipher}" in said, said
            assert "Secure Renegotiation IS supported" in said, said
    for group in ("X25519", "P-256", "P-384"):
        gateway.served("-groups", group)
    metrics = at_rest(gateway)
    assert handshakes(metrics) == {"tls13_full": 6 + 3, "tls12_full": 6}
    assert metrics.value("tls_failures_total") == 0


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_the_name_that_is_asked_for_picks_the_certificate(gateway, version):
    names = {
        "localhost": "edge",
        "chat.example": "chat",
        "CHAT.Example": "chat",
        "one.apps.example": "chat",
    }
    for name, file in names.items():
        said = gateway.served(version, name=name)
        assert presented(said) == leaf(gateway, file), name
        assert "Verify return code: 0 (ok)" in said, said
    # Who asks for no name gets the first.
    assert presented(gateway.served(version, "-noservername")) == leaf(gateway, "edge")
    # So does who asks for one that none is for, and a star stands for exactly one label. Nobody verifies it here.
    for name in ("unknown.example", "two.one.apps.example", "apps.example"):
        said = gateway.served(version, "-servername", name)
        assert presented(said) == leaf(gateway, "edge"), name
    metrics = at_rest(gateway)
    assert ends(metrics) == {"http_done": 8}


def presented(said):
    """The certificate that openssl's client was shown."""
    return ssl.PEM_cert_to_DER_cert(re.search(r"-----BEGIN.*?-----END CERTIFICATE-----", said, re.DOTALL)[0])


def leaf(gateway, file):
    """The certificate itself in a file of the authority's, without those that follow."""
    pem = (gateway.authority.folder / f"{file}.pem").read_text()
    return ssl.PEM_cert_to_DER_cert(pem[: pem.index("-----END")] + "-----END CERTIFICATE-----\n")


def test_the_protocol_within_is_http_1_1(gateway):
    for offer in ("http/1.1", "h2,http/1.1"):
        assert "ALPN protocol: http/1.1" in gateway.served("-alpn", offer)
    assert "No ALPN negotiated" in gateway.served()
    metrics = at_rest(gateway)
    assert ends(metrics) == {"http_done": 3}


# What openssl's client is started with, what it says of it, and what is counted. It takes some persuasion to speak old
# versions; what these lack is seen before their number.
OLD = ["-cipher", "ALL@SECLEVEL=0"]
REFUSED = {
    "TLS 1.0": (["-tls1", *OLD], {}, "handshake failure", "no_shared_version_or_cipher"),
    "TLS 1.1": (["-tls1_1", *OLD], {}, "handshake failure", "no_shared_version_or_cipher"),
    "1.2 where 1.3 alone is": (
        ["-tls1_2"],
        {"port": "newest"},
        "alert protocol version",
        "no_shared_version_or_cipher",
    ),
    "no forward secrecy": (
        ["-tls1_2", "-cipher", "AES128-SHA"],
        {},
        "handshake failure",
        "no_shared_version_or_cipher",
    ),
    "CBC": (["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA"], {}, "handshake failure", "no_shared_version_or_cipher"),
    "no group of ours": (["-groups", "P-521"], {}, "handshake failure", "no_shared_version_or_cipher"),
    "HTTP/2 alone": (["-alpn", "h2"], {}, "no application protocol", "no_shared_protocol"),
    "wrong name, 1.2": (["-tls1_2"], {"name": "wrong.example"}, "hostname mismatch", "certificate_refused"),
    "wrong name, 1.3": (["-tls1_3"], {"name": "wrong.example"}, "hostname mismatch", "certificate_refused"),
    "expired, 1.2": (["-tls1_2"], {"name": "old.example"}, "certificate has expired", "certificate_refused"),
    "expired, 1.3": (["-tls1_3"], {"name": "old.example"}, "certificate has expired", "certificate_refused"),
    "unknown CA, 1.2": (["-tls1_2"], {"trusts": False}, "unable to get local issuer", "certificate_refused"),
    "unknown CA, 1.3": (["-tls1_3"], {"trusts": False}, "unable to get local issuer", "certificate_refused"),
    "a plain port": ([], {"port": "plain"}, "wrong version number", "tls_on_plain_port"),
}


def test_who_cannot_be_served_hears_why_and_is_counted_as_that(gateway):
    expected = {port: Counter() for port in gateway.ports}
    for what, (arguments, how, words, kind) in REFUSED.items():
        said, has_failed = gateway.openssl(*arguments, **how)
        assert has_failed and words in said.lower(), f"{what}: {said}"
        expected[how.get("port", "secure")][kind] += 1
        metrics = at_rest(gateway)
        for port, kinds in expected.items():
            assert failures(metrics, port) == kinds, what
            assert ends(metrics, port) == ({"tls_failed": kinds.total()} if kinds else {}), what


@pytest.mark.parametrize(
    "request_head", [upgrade(), REQUEST, b"HEAD / HTTP/1.0\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
)
def test_plain_http_on_a_port_of_tls_is_told_so(gateway, request_head):
    with socket.create_connection(("127.0.0.1", gateway.ports["secure"])) as client:
        client.sendall(request_head)
        answer = client.makefile("rb").read()
    head, body = answer.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 "), answer
    assert (b"TLS" in body) != request_head.startswith(b"HEAD"), answer
    metrics = at_rest(gateway)
    assert failures(metrics) == {"plain_http": 1}


@pytest.mark.parametrize("version", ["tls12", "tls13"])
def test_who_comes_back_is_known_again_on_every_shard(io_driver, tmp_path, version):
    with Secure(tmp_path, shards=2, io_driver=io_driver) as gateway:
        # By openssl's client, which keeps its session in a file.
        session, flag = str(tmp_path / "session"), f"-tls1_{version[-1]}"
        assert "New, TLSv1." in gateway.served(flag, "-sess_out", session)
        assert "Reused, TLSv1." in gateway.served(flag, "-sess_in", session)
        # By as many as it takes to come to both shards, with one ticket.
        context = gateway.authority.context(version=VERSIONS[version])
        port = gateway.ports["secure"]
        with contextlib.ExitStack() as clients:
            first = clients.enter_context(TlsClient(port, context)).accepted()
            first.echo()
            open_clients = [first]

            def come_back():
                client = TlsClient(port, context, session=first.tls.session)
                open_clients.append(clients.enter_context(client).accepted())
                assert client.tls.session_reused
                client.echo()
                # A connection of the first one's shard is no news: one more on each.
                shards = gateway.metrics().by("shard", "shard_connections_active")
                return len(shards) == 2 and min(shards.values()) >= 2

            wait_until(come_back, "both shards have seen the ticket")
            for client in open_clients:
                client.closes()
        metrics = at_rest(gateway)
        assert handshakes(metrics) == {f"{version}_full": 2, f"{version}_resumed": len(open_clients)}
        assert metrics.value("tls_truncated_total") == 0


def test_a_ticket_that_is_not_ours_is_as_good_as_none(gateway, tmp_path):
    """Another process has other keys: the handshake is a full one, and nothing has failed."""
    folder = tmp_path / "other"
    folder.mkdir()
    with Secure(folder) as other:
        for version in VERSIONS.values():
            context = other.authority.context(version=version)
            context.load_verify_locations(gateway.authority.ca)
            with TlsClient(other.ports["secure"], context) as client:
                client.accepted().echo()
                session = client.tls.session
                client.closes()
            with TlsClient(gateway.ports["secure"], context, session=session) as client:
                client.accepted().echo()
                assert not client.tls.session_reused
                client.closes()
    metrics = at_rest(gateway)
    assert handshakes(metrics) == {"tls12_full": 1, "tls13_full": 1}
    assert ends(metrics) == {"closed": 2}


def test_renegotiation_is_refused(gateway):
    """By the alert that is there for it; the client takes that for the end."""
    said = interactive(gateway, b"R\n", "-tls1_2")
    assert "RENEGOTIATING" in said and "no renegotiation" in said, said
    metrics = at_rest(gateway)
    assert handshakes(metrics) == {"tls12_full": 1}
    assert sum(ends(metrics).values()) == 1
    print(f"ends: {ends(metrics)}, failures: {failures(metrics)}")


@pytest.mark.parametrize("command", [b"K\n", b"k\n"], ids=["and asks for ours", "alone"])
def test_a_client_may_renew_its_keys(gateway, command):
    said = interactive(gateway, command, "-tls1_3", then=REQUEST)
    assert "KEYUPDATE" in said and "HTTP/1.1 200 OK" in said, said
    assert ends(at_rest(gateway)) == {"http_done": 1}


def interactive(gateway, command, version, *, then=b""):
    """Gives openssl's client a command, once the handshake is done, and something to send when it has obeyed."""
    arguments = ["openssl", "s_client", "-connect", f"127.0.0.1:{gateway.ports['secure']}", version]
    arguments += ["-servername", "localhost", "-CAfile", gateway.authority.ca]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        wait_until(lambda: gateway.metrics().value("tls_handshakes_total") == 1, "the handshake is done")
        process.stdin.write(command)
        process.stdin.flush()
        said = b""
        # One command is looked for at the beginning of what is read at once.
        while (line := process.stdout.readline()) not in (b"RENEGOTIATING\n", b"KEYUPDATE\n"):
            assert line, said
            said += line
        said += line
        if then:
            process.stdin.write(then)
            process.stdin.flush()
            # It leaves when its input has ended, so that comes after the answer.
            while line := process.stdout.readline():
                said += line
        said += process.stdout.read()
        process.stdin.close()
    return said.decode(errors="replace")
