//! One connection of the load generator, from connect to close.

use std::cell::RefCell;
use std::fmt;
use std::future::{Future as _, poll_fn};
use std::io;
use std::mem;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::fault::Fault;
use super::generator::Generator;
use super::messages::{Answers, Outgoing, Pattern, Shape};
use super::target::Target;
use crate::metrics::TlsHandshake;
use crate::net::connect::Connect;
use crate::net::pool::Buffer;
use crate::net::stream::{Cancel, Gone, Received, Stream};
use crate::net::timers::{Tick, Timer};
use crate::net::tls::{ClientSettings, Comeback, Trust};
use crate::protocol::websocket::close::CloseCode;
use crate::protocol::websocket::deflate::{Terms, client::ClientOffer};
use crate::protocol::websocket::frame::{self, Opcode};
use crate::protocol::websocket::handshake::client::{ClientRequest, ResponseFault};

/// How long connecting and the opening handshake may take together.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the closing handshake and the end of the connection may take together.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest window in bytes that is sent through the ring: it takes a buffer for each connection, and many large
/// ones leave the cache.
const WINDOW_IN_RING_MAX: usize = 2048;

/// How connections are opened.
#[derive(Clone, Debug)]
pub struct Door {
    /// Where to, each in turn.
    pub targets: Vec<Target>,
    /// How TLS is spoken to those that speak it.
    pub tls: Option<Tls>,
    /// Where from, each in turn; empty leaves it to the kernel.
    pub sources: Vec<IpAddr>,
    /// What is offered to compress messages by, and has to be agreed on; messages are compressed then.
    pub deflate: Option<ClientOffer>,
    /// Subprotocols to offer.
    pub subprotocols: Vec<String>,
    /// Further fields of the request head.
    pub fields: Vec<(String, String)>,
}

/// How TLS is spoken.
#[derive(Clone, Debug)]
pub struct Tls {
    /// For each target its own: what one of them gave to resume with is nothing to another.
    settings: Vec<ClientSettings>,
    /// Whether handshakes are resumed.
    is_resuming: bool,
}

/// Why a connection could not be opened.
#[derive(Debug)]
pub enum OpenFault {
    /// It could not be made.
    Connect(io::Error),
    /// There was no TLS to be had.
    Tls(String),
    /// The server did not accept the opening handshake.
    Response(ResponseFault),
    /// The server accepted it, but not to compress messages.
    NoDeflate,
    /// The server left.
    Gone,
    /// Nothing, or too little, came in time.
    Late,
    /// What came after the handshake was wrong already.
    Answer(Fault),
}

impl Tls {
    /// TLS to so many targets. Handshakes are full ones, or resumed as soon as there is something to resume with.
    pub fn new(target_count: usize, trust: &Trust, is_resuming: bool) -> Self {
        let comeback = if is_resuming { Comeback::Always } else { Comeback::Never };
        let settings = (0..target_count).map(|_| ClientSettings::with(trust.clone(), comeback)).collect();
        Self { settings, is_resuming }
    }
}

impl Door {
    /// Whether TLS handshakes are to be resumed.
    pub(super) fn is_resuming(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_resuming)
    }
}

/// A connection whose opening handshake is done.
#[derive(Debug)]
pub(super) struct Opened {
    generator: Rc<Generator>,
    stream: Stream,
    timer: Timer,
    /// What was agreed on compression, where it was offered.
    deflate: Option<Terms>,
    /// What came after the response head.
    early: Vec<u8>,
}

