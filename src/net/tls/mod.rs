//! TLS on one connection: a state machine between the socket and buffers that are lent.
//!
//! rustls holds the keys and the state of the handshake, and does no I/O of its own: this is its unbuffered interface. A
//! receive takes ciphertext into the shard's second buffer and puts the plaintext of its records into the caller's; a
//! send puts records into that second buffer and sends them from there. So a connection that is idle holds no buffer.
//! What it holds for a while is a record that was cut, until the rest of it has come, and records that the socket had no
//! room for.

mod client;
mod server;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;
use rustls::client::UnbufferedClientConnection;
use rustls::crypto::CryptoProvider;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{AlertDescription, Error, HandshakeKind, ProtocolVersion};

use super::scratch::Scratch;
use super::socket;
use super::stream::{Gone, Received};
use crate::metrics::{TlsFailure, TlsHandshake};

pub use self::client::{ClientSettings, Comeback, Trust};
pub use self::server::{ServerSettings, Tickets};
pub use rustls::pki_types::ServerName;

/// The largest record, with its header (RFC 5246 section 6.2.3; those of TLS 1.3 are smaller).
const RECORD_SIZE_MAX: usize = 5 + 16_384 + 2048;
/// The most plaintext that is encrypted for one send: three records of the largest kind, which the second buffer holds
/// with what they add.
const SEND_SIZE_MAX: usize = 3 * 16_384;
/// The largest record that an alert can be: header, nonce, alert and tag of TLS 1.2 with AES-GCM.
const ALERT_SIZE_MAX: u64 = 5 + 8 + 2 + 16;

/// What a client is told that cannot be served, before any handshake: a fatal alert, `internal_error`, which is defined
/// for what has nothing to do with the peer (RFC 8446 section 6.2). A handshake, for an answer within TLS, is what there
/// is least time for then.
pub const OVERLOAD_ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

/// The protocol inside TLS, as clients ask for it (ALPN). Who offers others alone is refused: HTTP/2 is not spoken.
const HTTP_1_1: &[u8] = b"http/1.1";
const HTTP_2: &[u8] = b"h2";

/// What computes.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// TLS of one connection.
pub(super) struct Session {
    side: Side,
    /// What was received and makes no whole record or message of a handshake yet.
    carried: Vec<u8>,
    /// Records that the socket had no room for.
    unsent: Vec<u8>,
    /// How many bytes of a caller's they hold, who has not been told that these were taken.
    held_back: usize,
    /// Where ciphertext lies between the socket and rustls.
    sealed: Rc<Scratch>,
    /// What every further receive finds.
    over: Option<Received>,
    /// Why TLS failed, if it did.
    failure: Option<TlsFailure>,
    /// The same in the words of rustls, where it was rustls that gave up.
    error: Option<Box<Error>>,
    /// True exactly until the first look at what was carried in when the session began.
    is_fresh: bool,
    /// True exactly when the peer ended its stream without the alert that closes it, and before we ended ours.
    is_truncated: bool,
    /// True exactly when we have ended our side, or have met that the peer reset the connection.
    is_finished: bool,
}

/// Whose part is played.
enum Side {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// What rustls wants after it has looked at the bytes.
enum Step {
    /// To look at the rest.
    Again,
    /// The peer sends nothing more.
    PeerClosed,
    /// More bytes.
    Blocked,
    /// Nothing: it would encrypt.
    Ready,
    /// To be left alone.
    Failed(Error),
}

/// Where plaintext goes.
struct Sink<'b> {
    buffer: &'b mut [u8],
    size: usize,
}

impl Session {
    /// The server's side; `early` is what has been received already.
    ///
    /// # Errors
    /// Those of rustls, which are faults of ours.
    pub(super) fn server(
        settings: &ServerSettings,
        early: &[u8],
        sealed: &Rc<Scratch>,
    ) -> Result<Self, Error> {
        let connection = UnbufferedServerConnection::new(settings.config())?;
        Ok(Self::new(Side::Server(connection), early, sealed))
    }

