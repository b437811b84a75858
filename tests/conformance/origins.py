"""Whose pages get in: each trick with `Origin` through each policy, counted as what it was, and asked of nobody."""

import asyncio
import subprocess
from collections import Counter
from dataclasses import dataclass

import pytest

from authority import Authority
from client import Connection, upgrade
from harness import BAD_CONFIGURATION, BINARY, Gateway, run_to_end
from upstream import Upstream, accepted

# What the lines of a request say: that its page has the Origin that is let in, or not (be it another's or no Origin at
# all), or nothing of a page, or nothing that HTTP knows. The last is a bad request whatever the policy.
OWN, OTHER, NO_PAGE, BROKEN = "own", "other", "no page", "broken"

LONG = b"a" * (8 << 10)

# Of the pages of a host: the lines of a request, what they say, and why. OWN stands for the Origin let in, SCHEME
# and PORT for its scheme and default port, ELSE and PORT_ELSE for those of http or https which it is not.
MATRIX = {
    "example.com": [
        (b"origin: OWN", OWN, "as browsers write it"),
        (b"origin: OWN:PORT", OWN, "the port that the scheme stands for, though no browser writes it"),
        (b"origin: OWN:00PORT", OWN, "a port is a number"),
        (b"origin: SCHEME://EXAMPLE.Com", OWN, "a host has no case"),
        (b"ORIGIN: OWN", OWN, "the name of a field has no case"),
        (b"origin:OWN", OWN, "whitespace around a value is none of it"),
        (b"origin:  \t OWN \t ", OWN, "whitespace around a value is none of it"),
        (b"x: y", NO_PAGE, "what is no browser sends none"),
        (b"referer: OWN/page", NO_PAGE, "where a page was loaded from is not its Origin"),
        (b"referer: SCHEME://evil.net/page", NO_PAGE, "where a page was loaded from is not its Origin"),
        (b"sec-websocket-origin: OWN", NO_PAGE, "of drafts before version 13, whose browsers are refused"),
        (
            b"sec-websocket-origin: SCHEME://evil.net",
            NO_PAGE,
            "of drafts before version 13, whose browsers are refused",
        ),
        (b"x-origin: SCHEME://evil.net", NO_PAGE, "another field"),
        (b"origin: SCHEME://evil.net\r\nreferer: OWN/page", OTHER, "only the Origin counts"),
        (b"origin: SCHEME://evil.net\r\nsec-websocket-origin: OWN", OTHER, "only the Origin counts"),
        (b"origin: SCHEME://evil.net\r\nx-forwarded-host: evil.net", OTHER, "the host is what the request names"),
        (b"origin: SCHEME://evil.net\r\nforwarded: host=evil.net", OTHER, "the host is what the request names"),
        (b"origin: SCHEME://evil.net\r\nconnection: origin", OTHER, "it is judged before anything is taken off"),
        (b"origin: ELSE://example.com\r\nx-forwarded-proto: ELSE", OTHER, "the scheme is the port's"),
        (b"origin: OWN.evil.net", OTHER, "ours is at its beginning"),
        (b"origin: SCHEME://evilexample.com", OTHER, "ours is at its end"),
        (b"origin: SCHEME://www.example.com", OTHER, "a host below ours is another"),
        (b"origin: SCHEME://com", OTHER, "a host above ours is another"),
        (b"origin: SCHEME://.example.com", OTHER, "no host begins with a dot"),
        (b"origin: SCHEME://example.com.", OTHER, "browsers take a host with the root's dot for another"),
        (b"origin: SCHEME://example.co", OTHER, "ours begins with it"),
        (b"origin: OWN:8443", OTHER, "cookies ignore ports, Origins do not"),
        (b"origin: OWN:PORT_ELSE", OTHER, "the port of another scheme"),
        (b"origin: OWN:PORT0", OTHER, "ours is at its beginning"),
        (b"origin: OWN:0", OTHER, "zero is not the port of the scheme"),
        (b"origin: OWN:65536", OTHER, "beyond the last port"),
        (b"origin: OWN:65616", OTHER, "80 in the low 16 bits"),
        (b"origin: OWN:65979", OTHER, "443 in the low 16 bits"),
        (b"origin: OWN:", OTHER, "a port that is announced and not there"),
        (b"origin: OWN:+PORT", OTHER, "digits alone"),
        (b"origin: OWN:PORT:PORT", OTHER, "two ports"),
        (b"origin: ELSE://example.com", OTHER, "another scheme"),
        (b"origin: ELSE://example.com:PORT", OTHER, "our port, another scheme"),
        (b"origin: ws://example.com", OTHER, "the URL of the WebSocket, not that of a page"),
        (b"origin: wss://example.com", OTHER, "the URL of the WebSocket, not that of a page"),
        (b"origin: chrome-extension://example.com", OTHER, "an extension may be called so"),
        (b"origin: blob:OWN", OTHER, "a URL of such a page, whose Origin is within"),
        (b"origin: //example.com", OTHER, "no scheme"),
        (b"origin: example.com", OTHER, "no scheme"),
        (b"origin: SCHEME:/example.com", OTHER, "browsers would mend such a URL"),
        (b"origin: null", OTHER, "of pages that shall be nobody's, and of every attacker who wants it"),
        (b"origin: NULL", OTHER, "null is written in one way, and is not listed"),
        (b"origin: file://", OTHER, "no host"),
        (b"origin: *", OTHER, "what others answer is no Origin"),
        (b"origin: SCHEME://*", OTHER, "nothing stands for others"),
        (b"origin: SCHEME://user@example.com", OTHER, "of a URL, not of an Origin"),
        (b"origin: OWN@evil.net", OTHER, "ours as the user of another host"),
        (b"origin: OWN%40evil.net", OTHER, "the same with an escape, which no host has"),
        (b"origin: OWN/", OTHER, "an Origin has not even a slash"),
        (b"origin: OWN/chat", OTHER, "a path"),
        (b"origin: OWN?a", OTHER, "a query"),
        (b"origin: OWN#a", OTHER, "a fragment"),
        (b"origin: SCHEME://evil.net/OWN", OTHER, "ours in a path"),
        (b"origin: SCHEME://evil.net\\.example.com", OTHER, "a slash to browsers, a letter to others"),
        (b"origin: SCHEME://example%2ecom", OTHER, "escapes are undone in a URL, not here"),
        (b"origin:", OTHER, "an empty value is not a missing field"),
        (b"origin: \t ", OTHER, "an empty value is not a missing field"),
        (b"origin: SCHEME:// example.com", OTHER, "no letter of a host"),
        (b"origin: SCHEME://exam ple.com", OTHER, "no letter of a host"),
        (b"origin: SCHEME://exam\tple.com", OTHER, "browsers take tabs out of URLs"),
        (b"origin: OWN SCHEME://evil.net", OTHER, "RFC 6454 had lists, of redirects"),
        (b"origin: SCHEME://evil.net OWN", OTHER, "RFC 6454 had lists, of redirects"),
        (b"origin: OWN, SCHEME://evil.net", OTHER, "two fields that somebody has joined"),
        (b"origin: OWN, OWN", OTHER, "two fields that somebody has joined"),
        (b"origin: OWN,", OTHER, "a list all the same"),
        (b"origin: SCHEME://example\xe3\x80\x82com", OTHER, "a full stop to browsers, in its wide form"),
        (b"origin: OWN\xff", OTHER, "not even UTF-8"),
        (b"origin: SCHEME://" + LONG + b".example.com", OTHER, "a value of 8 KiB"),
        (b"origin: OWN/" + LONG, OTHER, "a value of 8 KiB"),
        (b"origin: " + LONG, OTHER, "a value of 8 KiB"),
        (b"origin: OWN\r\norigin: SCHEME://evil.net", BROKEN, "one reader takes the first, another the last"),
        (b"origin: SCHEME://evil.net\r\nOrigin: OWN", BROKEN, "one reader takes the first, another the last"),
        (b"origin: OWN\r\norigin: OWN", BROKEN, "no browser says it twice"),
        (b"origin: OWN\r\norigin:", BROKEN, "no browser says it twice"),
        (b"origin: OWN\0", BROKEN, "no byte of a field"),
        (b"origin: OWN\0.evil.net", BROKEN, "no byte of a field"),
        (b"origin: OWN\x0b", BROKEN, "no byte of a field"),
        (b"origin: OWN\x7f", BROKEN, "no byte of a field"),
        (b"origin: OWN\r.evil.net", BROKEN, "no byte of a field"),
        (b"origin: OWN\n.evil.net", BROKEN, "the end of a line to some readers"),
        (b"origin: OWN\r\n .evil.net", BROKEN, "a line that goes on, to some readers"),
        (b"origin : OWN", BROKEN, "another name to some readers"),
    ],
    "xn--bcher-kva.example": [
        (b"origin: OWN", OWN, "as browsers write it"),
        (b"origin: SCHEME://XN--BCHER-KVA.Example", OWN, "a host has no case"),
        ("origin: SCHEME://bücher.example".encode(), OTHER, "the name itself, in UTF-8"),
        ("origin: SCHEME://bücher.example".encode("latin-1"), OTHER, "the name itself, in Latin-1"),
        (b"origin: SCHEME://b%C3%BCcher.example", OTHER, "the name itself, escaped"),
        (b"origin: SCHEME://bucher.example", OTHER, "a name that looks like it"),
        (b"origin: OWN.evil.net", OTHER, "ours is at its beginning"),
    ],
    "[::1]": [
        (b"origin: OWN", OWN, "as browsers write it"),
        (b"origin: SCHEME://[0:0:0:0:0:0:0:1]", OWN, "the same address"),
        (b"origin: SCHEME://[::0.0.0.1]:PORT", OWN, "the same address"),
        (b"origin: SCHEME://[::ffff:127.0.0.1]", OTHER, "the loopback address of another family"),
        (b"origin: SCHEME://127.0.0.1", OTHER, "the loopback address of another family"),
        (b"origin: SCHEME://localhost", OTHER, "a name is no address, whatever it resolves to"),
        (b"origin: SCHEME://[::1%25lo]", OTHER, "a zone says something on one machine alone"),
        (b"origin: SCHEME://[::1%lo]", OTHER, "a zone says something on one machine alone"),
        (b"origin: SCHEME://::1", OTHER, "no brackets"),
        (b"origin: SCHEME://[::1", OTHER, "one bracket"),
        (b"origin: OWN.evil.net", OTHER, "ours is at its beginning"),
    ],
    "[2001:db8::a]": [
        (b"origin: OWN", OWN, "as browsers write it"),
        (b"origin: SCHEME://[2001:DB8:0::000A]", OWN, "the same address"),
        (b"origin: SCHEME://[2001:db8::b]", OTHER, "another address"),
    ],
    "127.0.0.1": [
        (b"origin: OWN", OWN, "as browsers write it"),
        (b"origin: SCHEME://127.1", OTHER, "browsers write all four numbers, so no page has it"),
        (b"origin: SCHEME://0x7f.1", OTHER, "browsers write decimal numbers, so no page has it"),
        (b"origin: SCHEME://127.0.0.01", OTHER, "browsers write no zeros in front, so no page has it"),
        (b"origin: SCHEME://2130706433", OTHER, "browsers write four numbers, so no page has it"),
        (b"origin: OWN.", OTHER, "browsers take the root's dot off an address, so no page has it"),
        (b"origin: OWN.evil.net", OTHER, "ours is at its beginning"),
        (b"origin: SCHEME://[::ffff:127.0.0.1]", OTHER, "browsers take them for two hosts"),
        (b"origin: SCHEME://localhost", OTHER, "a name is no address, whatever it resolves to"),
    ],
}

