//! A connection on which the client chose HTTP/2, from its first byte inside TLS to its end.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;

use super::{Connection, Step};
use crate::metrics::{End, SlowClientOutcome};
use crate::net::contain::contain;
use crate::net::timers::{TICKS_PER_S, Tick, Timers, ticks};
use crate::service::Phase;
use crate::service::web::body::{Content, ContentFault};
use crate::service::web::gate::{Exchange, Watched};
use crate::service::web::io::Io;
use crate::shard::table::Table;
use crate::shard::web::answer;

/// Requests that one connection may have at a time (RFC 9113 section 5.1.2): more than a browser's page has.
const STREAMS_MAX: u32 = 128;

/// What a client may send of one body, and of all, before it is taken (RFC 9113 section 5.2): what a connection can make
/// the gateway hold.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// What may wait for room of one response.
const SEND_SIZE_MAX: usize = 64 << 10;

/// Runs what hyper would have run, on the shard's own thread.
#[derive(Clone, Copy)]
struct OnShard;

impl<F: Future + 'static> Executor<F> for OnShard {
    fn execute(&self, future: F) {
        drop(monoio::spawn(contain(async move {
            future.await;
        })));
    }
}

impl Connection {
    /// Serves HTTP/2; `early` is what has come of it.
    pub(super) async fn http2(&mut self, peer: IpAddr, early: Vec<u8>) -> Step {
        self.waiting = None;
        let exchange = Exchange::default();
        let end = self.run_http2(peer, early, &exchange).await;
        match end {
            // Of a client that broke a rule there may be more on its way, which must not lose the GOAWAY that says so.
            End::HttpDone | End::ClientGone => Step::Leave { unsent: Vec::new(), end },
            end => Step::Gone(end),
        }
    }