    /// The client's side, whose first message is composed by the first receive.
    ///
    /// # Errors
    /// Those of rustls, which are faults of ours.
    pub(super) fn client(
        settings: &ClientSettings,
        name: &ServerName<'static>,
        sealed: &Rc<Scratch>,
    ) -> Result<Self, Error> {
        let connection = UnbufferedClientConnection::new(settings.config(), name.clone())?;
        Ok(Self::new(Side::Client(connection), &[], sealed))
    }

    fn new(side: Side, early: &[u8], sealed: &Rc<Scratch>) -> Self {
        Self {
            side,
            carried: early.to_vec(),
            unsent: Vec::new(),
            held_back: 0,
            sealed: Rc::clone(sealed),
            over: None,
            failure: None,
            error: None,
            is_fresh: true,
            is_truncated: false,
            is_finished: false,
        }
    }

    /// Receives what is there, without waiting, and does what the handshake wants.
    ///
    /// The plaintext of all that is read from the socket fits into the buffer, as no more is read than would: nothing
    /// ever waits here while the socket is silent. Where the end came together with plaintext, the socket is made to be
    /// readable, so that whoever waits for it hears of the end.
    ///
    /// # Panics
    /// Where the buffer has no room for a record.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Received {
        assert!(buffer.len() > RECORD_SIZE_MAX, "a record fits into every buffer that is received into");
        if let Some(over) = self.over {
            return over;
        }
        // Who can be sent nothing more may have said something before.
        let _ = self.flush(socket);
        let sealed = Rc::clone(&self.sealed);
        let mut sealed = sealed.lend();
        let size_max = sealed.len().min(buffer.len());
        let held = self.carried.len();
        let is_first = std::mem::take(&mut self.is_fresh);
        let size = if is_first {
            0
        } else {
            match socket::receive(socket, &mut sealed[held..size_max]) {
                Received::Bytes(size) => size,
                Received::Nothing => return Received::Nothing,
                Received::End => return self.cut(),
                Received::Reset => return self.lose(),
            }
        };
        sealed[..held].copy_from_slice(&self.carried);
        let carried_max = match &self.side {
            // What comes before the handshake is done is bounded, like a request's head. Only servers say more, and what
            // is kept leaves room for a record in the next buffer.
            Side::Server(_) => RECORD_SIZE_MAX,
            Side::Client(_) => (size_max - RECORD_SIZE_MAX).max(RECORD_SIZE_MAX),
        };
        let (plaintext_size, step) = self.process(&mut sealed[..held + size], buffer, carried_max);
        drop(sealed);
        let end = match step {
            Step::Failed(error) => {
                self.fail(&error);
                Some(Received::Reset)
            }
            Step::PeerClosed if self.is_handshaking() => {
                self.failure = Some(TlsFailure::Closed);
                Some(Received::Reset)
            }
            Step::PeerClosed => Some(Received::End),
            Step::Again | Step::Blocked | Step::Ready => None,
        };
        self.over = end;
        let _ = self.flush(socket);
        match (plaintext_size, self.over) {
            (0, None) if is_first => self.receive(socket, buffer),
            (0, None) => Received::Nothing,
            (0, Some(over)) => over,
            (size, None) => Received::Bytes(size),
            (size, Some(_)) => {
                // Nothing of what follows counts (RFC 8446 section 6.1), and the end is to be heard of.
                let _ = rustix::net::shutdown(socket, Shutdown::Read);
                Received::Bytes(size)
            }
        }
    }

    /// Lets rustls look at ciphertext, puts the plaintext into the buffer, and keeps what is not whole.
    fn process(&mut self, sealed: &mut [u8], buffer: &mut [u8], carried_max: usize) -> (usize, Step) {
        let mut sink = Sink { buffer, size: 0 };
        let mut start = 0;
        let mut is_closed = false;
        let step = loop {
            let (discard, step) = self.side.step(&mut sealed[start..], &mut sink, &mut self.unsent);
            start += discard;
            match step {
                Step::Again => {}
                // This is told once; what rustls has left to send follows.
                Step::PeerClosed if !is_closed => is_closed = true,
                Step::Failed(error) => break Step::Failed(error),
                _ if is_closed => break Step::PeerClosed,
                step => break step,
            }
        };
        self.carried = sealed[start..].to_vec();
        if self.carried.len() >= carried_max && matches!(step, Step::Blocked | Step::Ready) {
            return (sink.size, Step::Failed(Error::PeerSentOversizedRecord));
        }
        (sink.size, step)
    }

    /// Sends what the socket has room for, without waiting, and returns how many bytes that was.
    ///
    /// Bytes whose records were made and not wholly sent count as not taken, and are to be offered again: they are
    /// taken once the last of their records has left.
    ///
    /// # Errors
    /// [`Gone`].
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Gone> {
        if self.over == Some(Received::Reset) || self.is_finished {
            return Err(Gone);
        }
        self.flush(socket)?;
        if !self.unsent.is_empty() {
            return Ok(0);
        }
        let mut taken = std::mem::take(&mut self.held_back);
        debug_assert!(taken <= bytes.len(), "what was not taken is offered again");
        let sealed = Rc::clone(&self.sealed);
        while taken < bytes.len() {
            let part = &bytes[taken..bytes.len().min(taken + SEND_SIZE_MAX)];
            let mut sealed = sealed.lend();
            let size = self.side.encrypt(Some(part), &mut self.carried, &mut sealed, &mut self.unsent)?;
            self.flush(socket)?;
            let sent = if self.unsent.is_empty() {
                socket::send(socket, &sealed[..size]).inspect_err(|Gone| self.is_finished = true)?
            } else {
                0
            };
            if sent < size {
                self.unsent.extend_from_slice(&sealed[sent..size]);
                self.held_back = part.len();
                break;
            }
            taken += part.len();
        }
        Ok(taken)
    }

    /// Sends what is left of earlier records, as far as the socket has room. Where it cannot be sent it is forgotten.
    fn flush(&mut self, socket: BorrowedFd<'_>) -> Result<(), Gone> {
        if self.unsent.is_empty() {
            return Ok(());
        }
        let sent = match socket::send(socket, &self.unsent) {
            Ok(sent) => sent,
            Err(Gone) => {
                self.unsent = Vec::new();
                self.is_finished = true;
                return Err(Gone);
            }
        };
        if sent == self.unsent.len() {
            self.unsent = Vec::new();
        } else {
            self.unsent.drain(..sent);
        }
        Ok(())
    }

    /// Tells the peer that nothing more comes, as far as that can be said.
    pub(super) fn finish(&mut self, socket: BorrowedFd<'_>) {
        let may_close = !self.is_finished && self.over != Some(Received::Reset) && !self.is_handshaking();
        self.is_finished = true;
        if may_close && self.unsent.is_empty() {
            let sealed = Rc::clone(&self.sealed);
            let mut sealed = sealed.lend();
            if let Ok(size) = self.side.encrypt(None, &mut self.carried, &mut sealed, &mut self.unsent) {
                // Where there is no room for it, the peer does not read, and will not miss it.
                let _ = self.flush(socket).and_then(|()| socket::send(socket, &sealed[..size]));
            }
        }
    }

    /// What a receive would find, of which nothing is taken.
    pub(super) fn peek(&self, socket: BorrowedFd<'_>) -> Received {
        match (self.over, socket::peek(socket)) {
            (Some(over), _) => over,
            (None, Received::Bytes(_)) if has_nothing_but_an_end(socket) => Received::End,
            (None, found) => found,
        }
    }

    /// Whether the handshake is under way.
    pub(super) fn is_handshaking(&self) -> bool {
        match &self.side {
            Side::Server(connection) => connection.is_handshaking(),
            Side::Client(connection) => connection.is_handshaking(),
        }
    }

    /// Whether records wait for room in the socket.
    pub(super) fn wants_room(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Why TLS failed, if it did.
    pub(super) fn failure(&self) -> Option<TlsFailure> {
        self.failure
    }

    /// Why rustls gave up, where it did.
    pub(super) fn error(&self) -> Option<&Error> {
        self.error.as_deref()
    }

    /// Whether the peer ended its stream without the alert that closes it, after the handshake.
    pub(super) fn is_truncated(&self) -> bool {
        self.is_truncated
    }

    /// Whether the peer has ended its stream in order, and has not heard the same of us.
    pub(super) fn owes_an_end(&self) -> bool {
        self.over == Some(Received::End) && !self.is_finished
    }

    /// Whether both sides have agreed on HTTP/2 (RFC 7301).
    pub(super) fn speaks_http2(&self) -> bool {
        let protocol = match &self.side {
            Side::Server(connection) => connection.alpn_protocol(),
            Side::Client(connection) => connection.alpn_protocol(),
        };
        protocol == Some(HTTP_2)
    }

    /// What the handshake came to, once it is done.
    pub(super) fn handshake(&self) -> Option<TlsHandshake> {
        let (version, kind) = match &self.side {
            Side::Server(connection) => (connection.protocol_version(), connection.handshake_kind()),
            Side::Client(connection) => (connection.protocol_version(), connection.handshake_kind()),
        };
        if self.is_handshaking() {
            return None;
        }
        let is_13 = version == Some(ProtocolVersion::TLSv1_3);
        Some(match (kind?, is_13) {
            (HandshakeKind::Resumed, true) => TlsHandshake::Resumed13,
            (HandshakeKind::Resumed, false) => TlsHandshake::Resumed12,
            (HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest, true) => TlsHandshake::Full13,
            (HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest, false) => TlsHandshake::Full12,
        })
    }

    /// Takes note that the stream ended. Without the alert that closes it nobody can tell whether that was the peer's
    /// doing, which matters as long as our own side is open: behind that, nothing more was to come. Nor is it an end where
    /// a send has met a reset, of which the system tells once, and of an end from then on.
    fn cut(&mut self) -> Received {
        if self.is_handshaking() {
            self.failure = Some(TlsFailure::Closed);
        } else {
            self.is_truncated = !self.is_finished;
        }
        *self.over.insert(Received::Reset)
    }

    /// Takes note that the connection broke.
    fn lose(&mut self) -> Received {
        if self.is_handshaking() {
            self.failure.get_or_insert(TlsFailure::Closed);
        }
        *self.over.insert(Received::Reset)
    }

    /// Takes note of what rustls refuses, and has its alert follow what waits to be sent.
    fn fail(&mut self, error: &Error) {
        self.failure = Some(failure_of(error));
        self.error = Some(Box::new(error.clone()));
        let mut nowhere = Sink { buffer: &mut [], size: 0 };
        // What it has to send comes first; it must not look again at what it refused.
        while self.side.has_to_send() {
            let _ = self.side.step(&mut [], &mut nowhere, &mut self.unsent);
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self.side {
            Side::Server(_) => "server",
            Side::Client(_) => "client",
        };
        formatter
            .debug_struct("Session")
            .field("side", &side)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

impl Side {
    /// Whether rustls has something to send.
    fn has_to_send(&self) -> bool {
        match self {
            Self::Server(connection) => connection.wants_write(),
            Self::Client(connection) => connection.wants_write(),
        }
    }

    /// Lets rustls look at what was received, once, and says how much of it is done with.
    fn step(&mut self, sealed: &mut [u8], sink: &mut Sink<'_>, unsent: &mut Vec<u8>) -> (usize, Step) {
        match self {
            Self::Server(connection) => heed(connection.process_tls_records(sealed), sink, unsent),
            Self::Client(connection) => heed(connection.process_tls_records(sealed), sink, unsent),
        }
    }

    /// Puts records with these bytes, or else with the alert that closes our side, into the buffer, and returns their
    /// size. What rustls has to send before them goes to `unsent`.
    fn encrypt(
        &mut self,
        bytes: Option<&[u8]>,
        carried: &mut [u8],
        sealed: &mut [u8],
        unsent: &mut Vec<u8>,
    ) -> Result<usize, Gone> {
        loop {
            let written = match self {
                Self::Server(connection) => {
                    write(connection.process_tls_records(carried), bytes, sealed, unsent)
                }
                Self::Client(connection) => {
                    write(connection.process_tls_records(carried), bytes, sealed, unsent)
                }
            };
            if let Some(size) = written? {
                return Ok(size);
            }
        }
    }
}

impl Sink<'_> {
    /// Takes plaintext in; `false` where there is no room.
    fn take(&mut self, plaintext: &[u8]) -> bool {
        let Some(room) = self.buffer[self.size..].get_mut(..plaintext.len()) else { return false };
        room.copy_from_slice(plaintext);
        self.size += plaintext.len();
        true
    }
}

/// Does what rustls wants at this point of a connection that is read.
fn heed<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    sink: &mut Sink<'_>,
    unsent: &mut Vec<u8>,
) -> (usize, Step) {
    let mut discard = status.discard;
    let step = match status.state {
        Err(error) => Step::Failed(error),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                None => break Step::Again,
                Some(Err(error)) => break Step::Failed(error),
                Some(Ok(record)) => {
                    discard += record.discard;
                    if !sink.take(record.payload) {
                        break Step::Failed(Error::General("plaintext outgrew its ciphertext".to_owned()));
                    }
                }
            }
        },
        Ok(ConnectionState::EncodeTlsData(data)) => {
            encode(data, unsent);
            Step::Again
        }
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Step::Again
        }
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Step::PeerClosed,
        Ok(ConnectionState::BlockedHandshake) => Step::Blocked,
        Ok(ConnectionState::WriteTraffic(_)) => Step::Ready,
        // Early data is not accepted, and nothing else was asked for.
        Ok(state) => Step::Failed(Error::General(format!("an unexpected state: {state:?}"))),
    };
    (discard, step)
}

