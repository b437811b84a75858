//! The body of a response on its way to the client: how long its upstream may be silent, and what is given back at its end.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::poll_deadline;
use super::request_body::Progress;
use crate::net::timers::{Tick, Timer};
use crate::service::Port;
use crate::service::upstream::{Address, Lease};
use crate::service::web::body::{Content, ContentFault};
use crate::service::web::kept::{Kept, Sender};

/// The body of a response on its way to the client. It holds the lease of its upstream, and gives the connection back at
/// its end.
pub(super) struct ResponseBody {
    pub(super) incoming: Incoming,
    pub(super) timer: Timer<Rc<Port>>,
    /// How long the upstream may say nothing.
    pub(super) silence: Tick,
    /// Until when the next part has to come; `None` while none is waited for.
    pub(super) deadline: Option<Tick>,
    pub(super) way_back: Option<WayBack>,
    pub(super) _lease: Lease,
}

/// What a connection to an upstream is given back with.
pub(super) struct WayBack {
    pub(super) kept: Rc<Kept>,
    pub(super) index: usize,
    pub(super) address: Address,
    pub(super) sender: Sender,
    /// The request's.
    pub(super) progress: Rc<Progress>,
}

impl ResponseBody {
    /// The content, if there is any to come.
    pub(super) fn into_content(mut self) -> Content {
        if self.incoming.is_end_stream() {
            self.give_back();
        }
        Box::pin(self)
    }

    fn give_back(&mut self) {
        // Where the upstream has answered without the whole of a request, the rest of it would come before the next one.
        if let Some(WayBack { kept, index, address, sender, progress }) = self.way_back.take()
            && progress.is_whole.get()
        {
            kept.keep(index, address, sender);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = ContentFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ContentFault>>> {
        let polled = Pin::new(&mut self.incoming).poll_frame(context);
        if let Poll::Ready(frame) = polled {
            self.deadline = None;
            if frame.is_none() || self.incoming.is_end_stream() {
                self.give_back();
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(|_| ContentFault::UpstreamGone)));
        }
        let timers = Rc::clone(self.timer.timers());
        let silence = self.silence;
        let deadline = *self.deadline.get_or_insert_with(|| timers.after(silence));
        ready!(poll_deadline(&self.timer, deadline, context));
        Poll::Ready(Some(Err(ContentFault::UpstreamTimedOut)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
