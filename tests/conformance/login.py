"""A login made by a page in Chromium opens WebSockets on another port of its host, and those of no other site."""

import asyncio
import contextlib
import json
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs

from auth import Signer
from authority import Authority
from client import ANSWER_S
from harness import PATIENCE_S, Gateway, free_port, wait_until
from http_proxy import Web, ok
from upstream import Upstream, accepted

LOGIN = Path(__file__).parent / "clients/login.cjs"

# Pages are on two ports of one host, on a host below it, which is of the same site, and on one of another site.
HOST, SIBLING, STRANGER = "app.example", "www.app.example", "evil.example"

PORTS = """
[gateway]
shards = 1
[[port]]
number = {site}
name = "site"
address = "127.0.0.1"
tls = {{ certificates = [{certificate}] }}
[[port]]
number = {moved}
name = "moved"
address = "127.0.0.1"
tls = {{ certificates = [{certificate}] }}
[[port]]
number = 0
name = "socket"
address = "127.0.0.1"
tls = {{ certificates = [{certificate}] }}
"""

# Of the pages, what hands out the token has the cookie looked at.
PAGES = """
[[route]]
name = "pages"
path = "/*"
service = "http"
upstreams = ["{web}"]
ports = ["site", "moved"]
[[route]]
name = "token"
host = "app.example"
path = "/token"
service = "http"
upstreams = ["{web}"]
ports = ["site"]
[route.auth.jwt]
jwks = "file:{keys}"
from = ["cookie:session"]
headers = {{ X-User = "sub" }}
"""

SOCKET = """
[[route]]
name = "{name}"
host = "app.example"
path = "/{name}"
ports = ["socket"]
{service}
{origins}
[route.auth.jwt]
jwks = "file:{keys}"
from = ["{place}"]
headers = {{ X-User = "sub" }}
"""

LOGIN_PAGE = b"""<!doctype html><title>login</title><link rel="icon" href="data:,">
<form method="post" action="/login"><input name="user"><input name="password" type="password"><button>Go</button></form>
"""
CHAT_PAGE = b"""<!doctype html><title>chat</title><link rel="icon" href="data:,">
<form method="post" action="/logout"><button>Leave</button></form>
"""


class Site(Web):
    """A web server with a login, whose cookies are tokens; it hands out another to pages that have them."""

    def __init__(self):
        super().__init__()
        self.signer = Signer("ES256")
        until = int(time.time()) + 600
        # One for each way, told apart by their names.
        ways = ("session", "embedded", "handed out")
        self.tokens = {way: self.signer.token(header={"kid": "1"}, sub="ann", exp=until, jti=way) for way in ways}

    def answer(self, request):
        """The response to a request."""
        line, fields, body, _ = request
        method, path, _ = line.split(" ")
        match method, path:
            case "GET", "/":
                return ok(LOGIN_PAGE, "content-type: text/html\r\n")
            case "GET", "/sandbox":
                # A page whose Origin is nobody's, "null".
                policy = "content-security-policy: sandbox allow-scripts\r\n"
                return ok(LOGIN_PAGE, f"content-type: text/html\r\n{policy}")
            case "GET", "/chat":
                return ok(CHAT_PAGE, "content-type: text/html\r\n")
            case "GET", "/token" if dict(fields)["x-user"] == "ann":
                return ok(self.tokens["handed out"].encode())
            case "POST", "/login" if parse_qs(body) == {b"user": [b"ann"], b"password": [b"correct horse"]}:
                return see_other(
                    "/chat",
                    f"session={self.tokens['session']}; Path=/; Secure; HttpOnly; SameSite=Lax",
                    f"embedded={self.tokens['embedded']}; Path=/; Secure; HttpOnly; SameSite=None",
                )
            case "POST", "/logout":
                return see_other("/", "session=; Path=/; Max-Age=0; Secure", "embedded=; Path=/; Max-Age=0; Secure")
            case _:
                return b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


def see_other(path, *cookies):
    """A response that leads to another page, and sets cookies."""
    lines = "".join(f"set-cookie: {cookie}\r\n" for cookie in cookies)
    return f"HTTP/1.1 303 See Other\r\nlocation: {path}\r\n{lines}content-length: 0\r\n\r\n".encode()


class Recording(Upstream):
    """An upstream that takes everybody with their first subprotocol, and keeps the line and fields of each request."""

    def __init__(self):
        super().__init__()
        self.requests = []

    def recording(self):
        """Answers meanwhile."""

        def answer(line, fields):
            fields = [(name.lower(), value) for name, value in fields]
            self.requests.append((line, fields))
            offered = dict(fields).get("sec-websocket-protocol")
            selected = f"Sec-WebSocket-Protocol: {offered.split(',')[0]}\r\n\r\n" if offered else "\r\n"
            return accepted(fields)[:-2] + selected.encode()

        return self.answering(answer)