# A port whose policy is "same", without TLS, with it, and as others see it; one with a list; and one that lets all in.
CONFIG = """
[gateway]
shards = 1
[[port]]
number = 0
name = "plain"
address = "127.0.0.1"
[[port]]
number = 0
name = "tls"
address = "127.0.0.1"
tls = {{ certificates = [{certificate}] }}
[[port]]
number = 0
name = "public"
address = "127.0.0.1"
public_scheme = "wss"
public_host = "{host}"
public_port = 443
[[port]]
number = 0
name = "list"
address = "127.0.0.1"
public_scheme = "wss"
[[port]]
number = 0
name = "any"
address = "127.0.0.1"
"""

# What has a policy, by the path: it answers itself, relays, or passes requests on as well.
SERVICES = {
    "echo": 'service = "echo"',
    "relay": 'service = "websocket"\nupstreams = ["{ws}"]',
    "app": 'service = "http"\nwebsocket = true\nupstreams = ["{http}"]',
}

WITHOUT_COOKIES = 'request_headers = { remove = ["cookie"] }'


@dataclass(frozen=True)
class Port:
    """A port of the gateway's: the scheme of the Origin that it lets in, and the host that its requests name."""

    name: str
    scheme: str
    host: str


def ports(host):
    """The ports, for pages of this host."""
    return [
        Port("plain", "http", host),
        Port("tls", "https", host),
        Port("public", "https", "backend.internal:8080"),
        Port("list", "https", "backend.internal:8080"),
        Port("any", "http", host),
    ]


