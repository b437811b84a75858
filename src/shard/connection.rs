//! One connection, from accept to its end:
//!
//! accepted → PROXY header, where the port has one → TLS handshake, where it speaks TLS → request head, parsed in place →
//! route → policy → a 101 and the route's service, or an HTTP answer → its one end.
//!
//! Where hyper answers, it has one exchange ([`exchange`]), after which the connection is here again; or, where the client
//! chose HTTP/2, all that is left of it ([`http2`]).
//!
//! Most heads are there when the connection is accepted, so the first look is taken at once; only where bytes are
//! missing does a task wait for them. The open connection is a task of its own, which keeps nothing of the handshake.

mod arrival;
mod exchange;
mod http2;

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::time::Instant;

use self::arrival::{TlsStage, admit_peer, is_from_a_proxy, refuse_at_once, refuse_stranger};
use self::exchange::Begun;
use super::authorize::{self, Denial, Verdict};
use super::decision::{Decision, decide};
use super::table::Table;
use crate::metrics::{Direction, End, HandshakeResult, TlsFailure};
use crate::net::clock;
use crate::net::contain::{contain, contain_now};
use crate::net::stream::{Gone, Received, Stream};
use crate::net::timers::{TICKS_PER_S, Tick, ticks};
use crate::protocol::http::field_storage;
use crate::protocol::http::refusal::{BadRequest, Refusal};
use crate::protocol::http::request::RequestHead;
use crate::protocol::http::scan::HeadScan;
use crate::route::auth::{Expiry, Grant};
use crate::service::messages::{Messages, Open};
use crate::service::opening::{self, Asking, Outcome};
use crate::service::reach::Interruption;
use crate::service::relay::{self, Content, Early, Upstream};
use crate::service::web::proxy::Question;
use crate::service::{Client, Life, Phase, Place, Port, page, retry_after_s};

/// A connection whose request has not been answered yet.
struct Connection {
    client: Client,
    table: Rc<Table>,
    scan: HeadScan,
    /// What has arrived of a head that was not there at once, the PROXY header's before it.
    head: Vec<u8>,
    /// True exactly while a PROXY header must come first.
    awaits_proxy: bool,
    /// How far TLS has come.
    tls: TlsStage,
    /// The client's address as a PROXY header gave it.
    proxied: Option<SocketAddr>,
    /// When the handshake began: at accept, or on a kept connection with the first bytes of its request.
    began: Instant,
    /// When the head must have arrived. Bytes that arrive do not move it.
    deadline: Tick,
    /// True exactly when a request has been answered on this connection.
    has_answered: bool,
    /// How many bytes were received and not counted: those behind the head, which whoever takes them counts.
    uncounted: usize,
    /// There while a handshake is in progress: not while nothing of a further request has come.
    waiting: Option<Waiting>,
}

/// What one look at the bytes led to.
enum Step {
    /// Bytes are missing.
    Wait,
    /// The stream has something at once, which no wait would tell of.
    Look,
    /// It is a WebSocket now; these bytes followed the head.
    Open { place: Rc<Place>, unsent: Vec<u8>, early: Option<Box<[u8]>>, open: Open },
    /// Somebody is asked whether the client is let in.
    Authorize { place: Rc<Place>, pending: Box<Pending> },
    /// An upstream is asked before the client is answered.
    Ask { place: Rc<Place>, asking: Box<Asking>, early: Vec<u8> },
    /// The upstream has accepted: the two are connected now.
    Relay { place: Rc<Place>, unsent: Vec<u8>, relayed: Box<Relayed> },
    /// hyper reads the request, and what there is of a body, and writes the response.
    Exchange { place: Rc<Place>, begun: Box<Begun> },
    /// The client has chosen HTTP/2; this has come of it.
    Http2 { peer: IpAddr, early: Vec<u8> },
    /// A request was answered and the connection stays; what followed its head is the next one's.
    Again { unsent: Vec<u8> },
    /// Nothing more is served: the client is to end the connection, which ends so.
    Leave { unsent: Vec<u8>, end: End },
    /// There is nobody left.
    Gone(End),
}

