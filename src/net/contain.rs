//! Panics of one connection, kept to that connection.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

pin_project! {
    /// A future whose panic is its output.
    ///
    /// Uncaught, a panic in a task ends the process with every connection that it holds.
    pub struct Contained<F> {
        #[pin]
        future: F,
    }
}

/// What a future panicked with.
pub type Panic = Box<dyn Any + Send>;

/// Runs `future` and turns its panic into an error.
pub fn contain<F: Future>(future: F) -> Contained<F> {
    Contained { future }
}

/// Runs `work` at once and turns its panic into an error.
///
/// # Errors
/// What `work` panicked with.
pub fn contain_now<T>(work: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(work))
}

impl<F: Future> Future for Contained<F> {
    type Output = Result<F::Output, Panic>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let future = self.project().future;
        // The future is not polled again after a panic, and what it shared with others is cells that hold no
        // half-made value: nobody sees a broken state.
        match catch_unwind(AssertUnwindSafe(|| future.poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    }
}