def routes(upstream, policies):
    """A route to each service for each policy: its line in the file, and the ports that have it."""
    urls = {"ws": upstream.url, "http": upstream.url.replace("ws://", "http://")}
    text = ""
    for index, (policy, names) in enumerate(policies.items()):
        for service, lines in SERVICES.items():
            edits = WITHOUT_COOKIES if policy == '"any"' and service != "echo" else ""
            text += f"""
[[route]]
name = "{service}{index}"
path = "/{service}"
{lines.format(**urls)}
ports = {names}
origins = {policy}
{edits}
"""
    return text


def written(lines, scheme, host):
    """The lines of the matrix, for pages of this scheme and host."""
    other = {"http": "https", "https": "http"}[scheme]
    numbers = {"http": b"80", "https": b"443"}
    for name, value in [
        (b"OWN", f"{scheme}://{host}".encode()),
        (b"SCHEME", scheme.encode()),
        (b"PORT_ELSE", numbers[other]),
        (b"PORT", numbers[scheme]),
        (b"ELSE", other.encode()),
    ]:
        lines = lines.replace(name, value)
    return lines


class Recording(Upstream):
    """An upstream that takes everybody, and keeps the fields of each request."""

    def __init__(self):
        super().__init__()
        self.requests = []

    def recording(self):
        """Answers meanwhile."""

        def answer(_line, fields):
            self.requests.append([(name.lower(), value) for name, value in fields])
            return accepted(fields)

        return self.answering(answer)


