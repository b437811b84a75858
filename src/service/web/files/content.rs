//! A file on its way to a client: one chunk is sent while the next is read, and no more.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::folder::{Folder, Rest};
use super::readers::{Desk, Outcome, Ticket};
use crate::service::web::body::{Content, ContentFault};

/// What is sent of a file that takes several reads.
pub(super) struct FileContent {
    desk: Rc<Desk>,
    folder: Arc<Folder>,
    /// What was read and not sent.
    ready: Option<Bytes>,
    /// What is to be read, while nobody reads it.
    rest: Option<Rest>,
    /// The read under way.
    ticket: Option<Ticket>,
    /// Bytes that are still to be sent.
    left: u64,
}

impl FileContent {
    /// `size` bytes, of which `first` are there.
    pub(super) fn content(
        desk: &Rc<Desk>,
        folder: &Arc<Folder>,
        size: u64,
        first: Bytes,
        rest: Rest,
    ) -> Content {
        Box::pin(Self {
            desk: Rc::clone(desk),
            folder: Arc::clone(folder),
            ready: Some(first),
            rest: Some(rest),
            ticket: None,
            left: size,
        })
    }

    fn read_ahead(&mut self) {
        if let Some(rest) = self.rest.take() {
            self.ticket = Some(self.desk.read(&self.folder, rest));
        }
    }
}

impl Body for FileContent {
    type Data = Bytes;
    type Error = ContentFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ContentFault>>> {
        let chunk = if let Some(chunk) = self.ready.take() {
            chunk
        } else if let Some(ticket) = &mut self.ticket {
            let outcome = ready!(Pin::new(ticket).poll(context));
            self.ticket = None;
            match outcome {
                Outcome::Read(Ok((chunk, rest))) => {
                    self.rest = rest;
                    chunk
                }
                // Its size was told: the client sees that there should have been more.
                Outcome::Read(Err(_)) => return Poll::Ready(Some(Err(ContentFault::File))),
                Outcome::Looked(_) => unreachable!("a read is answered by a chunk"),
            }
        } else {
            return Poll::Ready(None);
        };
        self.read_ahead();
        self.left -= chunk.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
