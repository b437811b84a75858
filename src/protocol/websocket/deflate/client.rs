//! The client's side of what is agreed on: for the load generator.

use super::{NAME, Offer, Terms, WINDOW_BITS_MAX, Window};

/// What a client offers. In no case does it refer to messages before by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientOffer {
    /// Neither side keeps a context.
    Shared,
    /// The server may keep one, of any window.
    Dedicated,
}

impl ClientOffer {
    /// The offer as an extension in a request.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Shared => "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
            Self::Dedicated => "permessage-deflate; client_no_context_takeover",
        }
    }

    /// Whether the extension with this name in a response is the one that was offered.
    pub(in super::super) fn is_named(name: &[u8]) -> bool {
        name == NAME
    }

    /// What is agreed on with a server that chose this extension; `None` where that is no answer to the offer (RFC 7692
    /// section 7.1): a parameter that is unknown or malformed, a window for a client that did not offer to be told one, or a
    /// context where none was to be kept.
    pub fn agree(self, extension: &[u8]) -> Option<Terms> {
        let answer = Offer::parse(extension)?;
        let keeps_context = !answer.server_no_context_takeover;
        if answer.client_max_window_bits.is_some() || (self == Self::Shared && keeps_context) {
            return None;
        }
        let bits = answer.server_max_window_bits.unwrap_or(WINDOW_BITS_MAX);
        // Terms are told as a server has them, whose own window comes first: here that is the client's.
        Some(Terms {
            server: Window { bits: WINDOW_BITS_MAX, is_named: false, keeps_context: false },
            client: Window { bits, is_named: true, keeps_context },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Policy;
    use super::*;

    #[test]
    fn what_our_server_answers_our_client_agrees_on() {
        for (offer, keeps_contexts, kept) in [
            (ClientOffer::Shared, false, 0),
            (ClientOffer::Shared, true, 0),
            (ClientOffer::Dedicated, false, 0),
            (ClientOffer::Dedicated, true, 1 << 12),
        ] {
            let policy = Policy { keeps_contexts, window_bits: 12 };
            let theirs = Terms::agree([offer.extension().as_bytes()].into_iter(), policy).unwrap();
            let mut answer = Vec::new();
            theirs.write(&mut answer);
            let ours = offer.agree(&answer).unwrap();
            // Each expects of the other what that one does.
            assert_eq!((theirs.sent_size_max(), theirs.received_size_max()), (kept, 0), "{offer:?}");
            assert_eq!((ours.sent_size_max(), ours.received_size_max()), (0, kept), "{offer:?}");
        }
    }

    #[test]
    fn an_answer_to_another_offer_is_none() {
        let none_kept = "permessage-deflate; server_no_context_takeover";
        for (answer, is_shared, is_dedicated) in [
            ("permessage-deflate", false, true),
            ("permessage-deflate; client_no_context_takeover", false, true),
            ("permessage-deflate; server_max_window_bits=9", false, true),
            (none_kept, true, true),
            (&format!("{none_kept}; client_no_context_takeover; server_max_window_bits=8"), true, true),
            (&format!("{none_kept}; client_max_window_bits=15"), false, false),
            (&format!("{none_kept}; server_max_window_bits=16"), false, false),
            (&format!("{none_kept}; server_no_context_takeover"), false, false),
            (&format!("{none_kept}; level=1"), false, false),
        ] {
            assert_eq!(ClientOffer::Shared.agree(answer.as_bytes()).is_some(), is_shared, "{answer}");
            assert_eq!(ClientOffer::Dedicated.agree(answer.as_bytes()).is_some(), is_dedicated, "{answer}");
        }
    }
}
