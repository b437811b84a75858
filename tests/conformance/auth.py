"""Who may use a route: tokens with every fault, keys that rotate, and services that are asked."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

from client import TEXT, Connection, frame, upgrade
from harness import BINARY, Gateway, wait_until

SECRET = "a secret of the tests that nobody may ever see in a log"


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Signer:
    """A key of one kind, what is written of it, and the tokens that it signs."""

    def __init__(self, algorithm):
        self.algorithm = algorithm
        make = {
            "HS256": lambda: None,
            "RS256": lambda: rsa.generate_private_key(65537, 2048),
            "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate,
        }
        self.key = make[algorithm]()

    def pem(self):
        """What the gateway is given: the public key, or the secret."""
        if self.key is None:
            return SECRET.encode()
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return self.key.public_key().public_bytes(serialization.Encoding.PEM, form)

    def private_pem(self):
        """The private key, which nobody is to be given."""
        form = serialization.PrivateFormat.PKCS8
        return self.key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())

    def jwk(self, kid):
        """The public key as an element of a set."""
        numbers = self.key.public_key().public_numbers() if self.algorithm != "EdDSA" else None
        if self.algorithm == "RS256":
            size = (numbers.n.bit_length() + 7) // 8
            return {"kty": "RSA", "kid": kid, "n": b64(numbers.n.to_bytes(size)), "e": b64(numbers.e.to_bytes(3))}
        if self.algorithm == "ES256":
            x, y = b64(numbers.x.to_bytes(32)), b64(numbers.y.to_bytes(32))
            return {"kty": "EC", "crv": "P-256", "kid": kid, "x": x, "y": y}
        raw = self.key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return {"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": b64(raw)}

    def sign(self, message):
        match self.algorithm:
            case "HS256":
                return hmac.digest(SECRET.encode(), message, "sha256")
            case "RS256":
                return self.key.sign(message, padding.PKCS1v15(), hashes.SHA256())
            case "ES256":
                r, s = utils.decode_dss_signature(self.key.sign(message, ec.ECDSA(hashes.SHA256())))
                return r.to_bytes(32) + s.to_bytes(32)
            case _:
                return self.key.sign(message)

    def token(self, claims=None, header=None, **more):
        """A token with these claims, which is good for a minute where they do not say otherwise."""
        claims = {"exp": int(time.time()) + 60, "sub": "alice"} | (claims or {}) | more
        claims = {name: value for name, value in claims.items() if value is not None}
        message = part({"alg": self.algorithm, "typ": "JWT"} | (header or {})) + "." + part(claims)
        return f"{message}.{b64(self.sign(message.encode()))}"


def part(value):
    return b64(json.dumps(value).encode())


class Server(ThreadingHTTPServer):
    """An HTTP server of the test's on the loopback interface, which answers as a function says, and records."""

    daemon_threads = True

    def __init__(self, answer, port=0):
        self.answer, self.requests = answer, []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                server.requests.append((self.command, self.path, list(self.headers.items())))
                given = server.answer(self)
                if given is None:
                    self.close_connection = True
                    return
                status, fields, body = given
                self.send_response(status)
                for name, value in [*fields, ("Content-Length", str(len(body)))]:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_HEAD = do_GET

            def log_message(self, *_arguments):
                pass

        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_exception):
        self.shutdown()
        self.server_close()


def fields_of(request):
    return {name.lower(): value for name, value in request[2]}


PORTS = """
[gateway]
shards = 1
[[port]]
number = 0
name = "a"
address = "127.0.0.1"
[[port]]
number = 0
name = "b"
address = "127.0.0.1"
"""


def route(path, auth, *, service="echo", keys=""):
    """A route with this `auth`."""
    return f'[[route]]\npath = "{path}"\nname = "{path.strip("/*")}"\nservice = "{service}"\n{keys}\n{auth}\n'


