//! Which Origins a route lets in, trick by trick.

use std::path::Path;

use super::*;
use crate::config::Config;
use crate::protocol::http::origin::{Origin, OriginFault};

fn port(keys: &str) -> Port {
    let text = format!("[[port]]\nnumber = 8080\n{keys}\n[[route]]\npath = \"/\"\nservice = \"page\"\n");
    let (config, _) = Config::from_toml(&text, Path::new("")).unwrap();
    config.ports.into_iter().next().unwrap()
}

fn origins(value: &str) -> Origins {
    let text =
        format!("[[port]]\nnumber = 80\n[[route]]\npath = \"/\"\nservice = \"echo\"\norigins = {value}\n");
    let (config, _) = Config::from_toml(&text, Path::new("")).unwrap();
    config.routes.into_iter().next().unwrap().origins
}

#[test]
fn same_is_the_origin_that_the_client_sees() {
    let cases = [
        ("", "example.com", Some(8080), "http://example.com:8080", true),
        ("", "EXAMPLE.com", Some(8080), "http://example.COM:8080", true),
        ("", "example.com", None, "http://example.com", true),
        ("", "example.com", None, "http://example.com:80", true),
        ("", "[::1]", Some(8080), "http://[::1]:8080", true),
        ("", "example.com", Some(8080), "http://example.com", false),
        ("", "example.com", Some(8080), "https://example.com:8080", false),
        ("", "example.com", Some(8080), "http://evil.net:8080", false),
        ("", "example.com", Some(8080), "http://a.example.com:8080", false),
        ("", "example.com", Some(8080), "null", false),
        ("", "example.com", Some(8080), "", false),
        ("public_scheme = \"wss\"", "example.com", None, "https://example.com", true),
        ("public_scheme = \"wss\"", "example.com", None, "http://example.com", false),
        ("public_port = 9000", "example.com", Some(8080), "http://example.com:9000", true),
        ("public_port = 9000", "example.com", Some(8080), "http://example.com:8080", false),
        ("public_host = \"ws.example.com\"", "10.0.0.1", None, "http://ws.example.com", true),
        ("public_host = \"ws.example.com\"", "10.0.0.1", None, "http://10.0.0.1", false),
        ("public_host = \"[0:0::1]\"", "10.0.0.1", Some(8080), "http://[::1]:8080", true),
        ("public_host = \"0:0::1\"", "[::1]", Some(8080), "http://[0::1]:8080", true),
        // A name that its owner points at this address (DNS rebinding) is what Host and Origin both say. Only who is
        // told the host knows it for another.
        ("", "evil.example", Some(8080), "http://evil.example:8080", true),
        ("public_host = \"ws.example.com\"", "evil.example", Some(8080), "http://evil.example:8080", false),
        ("public_host = \"ws.example.com\"", "evil.example", Some(8080), "http://ws.example.com:8080", true),
        // No page comes from a request that named no host.
        ("", "", None, "http://", false),
        ("", "", None, "http://:80", false),
    ];
    for (keys, host, host_port, origin, expected) in cases {
        let port = port(keys);
        let same = public_origin(&port, host, host_port);
        let allowed = allows_origin(&Origins::Same, Some(origin.as_bytes()), same);
        assert_eq!(allowed, expected, "{keys} {host} {host_port:?} {origin}");
    }
}

/// What a value is beside the Origin that is let in.
#[derive(Clone, Copy, Debug)]
enum Is {
    /// That very one.
    Own,
    /// Another one.
    Other,
    /// None, for this fault.
    NoOrigin(OriginFault),
}

use Is::{NoOrigin, Other, Own};
use OriginFault::{Authority, NotAscii, Path as Rest, SchemeMissing, Userinfo, WebSocketScheme, Wildcard};

/// A value of `Origin`, what it is, and why.
type Case = (&'static [u8], Is, &'static str);

