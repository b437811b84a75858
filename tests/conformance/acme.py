"""deploy/acme as it stands: challenges are answered both ways, and a renewed certificate is served without a restart.

Most of the authority's part, the fetch of HTTP-01 (RFC 8555 section 8.3), and of certbot's, the files it writes and the
links it switches, is played here; in the end the real certbot gets certificates from an authority of acme2certifier's.
"""

import contextlib
import http.client
import http.server
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from authority import Authority
from harness import PATIENCE_S, Gateway, free_port, wait_until

HERE = Path(__file__).parent
CERTBOT = Path(os.environ["RINGWAY_CERTBOT"])
EXAMPLE = Path(__file__).parents[2] / "deploy/acme/ringway.toml"
NAME = "www.example.com"
TOKEN = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"
KEY_AUTHORIZATION = f"{TOKEN}.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
CHALLENGES = "/.well-known/acme-challenge"


def replaced(text, old, new):
    """The text with something replaced that has to be there."""
    assert old in text, f"{old} is not in the example"
    return text.replace(old, new)


class Site:
    """certbot's folders, filled as certbot does."""

    def __init__(self, folder):
        self.folder = folder
        self.authority = Authority(folder)
        self.challenges = folder / "webroot" / CHALLENGES.lstrip("/")
        self.challenges.mkdir(parents=True)
        self.archive, self.live = folder / "letsencrypt/archive" / NAME, folder / "letsencrypt/live" / NAME
        self.archive.mkdir(parents=True)
        self.live.mkdir(parents=True)

    def renew(self, number):
        """Writes the certificate of this number, has the links in `live` point to it, and returns it."""
        self.authority.sign("signed", NAME)
        for kind, signed in (("fullchain", "signed.pem"), ("privkey", "signed.key")):
            file = self.archive / f"{kind}{number}.pem"
            file.write_bytes((self.folder / signed).read_bytes())
            file.chmod(0o600)
        for kind in ("fullchain", "privkey"):
            # As certbot does: the link is taken away, and made anew.
            link = self.live / f"{kind}.pem"
            link.unlink(missing_ok=True)
            link.symlink_to(f"../../archive/{NAME}/{kind}{number}.pem")
        pem = (self.live / "fullchain.pem").read_text()
        return ssl.PEM_cert_to_DER_cert(pem[: pem.index("-----END")] + "-----END CERTIFICATE-----\n")

    def config(self, *, upstream_port=None):
        """The example, at ports and in folders of the test's own; the other way where a port is given to pass on to."""
        text = EXAMPLE.read_text()
        if upstream_port is not None:
            route, rest = text.split("# The other way:", 1)
            route = route[: route.rindex("[[route]]")]
            way, rest = rest.split("\n\n", 1)
            way = way[way.index("# [[route]]") :]
            text = route + re.sub(r"^# ", "", way, flags=re.MULTILINE) + "\n\n" + rest
            text = replaced(text, "127.0.0.1:8402", f"127.0.0.1:{upstream_port}")
        else:
            text = replaced(text, f"/var/www/acme{CHALLENGES}", str(self.challenges))
        text = replaced(text, "/etc/letsencrypt", str(self.folder / "letsencrypt"))
        for number in (80, 443):
            text = replaced(text, f"\nnumber = {number}\n", '\nnumber = 0\naddress = "127.0.0.1"\n')
        return text


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


@pytest.fixture(params=["io_uring", "epoll"])
def driver(request):
    return request.param


