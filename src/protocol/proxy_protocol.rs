//! The PROXY protocol, versions 1 and 2, as its receiver: whom a balancer connects for, told before the first byte of
//! the client ("The PROXY protocol, versions 1 & 2", HAProxy).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::closed_set;

/// The largest header that is read, in bytes: the fixed part of version 2, and 2 KiB of addresses and TLVs.
///
/// A client certificate's name and what AWS and Azure add come to a few hundred bytes; a header that fits one packet,
/// as the specification asks for, is below 1,460.
pub const HEADER_SIZE_MAX: usize = V2_FIXED_SIZE + V2_REST_SIZE_MAX;

/// A header that keeps the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The size of the header in bytes. The client's own bytes follow.
    pub size: usize,
    /// The two ends of the client's connection. `None` where the socket's own addresses stand: the balancer speaks for
    /// itself (LOCAL, as for its health checks), or for somebody who has no address (UNKNOWN, UNSPEC, a Unix socket).
    pub addresses: Option<Addresses>,
}

/// The two ends of the connection that a client made to a balancer. `::ffff:` addresses have become IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The client.
    pub client: SocketAddr,
    /// Where the client connected to.
    pub destination: SocketAddr,
}

closed_set! {
    /// Why bytes do not begin with a PROXY protocol header. The label names the fault in logs.
    pub enum ProxyFault {
        /// They begin like neither version: a client has come without a balancer.
        Missing => "missing",
        /// Version 1: the line is longer than 107 bytes, its end included.
        LineTooLong => "line_too_long",
        /// Version 1: neither TCP4, TCP6 nor UNKNOWN.
        Protocol => "protocol",
        /// Version 1: an address that is not one of its protocol.
        Address => "address",
        /// Version 1: a port that is not a decimal number to 65535 without leading zeros.
        Port => "port",
        /// Version 1: a line that does not end in CR LF, or ends too early.
        LineEnd => "line_end",
        /// Version 2: a version other than 2.
        Version => "version",
        /// Version 2: neither LOCAL nor PROXY.
        Command => "command",
        /// Version 2: a family or a transport that is not assigned.
        Family => "family",
        /// Version 2: too short for the addresses of its family.
        TooShort => "too_short",
        /// Version 2: longer than [`HEADER_SIZE_MAX`].
        TooLong => "too_long",
        /// Version 2: a TLV that reaches beyond the header.
        Tlv => "tlv",
        /// Version 2: a checksum that is not that of the header.
        Checksum => "checksum",
    }
}

/// Reads the header that `received` begins with; `None` where more bytes must come.
///
/// Each call begins at the first byte again, which [`HEADER_SIZE_MAX`] bounds: with so many bytes there is always an
/// outcome. The outcome depends on the bytes alone, not on how they were cut. TLVs are walked, not interpreted, but
/// for the checksum (CRC32C), which is verified where there is one.
///
/// # Errors
/// [`ProxyFault`], as soon as no further byte can mend it: within an address or a port at the first character that none
/// may hold, else where the word ends.
pub fn parse(received: &[u8]) -> Result<Option<Header>, ProxyFault> {
    if begins_alike(received, V1_PREFIX) {
        parse_v1(received)
    } else if begins_alike(received, V2_SIGNATURE) {
        parse_v2(received)
    } else {
        Err(ProxyFault::Missing)
    }
}

const V1_PREFIX: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The longest line of version 1, CR LF included: UNKNOWN with two IPv6 addresses in full and two ports.
const V1_SIZE_MAX: usize = 107;

/// What every header of version 2 has: signature, version and command, family and transport, size of the rest.
const V2_FIXED_SIZE: usize = 16;
const V2_REST_SIZE_MAX: usize = 2_048;

/// The type and the size of a TLV.
const TLV_HEADER_SIZE: usize = 3;
const TLV_CRC32C: u8 = 0x03;

/// Whether the bytes begin with the prefix, or the prefix begins with them.
fn begins_alike(bytes: &[u8], prefix: &[u8]) -> bool {
    let size = bytes.len().min(prefix.len());
    bytes[..size] == prefix[..size]
}

fn parse_v1(received: &[u8]) -> Result<Option<Header>, ProxyFault> {
    let within = &received[..received.len().min(V1_SIZE_MAX)];
    match parse_line(within) {
        Ok(None) if within.len() == V1_SIZE_MAX => Err(ProxyFault::LineTooLong),
        outcome => outcome,
    }
}

