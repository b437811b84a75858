//! HTTP/1.1 as far as a gateway answers it itself (RFC 9110, RFC 9112): heads in, refusals and answers out.
//!
//! Bytes are scanned for the end of the head as they arrive ([`scan`]), parsed once where they lie ([`request`]) and
//! judged ([`super::websocket::handshake`]). What cannot be served becomes a [`refusal::Refusal`].

pub mod body;
pub mod forward;
#[doc(hidden)]
pub mod fuzz;
pub mod list;
pub mod origin;
pub mod refusal;
pub mod request;
pub mod response;
pub mod scan;

use std::mem::MaybeUninit;

/// One field of a head: its name as it came, and its value without the whitespace around it.
pub use httparse::Header as Field;

/// The most fields that [`FieldStorage`] holds, and so the highest limit that a configuration can ask for.
///
/// Browsers send about 15 and proxies add a handful; 256 of them are 8 KiB of a thread's stack.
pub const FIELD_COUNT_MAX: usize = 256;

/// Room for the fields of one head, to be lent to a parser.
///
/// It is large: keep it on the stack of a plain function, never across an `await`, where it would stay in the future.
pub type FieldStorage<'h> = [MaybeUninit<Field<'h>>; FIELD_COUNT_MAX];

/// Room for the fields of one head. Costs nothing: the memory is not written before it is needed.
pub const fn field_storage<'h>() -> FieldStorage<'h> {
    [const { MaybeUninit::uninit() }; FIELD_COUNT_MAX]
}