def jwt(**keys):
    """The table of a route that verifies tokens."""
    return "[route.auth.jwt]\n" + "\n".join(f"{key} = {value}" for key, value in keys.items())


async def opens(gateway, path="/echo", *, port="a", query="", token=None, **fields):
    """The status and the fields of the answer to an opening handshake."""
    if token is not None:
        fields["authorization"] = f"Bearer {token}"
    async with await Connection.open(gateway.ports[port]) as client:
        await client.send(upgrade(f"{path}{query}", **fields))
        response = await client.response()
        if response.status == 101:
            await client.echo(b"in")
            await client.close()
        return response.status, response.fields


def statuses(gateway, *cases):
    """What each opening handshake is answered with."""

    async def scenario():
        return [(await opens(gateway, **case))[0] for case in cases]

    return asyncio.run(scenario())


@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "ES256", "EdDSA"])
def test_each_fault_of_a_token_is_refused_and_counted(io_driver, algorithm, tmp_path):
    signer, other = Signer(algorithm), Signer("RS256" if algorithm == "RS256" else "ES256")
    key = tmp_path / "key"
    key.write_bytes(signer.pem())
    now = int(time.time())
    with Server(lambda _: (200, [], b"")) as upstream:
        keys = {"key": f'"file:{key}"', "algorithm": f'"{algorithm}"', "audience": '["chat"]', "issuer": '"me"'}
        auth = jwt(**keys, claims='{ role = "admin" }', leeway_ms=0)
        config = (
            PORTS
            + route("/echo", auth)
            + route("/web", auth, service="http", keys=f'upstreams = ["{upstream.url}"]\nwebsocket = true')
        )
        good = {"aud": "chat", "iss": "me", "role": "admin"}
        unsigned = part({"alg": "none"}) + "." + part(good | {"exp": now + 60}) + "."
        confused = part({"alg": "HS256"}) + "." + part(good | {"exp": now + 60})
        confused += "." + b64(hmac.digest(signer.pem(), confused.encode(), hashlib.sha256))
        message, _, signature = signer.token(good).rpartition(".")
        flipped = signature[:10] + ("A" if signature[10] != "A" else "B") + signature[11:]
        wrong_key = f"{message}.{b64(other.sign(message.encode()))}"
        cases = [
            (None, 401, "missing"),
            ("", 401, "missing"),
            ("not.a.token", 401, "malformed"),
            ("x" * 15_000, 401, "malformed"),
            (unsigned, 401, "algorithm"),
            (signer.token(good, {"alg": "RS512"}), 401, "algorithm"),
            (wrong_key, 401, "signature"),
            (f"{message}.{flipped}", 401, "signature"),
            (f"{message}.{b64(bytes(64))}", 401, "signature"),
            (f"{message}.", 401, "signature"),
            (signer.token(good, {"crit": ["exp"]}), 401, "malformed"),
            (signer.token(good, exp=None), 401, "malformed"),
            (signer.token(good, exp="never"), 401, "malformed"),
            (signer.token(good, exp=now - 5), 401, "expired"),
            (signer.token(good, nbf=now + 60), 401, "not_yet_valid"),
            (signer.token(good, iss="you"), 401, "issuer"),
            (signer.token(good, iss=None), 401, "issuer"),
            (signer.token(good, aud=["mail"]), 401, "audience"),
            (signer.token(good, aud=None), 401, "audience"),
            (signer.token(good, role="user"), 403, "claim"),
        ]
        if algorithm != "HS256":
            cases.append((confused, 401, "algorithm"))
        with Gateway(config, io_driver=io_driver) as gateway:

            async def scenario():
                expected = {}
                for token, status, reason in cases:
                    for path in ("/echo", "/web"):
                        found, fields = await opens(gateway, path, token=token)
                        assert found == status, (path, token, reason)
                        assert fields["www-authenticate"].startswith("Bearer")
                        expected[reason] = expected.get(reason, 0) + 1
                    # And where no WebSocket is opened.
                    connection = http.client.HTTPConnection("127.0.0.1", gateway.ports["a"])
                    authorization = {} if token is None else {"Authorization": f"Bearer {token}"}
                    connection.request("GET", "/web", headers=authorization)
                    assert connection.getresponse().status == status, (token, reason)
                    connection.close()
                    expected[reason] += 1
                return expected

            expected = asyncio.run(scenario())
            metrics = gateway.at_rest()
            assert metrics.by("reason", "auth_refusals_total") == expected
            assert metrics.by("result", "handshakes_total") == {"auth": 3 * len(cases)}
            assert not upstream.requests
            # What is good is let in, on every port that has the route.
            good_token = signer.token(good)
            assert statuses(gateway, *({"token": good_token, "port": port} for port in "ab")) == [101, 101]
            log = gateway.log()
            assert good_token not in log and good_token.rpartition(".")[2] not in log and SECRET not in log


