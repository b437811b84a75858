//! The opening handshake with an upstream: where it speaks WebSocket, it is asked with the client's own key.
//!
//! The client is answered only after that, so whatever goes wrong here is still told with a status.

use std::net::IpAddr;

use super::client::Client;
use super::place::{Place, Upstreams};
use super::reach::{Asker, Fault, Interruption, Reached, Unreached, Way, reach, refusal_of};
use super::relay::{Content, Upstream};
use super::upstream::{Lease, Unavailable};
use crate::metrics::{ConnectResult, Direction, End};
use crate::net::clock;
use crate::net::stream::{Gone, Received, Stream};
use crate::net::timers::{TICKS_PER_S, Tick};
use crate::protocol::http::body::BodyWalker;
use crate::protocol::http::field_storage;
use crate::protocol::http::forward::response;
use crate::protocol::http::refusal::Refusal;
use crate::protocol::http::response::ResponseHead;
use crate::protocol::http::scan::HeadScan;
use crate::protocol::websocket::deflate::Terms;
use crate::protocol::websocket::frame::RESERVED_BITS;
use crate::protocol::websocket::handshake::Offer;
use crate::protocol::websocket::handshake::client::{RESPONSE_FIELD_COUNT_MAX, RESPONSE_HEAD_SIZE_MAX};
use crate::protocol::websocket::handshake::upstream::{self, Answer};
use crate::route::auth::Expiry;

/// How many interim responses an upstream may send before the one that counts.
const INTERIM_MAX: u32 = 8;

/// How long the body of a refusal may take in all. Whoever refuses has no more to say than a page, so this is for those
/// who would not end.
const REFUSAL_TIMEOUT: Tick = 300 * TICKS_PER_S;

/// What an upstream is asked for a client.
#[derive(Debug)]
pub struct Asking {
    /// What it is asked.
    pub question: Question,
    /// What the upstream depends on, where clients stick to one ([`super::reach::stickiness`]).
    pub hash: Option<u64>,
    /// Who the client is, which failures that its request may have caused are told by.
    pub client: IpAddr,
    /// When the connection ends, as what lets the client in has expired.
    pub expiry: Option<Expiry>,
}

/// What an upstream is asked.
#[derive(Debug)]
pub enum Question {
    /// A WebSocket server: the opening handshake.
    Head {
        /// Its whole head.
        request: Vec<u8>,
        /// What it offers.
        offer: Offer,
        /// What is agreed on compression with the client where the upstream agrees on no extension.
        deflate: Option<Terms>,
    },
    /// A byte stream: nothing. The client's answer is known already.
    Nothing {
        /// The head of the 101.
        answer: Vec<u8>,
    },
}

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// The upstream takes the client.
    Open {
        /// Its connection.
        upstream: Upstream,
        /// The head of the 101 for the client.
        answer: Vec<u8>,
        /// What it speaks.
        content: Content,
        /// What followed the head of its response.
        early: Vec<u8>,
    },
    /// The upstream answered with a refusal of its own.
    Refused(Box<Refused>),
    /// No upstream could be had.
    Unavailable(Refusal),
    /// The shard or the client has left meanwhile.
    Abandoned(Interruption),
}

/// An upstream's refusal on its way to the client.
#[derive(Debug)]
pub struct Refused {
    /// The status code.
    pub status: u16,
    /// The head for the client, and what has come of the body.
    first: Vec<u8>,
    body: BodyWalker,
    stream: Stream,
    _lease: Lease,
}