/// Reads a line of version 1, whatever its length.
fn parse_line(line: &[u8]) -> Result<Option<Header>, ProxyFault> {
    let Some(rest) = line.strip_prefix(V1_PREFIX) else { return Ok(None) };
    let is_v6 = match rest {
        [b'T', b'C', b'P', b'4', b' ', ..] => false,
        [b'T', b'C', b'P', b'6', b' ', ..] => true,
        _ if rest.starts_with(b"UNKNOWN") => return parse_unknown(line),
        _ if [&b"TCP4 "[..], b"TCP6 ", b"UNKNOWN"].iter().any(|word| word.starts_with(rest)) => {
            return Ok(None);
        }
        _ => return Err(ProxyFault::Protocol),
    };
    let mut rest = &rest[b"TCP4 ".len()..];
    let Some(client) = take_address(&mut rest, is_v6)? else { return Ok(None) };
    let Some(destination) = take_address(&mut rest, is_v6)? else { return Ok(None) };
    let Some(client_port) = take_port(&mut rest, b' ')? else { return Ok(None) };
    let Some(destination_port) = take_port(&mut rest, b'\r')? else { return Ok(None) };
    match rest {
        [] => Ok(None),
        [b'\n', ..] => Ok(Some(Header {
            size: line.len() - rest.len() + 1,
            addresses: Some(Addresses {
                client: SocketAddr::new(client.to_canonical(), client_port),
                destination: SocketAddr::new(destination.to_canonical(), destination_port),
            }),
        })),
        _ => Err(ProxyFault::LineEnd),
    }
}

/// Reads a line that says UNKNOWN: what follows the word is passed over up to the end of the line.
fn parse_unknown(line: &[u8]) -> Result<Option<Header>, ProxyFault> {
    match line.get(V1_PREFIX.len() + b"UNKNOWN".len()) {
        None => return Ok(None),
        Some(b' ' | b'\r') => {}
        Some(_) => return Err(ProxyFault::Protocol),
    }
    let Some(end) = line.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else { return Ok(None) };
    match line[end..] {
        [b'\r'] => Ok(None),
        [b'\r', b'\n', ..] => Ok(Some(Header { size: end + 2, addresses: None })),
        _ => Err(ProxyFault::LineEnd),
    }
}

/// Takes an address and the space behind it.
fn take_address(rest: &mut &[u8], is_v6: bool) -> Result<Option<IpAddr>, ProxyFault> {
    let is_address_byte = |byte: u8| match byte {
        b'.' => true,
        b':' => is_v6,
        _ if is_v6 => byte.is_ascii_hexdigit(),
        _ => byte.is_ascii_digit(),
    };
    // Eight groups of four digits; what ends in an IPv4 address is written shorter.
    let size_max = if is_v6 { 39 } else { 15 };
    let Some(word) = take_word(rest, b' ', size_max, is_address_byte, ProxyFault::Address)? else {
        return Ok(None);
    };
    let address = if is_v6 {
        word.parse::<Ipv6Addr>().map(IpAddr::from)
    } else {
        word.parse::<Ipv4Addr>().map(IpAddr::from)
    };
    address.map(Some).map_err(|_| ProxyFault::Address)
}

/// Takes a port and the byte behind it.
fn take_port(rest: &mut &[u8], end: u8) -> Result<Option<u16>, ProxyFault> {
    let Some(word) = take_word(rest, end, "65535".len(), |byte| byte.is_ascii_digit(), ProxyFault::Port)?
    else {
        return Ok(None);
    };
    if word.len() > 1 && word.starts_with('0') {
        return Err(ProxyFault::Port);
    }
    word.parse().map(Some).map_err(|_| ProxyFault::Port)
}

/// Takes a word of at most so many such bytes and the byte that ends it, if that has arrived.
fn take_word<'b>(
    rest: &mut &'b [u8],
    end: u8,
    size_max: usize,
    is_word_byte: impl Fn(u8) -> bool,
    fault: ProxyFault,
) -> Result<Option<&'b str>, ProxyFault> {
    let bytes = *rest;
    let size = bytes.iter().take_while(|byte| is_word_byte(**byte)).count();
    if size > size_max {
        return Err(fault);
    }
    match bytes.get(size) {
        None => Ok(None),
        Some(byte) if *byte == end => {
            *rest = &bytes[size + 1..];
            Ok(Some(std::str::from_utf8(&bytes[..size]).expect("the bytes of a word are ASCII")))
        }
        Some(b'\r' | b'\n') => Err(ProxyFault::LineEnd),
        Some(_) => Err(fault),
    }
}

