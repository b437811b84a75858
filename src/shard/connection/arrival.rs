//! What comes before a request: leave to stay, the PROXY header, the beginning of TLS.

use std::net::IpAddr;
use std::rc::Rc;

use super::{Connection, Step, asks_for_head_alone};
use crate::config::Access;
use crate::metrics::{AddressRefusal, Direction, End, HandshakeResult};
use crate::net::contain::contain;
use crate::net::stream::{Gone, Received};
use crate::net::tls::OVERLOAD_ALERT;
use crate::protocol::http::refusal::{BadRequest, Refusal};
use crate::protocol::proxy_protocol;
use crate::route::policy::is_within;
use crate::service::{Client, retry_after_s};
use crate::shard::table::Table;

/// How far TLS has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TlsStage {
    /// It has to come, and nothing of it has.
    Awaited,
    /// The handshake is under way.
    Handshake,
    /// The port speaks none, or the handshake is done.
    Passed,
}

impl Connection {
    /// Takes note where a TLS handshake is done.
    pub(super) fn look_at_handshake(&mut self) {
        if self.tls == TlsStage::Handshake
            && let Some(handshake) = self.client.stream.tls_handshake()
        {
            self.table.port().cells.tls_handshake(handshake);
            self.tls = TlsStage::Passed;
        }
    }

    /// Begins TLS with the first bytes of the client, unless they say that it does not speak TLS.
    pub(super) fn begin_tls(&mut self, bytes: &[u8]) -> Step {
        let port = Rc::clone(self.table.port());
        if speaks_http(bytes) {
            self.uncounted += bytes.len();
            return self.refuse(BadRequest::PlainHttp.into(), None, asks_for_head_alone(bytes));
        }
        let settings = port.tls.as_ref().expect("a port without TLS awaits none").load();
        self.client.stream.begin_tls(&settings, bytes, &port.resources.sealed);
        self.tls = TlsStage::Handshake;
        self.wait_for_more();
        Step::Look
    }

    /// Answers somebody who is not served and has not begun TLS.
    fn alert(&self, refusal: Refusal) -> Step {
        let result = HandshakeResult::from(refusal);
        self.table.port().cells.handshake(result);
        let end = if result == HandshakeResult::Limit { End::Limit } else { End::Refused };
        match self.send(OVERLOAD_ALERT.to_vec()) {
            Ok(unsent) => Step::Leave { unsent, end },
            Err(Gone) => Step::Gone(end),
        }
    }

    /// Reads the PROXY header, and what follows it as the client's own bytes.
    pub(super) fn read_proxy(&mut self, bytes: &[u8]) -> Step {
        self.head.extend_from_slice(bytes);
        match proxy_protocol::parse(&self.head) {
            Ok(Some(header)) => {
                self.proxied = header.addresses.map(|addresses| addresses.client);
                self.awaits_proxy = false;
                // A header may name nobody, as with the checks of a balancer: then it is the balancer who comes.
                if has_rules_for_addresses(&self.table)
                    && let Some(client) = self.peer()
                    && let Err(refusal) = admit_from(&mut self.client, client)
                {
                    return match self.tls {
                        TlsStage::Passed => self.refuse(refusal, None, false),
                        TlsStage::Awaited | TlsStage::Handshake => self.alert(refusal),
                    };
                }
                let rest = self.head.split_off(header.size);
                self.head = Vec::new();
                match self.tls {
                    _ if rest.is_empty() => self.wait_for_more(),
                    TlsStage::Awaited => {
                        // What is counted inside TLS is what was said.
                        self.uncounted -= rest.len();
                        self.begin_tls(&rest)
                    }
                    TlsStage::Handshake | TlsStage::Passed => self.read(&rest),
                }
            }
            Ok(None) => self.wait_for_more(),
            // It may be anything but HTTP, so nobody would understand an answer.
            Err(_) => Step::Gone(End::ProxyHeaderInvalid),
        }
    }
}

/// Whether the first bytes on a port of TLS begin a request of plain HTTP: a method, where a record would begin with its
/// type.
fn speaks_http(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(u8::is_ascii_alphabetic)
}

/// Whether a connection comes from where this port expects its PROXY headers from, if it expects any.
pub(super) fn is_from_a_proxy(client: &Client, table: &Table) -> bool {
    table.port().proxies.as_ref().is_none_or(|networks| {
        client.stream.peer_address().is_some_and(|peer| is_within(networks, peer.ip()))
    })
}

/// Ends a connection that comes from elsewhere: what it says of its client cannot be believed.
pub(super) fn refuse_stranger(mut client: Client) {
    client.life.end(End::ProxyHeaderInvalid);
}

/// Whether somebody may connect, by his address where nothing else is to tell it; what he is told where he may not.
pub(super) fn admit_peer(client: &mut Client, table: &Table) -> Result<(), Refusal> {
    let port = table.port();
    let is_asked = port.proxies.is_none() && has_rules_for_addresses(table);
    match client.stream.peer_address().filter(|_| is_asked) {
        Some(peer) => admit_from(client, peer.ip()),
        None => Ok(()),
    }
}

/// Whether addresses are told apart before there is a request.
pub(super) fn has_rules_for_addresses(table: &Table) -> bool {
    let port = table.port();
    port.access != Access::default()
        || port.addresses.as_ref().is_some_and(|addresses| addresses.limits_connections())
}

/// Whether somebody may connect from this address; counted, and what he is told, where he may not.
pub(super) fn admit_from(client: &mut Client, address: IpAddr) -> Result<(), Refusal> {
    client.life.admit_from(address).map_err(|reason| {
        client.life.port().cells.address_refusal(reason);
        match reason {
            AddressRefusal::Denied => Refusal::AddressDenied,
            AddressRefusal::Connections | AddressRefusal::Handshakes => {
                Refusal::AddressLimit { retry_after_s: retry_after_s() }
            }
        }
    })
}

/// Answers a connection that is not served, without waiting for its request.
pub(super) fn refuse_at_once(client: Client, table: &Rc<Table>, refusal: Refusal) {
    let mut connection = Connection::new(client, table);
    // What has arrived of the request is taken, so that closing does not reset the connection and lose the answer.
    let resources = Rc::clone(connection.client.resources());
    if let Received::Bytes(size) = connection.client.stream.receive_now(&mut resources.scratch.lend())
        && connection.tls == TlsStage::Passed
    {
        table.port().cells.wire_bytes(Direction::Received).add(size as u64);
    }
    let result = HandshakeResult::from(refusal);
    let end = if result == HandshakeResult::Limit { End::Limit } else { End::Refused };
    let step = if connection.tls == TlsStage::Passed {
        connection.refuse(refusal, None, false)
    } else {
        connection.alert(refusal)
    };
    match resources.linger_at_limit() {
        Some(guard) => drop(monoio::spawn(contain(async move {
            connection.go_on(step).await;
            drop(guard);
        }))),
        // Even letting clients go politely takes descriptors, and there are no more for that.
        None => connection.client.life.end(end),
    }
}
