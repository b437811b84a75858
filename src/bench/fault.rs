//! What can go wrong with a connection under load.

use crate::protocol::closed_set;

closed_set! {
    /// Why a connection was given up; each is counted once for its connection.
    pub enum Fault {
        /// It could not be made.
        Connect => "connect",
        /// TLS failed: the server's certificate is not believed, or there is nothing that both speak.
        Tls => "tls",
        /// A TLS handshake was a full one, though the server has given tickets to resume with.
        NotResumed => "not_resumed",
        /// The answer to the opening handshake was not the 101 that was asked for.
        Handshake => "handshake",
        /// An answer is longer or shorter than its message.
        Length => "length",
        /// An answer is not what was sent.
        Content => "content",
        /// A text message was answered in binary, or a binary one as text.
        Opcode => "opcode",
        /// An answer to no question.
        Unasked => "unasked",
        /// The server broke a rule of RFC 6455.
        Violation => "violation",
        /// The server sent a Close unasked.
        Closed => "closed",
        /// The server left without a Close.
        Gone => "gone",
        /// No answer in time.
        Late => "late",
    }
}