def fetch(gateway, path, *, method="GET", host=NAME):
    """Status, Location and content of the answer on port 80."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.ports["plain"], timeout=PATIENCE_S)
    try:
        connection.request(method, path, headers={"Host": host})
        response = connection.getresponse()
        return response.status, response.headers["Location"], response.read().decode()
    finally:
        connection.close()


def presented(gateway, site):
    """The certificate that port 443 shows a client which believes the authority."""
    raw = socket.create_connection(("127.0.0.1", gateway.ports["secure"]), timeout=PATIENCE_S)
    with site.authority.context().wrap_socket(raw, server_hostname=NAME) as client:
        return client.getpeercert(binary_form=True)


def check_redirects(gateway):
    """Everything that is no challenge goes to https, whatever it asks for."""
    for host in (NAME, "other.example", f"{NAME}:80", f"{NAME}:8080"):
        for path in ("/", "/some/page?a=b", "/.well-known/other", "/.well-known/acme-challengex"):
            status, location, content = fetch(gateway, path, host=host)
            name = host.split(":")[0]
            assert (status, location, content) == (308, f"https://{name}{path}", "")


@contextlib.contextmanager
def standalone():
    """A client of ACME that answers challenges itself, as certbot --standalone does; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            is_there = self.path == f"{CHALLENGES}/{TOKEN}"
            content = KEY_AUTHORIZATION.encode() if is_there else b""
            self.send_response(200 if is_there else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def check_challenges(gateway):
    """The token that is there is answered by every name, and no other one."""
    for host in (NAME, "example.com", "other.example", "127.0.0.1"):
        assert fetch(gateway, f"{CHALLENGES}/{TOKEN}", host=host) == (200, None, KEY_AUTHORIZATION), host
    assert fetch(gateway, f"{CHALLENGES}/{TOKEN}", method="HEAD") == (200, None, "")
    assert fetch(gateway, f"{CHALLENGES}/{TOKEN[::-1]}")[0] == 404
    for path in (f"{CHALLENGES}/../../x", f"{CHALLENGES}/..%2f..%2fx", f"{CHALLENGES}//{TOKEN}"):
        assert fetch(gateway, path)[0] == 404, path


def test_a_challenge_in_the_webroot_is_answered_while_it_is_there(site, driver):
    site.renew(1)
    with Gateway(site.config(), io_driver=driver) as gateway:
        assert fetch(gateway, f"{CHALLENGES}/{TOKEN}")[0] == 404
        file = site.challenges / TOKEN
        file.write_text(KEY_AUTHORIZATION)
        check_challenges(gateway)
        check_redirects(gateway)
        file.unlink()
        assert fetch(gateway, f"{CHALLENGES}/{TOKEN}")[0] == 404


def test_a_challenge_is_passed_to_a_client_that_answers_itself(site, driver):
    site.renew(1)
    with standalone() as port, Gateway(site.config(upstream_port=port), io_driver=driver) as gateway:
        check_challenges(gateway)
        check_redirects(gateway)


def test_while_no_client_listens_a_challenge_is_a_502_and_the_rest_is_served(site):
    site.renew(1)
    with standalone() as port:
        config = site.config(upstream_port=port)
    with Gateway(config) as gateway:
        assert fetch(gateway, f"{CHALLENGES}/{TOKEN}")[0] == 502
        check_redirects(gateway)


def test_a_renewed_certificate_is_served_without_a_restart(site, driver):
    first = site.renew(1)
    with Gateway(site.config(), io_driver=driver) as gateway:
        assert presented(gateway, site) == first
        process = gateway.process.pid
        for number in (2, 3):
            renewed = site.renew(number)
            assert renewed != first
            wait_until(lambda: presented(gateway, site) == renewed, "the new certificate is served")  # noqa: B023
        assert gateway.process.pid == process
        os.kill(process, 0)
        # Both were loaded; a look between the two links may have found them not to fit.
        wait_until(
            lambda: gateway.metrics().value("certificate_reloads_total", result="loaded") == 2, "both were counted"
        )


AUTHORITY_CONFIG = """
[DEFAULT]
debug: False
[CAhandler]
handler_module: acme2certifier.cahandlers.openssl_ca_handler
issuing_ca_key: {folder}/ca.key
issuing_ca_cert: {folder}/ca.pem
issuing_ca_crl: {folder}/crl.pem
ca_cert_chain_list: []
cert_save_path: {folder}/issued
[DBhandler]
handler: wsgi
dbfile: {folder}/acme.db
[Nonce]
[Certificate]
[Challenge]
[Order]
[Directory]
"""


class Certbot:
    """The real certbot, and an authority that it asks, which fetches challenges from the gateway."""

    def __init__(self, site):
        self.site, self.folder = site, site.folder / "authority"
        self.folder.mkdir()
        (self.folder / "issued").mkdir()
        (self.folder / "acme_srv.cfg").write_text(AUTHORITY_CONFIG.format(folder=self.folder))
        shutil.copy(site.authority.ca, self.folder / "ca.pem")
        key_pem = site.authority.ca_key()
        (self.folder / "ca.key").write_bytes(key_pem)
        now = datetime.now(UTC)
        revoked = x509.CertificateRevocationListBuilder().last_update(now).next_update(now + timedelta(days=1))
        subject = x509.load_pem_x509_certificate(site.authority.ca.read_bytes()).subject
        revoked = revoked.issuer_name(subject).sign(load_pem_private_key(key_pem, None), SHA256())
        (self.folder / "crl.pem").write_bytes(revoked.public_bytes(Encoding.PEM))

    @contextlib.contextmanager
    def _authority(self, gateway):
        port = free_port()
        environment = {**os.environ, "ACME_SRV_CONFIGFILE": str(self.folder / "acme_srv.cfg")}
        command = [CERTBOT / "python", HERE / "acme_server.py", str(port), str(gateway.ports["plain"])]
        with (self.folder / "log").open("ab") as log:
            server = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command], env=environment, stdout=log, stderr=log
            )
        try:

            def is_up():
                assert server.poll() is None, (self.folder / "log").read_text()
                with contextlib.suppress(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    return True
                return False

            wait_until(is_up, "the authority listens")
            yield port
        finally:
            server.kill()
            server.wait()

    def get(self, gateway, *way):
        """Has certbot get a certificate, in this way."""
        with self._authority(gateway) as port:
            command = [CERTBOT / "certbot", "certonly", *way, "--domain", NAME, "--force-renewal"]
            command += [
                "--server",
                f"http://127.0.0.1:{port}/directory",
                "--config-dir",
                self.site.folder / "letsencrypt",
            ]
            command += ["--work-dir", self.folder / "work", "--logs-dir", self.folder / "logs"]
            command += ["--non-interactive", "--agree-tos", "--email", "test@example.com"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            log = (self.folder / "log").read_text()
            assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{log}"


def port_80_alone(config):
    """The example as it is before there is a certificate."""
    port, rest = config.split("[[port]]\nnumber = 0", 2)[1:]
    routes = rest[rest.index("[[route]]") : rest.index('[[route]]\nname = "echo"')]
    return f"[[port]]\nnumber = 0{port}{routes}"


@pytest.mark.parametrize("way", ["webroot", "standalone"])
def test_certbot_gets_a_certificate_and_renews_it(site, way):
    shutil.rmtree(site.folder / "letsencrypt")
    certbot = Certbot(site)
    if way == "webroot":
        config = site.config()
        arguments = ["--webroot", "--webroot-path", site.folder / "webroot"]
    else:
        port = free_port()
        config = site.config(upstream_port=port)
        arguments = ["--standalone", "--http-01-address", "127.0.0.1", "--http-01-port", str(port)]
    with Gateway(port_80_alone(config)) as gateway:
        certbot.get(gateway, *arguments)
    assert site.challenges.is_dir(), "the folder that was made beforehand stays"
    with Gateway(config) as gateway:
        first = presented(gateway, site)
        certbot.get(gateway, *arguments)
        wait_until(lambda: presented(gateway, site) != first, "the renewed certificate is served")
        assert (site.live / "fullchain.pem").resolve().name == "fullchain2.pem"