async def ask(gateway, port, path, lines, *, tls=None):
    """The status that answers a request with these lines, which closes as it should where it is let in."""
    async with await Connection.open(gateway.ports[port.name], tls=tls) as client:
        head = upgrade(path, host=port.host, cookie="session=secret", COOKIE="more=secret")
        await client.send(head[:-2] + lines + b"\r\n\r\n")
        response = await client.response()
        if response.status == 101:
            await client.echo(b"hello")
            await client.close()
        else:
            assert response.body, "a refusal names the fault in its body"
            await client.end()
        return response.status


OUTCOMES = {101: ("accepted", "closed"), 403: ("origin", "refused"), 400: ("bad_request", "refused")}


def check_counts(metrics, port, statuses):
    """The port has counted what its clients were answered, each once as a handshake and once as an end."""
    outcomes = [OUTCOMES[status] for status in statuses]
    assert metrics.by("result", "handshakes_total", port=port) == Counter(result for result, _ in outcomes)
    assert metrics.by("end", "connections_ended_total", port=port) == Counter(end for _, end in outcomes)


@pytest.mark.parametrize("host", MATRIX)
def test_each_policy_lets_in_its_own_pages_alone(io_driver, host, tmp_path):
    authority = Authority(tmp_path)
    policies = {'"same"': ["plain", "tls", "public"], f'["https://{host}"]': ["list"], '"any"': ["any"]}
    config = CONFIG.format(certificate=authority.sign(), host=host)

    async def scenario(gateway, upstream):
        statuses = {port.name: [] for port in ports(host)}
        for port in ports(host):
            tls = authority.context() if port.name == "tls" else None
            for service in SERVICES:
                for template, says, why in MATRIX[host]:
                    lines = written(template, port.scheme, host)
                    count, is_open = upstream.count, port.name == "any"
                    expected = {OWN: 101, NO_PAGE: 101, BROKEN: 400, OTHER: 101 if is_open else 403}[says]
                    status = await ask(gateway, port, f"/{service}", lines, tls=tls)
                    assert status == expected, f"{service} on {port.name}, {lines[:200]}: {why}"
                    statuses[port.name].append(status)
                    # Nobody is asked who need not be, and whoever is asked is told the Origin as it came.
                    is_asked = status == 101 and service != "echo"
                    assert upstream.count == count + is_asked, f"{service} on {port.name}, {lines[:200]}: {why}"
                    if is_asked:
                        check_request(upstream.requests[-1], lines, is_open)
        return statuses

    with Recording() as upstream, Gateway(config + routes(upstream, policies), io_driver=io_driver) as gateway:

        async def run():
            async with upstream.recording():
                return await scenario(gateway, upstream)

        with gateway.leaving_nothing():
            statuses = asyncio.run(run())
        metrics = gateway.at_rest()
        for port, answered in statuses.items():
            check_counts(metrics, port, answered)
        asked = len([status for answered in statuses.values() for status in answered if status == 101]) // 3 * 2
        assert metrics.by("result", "upstream_connects_total") == {"opened": asked}
        assert upstream.count == len(upstream.requests) == asked
        print(f"{sum(map(len, statuses.values()))} requests, {asked} of which an upstream was asked")