@dataclass(frozen=True)
class Attempt:
    """A WebSocket that a page opens, and what has to come of it: a status, and why it is refused.

    In its path and its subprotocols TOKEN stands for the one that the page was handed out.
    """

    page: str
    path: str
    status: int
    reason: str | None = None
    protocols: tuple = ()
    # The cookies that have to come to the upstream; `None` where none is asked.
    cookies: frozenset | None = None

    @property
    def result(self):
        """How the handshake is counted."""
        return {101: "accepted", 403: "origin", 401: "auth"}[self.status]

    def step(self, socket, token):
        """It as the browser is told of it."""
        url, *protocols = (text.replace("TOKEN", token) for text in (self.path, *self.protocols))
        return {"page": self.page, "url": f"{socket}/{url}", "protocols": protocols}


BOTH = frozenset({"session", "embedded"})
OFFER = ("chat.v1", "bearer.TOKEN")
QUERY = "query?room=1&access_token=TOKEN&mode=full"
# Every way in that is for the pages of the site, with all that it takes.
WAYS = [("session", ()), ("embedded", ()), ("subprotocol", OFFER), (QUERY, ()), ("echo", OFFER)]


def without_login(page, forged):
    """Nobody is let in without cookies and token, or with the token of somebody else's key."""
    return [
        Attempt(page, "session", 401, "missing"),
        Attempt(page, "embedded", 401, "missing"),
        Attempt(page, "subprotocol", 401, "missing", ("chat.v1",)),
        Attempt(page, "query?room=1", 401, "missing"),
        Attempt(page, "subprotocol", 401, "signature", ("chat.v1", f"bearer.{forged}")),
        Attempt(page, f"query?access_token={forged}", 401, "signature"),
    ]


def with_login(home, moved, sibling, stranger):
    """The pages of the site are let in, by each way; no others are, which have the same cookies and the same token."""
    nobody = f"{home}sandbox"
    return [
        *(Attempt(home, path, 101, protocols=offer, cookies=BOTH) for path, offer in WAYS if path != "echo"),
        Attempt(home, "echo", 101, protocols=OFFER),
        # A token counts where it is looked for, and nowhere else; there a parameter is as good as any.
        Attempt(home, "session?access_token=TOKEN", 101, cookies=BOTH),
        Attempt(home, "subprotocol?access_token=TOKEN", 401, "missing", ("chat.v1",)),
        Attempt(home, "query?room=1", 401, "missing", OFFER),
        # "same" is the very port.
        Attempt(home, "same", 403),
        *(
            Attempt(page, path, 403, protocols=offer)
            for page in (moved, sibling, stranger, nobody)
            for path, offer in WAYS
        ),
        # Their Origin alone kept them out. Where it is let in cookies come along, to whatever port; from another site
        # those of SameSite=None.
        Attempt(moved, "open-session", 101, cookies=BOTH),
        Attempt(sibling, "open-session", 101, cookies=BOTH),
        Attempt(stranger, "open-session", 401, "missing"),
        Attempt(stranger, "open-embedded", 101, cookies=frozenset({"embedded"})),
    ]


def configuration(certificate, ports, keys, web, upstream):
    """The file: pages on two ports, and on a third the WebSockets that they open."""
    site, moved = ports
    config = PORTS.format(site=site, moved=moved, certificate=certificate) + PAGES.format(web=web.url, keys=keys)
    relay = f'service = "websocket"\nupstreams = ["{upstream.url}"]'
    own = f'origins = ["https://{HOST}:{site}"]'
    others = f'origins = ["https://{HOST}:{moved}", "https://{SIBLING}:{site}", "https://{STRANGER}:{site}"]'
    for name, service, origins, place in [
        ("session", relay, own, "cookie:session"),
        ("embedded", relay, own, "cookie:embedded"),
        ("subprotocol", relay, own, "subprotocol:bearer."),
        ("query", relay, own, "query:access_token"),
        ("echo", 'service = "echo"\nsubprotocols = ["chat.v1"]', own, "subprotocol:bearer."),
        ("same", relay, "", "cookie:session"),
        ("open-session", relay, others, "cookie:session"),
        ("open-embedded", relay, others, "cookie:embedded"),
    ]:
        config += SOCKET.format(name=name, service=service, origins=origins, place=place, keys=keys)
    return config


class Browser:
    """Chromium, from where it is entered to where it is left, whatever becomes of the test."""

    def __init__(self, home, folder, authority):
        self._profile = folder / "profile"
        self._command = ["setpriv", "--pdeathsig", "KILL", "--", "node", LOGIN, self._profile, home]
        self._environment = os.environ | {"RINGWAY_TRUSTED_KEY": authority.key_hash("edge")}

    async def __aenter__(self):
        # The setting under which other sites' pages have cookies: visitors with it need the Origin to be judged most.
        preferences = self._profile / "Default/Preferences"
        preferences.parent.mkdir(parents=True)
        preferences.write_text(json.dumps({"profile": {"cookie_controls_mode": 0}}))
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *map(str, self._command), stdin=pipe, stdout=pipe, env=self._environment
        )
        return self

    async def __aexit__(self, *_exception):
        try:
            self._process.stdin.close()
            async with asyncio.timeout(PATIENCE_S):
                assert await self._process.wait() == 0, "Chromium did not leave as it should"
        finally:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def tell(self, step):
        """What comes of a step."""
        self._process.stdin.write(json.dumps(step).encode() + b"\n")
        async with asyncio.timeout(2 * ANSWER_S):
            line = await self._process.stdout.readline()
        assert line, f"it ended at {step}"
        return json.loads(line)