/// Values beside the Origin that is let in.
const MATRIX: &[(&str, &[Case])] = &[
    (
        "https://example.com",
        &[
            (b"https://example.com", Own, "as browsers write it"),
            (
                b"https://example.com:443",
                Own,
                "the port that the scheme stands for, though no browser writes it",
            ),
            (b"https://example.com:00443", Own, "a port is a number"),
            (b"HTTPS://EXAMPLE.com", Own, "scheme and host have no case (RFC 3986 section 6.2.2.1)"),
            (b"https://example.com.evil.net", Other, "ours is at its beginning"),
            (b"https://example.com-evil.net", Other, "ours is at its beginning"),
            (b"https://evilexample.com", Other, "ours is at its end"),
            (b"https://www.example.com", Other, "a host below ours is another"),
            (b"https://com", Other, "a host above ours is another"),
            (b"https://.example.com", Other, "no host begins with a dot"),
            (b"https://example.com.", Other, "browsers take a host with the root's dot for another"),
            (b"https://example.co", Other, "ours begins with it"),
            (b"https://xample.com", Other, "ours ends with it"),
            (b"https://example.com:8443", Other, "cookies ignore ports, Origins do not"),
            (b"https://example.com:80", Other, "the port of another scheme"),
            (b"https://example.com:4430", Other, "ours is at its beginning"),
            (b"https://example.com:44", Other, "ours begins with it"),
            (b"https://example.com:0", Other, "zero is not the port of the scheme"),
            (b"https://example.com:65535", Other, "the last port"),
            (b"https://example.com:65536", NoOrigin(Authority), "beyond the last port"),
            (b"https://example.com:65979", NoOrigin(Authority), "443 in the low 16 bits"),
            (b"https://example.com:4294967739", NoOrigin(Authority), "443 in the low 32 bits"),
            (b"https://example.com:18446744073709552059", NoOrigin(Authority), "443 in the low 64 bits"),
            (b"https://example.com:", NoOrigin(Authority), "a port that is announced and not there"),
            (b"https://example.com:+443", NoOrigin(Authority), "digits alone"),
            (b"https://example.com:-443", NoOrigin(Authority), "digits alone"),
            (b"https://example.com:0x1bb", NoOrigin(Authority), "digits alone"),
            (b"https://example.com:443:443", NoOrigin(Authority), "two ports"),
            (b"https://example.com:443.evil.net", NoOrigin(Authority), "digits alone"),
            (b"http://example.com", Other, "anybody on the way can write pages of http"),
            (b"http://example.com:443", Other, "our port, another scheme"),
            (b"ftp://example.com", Other, "another scheme"),
            (
                b"chrome-extension://example.com",
                Other,
                "the identifier of an extension may be our host's name",
            ),
            (b"httpss://example.com", Other, "ours begins it"),
            (b"ttps://example.com", Other, "ours ends with it"),
            (b"wss://example.com", NoOrigin(WebSocketScheme), "the URL of the WebSocket, not that of a page"),
            (b"WS://example.com", NoOrigin(WebSocketScheme), "the URL of the WebSocket, not that of a page"),
            (
                b"blob:https://example.com",
                NoOrigin(SchemeMissing),
                "a URL of such a page, whose Origin is within",
            ),
            (b"view-source:https://example.com", NoOrigin(SchemeMissing), "ours is at its end"),
            (b"://example.com", NoOrigin(SchemeMissing), "no scheme"),
            (b"//example.com", NoOrigin(SchemeMissing), "no scheme"),
            (b"example.com", NoOrigin(SchemeMissing), "no scheme"),
            (b"https:example.com", NoOrigin(SchemeMissing), "browsers would mend such a URL"),
            (b"https:/example.com", NoOrigin(SchemeMissing), "browsers would mend such a URL"),
            (b"https:\\\\example.com", NoOrigin(SchemeMissing), "browsers would mend such a URL"),
            (b"https:///example.com", NoOrigin(Rest), "browsers would mend such a URL"),
            (b"null", Other, "of pages that shall be nobody's, and of every attacker who wants it"),
            (b"NULL", NoOrigin(SchemeMissing), "null is written in one way"),
            (b"\"null\"", NoOrigin(SchemeMissing), "null is written in one way"),
            (b"null://", NoOrigin(Authority), "a scheme of that name, without a host"),
            (b"null null", NoOrigin(SchemeMissing), "two"),
            (b"file://", NoOrigin(Authority), "no host: pages of files have null"),
            (b"about:blank", NoOrigin(SchemeMissing), "a URL; its Origin is that of who opened it"),
            (b"*", NoOrigin(SchemeMissing), "what others answer is no Origin"),
            (b"https://*", NoOrigin(Wildcard), "nothing stands for others"),
            (b"https://*.com", NoOrigin(Wildcard), "nothing stands for others"),
            (b"https://user@example.com", NoOrigin(Userinfo), "of a URL, not of an Origin"),
            (b"https://user:secret@example.com", NoOrigin(Userinfo), "of a URL, not of an Origin"),
            (b"https://@example.com", NoOrigin(Userinfo), "of a URL, not of an Origin"),
            (b"https://example.com@evil.net", NoOrigin(Userinfo), "ours as the user of another host"),
            (b"https://example.com:443@evil.net", NoOrigin(Userinfo), "ours as the user of another host"),
            (
                b"https://example.com%40evil.net",
                NoOrigin(Authority),
                "the same with an escape, which no host has",
            ),
            (b"https://example.com/", NoOrigin(Rest), "an Origin has not even a slash"),
            (b"https://example.com:443/", NoOrigin(Rest), "an Origin has not even a slash"),
            (b"https://example.com/chat", NoOrigin(Rest), "a path"),
            (b"https://example.com?a", NoOrigin(Rest), "a query"),
            (b"https://example.com#a", NoOrigin(Rest), "a fragment"),
            (b"https://evil.net/https://example.com", NoOrigin(Rest), "ours in a path"),
            (b"https://evil.net?https://example.com", NoOrigin(Rest), "ours in a query"),
            (b"https://evil.net#https://example.com", NoOrigin(Rest), "ours in a fragment"),
            (b"https://evil.net\\.example.com", NoOrigin(Rest), "a slash to browsers, a letter to others"),
            (b"https://example.com;a", NoOrigin(Authority), "no letter of a host"),
            (b"https://ex%61mple.com", NoOrigin(Authority), "escapes are undone in a URL, not here"),
            (b"https://example%2ecom", NoOrigin(Authority), "escapes are undone in a URL, not here"),
            (b"", NoOrigin(SchemeMissing), "an empty value is not a missing field"),
            (b" https://example.com", NoOrigin(SchemeMissing), "HTTP has taken off what surrounds a value"),
            (b"https://example.com ", NoOrigin(Authority), "HTTP has taken off what surrounds a value"),
            (b"https:// example.com", NoOrigin(Authority), "no letter of a host"),
            (b"https://exam ple.com", NoOrigin(Authority), "no letter of a host"),
            (b"https://example.com :443", NoOrigin(Authority), "no letter of a host"),
            (b"https://example.com: 443", NoOrigin(Authority), "digits alone"),
            (b"https://example\t.com", NoOrigin(Authority), "browsers take tabs out of URLs"),
            (b"https://example\r\n.com", NoOrigin(Authority), "browsers take line breaks out of URLs"),
            (b"https://example.com\0", NoOrigin(Authority), "the end of a text to some readers"),
            (b"https://example.com\0.evil.net", NoOrigin(Authority), "the end of a text to some readers"),
            (b"https://example.com\x7f", NoOrigin(Authority), "a control byte"),
            (b"https://example.com\x0b", NoOrigin(Authority), "a control byte"),
            (b"https://example.com https://evil.net", NoOrigin(Rest), "RFC 6454 had lists, of redirects"),
            (b"https://evil.net https://example.com", NoOrigin(Rest), "RFC 6454 had lists, of redirects"),
            (b"https://example.com null", NoOrigin(Authority), "RFC 6454 had lists, of redirects"),
            (b"https://example.com, https://evil.net", NoOrigin(Rest), "two fields that somebody has joined"),
            (
                b"https://example.com,https://example.com",
                NoOrigin(Rest),
                "two fields that somebody has joined",
            ),
            (b"http\xc5\xbf://example.com", NoOrigin(NotAscii), "a long s folds to an s in Unicode"),
            (
                b"https://example\xe3\x80\x82com",
                NoOrigin(NotAscii),
                "a full stop to browsers, in its wide form",
            ),
            (b"https://example.com\xff", NoOrigin(NotAscii), "not even UTF-8"),
        ],
    ),
    (
        "https://xn--bcher-kva.example",
        &[
            (b"https://xn--bcher-kva.example", Own, "as browsers write it"),
            (b"https://XN--BCHER-KVA.Example", Own, "a host has no case"),
            (b"https://b\xc3\xbccher.example", NoOrigin(NotAscii), "the name itself, in UTF-8"),
            (b"https://b\xfccher.example", NoOrigin(NotAscii), "the name itself, in Latin-1"),
            (b"https://b%C3%BCcher.example", NoOrigin(Authority), "the name itself, escaped"),
            (b"https://bucher.example", Other, "a name that looks like it"),
            (b"https://xn--bcher-kva.example.evil.net", Other, "ours is at its beginning"),
        ],
    ),
    (
        "http://[::1]:8080",
        &[
            (b"http://[::1]:8080", Own, "as browsers write it"),
            (b"http://[0:0:0:0:0:0:0:1]:8080", Own, "the same address"),
            (b"http://[0000::0001]:8080", Own, "the same address"),
            (b"http://[::0.0.0.1]:8080", Own, "the same address"),
            (b"http://[::1]", Other, "another port"),
            (b"http://[::1]:80", Other, "another port"),
            (b"http://[::2]:8080", Other, "another address"),
            (b"http://[::ffff:127.0.0.1]:8080", Other, "the loopback address of another family"),
            (b"http://127.0.0.1:8080", Other, "the loopback address of another family"),
            (b"http://localhost:8080", Other, "a name is no address, whatever it resolves to"),
            (b"http://[::1%25lo]:8080", NoOrigin(Authority), "a zone says something on one machine alone"),
            (b"http://[::1%lo]:8080", NoOrigin(Authority), "a zone says something on one machine alone"),
            (b"http://::1:8080", NoOrigin(Authority), "no brackets"),
            (b"http://[::1:8080", NoOrigin(Authority), "one bracket"),
            (b"http://[[::1]]:8080", NoOrigin(Authority), "four brackets"),
            (b"http://[::1].evil.net:8080", NoOrigin(Authority), "ours is at its beginning"),
            (b"http://[::1]evil.net:8080", NoOrigin(Authority), "ours is at its beginning"),
            (b"http://[localhost]:8080", NoOrigin(Authority), "no address in the brackets"),
        ],
    ),
    (
        "https://[2001:db8::a]",
        &[
            (b"https://[2001:DB8::A]", Own, "hexadecimal digits have no case"),
            (b"https://[2001:0db8:0:0::000a]:443", Own, "the same address"),
            (b"https://[2001:db8::a:0]", Other, "another address"),
            (b"https://[2001:db8::]", Other, "another address"),
        ],
    ),
    (
        "http://[::ffff:192.0.2.1]",
        &[
            (b"http://[::ffff:c000:201]", Own, "as browsers write it"),
            (b"http://[::FFFF:192.0.2.1]", Own, "the same address"),
            (b"http://192.0.2.1", Other, "browsers take them for two hosts, with cookies of their own"),
            (b"http://[::192.0.2.1]", Other, "another address"),
        ],
    ),
    (
        "http://127.0.0.1",
        &[
            (b"http://127.0.0.1", Own, "as browsers write it"),
            (b"http://127.0.0.1:80", Own, "the port that the scheme stands for"),
            (b"http://127.1", Other, "browsers write all four numbers, so no page has it"),
            (b"http://0x7f.1", Other, "browsers write decimal numbers, so no page has it"),
            (b"http://0177.0.0.1", Other, "browsers write decimal numbers, so no page has it"),
            (b"http://127.0.0.01", Other, "browsers write no zeros in front, so no page has it"),
            (b"http://2130706433", Other, "browsers write four numbers, so no page has it"),
            (b"http://127.0.0.1.", Other, "browsers take the root's dot off an address, so no page has it"),
            (b"http://127.0.0.1.evil.net", Other, "ours is at its beginning"),
            (b"http://127.0.0.2", Other, "another address"),
            (b"http://0.0.0.0", Other, "another address, which leads to the same place"),
            (b"http://[::ffff:127.0.0.1]", Other, "browsers take them for two hosts"),
            (b"http://localhost", Other, "a name is no address, whatever it resolves to"),
        ],
    ),
];