/// A request that somebody is asked about.
struct Pending {
    question: Question,
    /// Its head.
    head: Vec<u8>,
    /// What followed that.
    rest: Vec<u8>,
}

/// What a client is connected to.
struct Relayed {
    upstream: Upstream,
    content: Content,
    early: Early,
    expiry: Option<Expiry>,
}

/// Takes an accepted connection over, and answers it at once where its head is there.
pub(super) fn begin(table: &Rc<Table>, stream: Stream) {
    let mut client = Client { stream, life: Life::begin(table.port()) };
    contain_now(|| {
        if let Err(refusal) = admit_peer(&mut client, table) {
            return refuse_at_once(client, table, refusal);
        }
        if !client.life.admit() {
            let refusal = Refusal::ConnectionLimit { retry_after_s: retry_after_s() };
            return refuse_at_once(client, table, refusal);
        }
        if !is_from_a_proxy(&client, table) {
            return refuse_stranger(client);
        }
        let mut connection = Connection::new(client, table);
        match connection.look() {
            Step::Open { place, unsent, early, open } if unsent.is_empty() => {
                Messages::new(connection.client, place, early, open).spawn();
            }
            step => drop(monoio::spawn(contain(connection.go_on(step)))),
        }
    });
}

impl Connection {
    fn new(client: Client, table: &Rc<Table>) -> Self {
        let port = table.port();
        let deadline = port.resources.timers.after(ticks(port.limits.handshake_timeout));
        client.life.timer.set(deadline);
        Self {
            client,
            table: Rc::clone(table),
            scan: HeadScan::new(port.limits.request_head_size_max, port.limits.request_head_count_max),
            head: Vec::new(),
            awaits_proxy: port.proxies.is_some(),
            tls: if port.tls.is_some() { TlsStage::Awaited } else { TlsStage::Passed },
            proxied: None,
            began: clock::now(),
            deadline,
            has_answered: false,
            uncounted: 0,
            waiting: None,
        }
    }

    /// Waits for the bytes that the first look missed, until the request is answered.
    async fn go_on(mut self, mut step: Step) {
        if !self.has_answered {
            self.waiting = Some(Waiting::begin(self.table.port()));
        }
        let end = loop {
            step = match step {
                Step::Wait => self.wait().await,
                Step::Look => self.look(),
                Step::Again { unsent } => match self.flush(&unsent).await {
                    Ok(()) => {
                        let step = self.look_again();
                        self.counted(step)
                    }
                    Err(end) => Step::Gone(end),
                },
                Step::Open { place, unsent, early, open } => match self.flush(&unsent).await {
                    Ok(()) => {
                        return Messages::new(self.client, place, early, open).spawn();
                    }
                    Err(end) => Step::Gone(end),
                },
                Step::Http2 { peer, early } => Box::pin(self.http2(peer, early)).await,
                Step::Exchange { place, begun } => Box::pin(self.exchange(place, begun)).await,
                Step::Authorize { place, pending } => Box::pin(self.authorize(place, *pending)).await,
                Step::Ask { place, asking, early } => Box::pin(self.ask(place, *asking, early)).await,
                Step::Relay { place, unsent, relayed } => match self.flush(&unsent).await {
                    Ok(()) => {
                        let Relayed { upstream, content, early, expiry } = *relayed;
                        return relay::spawn(self.client, upstream, place, &content, (early, expiry));
                    }
                    Err(end) => Step::Gone(end),
                },
                Step::Leave { unsent, end } => {
                    self.waiting = None;
                    if let Err(end) = self.flush(&unsent).await {
                        break end;
                    }
                    self.client.linger(ticks(self.table.port().limits.close_timeout)).await;
                    break end;
                }
                Step::Gone(end) => break end,
            };
        };
        // What followed a head and was taken by nobody.
        self.table.port().cells.wire_bytes(Direction::Received).add(self.uncounted as u64);
        self.client.end(end);
    }

