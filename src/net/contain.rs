//! Panics of one connection, kept to that connection.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

pin_project! {
    /// A future whose panic ends it, and nothing else.
    ///
    /// Uncaught, a panic in a task ends the process with every connection that it holds. Whoever must know of it has
    /// left something in the future that tells when it is dropped without having been finished.
    pub struct Contained<F> {
        #[pin]
        future: F,
    }
}

/// Runs `future` until it is done, or panics.
pub fn contain<F: Future<Output = ()>>(future: F) -> Contained<F> {
    Contained { future }
}

/// Runs `work` at once, until it is done, or panics.
pub fn contain_now(work: impl FnOnce()) {
    // What `work` shared with others is cells that hold no half-made value: nobody sees a broken state. The panic
    // itself has been told by the hook.
    let _ = catch_unwind(AssertUnwindSafe(work));
}

impl<F: Future<Output = ()>> Future for Contained<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let future = self.project().future;
        // After a panic the future is not polled again; for what it shared, see above.
        catch_unwind(AssertUnwindSafe(|| future.poll(context))).unwrap_or(Poll::Ready(()))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Waker;

    use super::*;

    #[test]
    fn a_panic_ends_its_future_and_nothing_else() {
        let polls = Cell::new(0);
        let future = poll_fn(|_| {
            polls.set(polls.get() + 1);
            assert!(polls.get() < 2, "the second poll panics");
            Poll::Pending
        });
        let mut contained = pin!(contain(future));
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(contained.as_mut().poll(&mut context), Poll::Pending);
        assert_eq!(contained.as_mut().poll(&mut context), Poll::Ready(()));
        assert_eq!(polls.get(), 2);
    }

    #[test]
    fn a_panic_at_once_goes_no_further() {
        let done = Cell::new(false);
        contain_now(|| panic!("at once"));
        contain_now(|| done.set(true));
        assert!(done.get());
    }
}
