//! What a connection keeps of what was said on it, for the messages that refer to it.

use super::Terms;

/// What a connection has agreed on, and the windows that it keeps: none, or at most those of both sides.
#[derive(Debug)]
pub struct Contexts {
    terms: Terms,
    /// The last of what this side has sent compressed.
    pub(super) sent: Vec<u8>,
    /// The last of what the peer has.
    pub(super) received: Vec<u8>,
}

impl Contexts {
    /// Those of a connection on which nothing was said.
    pub const fn new(terms: Terms) -> Self {
        Self { terms, sent: Vec::new(), received: Vec::new() }
    }

    /// What was agreed on.
    pub const fn terms(&self) -> Terms {
        self.terms
    }

    /// Bytes of memory that the windows take.
    pub fn held_size(&self) -> usize {
        self.sent.capacity() + self.received.capacity()
    }

    /// Takes note of a message that was sent compressed.
    pub(super) fn note_sent(&mut self, message: &[u8]) {
        remember(&mut self.sent, message, self.terms.sent_size_max());
    }

    /// Takes note of a message that came compressed.
    pub(super) fn note_received(&mut self, message: &[u8]) {
        remember(&mut self.received, message, self.terms.received_size_max());
    }
}

/// Keeps the last `size_max` bytes of what was kept and the message behind it.
fn remember(window: &mut Vec<u8>, message: &[u8], size_max: usize) {
    if size_max == 0 {
        return;
    }
    let message = &message[message.len().saturating_sub(size_max)..];
    let kept = window.len().min(size_max - message.len());
    window.drain(..window.len() - kept);
    // To the byte: what doubles would hold more than is told.
    window.reserve_exact((kept + message.len()).next_power_of_two().min(size_max) - kept);
    window.extend_from_slice(message);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_holds_the_last_bytes_and_no_more_memory_than_that() {
        for size_max in [256, 4096] {
            let (mut window, mut all) = (Vec::new(), Vec::new());
            for (index, size) in [0, 1, 100, 255, 256, 257, 3, 5000, 7, 4096, 1, 300].into_iter().enumerate()
            {
                let message: Vec<u8> = (0..size).map(|byte| (byte * 7 + index).to_le_bytes()[0]).collect();
                remember(&mut window, &message, size_max);
                all.extend_from_slice(&message);
                assert_eq!(window, all[all.len().saturating_sub(size_max)..]);
                assert!(window.capacity() <= size_max, "{}", window.capacity());
            }
        }
        let mut none = Vec::new();
        remember(&mut none, b"message", 0);
        assert_eq!((none.len(), none.capacity()), (0, 0));
    }
}