    /// Waits for bytes, and looks at them.
    async fn wait(&mut self) -> Step {
        let resources = Rc::clone(self.client.resources());
        match resources.phase() {
            Phase::Serving => {}
            Phase::Draining if self.is_silent() => return self.leave_for_drain(),
            Phase::Draining => {}
            Phase::Cutting => return Step::Gone(End::Shutdown),
        }
        self.client.life.timer.set(self.deadline);
        let woken = if self.client.stream.wants_room() {
            self.client.life.timer.race(self.client.stream.writable()).await
        } else {
            self.client.wait().await
        };
        resources.give_way().await;
        match woken {
            Some(_) => self.look(),
            None if resources.timers.now() >= self.deadline => self.time_out(),
            None => Step::Wait,
        }
    }

    /// Counts what was received on the way to this step, but for what followed the head: the service counts that when it
    /// takes it, and so does the next look where it is the beginning of another request.
    fn counted(&mut self, step: Step) -> Step {
        let rest_size = match &step {
            Step::Open { early, .. } => early.as_ref().map_or(0, |early| early.len()),
            Step::Ask { early, .. } => early.len(),
            Step::Authorize { pending, .. } => pending.rest.len(),
            Step::Exchange { begun, .. } => begun.rest_size(),
            Step::Again { .. } => self.head.len(),
            Step::Wait
            | Step::Look
            | Step::Http2 { .. }
            | Step::Relay { .. }
            | Step::Leave { .. }
            | Step::Gone(_) => 0,
        };
        let size = self.uncounted - rest_size;
        self.table.port().cells.wire_bytes(Direction::Received).add(size as u64);
        self.uncounted = rest_size;
        step
    }

    /// Receives once and looks whether the head is whole.
    fn look(&mut self) -> Step {
        let step = self.receive();
        self.counted(step)
    }

    fn receive(&mut self) -> Step {
        let resources = Rc::clone(self.client.resources());
        let mut scratch = resources.scratch.lend();
        let received = self.client.stream.receive_now(&mut scratch);
        self.look_at_handshake();
        match received {
            Received::Bytes(size) => {
                if self.awaits_proxy {
                    self.uncounted += size;
                    self.read_proxy(&scratch[..size])
                } else if self.tls == TlsStage::Awaited {
                    self.begin_tls(&scratch[..size])
                } else if self.client.stream.speaks_http2() {
                    self.uncounted += size;
                    match self.peer() {
                        Some(peer) => Step::Http2 { peer, early: scratch[..size].to_vec() },
                        None => Step::Gone(End::ClientGone),
                    }
                } else if self.head.is_empty() {
                    self.uncounted += size;
                    if self.has_answered {
                        // A further request begins with its first byte, not with the silence before it.
                        self.begin_request();
                    }
                    self.read(&scratch[..size])
                } else {
                    self.uncounted += size;
                    self.head.extend_from_slice(&scratch[..size]);
                    self.look_again()
                }
            }
            Received::Nothing => Step::Wait,
            Received::End | Received::Reset => match self.client.stream.tls_failure() {
                // There may be an alert on its way, and more of what broke a rule on the way here.
                Some(TlsFailure::Closed) | None if self.has_answered => Step::Gone(End::HttpDone),
                Some(TlsFailure::Closed) | None => Step::Gone(End::ClientGone),
                Some(_) => Step::Leave { unsent: Vec::new(), end: End::ClientGone },
            },
        }
    }

    /// Looks at what was kept.
    fn look_again(&mut self) -> Step {
        if self.head.is_empty() {
            return Step::Wait;
        }
        match self.scan.scan(&self.head) {
            Ok(Some(head_size)) => {
                let head = std::mem::take(&mut self.head);
                self.parse(&head, head_size)
            }
            Ok(None) => self.wait_for_more(),
            Err(refusal) => self.refuse(refusal, None, asks_for_head_alone(&self.head)),
        }
    }

    /// Reads a head from the bytes at hand, keeps them where it is not whole, and answers it where it is.
    fn read(&mut self, bytes: &[u8]) -> Step {
        match self.scan.scan(bytes) {
            Ok(Some(head_size)) => self.parse(bytes, head_size),
            Ok(None) => {
                self.head.extend_from_slice(bytes);
                self.wait_for_more()
            }
            Err(refusal) => self.refuse(refusal, None, asks_for_head_alone(bytes)),
        }
    }