    async fn run_http2(&self, peer: IpAddr, early: Vec<u8>, exchange: &Exchange) -> End {
        let port = Rc::clone(self.table.port());
        let resources = Rc::clone(&port.resources);
        let streams = Streams::new(&resources.timers);
        let table = Rc::clone(&self.table);
        let service = service_fn({
            let streams = Rc::clone(&streams);
            move |request: Request<Incoming>| {
                let (table, stream) = (Rc::clone(&table), streams.begin());
                async move { Ok::<_, Infallible>(serve(table, peer, request, stream).await) }
            }
        });
        let mut builder = Builder::new(OnShard);
        builder
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_SIZE_MAX)
            .max_header_list_size(u32::try_from(port.limits.request_head_size_max).unwrap_or(u32::MAX));
        let io = Io::with(Watched::new(&self.client, exchange), early);
        let mut connection = pin!(builder.serve_connection(io, service));
        let timer = &self.client.life.timer;
        let (keep_alive, write_timeout) =
            (ticks(port.limits.keep_alive_timeout), ticks(port.limits.write_timeout));
        // Since when the client knows that it is to leave.
        let mut leaving_since: Option<Tick> = None;
        loop {
            timer.set(resources.timers.after(TICKS_PER_S));
            if let Some(outcome) = timer.race(connection.as_mut()).await {
                // Clients mostly leave without a word between two requests, where HTTP has none to say.
                let is_in_order = outcome.is_ok() || streams.has_served() && streams.idle_since().is_some();
                return if is_in_order { End::HttpDone } else { End::ClientGone };
            }
            let now = resources.timers.now();
            if resources.phase() == Phase::Cutting {
                return End::Shutdown;
            }
            let blocked_since = exchange.blocked_since().into_iter().chain(streams.blocked_since()).min();
            if blocked_since.is_some_and(|since| now >= since.saturating_add(write_timeout)) {
                port.cells.slow_client(SlowClientOutcome::Cut);
                self.client.stream.reset_on_close();
                return End::SlowClient;
            }
            let idle_since = streams.idle_since();
            if let (Some(leaving), Some(idle)) = (leaving_since, idle_since)
                && now >= leaving.max(idle).saturating_add(ticks(port.limits.close_timeout))
            {
                return End::HttpDone;
            }
            let is_idle = idle_since.is_some_and(|since| {
                // Until the first request has come, the handshake is not over.
                now >= if streams.has_served() { since.saturating_add(keep_alive) } else { self.deadline }
            });
            if leaving_since.is_none() && (is_idle || resources.phase() == Phase::Draining) {
                leaving_since = Some(now);
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Answers one request.
async fn serve(
    table: Rc<Table>,
    peer: IpAddr,
    request: Request<Incoming>,
    stream: Rc<Stream>,
) -> Response<Flow> {
    let response = answer(&table, peer, request).await;
    response.map(|content| Flow { content, stream })
}

/// The requests of one connection.
struct Streams {
    timers: Rc<Timers>,
    open: RefCell<Vec<Weak<Stream>>>,
    /// When there was a request last; `None` before the first.
    latest: Rc<Cell<Option<Tick>>>,
}

/// One request, from its head until the response has left.
struct Stream {
    timers: Rc<Timers>,
    /// How many parts of the response have not left yet.
    unsent_count: Cell<usize>,
    /// When the latest of them came, or left.
    moved: Cell<Tick>,
    latest: Rc<Cell<Option<Tick>>>,
}

impl Streams {
    fn new(timers: &Rc<Timers>) -> Rc<Self> {
        Rc::new(Self { timers: Rc::clone(timers), open: RefCell::default(), latest: Rc::default() })
    }

    fn begin(&self) -> Rc<Stream> {
        let stream = Rc::new(Stream {
            timers: Rc::clone(&self.timers),
            unsent_count: Cell::new(0),
            moved: Cell::new(0),
            latest: Rc::clone(&self.latest),
        });
        let mut open = self.open.borrow_mut();
        open.retain(|stream| stream.strong_count() > 0);
        open.push(Rc::downgrade(&stream));
        stream
    }

    /// Since when the response waits that has waited longest.
    fn blocked_since(&self) -> Option<Tick> {
        let open = self.open.borrow();
        open.iter().filter_map(Weak::upgrade).filter_map(|stream| stream.blocked_since()).min()
    }

    /// Whether there was a request that is over.
    fn has_served(&self) -> bool {
        self.latest.get().is_some()
    }

    /// Since when there is no request; `None` while there is one, and the time of the first look before the first.
    fn idle_since(&self) -> Option<Tick> {
        let is_open = self.open.borrow().iter().any(|stream| stream.strong_count() > 0);
        (!is_open).then(|| self.latest.get().unwrap_or(0))
    }
}

impl Stream {
    /// Since when the client takes nothing of what there is of the response; `None` while there is nothing.
    fn blocked_since(&self) -> Option<Tick> {
        (self.unsent_count.get() > 0).then(|| self.moved.get())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.latest.set(Some(self.timers.now()));
    }
}

/// A part of a response that hyper has, until it has left: also behind the end of its content, when hyper would not ask
/// for more, a client may have no room for what is there.
struct Unsent {
    bytes: Bytes,
    stream: Rc<Stream>,
}

impl Unsent {
    fn new(bytes: Bytes, stream: &Rc<Stream>) -> Self {
        stream.unsent_count.set(stream.unsent_count.get() + 1);
        stream.moved.set(stream.timers.now());
        Self { bytes, stream: Rc::clone(stream) }
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.stream.unsent_count.set(self.stream.unsent_count.get() - 1);
        self.stream.moved.set(self.stream.timers.now());
    }
}

impl Buf for Unsent {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

/// The content of a response, whose parts are known until they have left.
struct Flow {
    content: Content,
    stream: Rc<Stream>,
}

impl Body for Flow {
    type Data = Unsent;
    type Error = ContentFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Unsent>, ContentFault>>> {
        let frame = ready!(self.content.as_mut().poll_frame(context));
        let stream = &self.stream;
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(|bytes| Unsent::new(bytes, stream)))))
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_hint()
    }
}
