//! What a shard counts: the cells of one port on it, and those of the shard itself.

use super::cell::{Counter, DurationHistogram, Gauge, SizeHistogram};
use super::labels::{
    AcceptErrorReason, CloseCodeLabel, Direction, Form, FrameKind, Initiator, SlowClientOutcome, StatusClass,
};
use super::outcome::{AddressRefusal, AuthRefusal, End, HandshakeResult, TlsFailure, TlsHandshake};
use crate::protocol::websocket::close::CloseCode;
use crate::protocol::websocket::frame::{Opcode, Tally};
use crate::protocol::websocket::violation::ViolationKind;

/// The cells of one port on one shard, written by that shard's thread alone.
///
/// Aligned to two cache lines, which x86 fetches in pairs, so that no two shards write to the same one.
#[derive(Debug)]
#[repr(align(128))]
pub struct PortCells {
    /// Connections accepted.
    pub connections_accepted: Counter,
    /// Connections accepted and not yet ended.
    pub connections_active: Gauge,
    /// Opening handshakes begun and not yet judged.
    pub handshakes_in_progress: Gauge,
    /// From accept, or on a kept connection from the first bytes of the request, to a 101.
    pub handshake_duration: DurationHistogram<{ LATENCY_BOUNDS_NS.len() }>,
    /// From accept to end.
    pub connection_duration: DurationHistogram<{ CONNECTION_BOUNDS_NS.len() }>,
    /// From a ping of ours to its pong.
    pub ping_round_trip: DurationHistogram<{ LATENCY_BOUNDS_NS.len() }>,
    /// Messages received, by the size of their payload.
    pub message_size: SizeHistogram,
    /// Bytes that wait to be sent.
    pub send_queue_bytes: Gauge,
    /// Bytes that connections keep of what was said on them compressed.
    pub deflate_context_bytes: Gauge,
    /// Panics caught, each of which ended its connection.
    pub panics: Counter,
    /// Opening handshakes whose fields about the client came from somebody who is not believed.
    pub forwarding_ignored: Counter,
    /// TLS streams that clients ended without the alert that closes them.
    pub tls_truncated: Counter,
    pub(super) tls_handshakes: [Counter; TlsHandshake::COUNT],
    pub(super) tls_failures: [Counter; TlsFailure::COUNT],
    pub(super) ended: [Counter; End::COUNT],
    pub(super) handshakes: [Counter; HandshakeResult::COUNT],
    pub(super) auth_refusals: [Counter; AuthRefusal::COUNT],
    pub(super) address_refusals: [Counter; AddressRefusal::COUNT],
    pub(super) closes: [[Counter; CloseCodeLabel::COUNT]; Initiator::COUNT],
    pub(super) violations: [Counter; ViolationKind::COUNT],
    pub(super) frames: [[Counter; FrameKind::COUNT]; Direction::COUNT],
    pub(super) messages: [Counter; Direction::COUNT],
    pub(super) payload_bytes: [Counter; Direction::COUNT],
    pub(super) wire_bytes: [Counter; Direction::COUNT],
    /// By direction and [`Form`].
    pub(super) deflate_bytes: [[Counter; Form::COUNT]; Direction::COUNT],
    pub(super) slow_clients: [Counter; SlowClientOutcome::COUNT],
    pub(super) accept_errors: [Counter; AcceptErrorReason::COUNT],
    /// One for each route, then one for requests that no route took.
    pub(super) http_requests: Box<[RouteCells]>,
}

/// The HTTP requests of one route, aligned as [`PortCells`] is.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct RouteCells {
    pub(super) classes: [Counter; StatusClass::COUNT],
}