def check_request(request, lines, is_open):
    """The upstream was told the Origin of these lines as it came, and of cookies only what a policy covers."""
    sent = [line.split(b":", 1) for line in lines.split(b"\r\n")]
    is_listed = any(name.lower() == b"connection" for name, _ in sent)
    origins = [value.strip(b" \t").decode("latin-1") for name, value in sent if name.lower() == b"origin"]
    assert [value for name, value in request if name == "origin"] == ([] if is_listed else origins)
    cookies = [] if is_open else ["session=secret", "more=secret"]
    assert [value for name, value in request if name == "cookie"] == cookies


def test_a_port_is_another_origin_where_others_see_it(io_driver):
    """`public_port` is the port that counts, and two ports of one gateway may have two policies on one path."""
    config = """
[[port]]
number = 0
name = "moved"
address = "127.0.0.1"
public_scheme = "wss"
public_host = "[2001:db8:0::1]"
public_port = 8443
[[port]]
number = 0
name = "numbered"
address = "127.0.0.1"
public_port = 8080
[[port]]
number = 0
name = "list"
address = "127.0.0.1"
"""
    policies = {'"same"': ["moved", "numbered"], '["http://example.com", "http://example.com:8080"]': ["list"]}
    cases = {
        Port("moved", "https", "10.0.0.1:9000"): {
            b"https://[2001:db8::1]:8443": 101,
            b"https://[2001:db8::1]": 403,
            b"https://[2001:db8::1]:443": 403,
            b"https://[2001:db8::1]:9000": 403,
            b"http://[2001:db8::1]:8443": 403,
            b"https://10.0.0.1:8443": 403,
            b"https://10.0.0.1:9000": 403,
        },
        Port("numbered", "http", "example.com:9000"): {
            b"http://example.com:8080": 101,
            b"http://example.com:9000": 403,
            b"http://example.com": 403,
            b"https://example.com:8080": 403,
        },
        Port("list", "http", "example.com:9000"): {
            b"http://example.com:8080": 101,
            b"http://example.com": 101,
            b"http://example.com:80": 101,
            # It is where the request went, and not in the list.
            b"http://example.com:9000": 403,
            b"https://example.com": 403,
            b"https://example.com:8080": 403,
        },
    }

    async def scenario(gateway, upstream):
        async with upstream.recording():
            for port, values in cases.items():
                for service in SERVICES:
                    for value, status in values.items():
                        assert await ask(gateway, port, f"/{service}", b"origin: " + value) == status, (port, value)

    with Recording() as upstream, Gateway(config + routes(upstream, policies), io_driver=io_driver) as gateway:
        with gateway.leaving_nothing():
            asyncio.run(scenario(gateway, upstream))
        metrics = gateway.at_rest()
    for port, values in cases.items():
        check_counts(metrics, port.name, [status for status in values.values() for _ in SERVICES])
    assert upstream.count == 2 * sum(status == 101 for values in cases.values() for status in values.values())