impl Opened {
    /// Connects and shakes hands. `index` chooses among targets and sources.
    ///
    /// # Errors
    /// [`OpenFault`].
    pub(super) async fn open(generator: &Rc<Generator>, door: &Door, index: u32) -> Result<Self, OpenFault> {
        let target_index = index as usize % door.targets.len();
        let target = &door.targets[target_index];
        let source = door.sources.get(index as usize % door.sources.len().max(1)).copied();
        let timer = generator.timers.timer();
        timer.set(generator.after(OPEN_TIMEOUT));
        // The generator waits for the server's end before it closes, and then has nothing to lose by a reset; without
        // it, TIME-WAIT would keep ports from the connections that follow.
        let connect = Connect { source, reset_on_close: true, ..Connect::default() };
        let mut stream = match timer.race(connect.to(target.address)).await {
            Some(connected) => connected.map_err(OpenFault::Connect)?,
            None => return Err(OpenFault::Late),
        };
        if let Some(name) = &target.tls_name {
            let tls = door.tls.as_ref().expect("whoever has a target that speaks TLS says how");
            stream.begin_tls_to(&tls.settings[target_index], name, &generator.sealed);
            shake_hands(generator, &stream, &timer).await?;
        }
        let subprotocols: Vec<&str> = door.subprotocols.iter().map(String::as_str).collect();
        let fields: Vec<(&str, &str)> =
            door.fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let request = ClientRequest {
            target: &target.path,
            host: &target.host,
            key: key(generator),
            subprotocols: &subprotocols,
            deflate: door.deflate,
            fields: &fields,
        };
        let mut head = Vec::new();
        request.write(&mut head);
        let mut unsent = head.as_slice();
        while !unsent.is_empty() {
            let sent = stream.send_now(unsent).map_err(|_| OpenFault::Gone)?;
            unsent = &unsent[sent..];
            if !unsent.is_empty() && timer.race(stream.writable()).await.is_none() {
                return Err(OpenFault::Late);
            }
        }
        let mut received = Vec::new();
        loop {
            if timer.race(stream.readable()).await.is_none() {
                return Err(OpenFault::Late);
            }
            let mut scratch = generator.scratch.lend();
            match stream.receive_now(&mut scratch) {
                Received::Bytes(size) => received.extend_from_slice(&scratch[..size]),
                Received::Nothing => continue,
                Received::End | Received::Reset => return Err(OpenFault::Gone),
            }
            drop(scratch);
            if let Some(verified) = request.verify_response(&received).map_err(OpenFault::Response)? {
                if door.deflate.is_some() && verified.deflate.is_none() {
                    return Err(OpenFault::NoDeflate);
                }
                let (early, deflate) = (received.split_off(verified.head_size), verified.deflate);
                return Ok(Self { generator: Rc::clone(generator), stream, timer, deflate, early });
            }
        }
    }

    /// Whether TLS is spoken, and began with a full handshake.
    pub(super) fn is_full_handshake(&self) -> bool {
        self.stream
            .tls_handshake()
            .is_some_and(|handshake| matches!(handshake, TlsHandshake::Full12 | TlsHandshake::Full13))
    }

    /// Leaves by the closing handshake and waits for the server to end the connection (RFC 6455 section 7.1.1).
    ///
    /// # Errors
    /// Where the server does not answer the Close, or does not end the connection.
    pub(super) async fn leave(self) -> Result<(), Fault> {
        // No message is on the way: whatever comes but control frames is wrong.
        let shape = Shape { opcode: Opcode::Binary, size: 0, in_flight: 1 };
        let pattern = Pattern::new(&shape, self.deflate.is_some(), || 0);
        let client = Client::new(self, &shape, &pattern, 0)?;
        client.leave().await
    }

    /// Leaves by a reset, at once.
    pub(super) fn abort(self) {
        self.stream.close_now();
    }
}

/// A connection that sends messages and checks their echoes.
#[derive(Debug)]
pub(super) struct Client {
    generator: Rc<Generator>,
    stream: Stream,
    timer: Timer,
    state: RefCell<State>,
    /// Who waits to receive, while nothing waits for room.
    waiting: RefCell<Option<Waker>>,
}

#[derive(Debug)]
struct State {
    outgoing: Outgoing,
    answers: Answers,
    /// What the socket had no room for, and Pongs owed.
    unsent: Vec<u8>,
}

/// What a connection needs to send and receive through the ring.
pub(super) struct Line {
    /// What the ring sends from and receives into.
    buffer: Buffer,
    cancel: Cancel,
}

impl Client {
    /// A client on a connection just opened; `index` tells its messages from those of others.
    ///
    /// # Errors
    /// What is wrong with the frames that the server has sent already.
    pub(super) fn new(opened: Opened, shape: &Shape, pattern: &Pattern, index: u32) -> Result<Self, Fault> {
        let Opened { generator, stream, timer, deflate, early } = opened;
        let outgoing = Outgoing::new(pattern, index);
        let mut answers = Answers::new(shape, pattern, deflate, index);
        let mut unsent = Vec::new();
        if answers.receive(&early, &mut unsent)? > 0 {
            return Err(Fault::Unasked);
        }
        Ok(Self {
            generator,
            stream,
            timer,
            state: RefCell::new(State { outgoing, answers, unsent }),
            waiting: RefCell::new(None),
        })
    }

    /// Opens a connection, as [`Opened::open`] does, and makes it a client.
    ///
    /// # Errors
    /// [`OpenFault`].
    pub(super) async fn open(
        generator: &Rc<Generator>,
        door: &Door,
        (shape, pattern): (&Shape, &Pattern),
        index: u32,
    ) -> Result<Self, OpenFault> {
        let opened = Opened::open(generator, door, index).await?;
        Self::new(opened, shape, pattern, index).map_err(OpenFault::Answer)
    }

