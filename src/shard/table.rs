//! What a connection of one port is looked up in: its routes, its policy, its limits.

use std::borrow::Cow;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use crate::config::{Access, Auth, Config, Relay, Route, Scheme};
use crate::metrics::{AddressRefusal, MemoryState, RelayCells};
use crate::net::clock;
use crate::protocol::http::forward::{Edits, RequestPassage, Sender, Withheld};
use crate::protocol::http::origin::OriginRef;
use crate::protocol::http::refusal::Refusal;
use crate::protocol::http::request::RequestHead;
use crate::protocol::websocket::handshake::Request;
use crate::route::Router;
use crate::route::auth::{self, Denied, Grant, Keyring};
use crate::route::policy::{self, is_within};
use crate::service::upstream::Group;
use crate::service::web::files::Folders;
use crate::service::web::files::folder::Folder;
use crate::service::web::files::readers::Desk;
use crate::service::web::kept::Kept;
use crate::service::{Place, Port, Upstreams, retry_after_s};

/// One port of one configuration, as one shard looks things up in it.
#[derive(Debug)]
pub(super) struct Table {
    port: Rc<Port>,
    port_index: usize,
    config: Arc<Config>,
    router: Rc<Router>,
    /// A place for each route, by the route's index.
    places: Vec<Rc<Place>>,
    folders: Rc<Folders>,
    keyrings: Keyrings,
}

/// The keys of each route that verifies tokens, by its index.
pub(super) type Keyrings = Rc<[Option<Arc<Keyring>>]>;

/// Why nobody knows that a request may be served.
#[derive(Clone, Copy)]
pub(super) enum Unproven {
    /// It does not prove enough.
    Refused(Refusal),
    /// Somebody has to be asked.
    Unasked,
}

/// What stands behind a route that relays, for all ports of a shard.
pub(super) struct Behind {
    pub(super) group: Arc<Group>,
    pub(super) cells: Arc<RelayCells>,
    pub(super) kept: Rc<Kept>,
}

impl Table {
    pub(super) fn new(
        config: &Arc<Config>,
        (upstreams, folders, keyrings): (&[Option<Behind>], &Rc<Folders>, &Keyrings),
        router: &Rc<Router>,
        port_index: usize,
        port: Rc<Port>,
    ) -> Rc<Self> {
        let routes = config.routes.iter().enumerate();
        let places = routes.map(|(route_index, route)| {
            let behind = |index: usize, relay: Option<&Relay>| {
                let (behind, relay) = upstreams.get(index)?.as_ref().zip(relay)?;
                Some(Upstreams {
                    group: Arc::clone(&behind.group),
                    cells: Arc::clone(&behind.cells),
                    relay: relay.clone(),
                    kept: Rc::clone(&behind.kept),
                })
            };
            let forward = route.auth.as_ref().and_then(Auth::forward);
            let asked = behind(config.routes.len() + route_index, forward.map(|forward| &forward.relay));
            let upstreams = behind(route_index, route.relay.as_ref());
            let limits = config.limits(port_index, route_index);
            Place::new(Rc::clone(&port), (route_index, route), &limits, (upstreams, asked))
        });
        Rc::new(Self {
            places: places.collect(),
            folders: Rc::clone(folders),
            keyrings: Rc::clone(keyrings),
            port,
            port_index,
            config: Arc::clone(config),
            router: Rc::clone(router),
        })
    }

    pub(super) fn port(&self) -> &Rc<Port> {
        &self.port
    }

    /// The place that serves this host and path on this port.
    pub(super) fn find(&self, host: &str, path: &str) -> Option<&Rc<Place>> {
        self.router.find(self.port_index, host, path).map(|index| &self.places[index])
    }

    /// The route as it is configured.
    pub(super) fn route(&self, place: &Place) -> &Route {
        &self.config.routes[place.route_index]
    }

    /// The folder of a route that serves files, and where that is read.
    pub(super) fn folder(&self, place: &Place) -> Option<(&Rc<Desk>, &Arc<Folder>)> {
        self.folders.of(place.route_index)
    }

    /// Whether one more handshake from where this one comes is judged now; counted where it is not.
    pub(super) fn admit_handshake(
        &self,
        place: Option<&Rc<Place>>,
        head: &RequestHead<'_>,
        peer: impl Fn() -> Option<IpAddr>,
    ) -> Result<(), Refusal> {
        let Some(addresses) = &self.port.addresses else { return Ok(()) };
        let Some(peer) = peer() else { return Ok(()) };
        let client = place.map_or(peer, |place| self.client_of(place, head, peer));
        if addresses.may_shake_hands(client, clock::monotonic_ms()) {
            return Ok(());
        }
        self.port.cells.address_refusal(AddressRefusal::Handshakes);
        Err(Refusal::TooManyRequests { retry_after_s: 1 })
    }