def test_a_token_is_taken_from_where_it_may_stand_and_goes_no_further(io_driver, tmp_path):
    key = tmp_path / "key"
    key.write_text(SECRET)
    signer = Signer("HS256")
    token = signer.token(roles=["a", "b"], level=3)
    auth = jwt(
        key=f'"file:{key}"',
        algorithm='"HS256"',
        **{"from": '["header", "cookie:session", "query:access_token", "subprotocol:bearer."]'},
        headers='{ X-User = "sub", X-Roles = "roles", X-None = "none" }',
    )
    seen = []

    def answer(handler):
        seen.append(handler.path)
        return 200, [], b"fine"

    forged = [
        ("X-User", "root"),
        ("x-user", "root"),
        ("X_User", "root"),
        ("x_uSER", "root"),
        ("X-None", "root"),
        ("X-Roles", "root"),
        ("X-Forwarded-For", "192.0.2.1"),
    ]
    with Server(answer) as upstream:
        keys = f'upstreams = ["{upstream.url}"]\nwebsocket = true\norigins = "same"'
        config = (
            PORTS
            + route("/web", auth, service="http", keys=keys)
            + route("/echo", auth, keys='subprotocols = ["chat.v1"]')
        )
        with Gateway(config, io_driver=io_driver) as gateway:
            ways = [
                {"token": token},
                {"cookie": f"a=b; session={token}"},
                {"query": f"?a=b&access_token={token}&c=d"},
                {"sec_websocket_protocol": f"chat.v1, bearer.{token}"},
            ]
            for way in ways:
                [status] = statuses(gateway, {"path": "/echo", **way})
                assert status == 101, way

            async def chosen():
                return await opens(gateway, "/echo", sec_websocket_protocol=f"bearer.{token}, chat.v1")

            assert asyncio.run(chosen())[1]["sec-websocket-protocol"] == "chat.v1"
            for way in ways:
                way = dict(way)
                headers = [("Host", "localhost"), *forged]
                if "token" in way:
                    headers.append(("Authorization", f"Bearer {way['token']}"))
                if "cookie" in way:
                    headers.append(("Cookie", way["cookie"]))
                if "sec_websocket_protocol" in way:
                    headers.append(("Sec-WebSocket-Protocol", way["sec_websocket_protocol"]))
                connection = http.client.HTTPConnection("127.0.0.1", gateway.ports["a"])
                connection.putrequest("GET", f"/web{way.get('query', '')}", skip_host=True)
                for name, value in headers:
                    connection.putheader(name, value)
                connection.endheaders()
                assert connection.getresponse().status == 200
                connection.close()
                _, path, fields = upstream.requests[-1]
                names = [name.lower().replace("_", "-") for name, _ in fields]
                assert names.count("x-user") == names.count("x-roles") == 1 and "x-none" not in names
                known = {name.lower(): value for name, value in fields}
                assert (known["x-user"], known["x-roles"]) == ("alice", "a, b")
                assert known["x-forwarded-for"] == "127.0.0.1"
                assert path == ("/web?a=b&c=d" if "query" in way else "/web")
                if "sec_websocket_protocol" in way:
                    assert known["sec-websocket-protocol"] == "chat.v1"
            # Two of them are none that an upstream could not read otherwise.
            head = upgrade("/echo", authorization=f"Bearer {token}").replace(
                b"\r\n\r\n", b"\r\nAuthorization: Basic YTpi\r\n\r\n"
            )

            async def twice():
                async with await Connection.open(gateway.ports["a"]) as client:
                    await client.refused(head, 400)

            asyncio.run(twice())
            metrics = gateway.at_rest()
            assert not metrics.by("reason", "auth_refusals_total")
            assert metrics.value("forwarding_ignored_total") == len(ways)