    /// Sends the next `count` messages, at most a window, in one piece. What the socket has no room for leaves while
    /// [`Self::answered`] waits.
    ///
    /// # Errors
    /// [`Fault::Gone`].
    #[inline]
    pub(super) fn send(&self, count: usize) -> Result<(), Fault> {
        let State { outgoing, unsent, .. } = &mut *self.state.borrow_mut();
        let frames = outgoing.next(count);
        if !unsent.is_empty() {
            unsent.extend_from_slice(&frames);
            return Ok(());
        }
        let sent = self.stream.send_now(&frames).map_err(|_| Fault::Gone)?;
        if sent < frames.len() {
            unsent.extend_from_slice(&frames[sent..]);
            // Whoever waits to receive has to wait for room as well.
            if let Some(waker) = self.waiting.borrow_mut().take() {
                waker.wake();
            }
        }
        Ok(())
    }

    /// Whether TLS is spoken, which goes past the ring.
    pub(super) fn is_tls(&self) -> bool {
        self.stream.is_tls()
    }

    /// Whether something waits for room in the socket.
    fn is_blocked(&self) -> bool {
        !self.state.borrow().unsent.is_empty()
    }

    /// From now on waiting ends at `deadline`.
    pub(super) fn set_deadline(&self, deadline: Tick) {
        self.timer.set(deadline);
    }

    /// Waits until messages are answered and returns how many were. Pings are answered on the way.
    ///
    /// # Errors
    /// What went wrong with this connection; [`Fault::Late`] at the deadline.
    pub(super) async fn answered(&self) -> Result<u32, Fault> {
        loop {
            self.wait().await?;
            if let Some(answered) = self.answered_now()? {
                return Ok(answered);
            }
        }
    }

    /// Takes what has come and answers pings; the number of messages that it answered, `None` where that is none.
    ///
    /// # Errors
    /// What went wrong with this connection.
    pub(super) fn answered_now(&self) -> Result<Option<u32>, Fault> {
        let state = &mut *self.state.borrow_mut();
        let mut scratch = self.generator.scratch.lend();
        match self.stream.receive_now(&mut scratch) {
            Received::Bytes(size) => {
                if let Some(answered) = state.take(&scratch[..size])? {
                    return Ok(Some(answered));
                }
            }
            Received::Nothing => {}
            Received::End | Received::Reset => return Err(Fault::Gone),
        }
        flush(&self.stream, &mut state.unsent)?;
        Ok(None)
    }

    /// Sends the next `count` messages, at most a window, as [`Self::send`] does, but through the ring: what all
    /// connections send enters the kernel together.
    ///
    /// # Errors
    /// [`Fault::Gone`]; [`Fault::Late`] where the socket has no room until the deadline.
    pub(super) async fn send_in_ring(&mut self, count: usize, line: &mut Line) -> Result<(), Fault> {
        if self.is_blocked() {
            return self.send(count);
        }
        let mut buffer = mem::take(&mut line.buffer);
        buffer.clear();
        buffer.extend_from_slice(&self.state.get_mut().outgoing.next(count));
        let size = buffer.len();
        let timer = &self.timer;
        let (sent, buffer) = self.stream.send(buffer, 0..size, timer, || None).await;
        line.buffer = buffer;
        let sent = sent.map_err(|Gone| if timer.is_due() { Fault::Late } else { Fault::Gone })?;
        self.state.get_mut().unsent.extend_from_slice(&line.buffer[sent..]);
        Ok(())
    }

    /// Waits for answers as [`Self::answered`] does, but receives through the ring.
    ///
    /// # Errors
    /// As those of [`Self::answered`].
    pub(super) async fn answered_in_ring(&mut self, line: &mut Line) -> Result<u32, Fault> {
        loop {
            if self.is_blocked() {
                return self.answered().await;
            }
            let buffer = mem::take(&mut line.buffer);
            let (received, buffer) =
                self.stream.receive(buffer, &mut line.cancel, &self.timer, || None).await;
            line.buffer = buffer;
            let state = self.state.get_mut();
            match received {
                Received::Bytes(size) => {
                    if let Some(answered) = state.take(&line.buffer[..size])? {
                        return Ok(answered);
                    }
                }
                Received::Nothing => return Err(Fault::Late),
                Received::End | Received::Reset => return Err(Fault::Gone),
            }
            flush(&self.stream, &mut state.unsent)?;
        }
    }

