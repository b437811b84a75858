//! Echoes on a connection that compresses.

use crate::protocol::websocket::deflate::codec::Codec;
use crate::protocol::websocket::endpoint::{Endpoint, MessageKind};
use crate::protocol::websocket::exchange::{Exchange, Payload};
use crate::protocol::websocket::violation::Violation;
use crate::service::deflate::Deflated;
use crate::service::place::Place;

/// Answers a message, be it compressed or not, with the same one, compressed where that makes it smaller; returns
/// the size of the message, in bytes.
///
/// # Errors
/// The rule that the message breaks.
pub(super) fn message(
    deflated: &mut Deflated,
    exchange: &mut Exchange<'_>,
    place: &Place,
    (kind, payload, is_compressed): (MessageKind, Payload, bool),
) -> Result<usize, Violation> {
    let Codec { inflater, compressors } = &mut *place.resources().codec.borrow_mut();
    let observe = |message: &[u8]| place.cells().message_size.observe_bytes(message.len() as u64);
    if is_compressed {
        let message = deflated.inflate(inflater, kind, exchange.payload(&payload))?;
        observe(message);
        match deflated.compress(compressors, message) {
            Some(compressed) => exchange.reply_with(kind.opcode(), true, compressed),
            None => exchange.reply_with(kind.opcode(), false, message),
        }
        Ok(message.len())
    } else {
        let message = exchange.payload(&payload);
        deflated.admit(message)?;
        observe(message);
        let size = message.len();
        match deflated.compress(compressors, message) {
            Some(compressed) => exchange.reply_with(kind.opcode(), true, compressed),
            None => exchange.reply(kind.opcode(), payload),
        }
        Ok(size)
    }
}

/// Does what is left to do with the bytes of a read once its messages are answered.
///
/// # Errors
/// What is known of a message that is unfinished.
pub(super) fn after_read(
    deflated: &mut Deflated,
    endpoint: &Endpoint,
    place: &Place,
) -> Result<(), Violation> {
    let mut codec = place.resources().codec.borrow_mut();
    codec.trim();
    deflated.look_into(&mut codec.inflater, endpoint)
}
