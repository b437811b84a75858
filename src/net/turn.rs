//! Giving way to other tasks.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Where tasks of one thread wait until all others have had their turn.
///
/// On epoll a wait for what is ready already ends at once, without a word to the runtime: a client that sends as fast as
/// it is answered would have its shard to itself, before the clock and the mailbox. On a ring no wait ends at once, so only
/// a task that has work left, and nothing to wait for, needs this there. A task that wakes itself while it runs is the next to run again; so whoever waits here is
/// woken by another task, which stands behind all that are ready.
#[derive(Debug, Default)]
pub struct Turnstile {
    waiting: RefCell<Vec<Waker>>,
    keeper: RefCell<Option<Waker>>,
}

/// See [`Turnstile::after_others`].
#[derive(Debug)]
pub struct AfterOthers<'t> {
    turnstile: &'t Turnstile,
    has_waited: bool,
}

impl Turnstile {
    /// Waits until every task that is ready to run has had its turn; at once where nobody keeps the turnstile.
    pub fn after_others(&self) -> AfterOthers<'_> {
        AfterOthers { turnstile: self, has_waited: false }
    }

    /// Waits for nobody.
    pub fn at_once(&self) -> AfterOthers<'_> {
        AfterOthers { turnstile: self, has_waited: true }
    }

    /// Keeps the turnstile: to be run as a task of its own, for as long as others wait here.
    pub async fn keep(&self) {
        std::future::poll_fn::<(), _>(|context| {
            *self.keeper.borrow_mut() = Some(context.waker().clone());
            for waker in self.waiting.borrow_mut().drain(..) {
                waker.wake();
            }
            Poll::Pending
        })
        .await;
    }
}

impl Future for AfterOthers<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let keeper = self.turnstile.keeper.borrow();
        match &*keeper {
            Some(keeper) if !self.has_waited => {
                self.turnstile.waiting.borrow_mut().push(context.waker().clone());
                keeper.wake_by_ref();
            }
            _ => return Poll::Ready(()),
        }
        drop(keeper);
        self.has_waited = true;
        Poll::Pending
    }
}