/// Holds a value to what it is said to be, and every kind of policy to that.
fn check_value(own: &Origin, value: &[u8], is: Is, why: &str) {
    let told = format!("{:?} beside {own} ({why})", String::from_utf8_lossy(&value[..value.len().min(100)]));
    let elsewhere = Origin::parse("https://elsewhere.example:8443").unwrap();
    let lets_in = |origins: Origins, same: OriginRef<'_>| allows_origin(&origins, Some(value), same);
    let parsed = OriginRef::parse(value);
    match is {
        Own => assert_eq!(parsed.as_ref(), Ok(&own.view()), "{told}"),
        Other => assert!(parsed.is_ok_and(|origin| origin != own.view()), "{told}"),
        NoOrigin(fault) => assert_eq!(parsed.as_ref().err(), Some(&fault), "{told}"),
    }
    let is_own = matches!(is, Own);
    assert_eq!(lets_in(Origins::Same, own.view()), is_own, "{told}");
    assert_eq!(lets_in(Origins::Exact(vec![own.clone()]), OriginRef::Null), is_own, "{told}");
    assert_eq!(
        lets_in(Origins::Exact(vec![elsewhere.clone(), own.clone()]), elsewhere.view()),
        is_own,
        "{told}"
    );
    // What a list does not hold is not let in because the port would have it.
    assert!(!lets_in(Origins::Exact(vec![elsewhere]), own.view()), "{told}");
    assert!(lets_in(Origins::Any, OriginRef::Null) && lets_in(Origins::Upstream, OriginRef::Null), "{told}");
    // Whoever means this one gets this one, and it is the same however it is kept.
    if let Ok(origin) = parsed {
        let kept = origin.to_origin();
        assert!(lets_in(Origins::Exact(vec![kept.clone()]), OriginRef::Null), "{told}");
        assert!(lets_in(Origins::Same, origin), "{told}");
        assert_eq!(Origin::parse(&kept.to_string()), Ok(kept), "{told}");
    }
}

