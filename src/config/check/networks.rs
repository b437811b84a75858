//! Lists of networks, as in `trusted`.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::super::Access;
use super::super::fault::{Caution, NetworkFault, Problem};
use super::super::file::{Item, Reader, Section};
use super::list;

/// The networks that `item` lists, at least one.
pub(super) fn networks<'t>(reader: &mut Reader<'t>, item: &Item<'t>) -> Option<Vec<IpNet>> {
    read(reader, item, |reader, item| reader.warn(item, Caution::EverybodyTrusted))
}

/// The same, telling of a network that is that of all addresses.
fn read<'t>(
    reader: &mut Reader<'t>,
    item: &Item<'t>,
    on_everybody: impl Fn(&mut Reader<'t>, &Item<'t>),
) -> Option<Vec<IpNet>> {
    let mut networks = Vec::new();
    for item in list(reader, item, "a list of networks, such as [\"10.0.0.0/8\"]")? {
        let Some(text) = reader.string(&item) else {
            continue;
        };
        let value = text.to_owned();
        match parse(text) {
            Ok(network) if networks.contains(&network) => {
                reader.fault::<()>(&item, Problem::Repeated { value });
            }
            Ok(network) => {
                if network.prefix_len() == 0 {
                    on_everybody(reader, &item);
                }
                networks.push(network);
            }
            Err(fault) => {
                reader.fault::<()>(&item, Problem::BadNetwork { value, fault });
            }
        }
    }
    Some(networks)
}

/// Which addresses may come, as `allow` and `deny` of a port or a route say.
pub(super) fn access<'t>(reader: &mut Reader<'t>, section: &Section<'t>) -> Option<Access> {
    let mut listed = |key| match section.get(key) {
        Some(item) => read(reader, &item, |_, _| ()),
        None => Some(Vec::new()),
    };
    let (allow, deny) = (listed("allow"), listed("deny"));
    Some(Access { allow: allow?, deny: deny? })
}

/// A network, or the address of one machine.
///
/// Addresses of IPv4 that arrive as those of IPv6 are compared as IPv4, so no network is written so.
fn parse(text: &str) -> Result<IpNet, NetworkFault> {
    let network = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse().map_err(|_| NetworkFault::NotANetwork)?,
    };
    if let IpNet::V6(mapped) = network
        && let Some(address) = mapped.addr().to_ipv4_mapped()
        && let Some(prefix_len) = mapped.prefix_len().checked_sub(96)
    {
        let plain = Ipv4Net::new_assert(address, prefix_len).trunc();
        return Err(NetworkFault::Mapped { plain: plain.into() });
    }
    if network.trunc() != network {
        return Err(NetworkFault::HostBits { network: network.trunc() });
    }
    Ok(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_ends_where_its_prefix_does() {
        let network = |text: &str| text.parse::<IpNet>().unwrap();
        for (text, expected) in [
            ("10.0.0.0/8", Ok(network("10.0.0.0/8"))),
            ("192.0.2.1", Ok(network("192.0.2.1/32"))),
            ("2001:DB8::/32", Ok(network("2001:db8::/32"))),
            ("::1", Ok(network("::1/128"))),
            ("0.0.0.0/0", Ok(network("0.0.0.0/0"))),
            ("::/0", Ok(network("::/0"))),
            ("", Err(NetworkFault::NotANetwork)),
            ("10.0.0.0/33", Err(NetworkFault::NotANetwork)),
            ("10/8", Err(NetworkFault::NotANetwork)),
            ("example.com", Err(NetworkFault::NotANetwork)),
            ("10.1.2.3/8", Err(NetworkFault::HostBits { network: network("10.0.0.0/8") })),
            ("2001:db8::1/32", Err(NetworkFault::HostBits { network: network("2001:db8::/32") })),
            ("::ffff:10.0.0.0/104", Err(NetworkFault::Mapped { plain: network("10.0.0.0/8") })),
            ("::ffff:192.0.2.1", Err(NetworkFault::Mapped { plain: network("192.0.2.1/32") })),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }
}