    fn wait_for_more(&mut self) -> Step {
        self.waiting.get_or_insert_with(|| Waiting::begin(self.table.port()));
        Step::Wait
    }

    /// Parses a head that is whole, and answers it.
    fn parse(&mut self, bytes: &[u8], head_size: usize) -> Step {
        let (head, rest) = bytes.split_at(head_size);
        let mut storage = field_storage();
        match RequestHead::parse(head, &mut storage) {
            Ok(request) => self.answer(&request, (head, rest), None),
            Err(refusal) => self.refuse(refusal, None, asks_for_head_alone(head)),
        }
    }

    /// Who the client is; `None` where it is gone.
    fn peer(&self) -> Option<IpAddr> {
        self.proxied.or_else(|| self.client.stream.peer_address()).map(|peer| peer.ip())
    }

    /// Does with a request what was decided.
    fn answer(
        &mut self,
        head: &RequestHead<'_>,
        (bytes, rest): (&[u8], &[u8]),
        given: Option<Grant>,
    ) -> Step {
        let table = Rc::clone(&self.table);
        match decide(&table, head, given, || self.peer()) {
            Decision::Authorize { place } => {
                let Some(peer) = self.peer() else { return Step::Gone(End::ClientGone) };
                match authorize::question(&table, place, head, peer) {
                    Ok(question) => Step::Authorize {
                        place: Rc::clone(place),
                        pending: Box::new(Pending { question, head: bytes.to_vec(), rest: rest.to_vec() }),
                    },
                    Err(refusal) => self.refuse(refusal, Some(place.route_index), head.is_head()),
                }
            }
            Decision::Refuse { refusal, route_index } => self.refuse(refusal, route_index, head.is_head()),
            Decision::Open { place, answer, deflate, expiry } => {
                self.count_accepted(place);
                match self.send(answer) {
                    Ok(unsent) => {
                        let early = if rest.is_empty() { None } else { Some(rest.into()) };
                        Step::Open { place: Rc::clone(place), unsent, early, open: Open { deflate, expiry } }
                    }
                    Err(Gone) => Step::Gone(End::ClientGone),
                }
            }
            Decision::Ask { place, asking } => {
                Step::Ask { place: Rc::clone(place), asking, early: rest.to_vec() }
            }
            Decision::Web { place, grant } => match self.peer() {
                Some(peer) => Step::Exchange {
                    place: Rc::clone(place),
                    begun: Box::new(Begun::new(head, bytes, rest, (peer, grant))),
                },
                None => Step::Gone(End::ClientGone),
            },
            Decision::Page { place } => self.page(head, place, rest),
            Decision::ClientGone => Step::Gone(End::ClientGone),
        }
    }

    /// Counts an opening handshake that is accepted.
    fn count_accepted(&self, place: &Place) {
        let cells = &self.table.port().cells;
        cells.handshake(HandshakeResult::Accepted);
        cells.handshake_duration.observe(clock::now().saturating_duration_since(self.began));
        cells.http_request(Some(place.route_index), 101);
    }

    /// Has somebody asked whether the client is let in, and goes on with its request if it is.
    async fn authorize(&mut self, place: Rc<Place>, pending: Pending) -> Step {
        let Pending { question, head, rest } = pending;
        let table = Rc::clone(&self.table);
        let resources = Rc::clone(self.client.resources());
        let verdict = {
            let mut asked = pin!(authorize::ask(&table, &place, question));
            loop {
                self.client.life.timer.set(resources.timers.after(TICKS_PER_S));
                if let Some(verdict) = self.client.life.timer.race(asked.as_mut()).await {
                    break verdict;
                }
                if resources.phase() == Phase::Cutting {
                    return Step::Gone(End::Shutdown);
                }
                if matches!(self.client.stream.peek_now(), Received::End | Received::Reset) {
                    return Step::Gone(End::ClientGone);
                }
            }
        };
        let mut storage = field_storage();
        let request = RequestHead::parse(&head, &mut storage).expect("it was parsed before");
        let step = match verdict {
            Verdict::Granted(grant) => self.answer(&request, (&head, &rest), Some(grant)),
            Verdict::Denied(denial) => self.deny(&denial, place.route_index, request.is_head()),
            Verdict::Unavailable(refusal) => self.refuse(refusal, Some(place.route_index), request.is_head()),
        };
        self.counted(step)
    }

