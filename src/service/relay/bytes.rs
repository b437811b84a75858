//! Between messages and a stream of bytes: what a relay to something that does not speak WebSocket adds.

use super::lane::Fate;
use super::{Pass, Relay, Side};
use crate::metrics::{Direction, End, Initiator};
use crate::protocol::websocket::endpoint::{Endpoint, Event};
use crate::protocol::websocket::exchange::Exchange;
use crate::protocol::websocket::frame::{Header, Opcode, SERVER_HEADER_SIZE_MAX, Tally};

impl Relay {
    /// How many bytes of a buffer are left free in front of what `from` sends: for the header that it gets.
    pub(super) fn room(&self, from: Side) -> usize {
        if self.speaks_bytes() && from == Side::Upstream { SERVER_HEADER_SIZE_MAX } else { 0 }
    }

    /// Takes the payload out of the client's messages, and answers its control frames.
    pub(super) fn unwrap_messages(&self, endpoint: &mut Endpoint, bytes: &mut [u8]) -> Pass {
        let cells = self.place.cells();
        let size = bytes.len();
        let mut payload = Vec::new();
        let mut exchange = Exchange::new(bytes);
        let outcome = loop {
            match endpoint.receive(&self.place.rules, &mut exchange) {
                Ok(Some(Event::Message { payload: message, .. })) => {
                    let message = exchange.payload(&message);
                    cells.message_size.observe_bytes(message.len() as u64);
                    payload.extend_from_slice(message);
                }
                Ok(Some(Event::Ping(ping))) => exchange.reply(Opcode::Pong, ping),
                Ok(Some(Event::Pong(_))) => {}
                Ok(Some(Event::Close(code, _))) => break Ok(Some(code)),
                Ok(None) => break Ok(None),
                Err(violation) => break Err(violation),
            }
        };
        let (received, replied) = (exchange.received, exchange.replied);
        cells.tally(Direction::Received, &received);
        let outgoing = exchange.finish();
        if outgoing.size() > 0 && !self.down.will_have_closed() {
            let frames = [&bytes[outgoing.in_place], &outgoing.spill[..]].concat();
            self.down.queue_frames(&frames, &replied);
            self.is_changed.set(true);
        }
        self.note_frames(&received);
        match outcome.and_then(|close| self.spend_allowance(&received, size).map(|()| close)) {
            Ok(None) => {}
            Ok(Some(code)) => {
                self.count_close(Initiator::Client, code);
                if !self.down.will_have_closed() {
                    self.down.queue_close(code, b"", None);
                }
                self.decide_end(End::Closed);
                // A byte stream is told of the end by the end.
                self.up.sever();
                self.begin_to_end();
            }
            Err(violation) => self.on_violation(Side::Client, violation),
        }
        Pass::Composed(payload)
    }

    /// Puts the header of a binary message in front of what the upstream sent.
    pub(super) fn wrap_bytes(&self, buffer: &mut [u8], room: usize) -> Pass {
        if self.down.fate.get() != Fate::Passed || self.down.will_have_closed() {
            return Pass::InPlace(0..0);
        }
        let payload_size = (buffer.len() - room) as u64;
        let header =
            Header { fin: true, opcode: Opcode::Binary, is_compressed: false, mask: None, payload_size };
        let mut tally = Tally::default();
        tally.count(&header);
        let start = room - header.size();
        header.write(&mut buffer[start..]);
        let cells = self.place.cells();
        cells.tally(Direction::Sent, &tally);
        self.note_message_for_client(&tally);
        cells.wire_bytes(Direction::Sent).add((buffer.len() - start) as u64);
        Pass::InPlace(start..buffer.len())
    }
}