#[test]
fn every_trick_is_told_from_the_origin_that_is_let_in() {
    for (own, values) in MATRIX {
        let own = Origin::parse(own).unwrap();
        for (value, is, why) in *values {
            check_value(&own, value, *is, why);
        }
    }
}

#[test]
fn a_long_value_is_what_a_short_one_would_be() {
    let own = Origin::parse("https://example.com").unwrap();
    let padding = "a".repeat(8 << 10);
    let sub = format!("https://{padding}.example.com");
    let path = format!("https://example.com/{padding}");
    let user = format!("https://{padding}@example.com");
    let port = format!("https://example.com:{}", "4".repeat(8 << 10));
    let scheme = format!("{padding}://example.com");
    for (value, is) in [
        (&sub, Other),
        (&path, NoOrigin(Rest)),
        (&user, NoOrigin(Userinfo)),
        (&port, NoOrigin(Authority)),
        (&scheme, Other),
        (&padding, NoOrigin(SchemeMissing)),
    ] {
        check_value(&own, value.as_bytes(), is, "8 KiB");
    }
}

#[test]
fn a_list_lets_in_each_of_its_origins_and_no_mixture_of_them() {
    let allowed = origins(r#"["https://example.com", "http://localhost:3000"]"#);
    for (origin, expected) in [
        ("https://example.com", true),
        ("http://localhost:3000", true),
        ("http://localhost", false),
        ("http://example.com", false),
        ("https://localhost:3000", false),
        ("http://example.com:3000", false),
        ("https://example.com:3000", false),
        ("https://localhost", false),
    ] {
        assert_eq!(allows_origin(&allowed, Some(origin.as_bytes()), OriginRef::Null), expected, "{origin}");
    }
}

#[test]
fn null_is_allowed_where_it_is_listed() {
    let allowed = origins(r#"["null"]"#);
    assert!(allows_origin(&allowed, Some(b"null"), OriginRef::Null));
    assert!(!allows_origin(&allowed, Some(b"http://null"), OriginRef::Null));
}

#[test]
fn any_lets_everybody_in_and_who_sends_no_origin_is_no_foreign_page() {
    for value in ["https://evil.net", "null", "rubbish"] {
        assert!(allows_origin(&Origins::Any, Some(value.as_bytes()), OriginRef::Null));
    }
    for allowed in [Origins::Any, Origins::Same, Origins::Upstream, origins(r#"["https://example.com"]"#)] {
        assert!(allows_origin(&allowed, None, OriginRef::Null));
    }
}
