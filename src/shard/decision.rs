//! What becomes of a request: the one place where that is decided, whichever way the request came.

use std::net::IpAddr;
use std::rc::Rc;

use super::table::{Table, Unproven};
use crate::config::Service;
use crate::protocol::http::refusal::Refusal;
use crate::protocol::http::request::RequestHead;
use crate::protocol::websocket::deflate::Terms;
use crate::protocol::websocket::handshake::{self, Opening, Request};
use crate::route::auth::{Expiry, Grant};
use crate::route::policy;
use crate::service::opening::{Asking, Question};
use crate::service::reach::stickiness;
use crate::service::{Phase, Place, retry_after_s};

/// What becomes of a request.
pub(super) enum Decision<'t> {
    /// It is refused, on this route if it has one.
    Refuse { refusal: Refusal, route_index: Option<usize> },
    /// It opens a WebSocket that is spoken here; `answer` is the head of the 101, with what it says about compression.
    Open { place: &'t Rc<Place>, answer: Vec<u8>, deflate: Option<Terms>, expiry: Option<Expiry> },
    /// It opens a WebSocket to an upstream, which is asked first.
    Ask { place: &'t Rc<Place>, asking: Box<Asking> },
    /// It is for an HTTP service, and may do this.
    Web { place: &'t Rc<Place>, grant: Grant },
    /// Somebody has to be asked about it first; then it is decided again.
    Authorize { place: &'t Rc<Place> },
    /// It asks for the built-in page.
    Page { place: &'t Rc<Place> },
    /// The client is gone: it has no address any more.
    ClientGone,
}

impl<'t> Decision<'t> {
    fn unproven(unproven: Unproven, place: &'t Rc<Place>) -> Self {
        match unproven {
            Unproven::Refused(refusal) => Self::refuse(refusal, Some(place.route_index)),
            Unproven::Unasked => Self::Authorize { place },
        }
    }

    fn refuse(refusal: impl Into<Refusal>, route_index: Option<usize>) -> Self {
        Self::Refuse { refusal: refusal.into(), route_index }
    }
}

/// Decides what becomes of a request; `peer` tells who sent it, and is asked where an upstream has to know. `given` is what
/// somebody said who was asked about it.
pub(super) fn decide<'t>(
    table: &'t Table,
    head: &RequestHead<'_>,
    given: Option<Grant>,
    peer: impl Fn() -> Option<IpAddr>,
) -> Decision<'t> {
    let place = table.find(head.host(), head.path());
    let route_index = place.map(|place| place.route_index);
    let request = match handshake::judge(head) {
        Ok(request) => request,
        Err(refusal) => return Decision::refuse(refusal, route_index),
    };
    if given.is_none()
        && matches!(request, Request::Opening(_))
        && let Err(refusal) = table.admit_handshake(place, head, &peer)
    {
        return Decision::refuse(refusal, route_index);
    }
    let Some(place) = place else {
        return Decision::refuse(Refusal::NoRoute, None);
    };
    if place.resources().phase() != Phase::Serving {
        return Decision::refuse(Refusal::Draining { retry_after_s: retry_after_s() }, route_index);
    }
    if let Err(refusal) = table.admit(place, head, &request, &peer) {
        return Decision::refuse(refusal, route_index);
    }
    match (request, place.service) {
        (Request::Opening(opening), _) if table.takes_websockets(place) => {
            accept(table, place, head, (&opening, given), peer)
        }
        // A proxy that is not told to pass an Upgrade ignores it (RFC 9110 section 7.8).
        (_, Service::Http) => web(table, place, head, given),
        (Request::Opening(_), _) => Decision::refuse(Refusal::NoRoute, route_index),
        (Request::Plain, service) if service.is_http() => web(table, place, head, given),
        (Request::Plain, Service::Page) => match table.authorize(place, head, given) {
            Ok(_) => Decision::Page { place },
            Err(unproven) => Decision::unproven(unproven, place),
        },
        (Request::Plain, _) if matches!(head.method(), "GET" | "HEAD") => {
            Decision::refuse(Refusal::UpgradeRequired, route_index)
        }
        (Request::Plain, _) => Decision::refuse(Refusal::MethodNotAllowed { allow: "GET" }, route_index),
    }
}

/// Lets a request in that is for an HTTP service, if it proves who it is from.
fn web<'t>(
    table: &'t Table,
    place: &'t Rc<Place>,
    head: &RequestHead<'_>,
    given: Option<Grant>,
) -> Decision<'t> {
    match table.authorize(place, head, given) {
        Ok(grant) => Decision::Web { place, grant },
        Err(unproven) => Decision::unproven(unproven, place),
    }
}

/// Accepts an opening handshake that broke no rule, if the route's policy allows it.
fn accept<'t>(
    table: &'t Table,
    place: &'t Rc<Place>,
    head: &RequestHead<'_>,
    (opening, given): (&Opening<'_>, Option<Grant>),
    peer: impl FnOnce() -> Option<IpAddr>,
) -> Decision<'t> {
    let route = table.route(place);
    if !policy::allows_origin(&route.origins, opening.origin(), table.same_origin(head)) {
        return Decision::refuse(Refusal::OriginNotAllowed, Some(place.route_index));
    }
    let grant = match table.authorize(place, head, given) {
        Ok(grant) => grant,
        Err(unproven) => return Decision::unproven(unproven, place),
    };
    let expiry = grant.expiry;
    let deflate = place.deflate_policy().and_then(|policy| opening.agree_on_deflate(policy));
    let answer = |deflate| {
        let mut answer = Vec::with_capacity(256);
        let subprotocol = opening.select_subprotocol(&route.subprotocols);
        handshake::write_accept(&mut answer, opening.key(), subprotocol, deflate);
        answer
    };
    let Some(upstreams) = &place.upstreams else {
        return Decision::Open { place, answer: answer(deflate), deflate, expiry };
    };
    let Some(peer) = peer() else {
        return Decision::ClientGone;
    };
    let sender = table.sender(place, head, peer);
    let question = if place.service == Service::Tcp {
        Question::Nothing { answer: answer(None) }
    } else {
        let request =
            table.pass(place, head, (sender, &grant), |passage, out| passage.write(head, out).map(drop));
        match request {
            Ok(request) => Question::Head { request, offer: opening.offer(), deflate },
            Err(refusal) => return Decision::refuse(refusal, Some(place.route_index)),
        }
    };
    let hash = stickiness(upstreams.group.balance(), head, sender.client());
    Decision::Ask { place, asking: Box::new(Asking { question, hash, client: sender.client(), expiry }) }
}