def test_keys_of_an_issuer_are_fetched_rotated_and_kept():
    one, other = Signer("ES256"), Signer("RS256")
    keys = {"answer": (503, [], b"")}

    def serve(*signers):
        body = json.dumps({"keys": [signer.jwk(kid) for kid, signer in signers]}).encode()
        keys["answer"] = (200, [("Content-Type", "application/json")], body)

    def token(signer, kid):
        return {"token": signer.token(header={"kid": kid} if kid else None)}

    with Server(lambda _: keys["answer"]) as issuer:
        auth = jwt(jwks=f'"{issuer.url}/keys?a=b"', jwks_refresh_interval_ms=1000)
        with Gateway(PORTS + route("/echo", auth)) as gateway:
            metrics = gateway.metrics
            assert issuer.requests[0][:2] == ("GET", "/keys?a=b")
            # Nobody is let in as long as there are no keys, and is told to come again.
            assert statuses(gateway, token(one, "1"), {}) == [503, 401]
            assert metrics().by("reason", "auth_refusals_total") == {"keys_unavailable": 1, "missing": 1}
            serve(("1", one))
            wait_until(lambda: metrics().value("jwks_keys", route="echo") == 1, "the keys have come")
            assert statuses(gateway, token(one, "1"), token(one, None), token(one, "2"), token(other, "2")) == [
                101,
                101,
                401,
                401,
            ]
            # Another key beside the old one, then in its place.
            serve(("1", one), ("2", other))
            wait_until(lambda: metrics().value("jwks_keys") == 2, "both keys are known")
            assert statuses(gateway, token(one, "1"), token(other, "2"), token(one, "2"), token(one, None)) == [
                101,
                101,
                401,
                101,
            ]
            serve(("2", other))
            wait_until(lambda: metrics().value("jwks_keys") == 1, "the old key is gone")
            assert statuses(gateway, token(one, "1"), token(other, "2")) == [401, 101]
            # Whatever comes instead, those that are known stay.
            for answer in [
                (500, [], b""),
                (200, [], b"no json"),
                (200, [], b'{"keys": []}'),
                (200, [], b" " * (2 << 20)),
                None,
            ]:
                keys["answer"] = answer
                enough = metrics().value("jwks_fetches_total", result="failed") + 2
                wait_until(
                    lambda enough=enough: metrics().value("jwks_fetches_total", result="failed") >= enough,
                    "it was tried",
                )
                assert statuses(gateway, token(other, "2"), token(one, "1")) == [101, 401]
            log = gateway.log()
            assert log.count("the keys for tokens cannot be had") >= 4


def test_a_token_with_a_key_that_is_not_known_has_the_keys_fetched_but_not_for_each():
    one, other = Signer("EdDSA"), Signer("EdDSA")
    current = [("1", one)]

    def answer(_):
        return 200, [], json.dumps({"keys": [signer.jwk(kid) for kid, signer in current]}).encode()

    with Server(answer) as issuer:
        auth = jwt(jwks=f'"{issuer.url}/"', jwks_refresh_interval_ms=3_600_000)
        with Gateway(PORTS + route("/echo", auth)) as gateway:
            assert statuses(gateway, {"token": one.token(header={"kid": "1"})}) == [101]
            current.append(("2", other))
            token = {"token": other.token(header={"kid": "2"})}
            began = time.monotonic()
            # A flood of them costs one fetch in ten seconds.
            assert set(statuses(gateway, *[token] * 200)) == {401}
            wait_until(lambda: gateway.metrics().value("jwks_keys") == 2, "it was fetched again", within_s=15)
            assert 5 < time.monotonic() - began < 14
            assert len(issuer.requests) == 2
            assert statuses(gateway, token) == [101]


