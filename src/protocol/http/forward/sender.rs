//! Whom a request comes from, where proxies stand before the gateway: `Forwarded` (RFC 7239) and `X-Forwarded-For`.

use core::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::FoldedName;
use crate::protocol::http::{list, request::RequestHead};

/// Whom a request comes from, as far as it is believed.
///
/// The peer is who connected, or whom its PROXY header names. What the head says besides is believed only of a peer in a
/// trusted network. Then both chains, `Forwarded` and `X-Forwarded-For`, are read from the right: through entries in
/// trusted networks to the first that is not, which is the client. An entry that is no address ends the reading.
///
/// **Where a request has both and they come to different clients, neither is believed.** A proxy that appends to the one
/// passes the other on as the client wrote it, and nothing here tells which is which. Who sends a forged one along is
/// then taken for the proxy, and gains nothing by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    peer: IpAddr,
    client: IpAddr,
    is_believed: bool,
    has_ignored: bool,
}

impl Sender {
    /// The sender of a request from this peer. `::ffff:` addresses have to be made IPv4 before they come here; those in
    /// the head are.
    ///
    /// Costs one walk over the fields, and asks about each entry of the chains at most once.
    pub fn of(head: &RequestHead<'_>, peer: IpAddr, is_trusted: impl Fn(IpAddr) -> bool) -> Self {
        let (mut is_claimed, mut has_ignored) = (false, false);
        for field in head.fields() {
            let name = FoldedName::new(field.name);
            if name.is_of_the_sender() {
                is_claimed = true;
                // The name under which another reader would take it for the field that it is not.
                has_ignored |= name.has_underscore;
            }
        }
        let claimed = if is_trusted(peer) { claimed_client(head, peer, &is_trusted) } else { None };
        has_ignored |= is_claimed && claimed.is_none();
        Self { peer, client: claimed.unwrap_or(peer), is_believed: claimed.is_some(), has_ignored }
    }

    /// The address of the client.
    pub const fn client(&self) -> IpAddr {
        self.client
    }

    /// The address of the peer.
    pub const fn peer(&self) -> IpAddr {
        self.peer
    }

    /// Whether there were fields about the client that were not believed. They are not passed on either.
    pub const fn has_ignored(&self) -> bool {
        self.has_ignored
    }

    /// Whether what the peer says about the client is believed.
    pub(super) const fn is_believed(&self) -> bool {
        self.is_believed
    }
}

/// The client that the chains of a trusted peer come to; the peer where there are none, `None` where they contradict
/// each other, or one of them could swallow what is appended to it.
fn claimed_client(
    head: &RequestHead<'_>,
    peer: IpAddr,
    is_trusted: &impl Fn(IpAddr) -> bool,
) -> Option<IpAddr> {
    let entries = head.values("x-forwarded-for").flat_map(|value| value.split(|byte| *byte == b','));
    let entries = entries.map(<[u8]>::trim_ascii).filter(|entry| !entry.is_empty());
    let by_list = first_untrusted(entries.map(node_address), is_trusted, peer);
    let by_forwarded = first_untrusted(head.list("forwarded").map(forwarded_for), is_trusted, peer);
    match (by_list, by_forwarded) {
        _ if !head.values("forwarded").all(list::closes_its_quotes) => None,
        (Some(one), Some(other)) => (one == other).then_some(one),
        (one, other) => Some(one.or(other).unwrap_or(peer)),
    }
}

/// The client that a chain comes to, `None` for an empty one.
///
/// The chain is read from the left, which comes to the same as reading it from the right: an untrusted entry hides all
/// before it, an entry that is no address hides them too and leaves it to the next, and behind a client all that are
/// trusted are proxies.
fn first_untrusted(
    entries: impl Iterator<Item = Option<IpAddr>>,
    is_trusted: &impl Fn(IpAddr) -> bool,
    peer: IpAddr,
) -> Option<IpAddr> {
    let (mut client, mut is_empty) = (None, true);
    for entry in entries {
        is_empty = false;
        client = match (entry, client) {
            (None, _) => None,
            (Some(address), None) => Some(address),
            (Some(address), Some(_)) if !is_trusted(address) => Some(address),
            (Some(_), Some(before)) => Some(before),
        };
    }
    if is_empty { None } else { Some(client.unwrap_or(peer)) }
}

/// The address in an element of `Forwarded`: that of its one `for`.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    let mut node = None;
    for parameter in list::parameters(element) {
        let equals = parameter.iter().position(|byte| *byte == b'=')?;
        if parameter[..equals].eq_ignore_ascii_case(b"for")
            && node.replace(&parameter[equals + 1..]).is_some()
        {
            return None;
        }
    }
    let node = node?;
    // No address needs an escape within its quotes; one that has any is left unread.
    node_address(node.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(node))
}