fn parse_v2(received: &[u8]) -> Result<Option<Header>, ProxyFault> {
    let Some(version_and_command) = received.get(V2_SIGNATURE.len()) else { return Ok(None) };
    if version_and_command >> 4 != 2 {
        return Err(ProxyFault::Version);
    }
    let is_local = match version_and_command & 0x0f {
        0 => true,
        1 => false,
        _ => return Err(ProxyFault::Command),
    };
    let Some(family_and_transport) = received.get(V2_SIGNATURE.len() + 1) else { return Ok(None) };
    let addresses_size = match (family_and_transport >> 4, family_and_transport & 0x0f) {
        // Of a connection of the balancer's own, family and addresses are to be ignored.
        _ if is_local => None,
        (1, 1 | 2) => Some(2 * 4 + 2 * 2),
        (2, 1 | 2) => Some(2 * 16 + 2 * 2),
        (3, 1 | 2) => Some(2 * 108),
        (0..=3, 0) | (0, 1 | 2) => None,
        _ => return Err(ProxyFault::Family),
    };
    let Some(rest_size) = received.get(V2_FIXED_SIZE - 2..V2_FIXED_SIZE) else { return Ok(None) };
    let rest_size = usize::from(u16::from_be_bytes([rest_size[0], rest_size[1]]));
    if rest_size > V2_REST_SIZE_MAX {
        return Err(ProxyFault::TooLong);
    }
    let size = V2_FIXED_SIZE + rest_size;
    let received = &received[..received.len().min(size)];
    let Some(addresses_size) = addresses_size else {
        return Ok((received.len() == size).then_some(Header { size, addresses: None }));
    };
    if addresses_size > rest_size {
        return Err(ProxyFault::TooShort);
    }
    let checksum_at = check_tlvs(received, V2_FIXED_SIZE + addresses_size, size)?;
    if received.len() < size {
        return Ok(None);
    }
    if checksum_at.is_some_and(|at| !is_checksum_right(received, at)) {
        return Err(ProxyFault::Checksum);
    }
    Ok(Some(Header { size, addresses: addresses_v2(&received[V2_FIXED_SIZE..][..addresses_size]) }))
}

/// Walks the TLVs from `at` to `end` as far as they have arrived, and returns where the value of a checksum stands.
fn check_tlvs(received: &[u8], mut at: usize, end: usize) -> Result<Option<usize>, ProxyFault> {
    let mut checksum_at = None;
    while at < end {
        let value_at = at + TLV_HEADER_SIZE;
        if value_at > end {
            return Err(ProxyFault::Tlv);
        }
        let Some(&[kind, high, low]) = received.get(at..value_at) else { break };
        let value_size = usize::from(u16::from_be_bytes([high, low]));
        if value_size > end - value_at {
            return Err(ProxyFault::Tlv);
        }
        if kind == TLV_CRC32C {
            if value_size != size_of::<u32>() || checksum_at.is_some() {
                return Err(ProxyFault::Checksum);
            }
            checksum_at = Some(value_at);
        }
        at = value_at + value_size;
    }
    Ok(checksum_at)
}

/// Whether the checksum at this place is that of the header, reckoned with zeros in its own place.
fn is_checksum_right(header: &[u8], at: usize) -> bool {
    let (before, rest) = header.split_at(at);
    let (checksum, after) = rest.split_at(size_of::<u32>());
    let reckoned = [before, &[0; size_of::<u32>()], after].into_iter().fold(u32::MAX, crc32c);
    checksum == (!reckoned).to_be_bytes()
}

/// Adds bytes to a CRC32C (RFC 9260 appendix A), bit by bit: a header has few bytes, and a connection one header.
fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

