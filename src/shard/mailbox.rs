//! Messages from the control thread to a shard.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use crate::net::wake::{Counted, Waker, Wakeups, wake_pair};

/// How many messages may wait. The control thread sends a handful in a process's life; a shard that lets this many
/// wait has stopped.
const CAPACITY: usize = 64;

/// What the control thread asks of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mail {
    /// Stop accepting, and ask every client to leave.
    Drain,
    /// Cut those who have not left.
    Cut,
}

/// The control thread's end.
#[derive(Debug)]
pub struct Mailbox {
    sender: SyncSender<Mail>,
    waker: Waker,
}

/// The shard's end, before its thread has a runtime.
#[derive(Debug)]
pub struct Inbox {
    receiver: Receiver<Mail>,
    wakeups: Wakeups,
}

/// The shard's end.
#[derive(Debug)]
pub(super) struct BoundInbox {
    receiver: Receiver<Mail>,
    wakeups: Counted,
}

/// A shard that takes no more mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

/// Makes both ends.
///
/// # Errors
/// Where the descriptor table is full.
pub fn mailbox() -> io::Result<(Mailbox, Inbox)> {
    let (sender, receiver) = sync_channel(CAPACITY);
    let (waker, wakeups) = wake_pair()?;
    Ok((Mailbox { sender, waker }, Inbox { receiver, wakeups }))
}

impl Mailbox {
    /// Sends a message and wakes the shard.
    ///
    /// # Errors
    /// [`Stopped`] where the shard has ended, or has left so many messages unread that it is stuck.
    pub fn send(&self, mail: Mail) -> Result<(), Stopped> {
        match self.sender.try_send(mail) {
            Ok(()) => {
                self.waker.wake();
                Ok(())
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(Stopped),
        }
    }
}

impl Inbox {
    pub(super) fn bind(self) -> io::Result<BoundInbox> {
        Ok(BoundInbox { receiver: self.receiver, wakeups: self.wakeups.bind()? })
    }
}

impl BoundInbox {
    /// Waits for the next message; `None` once the control thread is gone.
    pub(super) async fn next(&self) -> io::Result<Option<Mail>> {
        loop {
            match self.receiver.try_recv() {
                Ok(mail) => return Ok(Some(mail)),
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return Ok(None),
                // A wake that came before the message it announces is followed by that message's own.
                Err(std::sync::mpsc::TryRecvError::Empty) => {
                    self.wakeups.next().await?;
                }
            }
        }
    }
}