@pytest.mark.parametrize("service", ["echo", "websocket"])
def test_a_connection_ends_when_its_token_does(io_driver, service, tmp_path):
    key = tmp_path / "key"
    key.write_text(SECRET)
    auth = jwt(key=f'"file:{key}"', algorithm='"HS256"', leeway_ms=0, expiry_close_code=4001)
    lasting = jwt(key=f'"file:{key}"', algorithm='"HS256"', leeway_ms=0)

    with Gateway(PORTS + route("/echo", ""), io_driver=io_driver) as behind:
        keys = f'upstreams = ["ws://127.0.0.1:{behind.ports["a"]}"]' if service == "websocket" else ""
        paths = 'upstream_path = "/echo"' if service == "websocket" else ""
        config = PORTS + route("/ends", auth, service=service, keys=f"{keys}\n{paths}")
        config += route("/lasts", lasting, service=service, keys=f"{keys}\n{paths}")
        with Gateway(config, io_driver=io_driver) as gateway:

            async def scenario():
                token = Signer("HS256").token(exp=int(time.time()) + 2)
                clients = []
                for path in ("/ends", "/ends", "/lasts"):
                    client = await Connection.open(gateway.ports["a"])
                    await client.send(upgrade(path, authorization=f"Bearer {token}"))
                    assert (await client.response()).status == 101
                    clients.append(client)
                quiet, busy, lasting = clients

                async def talk():
                    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, AssertionError):
                        while True:
                            await busy.echo(b"busy")

                began = time.time()
                talking = asyncio.create_task(talk())
                await quiet.closed(4001)
                assert 0.9 < time.time() - began < 4
                await talking
                await quiet.send(frame(8, b"\x0f\xa1"))
                await quiet.end()
                await lasting.echo(b"still here", TEXT)
                await lasting.close()
                for client in clients:
                    client.writer.close()
                # Nobody comes in with it any more.
                return (await opens(gateway, "/ends", token=token))[0]

            assert asyncio.run(scenario()) == 401
            metrics = gateway.at_rest()
            ended = metrics.by("end", "connections_ended_total")
            assert ended["expired"] >= 1 and ended["closed"] == 1 and ended["refused"] == 1, ended
            assert metrics.value("closes_total", initiator="gateway", code="4xxx") == 2


def asks(url, **keys):
    """The table of a route that asks a service."""
    lines = "\n".join(f"{key} = {value}" for key, value in keys.items())
    return f'[route.auth.forward]\nurl = "{url}"\n{lines}'


