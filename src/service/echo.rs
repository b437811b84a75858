//! `service = "echo"`: every message comes back as it went.

use crate::protocol::websocket::endpoint::MessageKind;
use crate::protocol::websocket::exchange::{Exchange, Payload};

/// Replies to a message with the message.
#[inline]
pub fn message(exchange: &mut Exchange<'_>, kind: MessageKind, payload: Payload) {
    exchange.reply(kind.opcode(), payload);
}