class Expected:
    """What port `socket` has counted of the attempts so far."""

    def __init__(self, gateway):
        self._gateway, self.results, self.reasons = gateway, Counter(), Counter()

    @staticmethod
    def counted(metrics):
        """What it has counted: results, and reasons."""
        results = metrics.by("result", "handshakes_total", port="socket")
        return results, metrics.by("reason", "auth_refusals_total", port="socket")

    async def add(self, one):
        """One more, which is counted as what it was and as nothing else."""
        self.results[one.result] += 1
        self.reasons.update([one.reason] if one.reason else [])
        totals = (self.results.total(), self.reasons.total())

        def is_counted():
            results, reasons = self.counted(self._gateway.metrics())
            return sum(results.values()) >= totals[0] and sum(reasons.values()) >= totals[1]

        await asyncio.to_thread(wait_until, is_counted, f"it is counted: {one}")
        assert self.counted(self._gateway.metrics()) == (self.results, self.reasons), one


def test_a_login_opens_websockets_on_another_port_and_from_no_other_site(io_driver, tmp_path):
    authority = Authority(tmp_path)
    certificate = authority.sign("edge", HOST, SIBLING, STRANGER)
    site, moved = free_port(), free_port()
    home = f"https://{HOST}:{site}/"
    others = [f"https://{HOST}:{moved}/", f"https://{SIBLING}:{site}/", f"https://{STRANGER}:{site}/"]
    forged = Signer("ES256").token(header={"kid": "1"})

    async def scenario(gateway):
        socket = f"wss://{HOST}:{gateway.ports['socket']}"
        expected = Expected(gateway)

        async def attempt(attempts, token=""):
            for one in attempts:
                asked = len(upstream.requests)
                told = await browser.tell(one.step(socket, token))
                assert told["status"] == one.status, (one, told)
                if one.status == 101:
                    protocol = "chat.v1" if one.protocols else ""
                    assert (told["echo"], told["code"], told["protocol"]) == ("hello", 1000, protocol), (one, told)
                await expected.add(one)
                # Nobody is asked who need not be.
                assert upstream.count == len(upstream.requests) == asked + (one.cookies is not None), one
                if one.cookies is not None:
                    check_request(one, *upstream.requests[-1], web.tokens)

        async with (
            web.answering(web.answer),
            upstream.recording(),
            Browser(home, tmp_path, authority) as browser,
        ):
            await attempt(without_login(home, forged))
            # The gateway keeps the page from its token, too, until the login. Scripts never see the cookies.
            told = await browser.tell("login")
            token = web.tokens["handed out"]
            assert told == {"before": 401, "during": 200, "token": token, "cookies": "", "protocol": "h2"}
            await attempt(with_login(home, *others), token)
            assert await browser.tell("logout") == {"after": 401}
            await attempt(without_login(home, forged))
        return expected

    with Site() as web, Recording() as upstream:
        keys = tmp_path / "keys.json"
        keys.write_text(json.dumps({"keys": [web.signer.jwk("1")]}))
        with Gateway(configuration(certificate, (site, moved), keys, web, upstream), io_driver=io_driver) as gateway:
            with gateway.leaving_nothing():
                expected = asyncio.run(scenario(gateway))
            # Nothing has come since: no browser tries again by itself.
            assert expected.counted(gateway.at_rest()) == (expected.results, expected.reasons)
            assert gateway.metrics().by("reason", "auth_refusals_total", port="site") == {"missing": 2}
            assert not any(token in gateway.log() for token in (forged, *web.tokens.values()))
    print(f"{expected.results.total()} WebSockets, {upstream.count} of which an upstream was asked")


def check_request(one, line, fields, tokens):
    """The upstream is told who the visitor is, and gets no token from where the gateway looked for it."""
    path = one.path
    if one.path == QUERY:
        path = "query?room=1&mode=full"
    assert line == f"GET /{path.replace('TOKEN', tokens['handed out'])} HTTP/1.1", one
    assert [value for name, value in fields if name == "x-user"] == ["ann"], one
    cookies = [pair for name, value in fields if name == "cookie" for pair in value.split("; ")]
    assert sorted(cookies) == sorted(f"{name}={tokens[name]}" for name in one.cookies), one
    offered = [value for name, value in fields if name == "sec-websocket-protocol"]
    assert offered == (["chat.v1"] if one.protocols else []), one
