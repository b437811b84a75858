//! permessage-deflate (RFC 7692): what is agreed on in the opening handshake, and messages compressed by it.
//!
//! No connection holds a compressor or an inflater: both are the shard's ([`codec::Codec`]) and start anew with every
//! message. What a side that keeps its context needs is no more than the last bytes that went before, which are their
//! dictionary then ([`contexts::Contexts`]): a window of what was said, in place of some 300 KB of a compressor's state.

pub mod client;
pub mod codec;
pub mod contexts;
#[doc(hidden)]
pub mod fuzz;

use crate::protocol::http::list;

/// The name of the extension.
const NAME: &[u8] = b"permessage-deflate";
/// The bits of the largest window (RFC 7692 section 7.1.2), and of one that nobody has spoken of.
pub const WINDOW_BITS_MAX: u8 = 15;
/// The bits of the smallest window.
const WINDOW_BITS_MIN: u8 = 8;
/// The bits of the smallest window that zlib compresses with. It looks back no further than 250 bytes in it, which is
/// within one of 8 bits too.
pub const COMPRESSOR_BITS_MIN: u8 = 9;

/// What a route is willing to agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether each side may refer to messages before: what it costs is a window of memory for each side of a connection.
    pub keeps_contexts: bool,
    /// The most bits of a window that is kept or compressed with, 9 to 15.
    pub window_bits: u8,
}

/// What was agreed on (RFC 7692 section 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    server: Window,
    client: Window,
}

/// What one side compresses with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    /// The bits of its window, 8 to 15.
    bits: u8,
    /// Whether the answer names them.
    is_named: bool,
    /// Whether it may refer to its messages before.
    keeps_context: bool,
}

/// One offer (RFC 7692 section 7.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Offer {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: Option<u8>,
    /// The largest where it has no value. In either case the client can be told a smaller one.
    client_max_window_bits: Option<u8>,
}

impl Terms {
    /// What is agreed on with a client that offers these values of `Sec-WebSocket-Extensions`; `None` where none of its
    /// offers is one of permessage-deflate that makes sense.
    ///
    /// The first offer that makes sense is taken (RFC 7692 section 5.1): there is none that could not be met.
    pub fn agree<'h>(values: impl Iterator<Item = &'h [u8]>, policy: Policy) -> Option<Self> {
        values.flat_map(list::elements).find_map(Offer::parse).map(|offer| Self::of(offer, policy))
    }

    fn of(offer: Offer, policy: Policy) -> Self {
        let (server_bits, client_bits) = (offer.server_max_window_bits, offer.client_max_window_bits);
        let server = Window {
            bits: server_bits.unwrap_or(WINDOW_BITS_MAX).min(policy.window_bits),
            is_named: server_bits.is_some() || policy.window_bits < WINDOW_BITS_MAX,
            keeps_context: policy.keeps_contexts && !offer.server_no_context_takeover,
        };
        // A client that cannot be told its window could use the largest, which is more than the policy has room for.
        let client = match client_bits {
            Some(bits) if policy.keeps_contexts && !offer.client_no_context_takeover => {
                Window { bits: bits.min(policy.window_bits), is_named: true, keeps_context: true }
            }
            _ => Window { bits: WINDOW_BITS_MAX, is_named: false, keeps_context: false },
        };
        Self { server, client }
    }

    /// Appends the field of a 101 that says so.
    pub fn write_field(self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"Sec-WebSocket-Extensions: ");
        self.write(out);
        out.extend_from_slice(b"\r\n");
    }

    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(NAME);
        for (name, window) in [(&b"server"[..], self.server), (b"client", self.client)] {
            if !window.keeps_context {
                out.extend_from_slice(b"; ");
                out.extend_from_slice(name);
                out.extend_from_slice(b"_no_context_takeover");
            }
            if window.is_named {
                out.extend_from_slice(b"; ");
                out.extend_from_slice(name);
                out.extend_from_slice(b"_max_window_bits=");
                out.extend_from_slice(window.bits.to_string().as_bytes());
            }
        }
    }

    /// The bits of the window that this side compresses with, 9 to 15.
    pub(super) const fn compressor_bits(self) -> u8 {
        if self.server.bits < COMPRESSOR_BITS_MIN { COMPRESSOR_BITS_MIN } else { self.server.bits }
    }

    /// The most bytes that are kept of what was sent.
    const fn sent_size_max(self) -> usize {
        self.server.kept_size_max()
    }

    /// The most bytes that are kept of what was received.
    const fn received_size_max(self) -> usize {
        self.client.kept_size_max()
    }
}

impl Window {
    const fn kept_size_max(self) -> usize {
        if self.keeps_context { 1 << self.bits } else { 0 }
    }
}

impl Offer {
    /// The offer that an extension is, if it is one of permessage-deflate and each of its parameters is known, in range
    /// and there once (RFC 7692 section 7.1: any other is to be declined).
    fn parse(extension: &[u8]) -> Option<Self> {
        let mut parts = list::parameters(extension);
        if !parts.next()?.eq_ignore_ascii_case(NAME) {
            return None;
        }
        let mut offer = Self::default();
        for part in parts {
            let (name, value) = match part.iter().position(|byte| *byte == b'=') {
                Some(equals) => {
                    (part[..equals].trim_ascii_end(), Some(part[equals + 1..].trim_ascii_start()))
                }
                None => (part, None),
            };
            let is_new = match name {
                b"server_no_context_takeover" if value.is_none() => {
                    !std::mem::replace(&mut offer.server_no_context_takeover, true)
                }
                b"client_no_context_takeover" if value.is_none() => {
                    !std::mem::replace(&mut offer.client_no_context_takeover, true)
                }
                b"server_max_window_bits" => {
                    offer.server_max_window_bits.replace(window_bits(value?)?).is_none()
                }
                b"client_max_window_bits" => {
                    let bits = match value {
                        Some(value) => window_bits(value)?,
                        None => WINDOW_BITS_MAX,
                    };
                    offer.client_max_window_bits.replace(bits).is_none()
                }
                _ => false,
            };
            if !is_new {
                return None;
            }
        }
        Some(offer)
    }
}

