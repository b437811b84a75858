//! Whether a route lets a client in: the Origin of the page it runs in, the network it comes from.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::{Access, Origins, Port, Scheme};
use crate::protocol::http::origin::OriginRef;

/// Whether a page of `origin` may open a WebSocket on a route with these `origins`.
///
/// `origin` is the value of the `Origin` field as it came, `same` the Origin that the port has for its clients
/// ([`public_origin`]). Without the field the answer is yes: every browser sends it with an opening handshake (RFC 6455
/// section 4.1), and who is no browser could send any. Scheme, host and port are compared, each exactly; a value that is
/// no Origin is none of those allowed.
pub fn allows_origin(origins: &Origins, origin: Option<&[u8]>, same: OriginRef<'_>) -> bool {
    let Some(origin) = origin else { return true };
    let is_one_of = |matches: &dyn Fn(OriginRef<'_>) -> bool| OriginRef::parse(origin).is_ok_and(matches);
    match origins {
        Origins::Any | Origins::Upstream => true,
        Origins::Same => is_one_of(&|origin| origin == same),
        Origins::Exact(allowed) => {
            is_one_of(&|origin| allowed.iter().any(|allowed| allowed.view() == origin))
        }
    }
}

/// Whether an address is in one of the networks. `::ffff:` addresses count as the IPv4 addresses that they are.
pub fn is_within(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// Whether somebody from this address may come.
pub fn admits(access: &Access, address: IpAddr) -> bool {
    (access.allow.is_empty() || is_within(&access.allow, address)) && !is_within(&access.deny, address)
}

/// The Origin of a page that came from `port`, as its client sees it.
///
/// `host` and `host_port` are what the request's authority says: the client wrote it, so it tells what the client sees
/// even behind NAT. What the configuration says of the port stands above it.
pub fn public_origin<'a>(port: &'a Port, host: &'a str, host_port: Option<u16>) -> OriginRef<'a> {
    let (scheme, default_port) = match port.public_scheme.unwrap_or(Scheme::Ws) {
        Scheme::Ws => ("http", 80),
        Scheme::Wss => ("https", 443),
    };
    OriginRef::Tuple {
        scheme,
        host: port.public_host.as_deref().unwrap_or(host),
        port: Some(port.public_port.or(host_port).unwrap_or(default_port)),
    }
}

#[cfg(test)]
mod tests;