    /// Answers with what somebody said who does not let the client in, after which nothing more is served.
    fn deny(&self, denial: &Denial, route_index: usize, is_head: bool) -> Step {
        let cells = &self.table.port().cells;
        cells.handshake(HandshakeResult::Auth);
        cells.http_request(Some(route_index), denial.status.as_u16());
        let mut answer = Vec::with_capacity(512);
        denial.write(&mut answer, is_head);
        match self.send(answer) {
            Ok(unsent) => Step::Leave { unsent, end: End::Refused },
            Err(Gone) => Step::Gone(End::Refused),
        }
    }

    /// Asks an upstream, and answers the client with what came of it.
    async fn ask(&mut self, place: Rc<Place>, asking: Asking, from_client: Vec<u8>) -> Step {
        let upstreams = place.upstreams.as_ref().expect("a service that relays has upstreams");
        let route_index = Some(place.route_index);
        let expiry = asking.expiry;
        match opening::open(&self.client, upstreams, asking).await {
            Outcome::Open { upstream, answer, content, early } => {
                self.count_accepted(&place);
                let early = Early { from_client, from_upstream: early };
                match self.send(answer) {
                    Ok(unsent) => {
                        let relayed = Box::new(Relayed { upstream, content, early, expiry });
                        Step::Relay { place, unsent, relayed }
                    }
                    Err(Gone) => Step::Gone(End::ClientGone),
                }
            }
            Outcome::Refused(refused) => {
                let cells = &self.table.port().cells;
                cells.handshake(HandshakeResult::UpstreamRefused);
                cells.http_request(route_index, refused.status);
                match refused.pass_on(&self.client, &place).await {
                    Ok(()) => Step::Leave { unsent: Vec::new(), end: End::Refused },
                    Err(end) => Step::Gone(end),
                }
            }
            Outcome::Unavailable(refusal) => self.refuse(refusal, route_index, false),
            Outcome::Abandoned(Interruption::Draining) => {
                self.refuse(Refusal::Draining { retry_after_s: retry_after_s() }, route_index, false)
            }
            Outcome::Abandoned(Interruption::Cutting) => Step::Gone(End::Shutdown),
            Outcome::Abandoned(Interruption::ClientGone) => Step::Gone(End::ClientGone),
        }
    }

    /// Answers with the built-in page.
    fn page(&mut self, head: &RequestHead<'_>, place: &Rc<Place>, rest: &[u8]) -> Step {
        if let Some(refusal) = page::refusal(head) {
            return self.refuse(refusal, Some(place.route_index), head.is_head());
        }
        let keep_alive = head.keeps_alive();
        let mut answer = Vec::new();
        page::answer(head.is_head(), keep_alive).write(&mut answer);
        self.table.port().cells.http_request(Some(place.route_index), 200);
        let unsent = match self.send(answer) {
            Ok(unsent) => unsent,
            Err(Gone) => return Step::Gone(End::HttpDone),
        };
        if !keep_alive {
            return Step::Leave { unsent, end: End::HttpDone };
        }
        self.keep(rest.to_vec(), unsent)
    }

