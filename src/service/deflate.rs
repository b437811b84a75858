//! Messages that go compressed between a client and the gateway, on a connection that has agreed on it.

use std::rc::Rc;

use super::place::Place;
use crate::metrics::Direction;
use crate::protocol::websocket::deflate::Terms;
use crate::protocol::websocket::deflate::codec::{Compressors, Inflater};
use crate::protocol::websocket::deflate::contexts::Contexts;
use crate::protocol::websocket::endpoint::{Endpoint, MessageKind};
use crate::protocol::websocket::frame::Rules;
use crate::protocol::websocket::utf8;
use crate::protocol::websocket::violation::Violation;

/// How many messages of a read are looked at in one turn.
const TURN_MESSAGES_MAX: u32 = 64;
/// From which size on, in bytes, what they come to is enough for one turn.
const TURN_SIZE: usize = 64 << 10;

/// What one turn has made of a read. A read may come to a thousand times its size, and may hold thousands of messages that
/// each cost a new beginning: the others of the shard have their turns in between, and what was made is sent before more
/// is.
#[derive(Debug, Default)]
pub struct Share {
    messages: u32,
    size: usize,
}

impl Share {
    /// Takes note of a message of this size, in bytes.
    pub const fn take(&mut self, size: usize) {
        self.messages += 1;
        self.size += size;
    }

    /// Whether the rest of the read is left for the next turn.
    pub const fn is_used_up(&self) -> bool {
        self.messages >= TURN_MESSAGES_MAX || self.size >= TURN_SIZE
    }
}

/// What a connection that compresses keeps.
#[derive(Debug)]
pub struct Deflated {
    place: Rc<Place>,
    contexts: Contexts,
    /// Bytes of the contexts, as they are counted.
    counted_size: u64,
    /// How much of the unfinished message had come when it was last looked into, in bytes.
    looked_into: usize,
}

impl Deflated {
    /// That of a connection which has just agreed on these terms.
    pub fn new(place: &Rc<Place>, terms: Terms) -> Self {
        Self { place: Rc::clone(place), contexts: Contexts::new(terms), counted_size: 0, looked_into: 0 }
    }

    /// What the client's frames may be like.
    pub fn rules(&self) -> &Rules {
        self.place.deflate.as_ref().map_or(&self.place.rules, |(_, rules)| rules)
    }

    /// The message that the client sent as this, inflated.
    ///
    /// # Errors
    /// Where it does not inflate, inflates to too much, or is text that is not UTF-8.
    pub fn inflate<'c>(
        &mut self,
        inflater: &'c mut Inflater,
        kind: MessageKind,
        payload: &[u8],
    ) -> Result<&'c [u8], Violation> {
        self.looked_into = 0;
        let message = inflater.inflate(&mut self.contexts, payload, self.place.rules.message_size_max)?;
        if kind == MessageKind::Text && utf8::validate(message).is_none() {
            return Err(Violation::InvalidUtf8);
        }
        self.place.cells().deflated(Direction::Received, message.len(), payload.len());
        self.count_contexts();
        Ok(message)
    }

    /// Holds a message that came uncompressed against the limit, which [`Self::rules`] leave some room above.
    ///
    /// # Errors
    /// [`Violation::MessageTooBig`].
    pub fn admit(&self, message: &[u8]) -> Result<(), Violation> {
        let (size, limit) = (message.len() as u64, self.place.rules.message_size_max);
        if size > limit { Err(Violation::MessageTooBig { size, limit }) } else { Ok(()) }
    }

    /// Looks into a message that is unfinished, if there is one.
    ///
    /// # Errors
    /// Where it is known already that it does not inflate, or to too much.
    pub fn look_into(&mut self, inflater: &mut Inflater, endpoint: &Endpoint) -> Result<(), Violation> {
        let Some(unfinished) = endpoint.unfinished_compressed() else { return Ok(()) };
        let before = std::mem::replace(&mut self.looked_into, unfinished.len());
        inflater.look_into(&self.contexts, unfinished, before, self.place.rules.message_size_max)
    }

    /// The message compressed for the client; `None` where it is to be sent as it is.
    pub fn compress<'c>(&mut self, compressors: &'c mut Compressors, message: &[u8]) -> Option<&'c [u8]> {
        let (settings, _) = self.place.deflate.as_ref()?;
        if message.len() < settings.size_min {
            return None;
        }
        let compressed = compressors.compress(&mut self.contexts, settings.level, message)?;
        self.place.cells().deflated(Direction::Sent, message.len(), compressed.len());
        self.count_contexts();
        Some(compressed)
    }

    fn count_contexts(&mut self) {
        let size = self.contexts.held_size() as u64;
        if size != self.counted_size {
            let gauge = &self.place.cells().deflate_context_bytes;
            gauge.add(size);
            gauge.sub(self.counted_size);
            self.counted_size = size;
        }
    }
}

impl Drop for Deflated {
    fn drop(&mut self) {
        self.place.cells().deflate_context_bytes.sub(self.counted_size);
    }
}