    /// Leaves by the closing handshake and waits for the server to end the connection.
    ///
    /// # Errors
    /// Where the server does not answer the Close, or does not end the connection.
    pub(super) async fn leave(self) -> Result<(), Fault> {
        self.timer.set(self.generator.after(CLOSE_TIMEOUT));
        let code = CloseCode::NORMAL.get().to_be_bytes();
        frame::append(&mut self.state.borrow_mut().unsent, Opcode::Close, true, &code, Some([0; 4]));
        flush(&self.stream, &mut self.state.borrow_mut().unsent)?;
        match self.answered().await {
            Err(Fault::Closed) => {}
            Err(fault) => return Err(fault),
            Ok(_) => return Err(Fault::Unasked),
        }
        loop {
            if self.timer.race(self.stream.readable()).await.is_none() {
                return Err(Fault::Late);
            }
            match self.stream.receive_now(&mut self.generator.scratch.lend()) {
                Received::Bytes(_) | Received::Nothing => {}
                Received::End | Received::Reset => break,
            }
        }
        self.stream.close_now();
        Ok(())
    }

    /// Waits until there is something to receive, or room for what is unsent.
    async fn wait(&self) -> Result<(), Fault> {
        let mut readable = pin!(self.stream.readable());
        let woken = if self.is_blocked() {
            let mut writable = pin!(self.stream.writable());
            let either = poll_fn(|context| {
                let is_ready =
                    readable.as_mut().poll(context).is_ready() || writable.as_mut().poll(context).is_ready();
                if is_ready { Poll::Ready(()) } else { Poll::Pending }
            });
            self.timer.race(either).await
        } else {
            let readable_or_blocked = poll_fn(|context| {
                if readable.as_mut().poll(context).is_ready() || self.is_blocked() {
                    return Poll::Ready(());
                }
                *self.waiting.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            });
            self.timer.race(readable_or_blocked).await
        };
        woken.ok_or(Fault::Late)
    }
}

impl State {
    /// Takes what was received; the number of messages that it answered, `None` where that is none.
    #[inline]
    fn take(&mut self, received: &[u8]) -> Result<Option<u32>, Fault> {
        let answered = self.answers.receive(received, &mut self.unsent)?;
        if self.answers.is_closed() {
            return Err(Fault::Closed);
        }
        Ok((answered > 0).then_some(answered))
    }
}

impl Line {
    /// A line for windows of this size; `None` where they are so large that the ring would not pay.
    pub(super) fn new(window_size: usize) -> Option<Self> {
        let is_small = window_size <= WINDOW_IN_RING_MAX;
        is_small.then(|| Self { buffer: Vec::with_capacity(WINDOW_IN_RING_MAX), cancel: Cancel::default() })
    }
}

impl From<&OpenFault> for Fault {
    fn from(fault: &OpenFault) -> Self {
        match fault {
            OpenFault::Connect(_) => Self::Connect,
            OpenFault::Tls(_) => Self::Tls,
            OpenFault::Response(_) | OpenFault::NoDeflate => Self::Handshake,
            OpenFault::Gone => Self::Gone,
            OpenFault::Late => Self::Late,
            OpenFault::Answer(fault) => *fault,
        }
    }
}

impl fmt::Display for OpenFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(formatter, "cannot connect: {error}"),
            Self::Tls(reason) => write!(formatter, "no TLS: {reason}"),
            Self::Response(fault) => fault.fmt(formatter),
            Self::NoDeflate => formatter.write_str("the server does not agree on permessage-deflate"),
            Self::Gone => formatter.write_str("the server left during the opening handshake"),
            Self::Late => formatter.write_str("the opening handshake took too long"),
            Self::Answer(fault) => {
                write!(formatter, "the server sent something wrong before any message: {fault}")
            }
        }
    }
}

/// Does the TLS handshake.
async fn shake_hands(generator: &Generator, stream: &Stream, timer: &Timer) -> Result<(), OpenFault> {
    loop {
        match stream.receive_now(&mut generator.scratch.lend()) {
            Received::Nothing if !stream.is_handshaking() => return Ok(()),
            Received::Nothing => {}
            Received::Bytes(_) => return Err(OpenFault::Answer(Fault::Unasked)),
            Received::End | Received::Reset => {
                return Err(stream.tls_fault().map_or(OpenFault::Gone, OpenFault::Tls));
            }
        }
        let waited = if stream.wants_room() {
            timer.race(stream.writable()).await
        } else {
            timer.race(stream.readable()).await
        };
        if waited.is_none() {
            return Err(OpenFault::Late);
        }
    }
}

fn key(generator: &Generator) -> [u8; 16] {
    let [low, high] = [generator.random(), generator.random()].map(u128::from);
    (low | high << 64).to_le_bytes()
}

/// Sends as much as the socket has room for.
fn flush(stream: &Stream, unsent: &mut Vec<u8>) -> Result<(), Fault> {
    if !unsent.is_empty() {
        let sent = stream.send_now(unsent).map_err(|_| Fault::Gone)?;
        unsent.drain(..sent);
    }
    Ok(())
}