/// Encrypts, where rustls is at the point for it; `None` where it has to be asked again.
fn write<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    bytes: Option<&[u8]>,
    sealed: &mut [u8],
    unsent: &mut Vec<u8>,
) -> Result<Option<usize>, Gone> {
    match status.state {
        Ok(ConnectionState::WriteTraffic(mut traffic)) => {
            let written = match bytes {
                Some(bytes) => traffic.encrypt(bytes, sealed),
                None => traffic.queue_close_notify(sealed),
            };
            // The buffer has room, and keys are renewed in time where that is possible; where it is not, this is the end.
            written.map(Some).map_err(|_| Gone)
        }
        Ok(ConnectionState::EncodeTlsData(data)) => {
            encode(data, unsent);
            Ok(None)
        }
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Ok(None)
        }
        _ => Err(Gone),
    }
}

/// Appends what rustls has to send to what is unsent.
fn encode<Data>(mut data: EncodeTlsData<'_, Data>, unsent: &mut Vec<u8>) {
    if let Err(EncodeError::InsufficientSize(needed)) = data.encode(&mut []) {
        let before = unsent.len();
        unsent.resize(before + needed.required_size, 0);
        data.encode(&mut unsent[before..]).expect("there is as much room as was asked for");
    }
}

/// What is counted for an error of rustls.
fn failure_of(error: &Error) -> TlsFailure {
    match error {
        Error::PeerIncompatible(_) => TlsFailure::NoSharedVersionOrCipher,
        Error::NoApplicationProtocol => TlsFailure::NoSharedProtocol,
        Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA,
        ) => TlsFailure::CertificateRefused,
        // In the middle of a handshake, which is where it is an error.
        Error::AlertReceived(AlertDescription::CloseNotify) => TlsFailure::Closed,
        Error::AlertReceived(_) => TlsFailure::AlertFromClient,
        Error::InvalidMessage(_) | Error::PeerSentOversizedRecord => TlsFailure::Malformed,
        Error::DecryptError => TlsFailure::Decrypt,
        Error::PeerMisbehaved(_)
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. } => TlsFailure::Protocol,
        _ => TlsFailure::Internal,
    }
}

/// Whether the peer has ended its stream, and there is nothing before the end but what may be the alert that says so: a
/// look that takes nothing cannot decrypt it.
fn has_nothing_but_an_end(socket: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(socket, PollFlags::RDHUP)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let has_ended =
        poll(&mut polled, Some(&at_once)).is_ok() && polled[0].revents().contains(PollFlags::RDHUP);
    has_ended && rustix::io::ioctl_fionread(socket).is_ok_and(|size| size <= ALERT_SIZE_MAX)
}

#[cfg(test)]
mod tests;