def test_a_service_is_asked_about_each_request(io_driver):
    def judge(handler):
        cookie = handler.headers.get("Cookie", "")
        if "session=good" in cookie:
            return 204, [("X-User", "alice"), ("X-Other", "not asked for")], b""
        if "session=old" in cookie:
            return 302, [("Location", "https://login.example.com/?back=1"), ("Set-Cookie", "session=; Max-Age=0")], b"x"
        if "session=odd" in cookie:
            return 500, [], b"oops"
        if "session=banned" in cookie:
            return 403, [("X-Secret", "internal")], b"no"
        return 401, [("WWW-Authenticate", 'Basic realm="here"')], b"who?"

    with Server(judge) as service, Server(lambda _: (200, [], b"fine")) as upstream:
        auth = asks(f"{service.url}/verify?x=1", headers='["X-User"]')
        keys = f'upstreams = ["{upstream.url}"]\nwebsocket = true'
        config = PORTS + route("/echo", auth) + route("/web/*", auth, service="http", keys=keys)
        with Gateway(config, io_driver=io_driver) as gateway:

            async def scenario():
                told = {}
                for session in ("good", "old", "odd", "banned", "none"):
                    fields = {"cookie": f"session={session}", "x_user": "root", "x_forwarded_uri": "/forged"}
                    told[session] = await opens(gateway, "/echo", query="?q=1", **fields)
                return told

            told = asyncio.run(scenario())
            found = {session: status for session, (status, _) in told.items()}
            assert found == {"good": 101, "old": 302, "odd": 503, "banned": 403, "none": 401}
            assert told["old"][1]["location"] == "https://login.example.com/?back=1"
            assert told["old"][1]["set-cookie"] == "session=; Max-Age=0"
            assert told["none"][1]["www-authenticate"] == 'Basic realm="here"'
            assert "retry-after" in told["odd"][1] and "x-secret" not in told["banned"][1]
            method, path, fields = service.requests[0]
            assert (method, path) == ("GET", "/verify?x=1")
            known = fields_of(service.requests[0])
            assert known["host"] == service.url.removeprefix("http://")
            assert (known["x-forwarded-method"], known["x-forwarded-uri"]) == ("GET", "/echo?q=1")
            assert known["x-original-uri"] == "/echo?q=1" and known["x-forwarded-host"] == "localhost"
            assert known["x-forwarded-for"] == "127.0.0.1" and known["x-forwarded-proto"] == "http"
            assert "upgrade" not in known and "sec-websocket-key" not in known
            assert [name for name, _ in fields if name.lower() == "x-forwarded-uri"] == ["X-Forwarded-Uri"]
            assert not upstream.requests

            connection = http.client.HTTPConnection("127.0.0.1", gateway.ports["a"])
            for _ in range(3):
                body = {"Cookie": "session=good", "X-User": "root", "X_User": "root"}
                connection.request("POST", "/web/a?b=c", body=b"content", headers=body)
                answer = connection.getresponse()
                assert (answer.status, answer.read()) == (200, b"fine")
            assert {fields_of(request)["x-user"] for request in upstream.requests} == {"alice"}
            assert all("x_user" not in fields_of(request) for request in upstream.requests)
            asked = fields_of(service.requests[-1])
            assert (asked["x-forwarded-method"], asked["x-forwarded-uri"]) == ("POST", "/web/a?b=c")
            assert "content-length" not in asked and "transfer-encoding" not in asked
            connection.request("GET", "/web/a")
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (401, b"The request does not prove who it is from.\n")
            connection.close()

            # Whom the request is for is told by what routes it, in Host or not. What a client has already is not told.
            async def elsewhere():
                async with await Connection.open(gateway.ports["a"]) as client:
                    await client.send(
                        b"GET http://admin.example/web/a HTTP/1.1\r\nHost: public.example\r\nCookie: session=good\r\n"
                        b'If-None-Match: "x"\r\nRange: bytes=0-1\r\n\r\n'
                    )
                    assert (await client.response()).status == 200

            asyncio.run(elsewhere())
            asked = fields_of(service.requests[-1])
            assert asked["x-forwarded-host"] == "admin.example" and "host=admin.example" in asked["forwarded"]
            assert "if-none-match" not in asked and "range" not in asked
            assert fields_of(upstream.requests[-1])["host"] == "admin.example"
            metrics = gateway.at_rest()
            assert metrics.by("reason", "auth_refusals_total") == {"denied": 4, "auth_unavailable": 1}
            assert metrics.by("result", "handshakes_total") == {"accepted": 1, "auth": 4, "upstream_unavailable": 1}
            # It is asked over connections that are kept.
            assert metrics.value("upstream_connects_total", route="echo:auth", result="opened") <= 2