/// Gets an upstream for a client that keeps all rules and policies, and asks it.
pub async fn open(client: &Client, upstreams: &Upstreams, asking: Asking) -> Outcome {
    enum Never {}
    let asker = Asker::of(client);
    let reached = reach(asker, upstreams, asking.hash, asking.client, |_| None::<Never>).await;
    let (attempt, stream, began, deadline) = match reached {
        Ok(Reached { attempt, way: Way::New { stream, began, deadline } }) => {
            (attempt, stream, began, deadline)
        }
        Ok(Reached { way: Way::Kept(never), .. }) => match never {},
        Err(Unreached::Refused(refusal)) => return Outcome::Unavailable(refusal),
        Err(Unreached::Abandoned(interruption)) => return Outcome::Abandoned(interruption),
    };
    let answered = match asking.question {
        Question::Nothing { answer } => {
            Ok(Answered::Accepted { answer, content: Content::Bytes, early: Vec::new() })
        }
        Question::Head { request, offer, deflate } => {
            ask(asker, upstreams, &stream, (&request, &offer, deflate), deadline).await
        }
    };
    match answered {
        Ok(Answered::Accepted { answer, content, early }) => {
            upstreams.cells.connect(ConnectResult::Opened);
            upstreams.cells.connect_duration.observe(clock::now().saturating_duration_since(began));
            let lease = attempt.opened(clock::monotonic_ms());
            Outcome::Open { upstream: Upstream { stream, lease }, answer, content, early }
        }
        Ok(Answered::Refused { status, first, body }) => {
            upstreams.cells.connect(ConnectResult::Answered);
            let lease = attempt.opened(clock::monotonic_ms());
            Outcome::Refused(Box::new(Refused { status, first, body, stream, _lease: lease }))
        }
        Err(Fault::Interrupted(interruption)) => {
            upstreams.cells.connect(ConnectResult::Abandoned);
            Outcome::Abandoned(interruption)
        }
        Err(Fault::Failed(result)) => {
            // In TLS 1.3 a server judges the client, as by a certificate that it wants, when that has done its part already.
            let result = match stream.tls_fault() {
                Some(fault) => {
                    attempt.note_tls_fault(fault);
                    ConnectResult::TlsFailed
                }
                None => result,
            };
            upstreams.cells.connect(result);
            attempt.failed(result, asking.client, clock::monotonic_ms());
            Outcome::Unavailable(refusal_of(Unavailable::Exhausted, Some(result)))
        }
    }
}

impl Refused {
    /// Passes the refusal on to the client, for as long as its body goes on: it may be silent for as long as the client
    /// may take to read, and last for five minutes. A drain waits for it.
    ///
    /// # Errors
    /// How the connection ended before all of it was passed on. Dropping the client then resets its connection.
    pub async fn pass_on(mut self, client: &Client, place: &Place) -> Result<(), End> {
        let outcome = self.pass_body(client, place).await;
        if outcome.is_err() && self.body.end().is_ok() {
            // A body that is not framed ends with the connection, and would look whole at an end in order. The others show
            // for themselves that they are cut, and a reset could destroy what the client has not read of them.
            client.stream.reset_on_close();
        }
        outcome
    }

    async fn pass_body(&mut self, client: &Client, place: &Place) -> Result<(), End> {
        let mut part = std::mem::take(&mut self.first);
        let timeout = place.write_timeout;
        let timers = &client.resources().timers;
        let last = timers.after(REFUSAL_TIMEOUT);
        loop {
            place.cells().wire_bytes(Direction::Sent).add(part.len() as u64);
            let sent = client.stream.send_now(&part).map_err(|Gone| End::ClientGone)?;
            if sent < part.len() {
                client.flush(&part[sent..], timeout).await?;
            }
            if self.body.is_complete() {
                return Ok(());
            }
            part.clear();
            let asker = Asker::of(client).outlasting_drain();
            let deadline = timers.after(timeout).min(last);
            let received = receive(asker, &self.stream, deadline).await.map_err(|fault| match fault {
                Fault::Interrupted(Interruption::ClientGone) => End::ClientGone,
                Fault::Interrupted(Interruption::Draining | Interruption::Cutting) => End::Shutdown,
                Fault::Failed(_) => End::UpstreamGone,
            })?;
            let Some(bytes) = received else {
                return self.body.end().map_err(|_| End::UpstreamGone);
            };
            let walked = self.body.walk(&bytes).map_err(|_| End::UpstreamGone)?;
            part.extend_from_slice(&bytes[..walked.size]);
        }
    }
}

/// What an upstream answered.
enum Answered {
    Accepted { answer: Vec<u8>, content: Content, early: Vec<u8> },
    Refused { status: u16, first: Vec<u8>, body: BodyWalker },
}