def test_a_name_that_is_pointed_here_gets_in_only_where_nobody_has_said_the_host(io_driver):
    """DNS rebinding: the page's host is what Host and Origin both say, unless `public_host` or `host` tell better."""
    config = """
[[port]]
number = 0
name = "plain"
address = "127.0.0.1"
[[port]]
number = 0
name = "public"
address = "127.0.0.1"
public_host = "example.com"
[[port]]
number = 0
name = "host"
address = "127.0.0.1"
[[route]]
path = "/echo"
service = "echo"
ports = ["plain", "public"]
[[route]]
path = "/echo"
service = "echo"
ports = ["host"]
host = "example.com"
"""

    async def scenario(gateway):
        for name, status in [("plain", 101), ("public", 403)]:
            port = Port(name, "http", "evil.net")
            assert await ask(gateway, port, "/echo", b"origin: http://evil.net") == status, name
        port = Port("host", "http", "evil.net")
        assert await ask(gateway, port, "/echo", b"origin: http://evil.net") == 404

    with Gateway(config, io_driver=io_driver) as gateway:
        asyncio.run(scenario(gateway))
        metrics = gateway.at_rest()
    check_counts(metrics, "plain", [101])
    check_counts(metrics, "public", [403])
    assert metrics.by("result", "handshakes_total", port="host") == {"no_route": 1}
    assert metrics.by("end", "connections_ended_total", port="host") == {"refused": 1}


def test_an_upstream_that_judges_origins_is_asked_for_all(io_driver):
    """`origins = "upstream"`: what it answers is what counts, and it gets Origin and cookies as they came."""
    port = Port("plain", "http", "example.com")
    config = """
[[port]]
number = 0
name = "plain"
address = "127.0.0.1"
[[route]]
name = "relay"
path = "/relay"
service = "websocket"
origins = "upstream"
upstreams = ["{url}"]
"""
    values = ["http://example.com", "https://evil.net", "null", "", "no Origin, http://example.com"]

    def judge(_line, fields):
        fields = {name.lower(): value for name, value in fields}
        assert fields["cookie"] == "more=secret"
        heard.append(fields["origin"])
        if fields["origin"] == "http://example.com":
            return accepted(fields.items())
        return b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"

    async def scenario(gateway):
        async with upstream.answering(judge):
            for value in values:
                status = await ask(gateway, port, "/relay", b"origin: " + value.encode())
                assert status == (101 if value == "http://example.com" else 403), value
            # What HTTP does not know goes nowhere.
            assert await ask(gateway, port, "/relay", b"origin: null\r\norigin: http://example.com") == 400

    heard = []
    with Upstream() as upstream, Gateway(config.format(url=upstream.url), io_driver=io_driver) as gateway:
        with gateway.leaving_nothing():
            asyncio.run(scenario(gateway))
        metrics = gateway.at_rest()
    assert heard == values
    results = {"accepted": 1, "upstream_refused": 4, "bad_request": 1}
    assert metrics.by("result", "handshakes_total", port="plain") == results
    assert metrics.by("end", "connections_ended_total", port="plain") == {"closed": 1, "refused": 5}
    assert metrics.by("result", "upstream_connects_total", route="relay") == {"opened": 1, "answered": 4}


FAULT = """\
{file}:6:11: error: route[0].origins: cookies of visitors pass to the upstream, whatever page sends them there
  6 | origins = "any"
    |           ^^^^^
  help: Write "same" or a list of your pages' Origins; or request_headers = {{ remove = ["Cookie"] }} beside it; or \
"upstream", where the upstream judges the Origin itself.
{file}: 1 error
"""


def test_a_relay_that_any_page_may_use_as_its_visitor_is_refused(tmp_path):
    """`ringway check` says so, and nothing is served by such a file."""
    with Upstream() as upstream:
        config = f"""[[port]]
number = {{number}}
[[route]]
path = "/"
service = "websocket"
origins = "any"
upstreams = ["{upstream.url}"]
"""
        file = tmp_path / "ringway.toml"
        file.write_text(config.format(number=8080))

        def check():
            run = subprocess.run([BINARY, "check", str(file)], capture_output=True, text=True)
            return run.returncode, run.stdout + run.stderr

        assert check() == (BAD_CONFIGURATION, FAULT.format(file=file))
        code, log = run_to_end(Gateway(config.format(number=0).replace("number = 0", 'number = 0\nname = "a"')))
        assert code == BAD_CONFIGURATION and "cookies of visitors pass to the upstream" in log, log
        file.write_text(file.read_text() + WITHOUT_COOKIES + "\n")
        assert check() == (0, f"{file}: good, 1 port, 1 route\n")
        assert not asyncio.run(upstream.is_asked())