def test_a_service_that_does_not_answer_lets_nobody_in_and_holds_up_nobody_for_long(io_driver):
    release = threading.Event()

    def judge(handler):
        if "hang" in handler.headers.get("Cookie", ""):
            release.wait(20)
            return None
        return 204, [], b""

    with Server(judge) as service:
        config = PORTS + route("/echo", asks(f"{service.url}/", timeout_ms=700, concurrent_max=3))
        config += route("/gone", asks("http://127.0.0.1:9/", timeout_ms=700))
        with Gateway(config, io_driver=io_driver) as gateway:

            async def scenario():
                began = time.monotonic()
                hanging = [asyncio.create_task(opens(gateway, cookie="hang")) for _ in range(3)]
                await asyncio.to_thread(wait_until, lambda: len(service.requests) == 3, "three are asked about")
                # There is no place for a fourth, which is told at once.
                assert (await opens(gateway))[0] == 503
                assert time.monotonic() - began < 0.6
                assert [status for status, _ in await asyncio.gather(*hanging)] == [503] * 3
                assert 0.6 < time.monotonic() - began < 2.5
                assert (await opens(gateway))[0] == 101
                assert (await opens(gateway, "/gone"))[0] == 503
                refusals = await asyncio.to_thread(gateway.metrics)
                assert refusals.value("auth_refusals_total", reason="auth_unavailable") == 5
                # A client that leaves meanwhile is not waited for.
                async with await Connection.open(gateway.ports["a"]) as client:
                    await client.send(upgrade(cookie="hang"))
                    await asyncio.to_thread(wait_until, lambda: len(service.requests) >= 5, "it is asked about")

            asyncio.run(scenario())
            gateway.at_rest()
            release.set()


def test_secrets_are_not_shown_and_bad_keys_are_told(tmp_path):
    key, config = tmp_path / "key", tmp_path / "ringway.toml"

    def check(content, algorithm, command="check"):
        key.write_bytes(content)
        auth = jwt(key='"file:key"', algorithm=f'"{algorithm}"')
        config.write_text("[[port]]\nnumber = 8080\n" + route("/echo", auth))
        command = [BINARY, *command.split(), *(["--config"] if "show" in command else []), str(config)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert SECRET not in run.stdout + run.stderr
        return run

    shown = check(SECRET.encode(), "HS256", "config show")
    assert shown.returncode == 0 and "file:key" in shown.stdout, shown.stderr
    signers = {algorithm: Signer(algorithm) for algorithm in ("RS256", "ES256", "EdDSA")}
    for algorithm, signer in signers.items():
        assert check(signer.pem(), algorithm).returncode == 0
        for other in signers:
            if other != algorithm:
                told = check(signer.pem(), other)
                assert told.returncode == 78 and f"it is a key for {algorithm}" in told.stdout + told.stderr, (
                    told.stderr
                )
        told = check(signer.private_pem(), algorithm)
        assert told.returncode == 78 and "it is a private key" in told.stdout + told.stderr
    small = rsa.generate_private_key(65537, 1024).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    told = check(small.public_bytes(serialization.Encoding.PEM, form), "RS256")
    assert told.returncode == 78 and "1024 bits" in told.stdout + told.stderr
    assert "less than 32 bytes" in check(b"short", "HS256").stdout
    # One line end is none of the secret, and whatever else is behind it is.
    for end, returncode in [(b" ", 0), (b"\t", 0), (b"\n", 78), (b"\r\n", 78)]:
        assert check(b"x" * 31 + end, "HS256").returncode == returncode, end
    key.unlink()
    key.symlink_to("/dev/zero")
    config.write_text("[[port]]\nnumber = 8080\n" + route("/echo", jwt(key='"file:key"', algorithm='"HS256"')))
    run = subprocess.run([BINARY, "check", str(config)], capture_output=True, text=True, timeout=20)
    assert run.returncode == 78
    key.unlink()
    assert "no public key in PEM" in check(b"what?", "ES256").stdout