impl PortCells {
    /// Cells at zero, for a configuration with `route_count` routes.
    pub fn new(route_count: usize) -> Self {
        Self {
            connections_accepted: Counter::default(),
            connections_active: Gauge::default(),
            handshakes_in_progress: Gauge::default(),
            handshake_duration: DurationHistogram::new(&LATENCY_BOUNDS_NS),
            connection_duration: DurationHistogram::new(&CONNECTION_BOUNDS_NS),
            ping_round_trip: DurationHistogram::new(&LATENCY_BOUNDS_NS),
            message_size: SizeHistogram::default(),
            send_queue_bytes: Gauge::default(),
            deflate_context_bytes: Gauge::default(),
            panics: Counter::default(),
            forwarding_ignored: Counter::default(),
            tls_truncated: Counter::default(),
            tls_handshakes: counters(),
            tls_failures: counters(),
            ended: counters(),
            handshakes: counters(),
            auth_refusals: counters(),
            address_refusals: counters(),
            closes: std::array::from_fn(|_| counters()),
            violations: counters(),
            frames: std::array::from_fn(|_| counters()),
            messages: counters(),
            payload_bytes: counters(),
            wire_bytes: counters(),
            deflate_bytes: std::array::from_fn(|_| counters()),
            slow_clients: counters(),
            accept_errors: counters(),
            http_requests: (0..=route_count).map(|_| RouteCells::default()).collect(),
        }
    }

    /// Counts the end of a connection. Its accept must have been counted before.
    #[inline]
    pub fn ended(&self, end: End) {
        self.ended[end.index()].increment();
    }

    /// Counts the outcome of an opening handshake.
    #[inline]
    pub fn handshake(&self, result: HandshakeResult) {
        self.handshakes[result.index()].increment();
    }

    /// Counts why somebody is refused for the address that he comes from.
    #[inline]
    pub fn address_refusal(&self, reason: AddressRefusal) {
        self.address_refusals[reason.index()].increment();
    }

    /// Counts why a request did not prove who it is from.
    #[inline]
    pub fn auth_refusal(&self, reason: AuthRefusal) {
        self.auth_refusals[reason.index()].increment();
    }

    /// Counts a plain HTTP request answered with `status`; `route_index` is `None` where no route took it.
    ///
    /// # Panics
    /// If `route_index` is not an index into the routes that the cells were made for.
    #[inline]
    pub fn http_request(&self, route_index: Option<usize>, status: u16) {
        let route_count = self.http_requests.len() - 1;
        let index = match route_index {
            Some(index) => {
                assert!(index < route_count, "route {index} of {route_count}");
                index
            }
            None => route_count,
        };
        self.http_requests[index].classes[StatusClass::of(status).index()].increment();
    }

    /// Counts the first Close of a connection, by who sent it and the code it carried.
    #[inline]
    pub fn close(&self, initiator: Initiator, code: Option<CloseCode>) {
        self.closes[initiator.index()][CloseCodeLabel::of(code).index()].increment();
    }

    /// Counts a rule that the client broke.
    #[inline]
    pub fn violation(&self, kind: ViolationKind) {
        self.violations[kind.index()].increment();
    }

    /// The frames of one kind that went one way.
    #[inline]
    pub fn frames(&self, direction: Direction, kind: FrameKind) -> &Counter {
        &self.frames[direction.index()][kind.index()]
    }

    /// The whole messages that went one way.
    #[inline]
    pub fn messages(&self, direction: Direction) -> &Counter {
        &self.messages[direction.index()]
    }

    /// The payload of text, binary and continuation frames that went one way, in bytes.
    #[inline]
    pub fn payload_bytes(&self, direction: Direction) -> &Counter {
        &self.payload_bytes[direction.index()]
    }

    /// Everything read from or written to sockets, in bytes, heads and frame headers included.
    #[inline]
    pub fn wire_bytes(&self, direction: Direction) -> &Counter {
        &self.wire_bytes[direction.index()]
    }