/// Passes the client's opening handshake on, and judges the response.
async fn ask(
    asker: Asker<'_>,
    upstreams: &Upstreams,
    stream: &Stream,
    (request, offer, deflate): (&[u8], &Offer, Option<Terms>),
    deadline: Tick,
) -> Result<Answered, Fault> {
    send(asker, stream, request, deadline).await?;
    let mut received = Vec::new();
    let mut interim_count = 0;
    let mut scan = HeadScan::new(RESPONSE_HEAD_SIZE_MAX, RESPONSE_FIELD_COUNT_MAX);
    loop {
        match scan.scan(&received) {
            Ok(Some(head_size)) => {
                if let Some(answered) = judge(upstreams, (offer, deflate), &received, head_size)? {
                    return Ok(answered);
                }
                interim_count += 1;
                if interim_count > INTERIM_MAX {
                    return Err(Fault::Failed(ConnectResult::BadHandshake));
                }
                received.drain(..head_size);
                scan = HeadScan::new(RESPONSE_HEAD_SIZE_MAX, RESPONSE_FIELD_COUNT_MAX);
                continue;
            }
            Ok(None) => {}
            Err(_) => return Err(Fault::Failed(ConnectResult::BadHandshake)),
        }
        match receive(asker, stream, deadline).await? {
            Some(bytes) => received.extend_from_slice(&bytes),
            None => return Err(Fault::Failed(ConnectResult::Reset)),
        }
    }
}

/// Judges the head of a response, and writes the one that the client gets; `None` for an interim response.
fn judge(
    upstreams: &Upstreams,
    (offer, deflate): (&Offer, Option<Terms>),
    received: &[u8],
    head_size: usize,
) -> Result<Option<Answered>, Fault> {
    let mut storage = field_storage();
    let (head, rest) = received.split_at(head_size);
    let head =
        ResponseHead::parse(head, &mut storage).map_err(|_| Fault::Failed(ConnectResult::BadHandshake))?;
    let answer = upstream::judge(&head, offer).map_err(|_| Fault::Failed(ConnectResult::BadHandshake))?;
    let edits = upstreams.relay.response_headers.view();
    let mut out = Vec::with_capacity(head_size + 64);
    Ok(match answer {
        Answer::Interim => None,
        Answer::Accepted { has_extensions, .. } => {
            // What the two ends agree on is their own.
            let deflate = deflate.filter(|_| !has_extensions);
            response::write_accepted(&head, edits, deflate, &mut out);
            let content = match deflate {
                Some(terms) => Content::Messages { terms },
                None => Content::Frames { reserved_bits: if has_extensions { RESERVED_BITS } else { 0 } },
            };
            Some(Answered::Accepted { answer: out, content, early: rest.to_vec() })
        }
        Answer::Refused { status, framing } => {
            response::write_refused(&head, framing, edits, &mut out);
            let mut body = BodyWalker::new(framing);
            let walked = body.walk(rest).map_err(|_| Fault::Failed(ConnectResult::BadHandshake))?;
            out.extend_from_slice(&rest[..walked.size]);
            Some(Answered::Refused { status, first: out, body })
        }
    })
}

async fn send(asker: Asker<'_>, stream: &Stream, mut bytes: &[u8], deadline: Tick) -> Result<(), Fault> {
    loop {
        let sent = stream.send_now(bytes).map_err(|Gone| Fault::Failed(ConnectResult::Reset))?;
        bytes = &bytes[sent..];
        if bytes.is_empty() {
            return Ok(());
        }
        asker.wait_for(deadline, stream.writable()).await?;
    }
}

/// Receives what comes next; `None` at the end of the stream.
async fn receive(asker: Asker<'_>, stream: &Stream, deadline: Tick) -> Result<Option<Vec<u8>>, Fault> {
    loop {
        asker.wait_for(deadline, stream.readable()).await?;
        let mut scratch = asker.resources().scratch.lend();
        match stream.receive_now(&mut scratch) {
            Received::Bytes(size) => return Ok(Some(scratch[..size].to_vec())),
            Received::Nothing => {}
            Received::End => return Ok(None),
            Received::Reset => return Err(Fault::Failed(ConnectResult::Reset)),
        }
    }
}