/// An address, with its port or without, an IPv6 address in brackets or without.
fn node_address(node: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(node).ok()?;
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::from);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let address = text.parse::<IpAddr>().ok().or_else(bracketed).or_else(with_port)?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http::field_storage;

    /// The sender of a request with these lines, where `10.0.0.0/8` and `fd00::/8` are trusted.
    fn sender(peer: &str, lines: &str) -> Sender {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        let mut storage = field_storage();
        let head = RequestHead::parse(head.as_bytes(), &mut storage).unwrap();
        Sender::of(&head, peer.parse().unwrap(), |address| match address {
            IpAddr::V4(address) => address.octets()[0] == 10,
            IpAddr::V6(address) => address.octets()[0] == 0xfd,
        })
    }

    /// Checks whom a request through the trusted 10.0.0.1 comes from, and that nothing of it was ignored.
    fn comes_from(lines: &str, client: &str) {
        let found = sender("10.0.0.1", lines);
        assert_eq!((found.client(), found.has_ignored()), (client.parse().unwrap(), false), "{lines}");
        assert_eq!(found.peer(), "10.0.0.1".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn nobody_but_a_trusted_peer_is_believed() {
        for (lines, has_ignored) in [
            ("", false),
            ("X-Request-Id: a\r\n", false),
            ("X-Forwarded-For: 192.0.2.1\r\n", true),
            ("Forwarded: for=192.0.2.1\r\n", true),
            ("x-forwarded-proto: https\r\n", true),
            ("X-Real-IP: 192.0.2.1\r\n", true),
            ("X_Forwarded_For: 192.0.2.1\r\n", true),
        ] {
            let found = sender("203.0.113.7", lines);
            assert_eq!(found.client(), found.peer());
            assert_eq!((found.is_believed(), found.has_ignored()), (false, has_ignored), "{lines}");
        }
        comes_from("", "10.0.0.1");
        assert!(sender("10.0.0.1", "").is_believed());
    }

    #[test]
    fn x_forwarded_for_is_read_from_the_right_through_trusted_networks() {
        comes_from("X-Forwarded-For: 192.0.2.1\r\n", "192.0.2.1");
        comes_from("X-Forwarded-For: 1.1.1.1, 192.0.2.1,10.9.9.9 , fd00::1\r\n", "192.0.2.1");
        comes_from("X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: , 192.0.2.1,\r\n", "192.0.2.1");
        comes_from("X-Forwarded-For: 10.0.0.3, 10.0.0.2\r\n", "10.0.0.3");
        comes_from("X-Forwarded-For:\r\n", "10.0.0.1");
    }

    #[test]
    fn an_entry_that_is_no_address_ends_the_reading() {
        comes_from("X-Forwarded-For: 192.0.2.1, unknown, 10.0.0.2\r\n", "10.0.0.2");
        comes_from("X-Forwarded-For: 192.0.2.1, unknown\r\n", "10.0.0.1");
        comes_from("X-Forwarded-For: unknown, 192.0.2.1, 10.0.0.2\r\n", "192.0.2.1");
        comes_from("Forwarded: for=192.0.2.1, for=_hidden, for=10.0.0.2\r\n", "10.0.0.2");
        comes_from("Forwarded: for=192.0.2.1, host=a\r\n", "10.0.0.1");
        comes_from("Forwarded: for=192.0.2.1;for=192.0.2.2\r\n", "10.0.0.1");
        comes_from("X-Forwarded-For: 192.0.2.1\"\r\n", "10.0.0.1");
    }

    #[test]
    fn forwarded_is_read_by_its_grammar() {
        comes_from("Forwarded: For=192.0.2.1;proto=https;by=10.0.0.1\r\n", "192.0.2.1");
        comes_from("Forwarded: proto=http; for=\"192.0.2.1:4711\" , for=10.0.0.2\r\n", "192.0.2.1");
        comes_from("Forwarded: for=\"[2001:DB8::1]:80\"\r\n", "2001:db8::1");
        comes_from("Forwarded: for=\"[2001:db8::1]\"\r\nforwarded: for=10.0.0.2\r\n", "2001:db8::1");
        // A host that a client chose does not become another parameter, or another element.
        comes_from("Forwarded: for=192.0.2.1;host=\"a;for=1.1.1.1, for=1.1.1.1\"\r\n", "192.0.2.1");
        comes_from("Forwarded: for=192.0.2.1;host=\"\\\";for=1.1.1.1\"\r\n", "192.0.2.1");
    }

    #[test]
    fn addresses_come_with_ports_and_in_brackets_and_become_ipv4() {
        for (entry, address) in [
            ("192.0.2.1:80", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
        ] {
            comes_from(&format!("X-Forwarded-For: {entry}\r\n"), address);
        }
        for entry in ["192.0.2.1:", "192.0.2.01", "192.0.2.1:65536", "[192.0.2.1]", "[::1", "::1%eth0", "a b"]
        {
            comes_from(&format!("X-Forwarded-For: {entry}\r\n"), "10.0.0.1");
        }
        // A trusted network holds them in whichever way they are written.
        comes_from("X-Forwarded-For: 192.0.2.1, ::ffff:10.0.0.2\r\n", "192.0.2.1");
    }

    #[test]
    fn chains_that_come_to_different_clients_are_both_ignored() {
        comes_from(
            "Forwarded: for=192.0.2.1\r\nX-Forwarded-For: 1.1.1.1, 192.0.2.1, 10.0.0.2\r\n",
            "192.0.2.1",
        );
        for lines in [
            "Forwarded: for=192.0.2.1\r\nX-Forwarded-For: 192.0.2.2\r\n",
            "Forwarded: for=192.0.2.1\r\nX-Forwarded-For: unknown\r\n",
            "Forwarded: for=192.0.2.1;host=\"a\r\n",
            "Forwarded: for=\"\r\nX-Forwarded-For: 192.0.2.2\r\n",
        ] {
            let found = sender("10.0.0.1", lines);
            assert_eq!(found.client(), found.peer(), "{lines}");
            assert_eq!((found.is_believed(), found.has_ignored()), (false, true), "{lines}");
        }
    }

    #[test]
    fn a_name_with_underscores_is_ignored_of_anybody() {
        let found = sender("10.0.0.1", "X_Forwarded_For: 1.1.1.1\r\nX-Forwarded-For: 192.0.2.1\r\n");
        assert_eq!((found.client(), found.has_ignored()), ("192.0.2.1".parse().unwrap(), true));
    }
}
