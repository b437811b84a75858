//! Giving way to other tasks.

/// Waits until every task that is ready to run has had its turn.
///
/// On epoll a wait for what is ready already ends at once, without a word to the runtime: a client that sends as fast as
/// it is answered would have its shard to itself, before the clock and the mailbox. On a ring no wait ends at once, so
/// nobody needs this there. A task that wakes itself while it runs is the next to run again; so this one lets itself be
/// woken by another, which does nothing and stands behind all that are ready.
pub async fn after_others() {
    monoio::spawn(std::future::ready(())).await;
}
