//! Panics of one connection, kept to that connection.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

pin_project! {
    /// A future whose panic ends it, and nothing else.
    ///
    /// Uncaught, a panic in a task ends the process with every connection that it holds.
    pub struct Contained<F, P> {
        #[pin]
        future: F,
        on_panic: P,
    }
}

/// Runs `future`; `on_panic` is called should it panic.
pub fn contain<F: Future<Output = ()>, P: Fn()>(future: F, on_panic: P) -> Contained<F, P> {
    Contained { future, on_panic }
}

/// Runs `work` at once; `on_panic` is called should it panic.
pub fn contain_now(work: impl FnOnce(), on_panic: impl Fn()) {
    // What `work` shared with others is cells that hold no half-made value: nobody sees a broken state.
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        on_panic();
    }
}

impl<F: Future<Output = ()>, P: Fn()> Future for Contained<F, P> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        // After a panic the future is not polled again; for what it shared, see above.
        catch_unwind(AssertUnwindSafe(|| this.future.poll(context))).unwrap_or_else(|_| {
            (this.on_panic)();
            Poll::Ready(())
        })
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
    fn a_panic_ends_its_future_and_is_told() {
        let panics = Cell::new(0);
        let polls = Cell::new(0);
        let future = poll_fn(|_| {
            polls.set(polls.get() + 1);
            assert!(polls.get() < 2, "the second poll panics");
            Poll::Pending
        });
        let mut contained = pin!(contain(future, || panics.set(panics.get() + 1)));
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(contained.as_mut().poll(&mut context), Poll::Pending);
        assert_eq!(contained.as_mut().poll(&mut context), Poll::Ready(()));
        assert_eq!(panics.get(), 1);
    }

    #[test]
    fn a_panic_at_once_is_told_too() {
        let panics = Cell::new(0);
        contain_now(|| panic!("at once"), || panics.set(panics.get() + 1));
        contain_now(|| {}, || panics.set(panics.get() + 10));
        assert_eq!(panics.get(), 1);
    }
}
