//! The body of a request on its way to an upstream: how much of it is taken, and how long its client may be silent.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::poll_deadline;
use crate::net::timers::{Tick, Timer};
use crate::protocol::http::refusal::{BadRequest, Refusal};
use crate::service::Port;
use crate::service::web::body::ContentFault;

/// How the body of a request fares, for whoever waits for its response.
#[derive(Debug, Default)]
pub struct Progress {
    /// When the upstream took the latest part.
    pub(super) at: Cell<Tick>,
    /// What is wrong with it, where something is.
    pub(super) fault: Cell<Option<Refusal>>,
    /// True exactly while the upstream has taken all that the client has sent, and more has to come.
    pub(super) is_awaited: Cell<bool>,
    /// True exactly when all of it has been taken.
    pub(super) is_whole: Cell<bool>,
}

/// The body of a request on its way to an upstream.
#[derive(Debug)]
pub struct RequestBody {
    /// `None` where there is none, or none any more.
    incoming: Option<Incoming>,
    timer: Timer<Rc<Port>>,
    /// How long the client may send nothing of it.
    silence: Tick,
    /// Until when the next part has to come; `None` while none is waited for.
    deadline: Option<Tick>,
    /// How much of it is still taken.
    left: u64,
    pub(super) progress: Rc<Progress>,
}

impl RequestBody {
    /// A body as it comes from a client, of which `size_max` bytes are taken.
    pub fn new(incoming: Incoming, port: &Rc<Port>, silence: Tick, size_max: u64) -> Self {
        let incoming = (!incoming.is_end_stream()).then_some(incoming);
        let body = Self { incoming, silence, left: size_max, ..Self::none(port) };
        body.progress.is_whole.set(body.incoming.is_none());
        body
    }

    /// No body.
    pub fn none(port: &Rc<Port>) -> Self {
        let timer = Timer::new(Rc::clone(port));
        let progress = Rc::<Progress>::default();
        progress.is_whole.set(true);
        Self { incoming: None, timer, silence: 0, deadline: None, left: 0, progress }
    }

    fn fail(&self, refusal: Refusal) -> Poll<Option<Result<Frame<Bytes>, ContentFault>>> {
        self.progress.fault.set(Some(refusal));
        Poll::Ready(Some(Err(ContentFault::Request)))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = ContentFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ContentFault>>> {
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let frame = Pin::new(incoming).poll_frame(context);
        self.progress.is_awaited.set(frame.is_pending());
        let timers = Rc::clone(self.timer.timers());
        match frame {
            Poll::Ready(Some(Ok(frame))) => {
                self.deadline = None;
                self.progress.at.set(timers.now());
                let size = frame.data_ref().map_or(0, |data| data.len() as u64);
                match self.left.checked_sub(size) {
                    Some(left) => self.left = left,
                    None => return self.fail(Refusal::BodyTooLarge),
                }
                self.progress.is_whole.set(self.is_end_stream());
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) => self.fail(BadRequest::BodyMalformed.into()),
            Poll::Ready(None) => {
                self.progress.is_whole.set(true);
                Poll::Ready(None)
            }
            Poll::Pending => {
                let silence = self.silence;
                let deadline = *self.deadline.get_or_insert_with(|| timers.after(silence));
                ready!(poll_deadline(&self.timer, deadline, context));
                self.fail(Refusal::Timeout)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
