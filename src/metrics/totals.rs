//! What one port counted on all shards, added up: what the metrics, the status and the page all show.

use std::sync::Arc;

use super::cell::{Counter, HistogramTotals, SizeHistogram};
use super::cells::{CONNECTION_BOUNDS_NS, LATENCY_BOUNDS_NS, PortCells};
use super::labels::{
    AcceptErrorReason, CloseCodeLabel, Direction, Form, FrameKind, Initiator, SlowClientOutcome, StatusClass,
};
use super::outcome::{AddressRefusal, AuthRefusal, End, HandshakeResult, TlsFailure, TlsHandshake};
use crate::protocol::websocket::violation::ViolationKind;

/// The cells of one port, added up over shards. Arrays are indexed by the `index()` of their closed set.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is the family of its name, whose help says what it counts")]
pub struct PortTotals {
    pub connections_ended: [u64; End::COUNT],
    pub connections_accepted: u64,
    pub connections_active: u64,
    pub handshakes: [u64; HandshakeResult::COUNT],
    pub auth_refusals: [u64; AuthRefusal::COUNT],
    pub address_refusals: [u64; AddressRefusal::COUNT],
    pub handshakes_in_progress: u64,
    pub handshake_duration: HistogramTotals,
    pub http_requests: Vec<[u64; StatusClass::COUNT]>,
    pub closes: [[u64; CloseCodeLabel::COUNT]; Initiator::COUNT],
    pub violations: [u64; ViolationKind::COUNT],
    pub frames: [[u64; FrameKind::COUNT]; Direction::COUNT],
    pub messages: [u64; Direction::COUNT],
    pub payload_bytes: [u64; Direction::COUNT],
    pub wire_bytes: [u64; Direction::COUNT],
    pub ping_round_trip: HistogramTotals,
    pub connection_duration: HistogramTotals,
    pub message_size: HistogramTotals,
    pub send_queue_bytes: u64,
    pub slow_clients: [u64; SlowClientOutcome::COUNT],
    pub accept_errors: [u64; AcceptErrorReason::COUNT],
    pub deflate_bytes: [[u64; Form::COUNT]; Direction::COUNT],
    pub deflate_context_bytes: u64,
    pub panics: u64,
    pub forwarding_ignored: u64,
    pub tls_handshakes: [u64; TlsHandshake::COUNT],
    pub tls_failures: [u64; TlsFailure::COUNT],
    pub tls_truncated: u64,
}

impl PortTotals {
    /// Adds up the cells of one port, one for each shard, all made for `route_count` routes.
    ///
    /// Ends are read before accepts: a connection that is seen to have ended is also seen to have been accepted, so
    /// that no reading has more ends than accepts.
    pub(super) fn read(shards: &[Arc<PortCells>], route_count: usize) -> Self {
        let mut totals = Self::zero(route_count);
        for cells in shards {
            add_all(&mut totals.connections_ended, &cells.ended);
        }
        for cells in shards {
            totals.add(cells);
        }
        totals
    }

    fn zero(route_count: usize) -> Self {
        Self {
            connections_ended: [0; _],
            connections_accepted: 0,
            connections_active: 0,
            handshakes: [0; _],
            auth_refusals: [0; _],
            address_refusals: [0; _],
            handshakes_in_progress: 0,
            handshake_duration: HistogramTotals::new(LATENCY_BOUNDS_NS.len()),
            http_requests: vec![[0; _]; route_count + 1],
            closes: [[0; _]; _],
            violations: [0; _],
            frames: [[0; _]; _],
            messages: [0; _],
            payload_bytes: [0; _],
            wire_bytes: [0; _],
            ping_round_trip: HistogramTotals::new(LATENCY_BOUNDS_NS.len()),
            connection_duration: HistogramTotals::new(CONNECTION_BOUNDS_NS.len()),
            message_size: HistogramTotals::new(SizeHistogram::bounds().len()),
            send_queue_bytes: 0,
            slow_clients: [0; _],
            accept_errors: [0; _],
            deflate_bytes: [[0; _]; _],
            deflate_context_bytes: 0,
            panics: 0,
            forwarding_ignored: 0,
            tls_handshakes: [0; _],
            tls_failures: [0; _],
            tls_truncated: 0,
        }
    }

    /// Adds everything but the ends.
    fn add(&mut self, cells: &PortCells) {
        self.connections_accepted += cells.connections_accepted.get();
        self.connections_active += cells.connections_active.get();
        add_all(&mut self.handshakes, &cells.handshakes);
        add_all(&mut self.auth_refusals, &cells.auth_refusals);
        add_all(&mut self.address_refusals, &cells.address_refusals);
        self.handshakes_in_progress += cells.handshakes_in_progress.get();
        cells.handshake_duration.add_to(&mut self.handshake_duration);
        for (into, from) in self.http_requests.iter_mut().zip(&cells.http_requests) {
            add_all(into, &from.classes);
        }
        for (into, from) in self.closes.iter_mut().zip(&cells.closes) {
            add_all(into, from);
        }
        add_all(&mut self.violations, &cells.violations);
        for (into, from) in self.frames.iter_mut().zip(&cells.frames) {
            add_all(into, from);
        }
        add_all(&mut self.messages, &cells.messages);
        add_all(&mut self.payload_bytes, &cells.payload_bytes);
        add_all(&mut self.wire_bytes, &cells.wire_bytes);
        cells.ping_round_trip.add_to(&mut self.ping_round_trip);
        cells.connection_duration.add_to(&mut self.connection_duration);
        cells.message_size.add_to(&mut self.message_size);
        self.send_queue_bytes += cells.send_queue_bytes.get();
        add_all(&mut self.slow_clients, &cells.slow_clients);
        add_all(&mut self.accept_errors, &cells.accept_errors);
        for (into, from) in self.deflate_bytes.iter_mut().zip(&cells.deflate_bytes) {
            add_all(into, from);
        }
        self.deflate_context_bytes += cells.deflate_context_bytes.get();
        self.panics += cells.panics.get();
        self.forwarding_ignored += cells.forwarding_ignored.get();
        add_all(&mut self.tls_handshakes, &cells.tls_handshakes);
        add_all(&mut self.tls_failures, &cells.tls_failures);
        self.tls_truncated += cells.tls_truncated.get();
    }
}

fn add_all<const N: usize>(into: &mut [u64; N], from: &[Counter; N]) {
    for (total, counter) in into.iter_mut().zip(from) {
        *total = total.wrapping_add(counter.get());
    }
}