/// The bits of a window: 8 to 15 in decimal, without leading zeros, perhaps quoted (RFC 7692 section 7.1.2).
fn window_bits(value: &[u8]) -> Option<u8> {
    let value = match value.strip_prefix(b"\"") {
        Some(quoted) => quoted.strip_suffix(b"\"")?,
        None => value,
    };
    (WINDOW_BITS_MIN..=WINDOW_BITS_MAX).find(|bits| bits.to_string().as_bytes() == value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARED: Policy = Policy { keeps_contexts: false, window_bits: 15 };
    const DEDICATED: Policy = Policy { keeps_contexts: true, window_bits: 12 };

    fn agreed(offers: &str, policy: Policy) -> Option<String> {
        let terms = Terms::agree(offers.split('\n').map(str::as_bytes), policy)?;
        let mut out = Vec::new();
        terms.write(&mut out);
        Some(String::from_utf8(out).unwrap())
    }

    /// What is answered to an offer with these parameters, by its own.
    fn answered(parameters: &str, policy: Policy, expected: &str) {
        let answer = agreed(&format!("permessage-deflate{parameters}"), policy);
        assert_eq!(answer.as_deref(), Some(&*format!("permessage-deflate{expected}")), "{parameters}");
    }

    #[test]
    fn by_default_neither_side_keeps_a_context() {
        let none = "; server_no_context_takeover; client_no_context_takeover";
        for parameters in
            ["", "; client_max_window_bits", "; client_max_window_bits=9", "; client_no_context_takeover"]
        {
            answered(parameters, SHARED, none);
        }
        for bits in 8..=15 {
            let expected = format!(
                "; server_no_context_takeover; server_max_window_bits={bits}; client_no_context_takeover"
            );
            answered(&format!(";server_max_window_bits={bits}"), SHARED, &expected);
        }
    }

    #[test]
    fn contexts_that_are_kept_are_bounded() {
        let told = "; client_max_window_bits";
        answered(told, DEDICATED, "; server_max_window_bits=12; client_max_window_bits=12");
        answered(
            "; client_max_window_bits=10; server_max_window_bits=9",
            DEDICATED,
            "; server_max_window_bits=9; client_max_window_bits=10",
        );
        // Nothing may be asked of a client that does not know of it, but to keep none.
        answered("", DEDICATED, "; server_max_window_bits=12; client_no_context_takeover");
        answered(
            "; server_no_context_takeover; client_no_context_takeover; client_max_window_bits",
            DEDICATED,
            "; server_no_context_takeover; server_max_window_bits=12; client_no_context_takeover",
        );
        answered(told, Policy { window_bits: 15, ..DEDICATED }, "; client_max_window_bits=15");
    }

    #[test]
    fn the_first_offer_that_makes_sense_is_taken() {
        let expected = "permessage-deflate; server_no_context_takeover; server_max_window_bits=9; client_no_context_takeover";
        for offers in [
            "x-other; a=b, permessage-deflate; server_max_window_bits=9, permessage-deflate",
            "permessage-deflate; server_max_window_bits=16, permessage-deflate; server_max_window_bits=9",
            "permessage-deflate; a\nPermessage-Deflate ; server_max_window_bits = \"9\"",
        ] {
            assert_eq!(agreed(offers, SHARED).as_deref(), Some(expected), "{offers}");
        }
    }

    #[test]
    fn an_offer_that_makes_no_sense_is_declined() {
        for parameters in [
            "; unknown",
            "; server_no_context_takeover=1",
            "; client_no_context_takeover=true",
            "; server_no_context_takeover; server_no_context_takeover",
            "; client_no_context_takeover; client_no_context_takeover",
            "; server_max_window_bits",
            "; server_max_window_bits=",
            "; server_max_window_bits=7",
            "; server_max_window_bits=16",
            "; server_max_window_bits=08",
            "; server_max_window_bits=+9",
            "; server_max_window_bits=\"9",
            "; server_max_window_bits=9; server_max_window_bits=9",
            "; client_max_window_bits=0",
            "; client_max_window_bits=99999999999999999999",
            "; client_max_window_bits; client_max_window_bits=9",
        ] {
            assert_eq!(agreed(&format!("permessage-deflate{parameters}"), SHARED), None, "{parameters}");
        }
        for offers in ["", "x-webkit-deflate-frame", "permessage-deflat", "\"permessage-deflate\""] {
            assert_eq!(agreed(offers, SHARED), None, "{offers}");
        }
    }

    /// zlib's window of 8 bits is one of 9 that is called 8: nobody may ask it for one, and none is needed.
    #[test]
    fn the_compressor_has_at_least_9_bits() {
        for (bits, expected) in [(8, 9), (9, 9), (15, 15)] {
            let offer = format!("permessage-deflate; server_max_window_bits={bits}");
            let terms = Terms::agree([offer.as_bytes()].into_iter(), SHARED).unwrap();
            assert_eq!(terms.compressor_bits(), expected);
        }
    }
}
