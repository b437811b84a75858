//! Every family that Ringway exports: name, type, labels and help, in one table.

use prometheus::proto::MetricType;

/// Defines [`Family`] and the table behind it; the exhaustive match of the collector keeps both complete.
macro_rules! families {
    ($($member:ident $kind:ident $name:literal [$($label:literal)*] $help:literal;)+) => {
        /// One metric family.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Family {
            $(#[doc = $help] $member,)+
        }

        impl Family {
            /// Every family, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$member,)+];

            /// What the table says of this family.
            pub const fn definition(self) -> &'static Definition {
                match self {
                    $(Self::$member => &Definition {
                        name: $name,
                        kind: MetricType::$kind,
                        labels: &[$($label,)*],
                        help: $help,
                    },)+
                }
            }
        }
    };
}

/// What stands in the table about one family.
#[derive(Debug)]
pub struct Definition {
    /// The whole name, prefix and unit included.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: MetricType,
    /// The names of the labels, in the order in which their values are given.
    pub labels: &'static [&'static str],
    /// One sentence on what is counted, with its unit.
    pub help: &'static str,
}

families! {
    ConnectionsAccepted COUNTER "ringway_connections_accepted_total" ["port"]
        "TCP connections accepted.";
    ConnectionsActive GAUGE "ringway_connections_active" ["port"]
        "TCP connections accepted and not yet ended.";
    ConnectionsLimit GAUGE "ringway_connections_limit" ["port"]
        "The most TCP connections that the port will hold at once.";
    ConnectionsEnded COUNTER "ringway_connections_ended_total" ["port" "end"]
        "TCP connections ended, each by exactly one end.";
    Handshakes COUNTER "ringway_handshakes_total" ["port" "result"]
        "WebSocket opening handshakes, by what became of them.";
    AuthRefusals COUNTER "ringway_auth_refusals_total" ["port" "reason"]
        "Requests that did not prove who they are from, by why not.";
    AddressRefusals COUNTER "ringway_address_refusals_total" ["port" "reason"]
        "Connections and handshakes that were refused for the address that they came from, by why.";
    AddressTables GAUGE "ringway_address_tables_bytes" ["port"]
        "Memory of the tables of what is limited by address, in bytes.";
    MemoryCeiling GAUGE "ringway_memory_ceiling_bytes" []
        "Memory that the process is to stay below, in bytes; there where it was set.";
    MemoryLevel GAUGE "ringway_memory_level" []
        "How short memory is: 0, 1 without buffers for busy connections, 2 without new clients, 3 asking quiet ones to leave.";
    KeySetFetches COUNTER "ringway_jwks_fetches_total" ["route" "result"]
        "Times that the keys of a route were fetched, by whether they are in force.";
    KeySetKeys GAUGE "ringway_jwks_keys" ["route"]
        "Keys of the route that could verify a token.";
    HandshakesInProgress GAUGE "ringway_handshakes_in_progress" ["port"]
        "Opening handshakes begun and not yet answered.";
    HandshakeDuration HISTOGRAM "ringway_handshake_duration_seconds" ["port"]
        "Time from accept, or on a kept connection from the first bytes of the request, to a 101, in seconds.";
    HttpRequests COUNTER "ringway_http_requests_total" ["port" "route" "class"]
        "Requests answered, opening handshakes among them (1xx, or the class of the refusal), by route (none where no route took it) and class of status.";
    Closes COUNTER "ringway_closes_total" ["port" "initiator" "code"]
        "Connections on which a Close was sent, by who sent the first one and its close code.";
    Violations COUNTER "ringway_violations_total" ["port" "kind"]
        "Rules of RFC 6455 that clients broke.";
    Frames COUNTER "ringway_frames_total" ["port" "direction" "opcode"]
        "WebSocket frames.";
    Messages COUNTER "ringway_messages_total" ["port" "direction"]
        "Whole WebSocket messages.";
    PayloadBytes COUNTER "ringway_payload_bytes_total" ["port" "direction"]
        "Payload of text, binary and continuation frames, in bytes.";
    WireBytes COUNTER "ringway_wire_bytes_total" ["port" "direction"]
        "Everything read from or written to clients, in bytes, without what TLS adds.";
    DeflateBytes COUNTER "ringway_deflate_bytes_total" ["port" "direction" "form"]
        "Bytes of messages that went compressed between client and gateway, as they were said and as they went.";
    DeflateContextBytes GAUGE "ringway_deflate_context_bytes" ["port"]
        "Bytes that connections keep of what was said on them, for the compressed messages that refer to it.";
    PingRoundTrip HISTOGRAM "ringway_ping_round_trip_seconds" ["port"]
        "Time from a ping of the gateway to its pong, in seconds.";
    ConnectionDuration HISTOGRAM "ringway_connection_duration_seconds" ["port"]
        "Time from accept to end of a connection, in seconds.";
    MessageSize HISTOGRAM "ringway_message_size_bytes" ["port"]
        "Payload of each message received, in bytes.";
    SendQueueBytes GAUGE "ringway_send_queue_bytes" ["port"]
        "Bytes that wait to be sent to clients.";
    SlowClients COUNTER "ringway_slow_clients_total" ["port" "outcome"]
        "Clients that had stopped reading, by what became of them.";
    UpstreamConnects COUNTER "ringway_upstream_connects_total" ["route" "result"]
        "Attempts to get a client to an upstream, by what became of them.";
    UpstreamConnectDuration HISTOGRAM "ringway_upstream_connect_duration_seconds" ["route"]
        "Time from the first packet to an upstream until it has accepted the client, in seconds.";
    UpstreamHealthy GAUGE "ringway_upstream_healthy" ["route" "upstream"]
        "Whether the upstream is in use, neither ejected nor found bad by checks: 1 or 0.";
    UpstreamConnectionsActive GAUGE "ringway_upstream_connections_active" ["route" "upstream"]
        "Connections to the upstream, those that are being made included.";
    UpstreamEjections COUNTER "ringway_upstream_ejections_total" ["route" "upstream"]
        "Times that the upstream was ejected after failures in a row; a trial that fails is no further one.";
    TlsHandshakes COUNTER "ringway_tls_handshakes_total" ["port" "kind"]
        "TLS handshakes that succeeded, by version, and by whether the certificate was sent or a ticket resumed.";
    TlsFailures COUNTER "ringway_tls_failures_total" ["port" "kind"]
        "Connections that ended since TLS failed, by why.";
    TlsTruncated COUNTER "ringway_tls_truncated_total" ["port"]
        "Connections whose client ended its stream without the closure alert of TLS, as if somebody had cut it.";
    CertificateNotAfter GAUGE "ringway_certificate_not_after_timestamp_seconds" ["name"]
        "When the certificate in force expires, by the name of its file, in seconds since the Unix epoch.";
    CertificateReloads COUNTER "ringway_certificate_reloads_total" ["result"]
        "Times that a port's certificates were read again, as they had changed or by SIGHUP, by whether they are in force.";
    PortUp GAUGE "ringway_port_up" ["port"]
        "Whether the port accepts connections: 1 or 0.";
    PortDraining GAUGE "ringway_port_draining" ["port"]
        "Whether the port is asking its clients to leave: 1 or 0.";
    AcceptErrors COUNTER "ringway_accept_errors_total" ["port" "reason"]
        "Accepts that failed.";
    Panics COUNTER "ringway_panics_total" ["port"]
        "Panics caught, each of which ended one connection.";
    ForwardingIgnored COUNTER "ringway_forwarding_ignored_total" ["port"]
        "Opening handshakes with Forwarded or X-Forwarded fields of somebody who is not trusted.";
    ShardConnectionsActive GAUGE "ringway_shard_connections_active" ["shard"]
        "TCP connections on the shard that have not ended.";
    ShardCpu COUNTER "ringway_shard_cpu_seconds_total" ["shard"]
        "CPU time that the shard's thread has used, in seconds.";
    ShardLoopLag GAUGE "ringway_shard_loop_lag_seconds" ["shard"]
        "How much later than due the shard's latest sweep ran, in seconds.";
    BuildInfo GAUGE "ringway_build_info" ["version" "commit"]
        "Always 1; the labels say what was built.";
    IoDriverInfo GAUGE "ringway_io_driver_info" ["driver"]
        "Always 1; the label says which driver the shards run on.";
    ProcessCpu COUNTER "process_cpu_seconds_total" []
        "CPU time that the process has used, user and system, in seconds.";
    ProcessResidentMemory GAUGE "process_resident_memory_bytes" []
        "Memory of the process that is resident, in bytes.";
    ProcessOpenFds GAUGE "process_open_fds" []
        "File descriptors that the process has open.";
    ProcessMaxFds GAUGE "process_max_fds" []
        "File descriptors that the process may have open.";
    ProcessStartTime GAUGE "process_start_time_seconds" []
        "When the process started, in seconds since the Unix epoch.";
}