    /// Whether a request is served here, by where it comes from, and now, by whether there is memory for anybody new. Counted
    /// where it is not.
    pub(super) fn admit(
        &self,
        place: &Place,
        head: &RequestHead<'_>,
        request: &Request<'_>,
        peer: impl Fn() -> Option<IpAddr>,
    ) -> Result<(), Refusal> {
        let access = &self.route(place).access;
        if *access != Access::default()
            && let Some(peer) = peer()
            && !policy::admits(access, self.client_of(place, head, peer))
        {
            self.port.cells.address_refusal(AddressRefusal::Denied);
            return Err(Refusal::AddressDenied);
        }
        let is_new = matches!(request, Request::Opening(_)) || place.service.is_http();
        if is_new && self.port.resources.memory.level() >= MemoryState::NOBODY_NEW {
            return Err(Refusal::MemoryShort { retry_after_s: retry_after_s() });
        }
        Ok(())
    }

    /// The client that a request comes from, as far as its peer is believed.
    fn client_of(&self, place: &Place, head: &RequestHead<'_>, peer: IpAddr) -> IpAddr {
        let is_trusted = |address| is_within(&self.route(place).trusted, address);
        Sender::of(head, peer.to_canonical(), is_trusted).client()
    }

    /// What a request of this place may do, if it proves who it is from; counted where it does not. `given` is what somebody
    /// said who was asked.
    pub(super) fn authorize(
        &self,
        place: &Place,
        head: &RequestHead<'_>,
        given: Option<Grant>,
    ) -> Result<Grant, Unproven> {
        let jwt = match &self.route(place).auth {
            None => return Ok(Grant::default()),
            Some(Auth::Forward(_)) => return given.ok_or(Unproven::Unasked),
            Some(Auth::Jwt(jwt)) => jwt,
        };
        let keyring = self.keyrings[place.route_index].as_ref().expect("whoever verifies tokens has keys");
        auth::judge(jwt, keyring, head).map_err(|denied| {
            if let Denied::Refused(reason) = denied {
                self.port.cells.auth_refusal(reason);
            }
            Unproven::Refused(denied.refusal(retry_after_s()))
        })
    }

    /// Whether this route answers opening handshakes.
    pub(super) fn takes_websockets(&self, place: &Place) -> bool {
        self.route(place).websocket
    }

    /// Whom a request on this place comes from, by its peer and by whom that speaks for; what it says and is not believed is
    /// counted.
    pub(super) fn sender(&self, place: &Place, head: &RequestHead<'_>, peer: IpAddr) -> Sender {
        let is_trusted = |address| is_within(&self.route(place).trusted, address);
        let sender = Sender::of(head, peer.to_canonical(), is_trusted);
        if sender.has_ignored() {
            self.port.cells.forwarding_ignored.increment();
        }
        sender
    }

    /// The head that an upstream of this place gets for a request, as `write` has it: an opening handshake, or any other.
    pub(super) fn pass(
        &self,
        place: &Place,
        head: &RequestHead<'_>,
        (sender, grant): (Sender, &Grant),
        write: impl FnOnce(&RequestPassage<'_>, &mut Vec<u8>) -> Result<(), Refusal>,
    ) -> Result<Vec<u8>, Refusal> {
        let route = self.route(place);
        let relay = route.relay.as_ref().expect("a service that relays says how");
        let path: Cow<'_, str> = match &relay.upstream_path {
            Some(upstream_path) => route.path.rewrite(head.path(), upstream_path).into(),
            None => head.path().into(),
        };
        let passage = RequestPassage {
            path: &path,
            sender,
            is_secure: self.is_secure(),
            port: self.public_port(),
            edits: relay.request_headers.view(),
            withheld: route.withheld.view(),
            granted: &grant.headers,
            random: self.port.resources.random.bytes(),
        };
        let mut bytes = Vec::with_capacity(1024);
        write(&passage, &mut bytes)?;
        Ok(bytes)
    }

    /// The head that somebody gets who is asked about a request: it is for this target, and says `granted` besides.
    pub(super) fn pass_to_asked(
        &self,
        asked: &RequestHead<'_>,
        sender: Sender,
        host: &[(String, String)],
        (target, granted): (&str, &[(String, String)]),
    ) -> Result<Vec<u8>, Refusal> {
        let names: Vec<String> = granted.iter().map(|(name, _)| name.clone()).collect();
        let passage = RequestPassage {
            path: target.split('?').next().unwrap_or(target),
            sender,
            is_secure: self.is_secure(),
            port: self.public_port(),
            edits: Edits { remove: &[], set: host },
            withheld: Withheld { fields: &names, ..Withheld::default() },
            granted,
            random: self.port.resources.random.bytes(),
        };
        let mut bytes = Vec::with_capacity(1024);
        passage.write_plain(asked, &mut bytes)?;
        Ok(bytes)
    }

    /// The port that clients connect to, as they see it.
    fn public_port(&self) -> u16 {
        let port = &self.config.ports[self.port_index];
        port.public_port.unwrap_or(self.port.number)
    }

    /// Whether clients speak TLS to what they connect to.
    fn is_secure(&self) -> bool {
        self.config.ports[self.port_index].public_scheme == Some(Scheme::Wss)
    }

    /// The Origin of a page that came from where this request went, as the client sees it.
    pub(super) fn same_origin<'a>(&'a self, head: &RequestHead<'a>) -> OriginRef<'a> {
        let (host, host_port) =
            head.authority().map_or(("", None), |authority| (authority.host, authority.port));
        policy::public_origin(&self.config.ports[self.port_index], host, host_port)
    }
}