    /// Answers with a refusal, counted, after which nothing more is served on this connection.
    fn refuse(&mut self, refusal: Refusal, route_index: Option<usize>, is_head: bool) -> Step {
        let cells = &self.table.port().cells;
        let result = HandshakeResult::from(refusal);
        cells.handshake(result);
        cells.http_request(route_index, refusal.status());
        let mut answer = Vec::with_capacity(512);
        if is_head {
            refusal.write_without_body(&mut answer);
        } else {
            refusal.write(&mut answer);
        }
        let mismatch = match refusal {
            Refusal::BadRequest(BadRequest::PlainHttp) => Some(TlsFailure::PlainHttp),
            // An answer in TLS would be an alert, and each of them sends its reader to look for versions, ciphers or names.
            // An answer that is no TLS at all is what clients take for what it is: "wrong version number".
            Refusal::BadRequest(BadRequest::TlsClientHello) if !self.client.stream.is_tls() => {
                Some(TlsFailure::TlsOnPlainPort)
            }
            _ => None,
        };
        if let Some(failure) = mismatch {
            cells.tls_failure(failure);
        }
        let end = match result {
            _ if mismatch.is_some() => End::TlsFailed,
            HandshakeResult::Timeout => End::HandshakeTimeout,
            HandshakeResult::Limit | HandshakeResult::Rate => End::Limit,
            HandshakeResult::UpstreamUnavailable => End::UpstreamUnavailable,
            _ => End::Refused,
        };
        match self.send(answer) {
            Ok(unsent) => Step::Leave { unsent, end },
            Err(Gone) => Step::Gone(end),
        }
    }

    /// The deadline has passed with no whole head.
    fn time_out(&mut self) -> Step {
        match (self.head.is_empty(), self.has_answered) {
            (false, _) if self.awaits_proxy => Step::Gone(End::ProxyHeaderInvalid),
            _ if self.tls == TlsStage::Handshake => {
                self.table.port().cells.tls_failure(TlsFailure::Timeout);
                Step::Gone(End::TlsFailed)
            }
            // Somebody who asked for something is told; silence is answered with the end of the connection.
            (false, _) => self.refuse(Refusal::Timeout, None, asks_for_head_alone(&self.head)),
            (true, true) => Step::Leave { unsent: Vec::new(), end: End::HttpDone },
            (true, false) => Step::Leave { unsent: Vec::new(), end: End::HandshakeTimeout },
        }
    }

    /// The gateway drains and this client has not asked for anything: it is told that nothing more is served.
    fn leave_for_drain(&mut self) -> Step {
        let end = if self.has_answered { End::HttpDone } else { End::Drained };
        let mut answer = Vec::new();
        // Who has not begun TLS could not read an answer.
        if !self.has_answered && self.tls == TlsStage::Passed {
            Refusal::Draining { retry_after_s: retry_after_s() }.write(&mut answer);
        }
        match self.send(answer) {
            Ok(unsent) => Step::Leave { unsent, end },
            Err(Gone) => Step::Gone(end),
        }
    }

    /// Whether nothing of a request has come.
    fn is_silent(&self) -> bool {
        self.head.is_empty() && self.tls != TlsStage::Handshake
    }

    /// Sends what the socket has room for, and returns the rest.
    fn send(&self, mut bytes: Vec<u8>) -> Result<Vec<u8>, Gone> {
        if bytes.is_empty() {
            return Ok(bytes);
        }
        self.table.port().cells.wire_bytes(Direction::Sent).add(bytes.len() as u64);
        let sent = self.client.stream.send_now(&bytes)?;
        bytes.drain(..sent);
        Ok(bytes)
    }

    async fn flush(&self, unsent: &[u8]) -> Result<(), End> {
        if unsent.is_empty() {
            return Ok(());
        }
        self.client.flush(unsent, ticks(self.table.port().limits.write_timeout)).await
    }

    /// Takes note that a further request begins now.
    fn begin_request(&mut self) {
        let timeout = ticks(self.table.port().limits.handshake_timeout);
        (self.began, self.deadline) = (clock::now(), self.client.resources().timers.after(timeout));
    }

    fn new_scan(table: &Table) -> HeadScan {
        let limits = &table.port().limits;
        HeadScan::new(limits.request_head_size_max, limits.request_head_count_max)
    }
}

/// Whether these bytes begin a HEAD request, be it one that cannot be parsed (RFC 9110 section 9.3.2).
fn asks_for_head_alone(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().starts_with(b"HEAD ")
}

/// Counts a handshake that is in progress.
struct Waiting {
    port: Rc<Port>,
}

impl Waiting {
    fn begin(port: &Rc<Port>) -> Self {
        port.cells.handshakes_in_progress.add(1);
        Self { port: Rc::clone(port) }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.port.cells.handshakes_in_progress.sub(1);
    }
}