/// The addresses of version 2; those of Unix sockets are passed over.
fn addresses_v2(bytes: &[u8]) -> Option<Addresses> {
    let (client, destination, ports): (IpAddr, IpAddr, _) = match bytes.len() {
        12 => {
            let address =
                |at: usize| bytes[at..].first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets).into());
            (address(0)?, address(4)?, &bytes[8..])
        }
        36 => {
            let address = |at: usize| {
                bytes[at..].first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).to_canonical())
            };
            (address(0)?, address(16)?, &bytes[32..])
        }
        _ => return None,
    };
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    Some(Addresses {
        client: SocketAddr::new(client, port(0)),
        destination: SocketAddr::new(destination, port(2)),
    })
}

/// Any bytes as the beginning of a connection that has to begin with a header.
///
/// However they are cut the outcome is the same, and there is one within [`HEADER_SIZE_MAX`] bytes. What has no `::ffff:`
/// address means the same when it is written again in version 1.
///
/// # Panics
/// Where one of these does not hold.
#[doc(hidden)]
pub fn fuzz_proxy_header(data: &[u8]) {
    let outcome = parse(data);
    let mut prefixes = (0..=data.len().min(HEADER_SIZE_MAX)).map(|size| parse(&data[..size]));
    let first = prefixes.find(|outcome| *outcome != Ok(None)).unwrap_or(Ok(None));
    assert_eq!(first, outcome, "the outcome depends on how the bytes were cut");
    match outcome {
        Ok(None) => assert!(data.len() < HEADER_SIZE_MAX, "a header without end is never refused"),
        Ok(Some(Header { size, addresses })) => {
            assert!(size <= data.len());
            let Some(Addresses { client, destination }) = addresses else { return };
            let is_mapped = |address: SocketAddr| address.ip().to_canonical() != address.ip();
            assert!(!is_mapped(client) && !is_mapped(destination));
            if client.is_ipv4() == destination.is_ipv4() {
                let protocol = if client.is_ipv4() { "TCP4" } else { "TCP6" };
                let (ip, port) = (client.ip(), client.port());
                let line =
                    format!("PROXY {protocol} {ip} {} {port} {}\r\n", destination.ip(), destination.port());
                assert_eq!(parse(line.as_bytes()), Ok(Some(Header { size: line.len(), addresses })));
            }
        }
        Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(client: &str, destination: &str) -> Addresses {
        Addresses { client: client.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    /// Checks the outcome for the bytes, and that it is there with the last of them and not before.
    fn comes_to(bytes: &[u8], expected: Result<Option<Addresses>, ProxyFault>) {
        let text = bytes.escape_ascii().to_string();
        for size in 0..bytes.len() {
            assert_eq!(parse(&bytes[..size]), Ok(None), "{text}: {size} bytes");
        }
        let expected = expected.map(|addresses| Some(Header { size: bytes.len(), addresses }));
        assert_eq!(parse(bytes), expected, "{text}");
        let followed = [bytes, b"GET / HTTP/1.1\r\n\0\r"].concat();
        assert_eq!(parse(&followed), expected, "{text}, and more behind it");
        fuzz_proxy_header(&followed);
    }

    /// A header of version 2 of these two bytes and this rest.
    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let size = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE, &[command, family], &size, rest].concat()
    }

    const V4: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 2, 0xdc, 0x04, 0x01, 0xbb];

    #[test]
    fn a_line_of_version_1_is_read() {
        comes_to(
            b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n",
            Ok(Some(addresses("192.0.2.1:56324", "198.51.100.2:443"))),
        );
        comes_to(
            b"PROXY TCP6 2001:db8::1 2001:DB8:0:0:0:0:0:2 0 65535\r\n",
            Ok(Some(addresses("[2001:db8::1]:0", "[2001:db8::2]:65535"))),
        );
    }

    #[test]
    fn a_line_of_version_1_has_107_bytes_at_most() {
        let address = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe";
        let longest = format!("PROXY UNKNOWN {address} {address} 65535 65535\r\n");
        assert_eq!(longest.len(), V1_SIZE_MAX);
        comes_to(longest.as_bytes(), Ok(None));
        let longer = format!("PROXY UNKNOWN {}", "x".repeat(V1_SIZE_MAX - 14));
        comes_to(longer.as_bytes(), Err(ProxyFault::LineTooLong));
        comes_to(format!("{}\r", &longer[..V1_SIZE_MAX - 1]).as_bytes(), Err(ProxyFault::LineTooLong));
    }

    #[test]
    fn unknown_keeps_the_addresses_of_the_socket() {
        comes_to(b"PROXY UNKNOWN\r\n", Ok(None));
        comes_to(b"PROXY UNKNOWN whatever 1 2 3\t\r\n", Ok(None));
        comes_to(b"PROXY UNKNOWNS", Err(ProxyFault::Protocol));
        comes_to(b"PROXY UNKNOWN \n", Err(ProxyFault::LineEnd));
        comes_to(b"PROXY UNKNOWN\r\r", Err(ProxyFault::LineEnd));
    }

    #[test]
    fn a_line_of_version_1_that_breaks_its_grammar_is_refused_where_it_does() {
        for (line, fault) in [
            ("G", ProxyFault::Missing),
            ("PROXX", ProxyFault::Missing),
            ("PROXY\t", ProxyFault::Missing),
            ("PROXY  ", ProxyFault::Protocol),
            ("PROXY t", ProxyFault::Protocol),
            ("PROXY TCP5", ProxyFault::Protocol),
            ("PROXY TCP4\t", ProxyFault::Protocol),
            ("PROXY TCP4  ", ProxyFault::Address),
            ("PROXY TCP4 a", ProxyFault::Address),
            ("PROXY TCP4 :", ProxyFault::Address),
            ("PROXY TCP4 1.2.3 ", ProxyFault::Address),
            ("PROXY TCP4 1.2.3.04 ", ProxyFault::Address),
            ("PROXY TCP4 1.2.3.256 ", ProxyFault::Address),
            ("PROXY TCP4 1111111111111111", ProxyFault::Address),
            ("PROXY TCP6 1.2.3.4 ", ProxyFault::Address),
            ("PROXY TCP6 ::1%", ProxyFault::Address),
            ("PROXY TCP6 [", ProxyFault::Address),
            ("PROXY TCP4 1.2.3.4\r", ProxyFault::LineEnd),
            ("PROXY TCP4 1.2.3.4 1.2.3.4  ", ProxyFault::Port),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 01 ", ProxyFault::Port),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 +", ProxyFault::Port),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 65536 ", ProxyFault::Port),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 111111", ProxyFault::Port),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1\r", ProxyFault::LineEnd),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2 ", ProxyFault::Port),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n", ProxyFault::LineEnd),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\r", ProxyFault::LineEnd),
        ] {
            comes_to(line.as_bytes(), Err(fault));
        }
    }

    #[test]
    fn a_header_of_version_2_is_read() {
        let v6 = [&Ipv6Addr::LOCALHOST.octets()[..], &[0x20; 16], &[0, 80, 0, 81]].concat();
        for transport in [1, 2] {
            comes_to(
                &v2(0x21, 0x10 | transport, V4),
                Ok(Some(addresses("192.0.2.1:56324", "198.51.100.2:443"))),
            );
            comes_to(
                &v2(0x21, 0x20 | transport, &v6),
                Ok(Some(addresses("[::1]:80", "[2020:2020:2020:2020:2020:2020:2020:2020]:81"))),
            );
        }
    }

    #[test]
    fn mapped_addresses_become_ipv4() {
        let expected = addresses("192.0.2.1:1", "198.51.100.2:2");
        comes_to(b"PROXY TCP6 ::ffff:192.0.2.1 ::FFFF:c633:6402 1 2\r\n", Ok(Some(expected)));
        let octets = |last: [u8; 4]| Ipv4Addr::from(last).to_ipv6_mapped().octets();
        let rest = [&octets([192, 0, 2, 1])[..], &octets([198, 51, 100, 2]), &[0, 1, 0, 2]].concat();
        comes_to(&v2(0x21, 0x21, &rest), Ok(Some(expected)));
    }

    #[test]
    fn local_and_unspecified_and_unix_keep_the_addresses_of_the_socket() {
        comes_to(&v2(0x20, 0x00, b""), Ok(None));
        comes_to(&v2(0x20, 0x11, V4), Ok(None));
        // Of LOCAL the rest is to be passed over, whatever it is.
        comes_to(&v2(0x20, 0xff, b"\x04\xff"), Ok(None));
        comes_to(&v2(0x21, 0x00, b"\x04\xff"), Ok(None));
        comes_to(&v2(0x21, 0x10, V4), Ok(None));
        comes_to(&v2(0x21, 0x31, &[7; 216]), Ok(None));
    }

    #[test]
    fn a_header_of_version_2_that_breaks_a_rule_is_refused_where_it_does() {
        for size in 1..V2_SIGNATURE.len() {
            let mut bytes = V2_SIGNATURE[..size].to_vec();
            *bytes.last_mut().unwrap() ^= 1;
            comes_to(&bytes, Err(ProxyFault::Missing));
        }
        let cut = |bytes: &[u8], size: usize| bytes[..size].to_vec();
        comes_to(&cut(&v2(0x11, 0x11, V4), 13), Err(ProxyFault::Version));
        comes_to(&cut(&v2(0x31, 0x11, V4), 13), Err(ProxyFault::Version));
        comes_to(&cut(&v2(0x22, 0x11, V4), 13), Err(ProxyFault::Command));
        for family in [0x13, 0x40, 0x41, 0x03, 0xf1] {
            comes_to(&cut(&v2(0x21, family, V4), 14), Err(ProxyFault::Family));
        }
        for (family, size) in [(0x11, 11), (0x22, 35), (0x31, 215)] {
            comes_to(&cut(&v2(0x21, family, &vec![0; size]), 16), Err(ProxyFault::TooShort));
        }
        let too_long = [V2_SIGNATURE, b"\x20\x00\x08\x01"].concat();
        comes_to(&too_long, Err(ProxyFault::TooLong));
        comes_to(&v2(0x20, 0x00, &[1; V2_REST_SIZE_MAX]), Ok(None));
    }

    #[test]
    fn tlvs_are_walked_and_bounded_by_the_header() {
        let with = |tlvs: &[u8]| v2(0x21, 0x11, &[V4, tlvs].concat());
        let good = Ok(Some(addresses("192.0.2.1:56324", "198.51.100.2:443")));
        comes_to(&with(b"\x04\0\0"), good);
        comes_to(&with(b"\x02\0\x03a.b\xea\0\x02\0\x01"), good);
        // Two bytes are no TLV, which is known before they come; a size that is too large, when it has come.
        comes_to(&with(b"\x04\0")[..16], Err(ProxyFault::Tlv));
        comes_to(&with(b"\x04\0\x01"), Err(ProxyFault::Tlv));
        comes_to(&with(b"\x04\0\x01x\x04\xff\xffxxx")[..35], Err(ProxyFault::Tlv));
    }

    #[test]
    fn a_checksum_is_verified() {
        assert_eq!(!crc32c(u32::MAX, b"123456789"), 0xe306_9283, "the check value of CRC32C");
        let mut header = v2(0x21, 0x11, &[V4, b"\x04\0\x01x\x03\0\x04\0\0\0\0\x04\0\0"].concat());
        let at = header.len() - 7;
        let checksum = !crc32c(u32::MAX, &header);
        header[at..at + 4].copy_from_slice(&checksum.to_be_bytes());
        comes_to(&header, Ok(Some(addresses("192.0.2.1:56324", "198.51.100.2:443"))));
        header[20] ^= 1;
        comes_to(&header, Err(ProxyFault::Checksum));
        comes_to(&v2(0x21, 0x11, &[V4, b"\x03\0\x03abc"].concat())[..31], Err(ProxyFault::Checksum));
        let twice = v2(0x21, 0x11, &[V4, b"\x03\0\x04abcd\x03\0\x04abcd"].concat());
        comes_to(&twice[..38], Err(ProxyFault::Checksum));
    }

    #[test]
    fn headers_hold_under_mutation() {
        let crc = v2(0x21, 0x11, &[V4, b"\x03\0\x04abcd\x04\0\x01x"].concat());
        let seeds = [
            &b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"[..],
            b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 0 65535\r\nGET",
            b"PROXY UNKNOWN x\r\n",
            &v2(0x21, 0x21, &[1; 40]),
            &v2(0x20, 0x00, &[1; V2_REST_SIZE_MAX]),
            &crc,
        ];
        let mut random = crate::protocol::websocket::fuzz::Random(0x5eed_0002);
        for seed in seeds {
            for _ in 0..300 {
                let mut bytes = seed.to_vec();
                for _ in 0..=random.below(3) {
                    let at = random.below(bytes.len());
                    bytes[at] = b" \r\n\0.:019\x21\x11\xffTX"[random.below(13)];
                }
                fuzz_proxy_header(&bytes);
            }
        }
    }
}
