//! What a connection of one port is looked up in: its routes, its policy, its limits.

use std::borrow::Cow;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use crate::config::{Config, Route, Scheme};
use crate::metrics::RelayCells;
use crate::protocol::http::forward::{RequestPassage, Sender};
use crate::protocol::http::origin::OriginRef;
use crate::protocol::http::refusal::Refusal;
use crate::protocol::http::request::RequestHead;
use crate::route::Router;
use crate::route::policy::{self, is_within};
use crate::service::upstream::Group;
use crate::service::web::files::Folders;
use crate::service::web::files::folder::Folder;
use crate::service::web::files::readers::Desk;
use crate::service::web::kept::Kept;
use crate::service::{Place, Port, Upstreams};

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
        (upstreams, folders): (&[Option<Behind>], &Rc<Folders>),
        router: &Rc<Router>,
        port_index: usize,
        port: Rc<Port>,
    ) -> Rc<Self> {
        let routes = config.routes.iter().enumerate();
        let places = routes.map(|(route_index, route)| {
            let upstreams = upstreams[route_index].as_ref().zip(route.relay.as_ref());
            let upstreams = upstreams.map(|(behind, relay)| Upstreams {
                group: Arc::clone(&behind.group),
                cells: Arc::clone(&behind.cells),
                relay: relay.clone(),
                kept: Rc::clone(&behind.kept),
            });
            let limits = config.limits(port_index, route_index);
            Place::new(Rc::clone(&port), (route_index, route), &limits, upstreams)
        });
        Rc::new(Self {
            places: places.collect(),
            folders: Rc::clone(folders),
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
        sender: Sender,
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
            random: self.port.resources.random.bytes(),
        };
        let mut bytes = Vec::with_capacity(1024);
        write(&passage, &mut bytes)?;
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