    /// Counts a message that went one way compressed, by its sizes in bytes.
    #[inline]
    pub fn deflated(&self, direction: Direction, plain_size: usize, compressed_size: usize) {
        let bytes = &self.deflate_bytes[direction.index()];
        bytes[Form::Plain.index()].add(plain_size as u64);
        bytes[Form::Compressed.index()].add(compressed_size as u64);
    }

    /// Counts one read's or one send's frames, messages and payload.
    #[inline]
    pub fn tally(&self, direction: Direction, tally: &Tally) {
        for kind in FrameKind::ALL {
            let frames = tally.frames[kind.index()];
            if frames != 0 {
                self.frames(direction, *kind).add(u64::from(frames));
            }
        }
        self.messages(direction).add(u64::from(tally.messages));
        self.payload_bytes(direction).add(tally.payload_bytes);
    }

    /// Counts one control frame of our own, of `wire_size` bytes in all.
    pub fn own_frame(&self, opcode: Opcode, wire_size: usize) {
        self.frames(Direction::Sent, FrameKind::ALL[opcode.index()]).increment();
        self.wire_bytes(Direction::Sent).add(wire_size as u64);
    }

    /// Counts what became of a client that had stopped reading.
    #[inline]
    pub fn slow_client(&self, outcome: SlowClientOutcome) {
        self.slow_clients[outcome.index()].increment();
    }

    /// Counts a TLS handshake that succeeded.
    #[inline]
    pub fn tls_handshake(&self, handshake: TlsHandshake) {
        self.tls_handshakes[handshake.index()].increment();
    }

    /// Counts why TLS failed on a connection.
    #[inline]
    pub fn tls_failure(&self, failure: TlsFailure) {
        self.tls_failures[failure.index()].increment();
    }

    /// Counts an accept that failed.
    #[inline]
    pub fn accept_error(&self, reason: AcceptErrorReason) {
        self.accept_errors[reason.index()].increment();
    }
}

/// The cells of one shard, written by its thread alone, at its sweep.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ShardCells {
    /// Connections on this shard that have not ended.
    pub connections_active: Gauge,
    /// The CPU time that the thread has used, in nanoseconds.
    pub cpu_ns: Gauge,
    /// How much later than due the latest sweep ran, in nanoseconds.
    pub loop_lag_ns: Gauge,
}

/// Upper bounds of handshakes and round trips in nanoseconds, 0.5 ms to 10 s.
pub(super) static LATENCY_BOUNDS_NS: [u64; 14] = [
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// Upper bounds of a connection's life in nanoseconds, 1 s to a day.
pub(super) static CONNECTION_BOUNDS_NS: [u64; 8] = [
    1_000_000_000,
    10_000_000_000,
    60_000_000_000,
    300_000_000_000,
    900_000_000_000,
    3_600_000_000_000,
    14_400_000_000_000,
    86_400_000_000_000,
];

fn counters<const N: usize>() -> [Counter; N] {
    std::array::from_fn(|_| Counter::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_two_shards_share_no_pair_of_cache_lines() {
        assert_eq!(align_of::<PortCells>(), 128);
        assert_eq!(align_of::<ShardCells>(), 128);
        assert_eq!(align_of::<RouteCells>(), 128);
        assert_eq!(size_of::<ShardCells>(), 128);
        assert_eq!(size_of::<RouteCells>(), 128);
    }

    #[test]
    fn a_request_that_no_route_took_counts_apart() {
        let cells = PortCells::new(2);
        cells.http_request(Some(1), 204);
        cells.http_request(None, 404);
        let count =
            |index: usize, class: StatusClass| cells.http_requests[index].classes[class.index()].get();
        assert_eq!(count(1, StatusClass::Successful), 1);
        assert_eq!(count(2, StatusClass::ClientError), 1);
        assert_eq!(count(0, StatusClass::Successful), 0);
    }

    #[test]
    #[should_panic(expected = "route 2 of 2")]
    fn a_route_that_does_not_exist_is_our_mistake() {
        PortCells::new(2).http_request(Some(2), 200);
    }
}
