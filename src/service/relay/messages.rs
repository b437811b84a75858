//! Messages that go compressed between the client and here, and as they are between here and an upstream that agreed on no
//! extension of its own.
//!
//! What comes from either side is read message by message. Control frames pass as they came, between messages.

use std::rc::Rc;

use super::lane::Fate;
use super::{Pass, Relay, Side};
use crate::metrics::Direction;
use crate::protocol::websocket::deflate::Terms;
use crate::protocol::websocket::deflate::codec::Codec;
use crate::protocol::websocket::endpoint::{Endpoint, Event};
use crate::protocol::websocket::exchange::Exchange;
use crate::protocol::websocket::frame::{self, Header, Opcode, Role, Rules, SERVER_HEADER_SIZE_MAX, Tally};
use crate::protocol::websocket::violation::Violation;
use crate::protocol::websocket::walker::WalkEnd;
use crate::service::deflate::{Deflated, Share};
use crate::service::place::Place;

/// The largest message of an upstream, in bytes: it has to be held until it is whole.
const UPSTREAM_MESSAGE_SIZE_MAX: u64 = 64 << 20;

/// What is unfinished of the messages of both sides, and what was agreed on with the client.
pub(super) struct Messages {
    deflated: Deflated,
    from_client: Endpoint,
    from_upstream: Endpoint,
    /// What of a read of the client's was left for the next turn.
    rest: Option<Box<[u8]>>,
}

impl Messages {
    /// Those of a connection that begins.
    pub(super) fn new(place: &Rc<Place>, terms: Terms) -> Self {
        Self {
            deflated: Deflated::new(place, terms),
            from_client: Endpoint::new(),
            from_upstream: Endpoint::new(),
            rest: None,
        }
    }

    /// Whether there is a rest of a read, which is looked at before more is read.
    pub(super) const fn has_rest(&self) -> bool {
        self.rest.is_some()
    }

    /// The rest of a read.
    pub(super) const fn take_rest(&mut self) -> Option<Box<[u8]>> {
        self.rest.take()
    }

    /// Reads what the client sent, as much as one turn may, and writes what the upstream gets.
    fn read_client(
        &mut self,
        relay: &Relay,
        exchange: &mut Exchange<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Option<WalkEnd>, Violation> {
        let Self { deflated, from_client, .. } = self;
        let resources = relay.resources();
        let codec = &mut *resources.codec.borrow_mut();
        let mut share = Share::default();
        let mut write = |opcode, payload: &[u8]| {
            frame::append(out, opcode, true, payload, Some(resources.random.bytes()));
        };
        while !share.is_used_up()
            && let Some(event) = from_client.receive(deflated.rules(), exchange)?
        {
            match event {
                Event::Message { kind, payload, is_compressed } => {
                    let payload = exchange.payload(&payload);
                    let message = if is_compressed {
                        deflated.inflate(&mut codec.inflater, kind, payload)?
                    } else {
                        deflated.admit(payload)?;
                        payload
                    };
                    relay.place.cells().message_size.observe_bytes(message.len() as u64);
                    share.take(message.len());
                    write(kind.opcode(), message);
                }
                Event::Ping(payload) => write(Opcode::Ping, exchange.payload(&payload)),
                Event::Pong(payload) => write(Opcode::Pong, exchange.payload(&payload)),
                Event::Close(code, payload) => {
                    write(Opcode::Close, exchange.payload(&payload));
                    return Ok(Some(WalkEnd::Close(code)));
                }
            }
        }
        deflated.look_into(&mut codec.inflater, from_client).map(|()| None)
    }

    /// Reads what the upstream sent, and writes what the client gets.
    fn read_upstream(
        &mut self,
        relay: &Relay,
        exchange: &mut Exchange<'_>,
        (out, tally): (&mut Vec<u8>, &mut Tally),
    ) -> Result<Option<WalkEnd>, Violation> {
        let Self { deflated, from_upstream, .. } = self;
        let Codec { compressors, .. } = &mut *relay.resources().codec.borrow_mut();
        let rules = Rules {
            role: Role::Client,
            frame_size_max: UPSTREAM_MESSAGE_SIZE_MAX,
            message_size_max: UPSTREAM_MESSAGE_SIZE_MAX,
            ..relay.place.rules
        };
        let mut write = |opcode, is_compressed, payload: &[u8]| {
            let payload_size = payload.len() as u64;
            let header = Header { fin: true, opcode, is_compressed, mask: None, payload_size };
            tally.count(&header);
            let mut bytes = [0; SERVER_HEADER_SIZE_MAX];
            let header_size = header.write(&mut bytes);
            out.extend_from_slice(&bytes[..header_size]);
            out.extend_from_slice(payload);
        };
        while let Some(event) = from_upstream.receive(&rules, exchange)? {
            match event {
                Event::Message { kind, payload, .. } => {
                    let message = exchange.payload(&payload);
                    match deflated.compress(compressors, message) {
                        Some(compressed) => write(kind.opcode(), true, compressed),
                        None => write(kind.opcode(), false, message),
                    }
                }
                Event::Ping(payload) => write(Opcode::Ping, false, exchange.payload(&payload)),
                Event::Pong(payload) => write(Opcode::Pong, false, exchange.payload(&payload)),
                Event::Close(code, payload) => {
                    write(Opcode::Close, false, exchange.payload(&payload));
                    return Ok(Some(WalkEnd::Close(code)));
                }
            }
        }
        Ok(None)
    }
}

impl Relay {
    /// Takes in what the client sent, and tells what the upstream gets of it.
    pub(super) fn inflate_messages(&self, messages: &mut Messages, bytes: &mut [u8]) -> Pass {
        let size = bytes.len();
        let mut out = Vec::with_capacity(2 * size);
        let mut exchange = Exchange::new(bytes);
        let mut outcome = messages.read_client(self, &mut exchange, &mut out);
        self.resources().codec.borrow_mut().trim();
        self.place.cells().tally(Direction::Received, &exchange.received);
        self.note_frames(&exchange.received);
        if let Ok(None) = outcome {
            messages.rest = exchange.keep_rest();
            let rest_size = messages.rest.as_ref().map_or(0, |rest| rest.len());
            outcome = self.spend_allowance(&exchange.received, size - rest_size).map(|()| None);
        }
        self.pass_messages(Side::Client, outcome, out)
    }

    /// Takes in what the upstream sent, and tells what the client gets of it.
    pub(super) fn compress_messages(&self, messages: &mut Messages, bytes: &mut [u8]) -> Pass {
        let mut out = Vec::with_capacity(bytes.len());
        let mut tally = Tally::default();
        let mut exchange = Exchange::new(bytes);
        let outcome = messages.read_upstream(self, &mut exchange, (&mut out, &mut tally));
        self.resources().codec.borrow_mut().trim();
        if self.down.fate.get() == Fate::Passed {
            let cells = self.place.cells();
            cells.tally(Direction::Sent, &tally);
            cells.wire_bytes(Direction::Sent).add(out.len() as u64);
            self.note_message_for_client(&tally);
        }
        self.pass_messages(Side::Upstream, outcome, out)
    }

    /// Tells what passes of these frames, and obeys what they ended with.
    fn pass_messages(
        &self,
        from: Side,
        outcome: Result<Option<WalkEnd>, Violation>,
        frames: Vec<u8>,
    ) -> Pass {
        let is_passed = self.lane(from).fate.get() == Fate::Passed;
        self.on_walk_end(from, outcome.unwrap_or_else(|violation| Some(WalkEnd::Violation(violation))));
        if is_passed { Pass::Composed(frames) } else { Pass::InPlace(0..0) }
    }
}
