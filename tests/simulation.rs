//! Two endpoints over a bad network: whatever is said is heard, or the connection ends for a reason that both can tell.
//!
//! A seed decides what both sides say, how the network carries it, and what goes wrong. `RINGWAY_SEED=7 cargo test
//! --test simulation` runs one seed alone.

use std::collections::{BTreeMap, VecDeque};
use std::panic;

use ringway::protocol::websocket::close::CloseCode;
use ringway::protocol::websocket::endpoint::{Endpoint, Event, MessageKind};
use ringway::protocol::websocket::exchange::Exchange;
use ringway::protocol::websocket::frame::{self, Opcode, Role, Rules};
use ringway::protocol::websocket::fuzz::Random;
use ringway::protocol::websocket::keepalive::{Due, Keepalive, Patience, Tick};
use ringway::protocol::websocket::violation::Violation;

/// How many seeds a run without `RINGWAY_SEED` goes through.
const SEED_COUNT: u64 = 3_000;
/// A connection that lasts longer than this many ticks would last for ever.
const TICKS_MAX: Tick = 60_000;

/// Limits of both sides, in bytes; no honest message comes near them.
const FRAME_SIZE_MAX: u64 = 1 << 20;
const MESSAGE_SIZE_MAX: u64 = 1 << 18;

/// Resets and losses happen before this tick.
const FAULT_BEFORE: Tick = 600;
/// The longest that the network holds everything back, and that a side reads nothing, in ticks.
const STALL_MAX: Tick = 8;
const PAUSE_MAX: Tick = 10;
/// Silence after which a side pings, and within which it wants an answer: longer than both of the above, and than it
/// takes to empty a pipe.
const PING_AFTER: Tick = 80;
const PONG_WITHIN: Tick = 80;
/// Time without a message after which a side that cares for that closes.
const IDLE_AFTER: Tick = 400;
/// How long a peer may take no bytes, and how long its Close may be waited for.
const WRITE_WITHIN: Tick = 2_000;
const CLOSE_WITHIN: Tick = 2_000;

#[test]
fn what_is_said_is_heard_or_the_connection_ends_for_a_reason() {
    if let Ok(seed) = std::env::var("RINGWAY_SEED") {
        simulate(seed.parse().expect("RINGWAY_SEED is a number"));
        return;
    }
    let mut counts = BTreeMap::new();
    for seed in 0..SEED_COUNT {
        let ends = panic::catch_unwind(|| simulate(seed));
        for end in ends.unwrap_or_else(|_| panic!("RINGWAY_SEED={seed} fails again")) {
            *counts.entry(end.name()).or_insert(0) += 1;
        }
    }
    // A simulation in which some end never comes proves nothing about it.
    for name in
        ["answered", "closed", "violated", "gone", "pong_timeout", "slow", "close_timeout", "vanished"]
    {
        assert!(counts.get(name).is_some_and(|count| *count >= 20), "{name} is rare: {counts:?}");
    }
}

/// Runs a connection from its first message to the end of both sides, and checks what they make of it.
fn simulate(seed: u64) -> [End; 2] {
    let mut random = Random(seed);
    let plan = Plan::new(&mut random);
    let mut client = Peer::new(Role::Client, &plan, plan.client.clone());
    let mut server = Peer::new(Role::Server, &plan, plan.server.clone());
    let mut upward = Pipe::new(&plan, plan.loses_upward);
    let mut downward = Pipe::new(&plan, plan.loses_downward);
    for now in 1..TICKS_MAX {
        if plan.reset_at == Some(now) {
            upward.reset();
            downward.reset();
        }
        upward.carry(now, &mut random);
        downward.carry(now, &mut random);
        // Which side comes first is chance, as it is between two machines.
        if random.one_in(2) {
            client.act(now, &mut downward, &mut upward, &mut random);
            server.act(now, &mut upward, &mut downward, &mut random);
        } else {
            server.act(now, &mut upward, &mut downward, &mut random);
            client.act(now, &mut downward, &mut upward, &mut random);
        }
        if let (Some(of_client), Some(of_server)) = (client.end, server.end) {
            plan.check(&client, &server);
            plan.check(&server, &client);
            return [of_client, of_server];
        }
    }
    panic!("no end after {TICKS_MAX} ticks: client {:?}, server {:?}", client.end, server.end);
}

/// How a side's connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The peer's Close came first and was answered.
    Answered,
    /// The peer's Close came after ours.
    Closed,
    /// The peer broke a rule.
    Violated(Violation),
    /// The peer's bytes ended without a Close.
    Gone,
    PongTimeout,
    /// The peer took nothing for too long.
    Slow,
    CloseTimeout,
    /// This side left without a Close.
    Vanished,
}

impl End {
    fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Closed => "closed",
            Self::Violated(_) => "violated",
            Self::Gone => "gone",
            Self::PongTimeout => "pong_timeout",
            Self::Slow => "slow",
            Self::CloseTimeout => "close_timeout",
            Self::Vanished => "vanished",
        }
    }
}

/// Something that a side says or hears: a whole message, a Ping, a Pong, or a Close with the bytes of its code.
type Saying = (Opcode, Vec<u8>);

/// What a side does next, once everything before is sent.
#[derive(Clone, Debug)]
enum Step {
    Message(MessageKind, Vec<u8>),
    Control(Opcode, Vec<u8>),
    /// Says nothing for so long.
    Rest(Tick),
    Close(Option<CloseCode>),
    /// Begins a message and closes in the midst of it.
    Abandon(Option<CloseCode>),
    /// Breaks a rule.
    Violate(Violation, Vec<u8>),
    /// Leaves without a Close.
    Vanish,
}

/// All that a seed decides beforehand.
struct Plan {
    /// The most bytes that the network carries in a tick, and that half a read takes.
    piece_size_max: usize,
    client: VecDeque<Step>,
    server: VecDeque<Step>,
    patience: Patience,
    reset_at: Option<Tick>,
    /// From when on a direction carries nothing more, and nobody is told.
    loses_upward: Option<Tick>,
    loses_downward: Option<Tick>,
}

impl Plan {
    fn new(random: &mut Random) -> Self {
        let piece_size_max = match random.below(20) {
            0 => 20_000,
            1..6 => 1,
            6..12 => 60,
            _ => 1_200,
        };
        let lost_at = random.one_in(8).then(|| ticks(random, FAULT_BEFORE));
        let both_are_lost = random.one_in(2);
        let upward_is_lost = random.one_in(2);
        let mut client = script(random, piece_size_max);
        let mut server = script(random, piece_size_max);
        if random.one_in(6) {
            client.push(violation(Role::Client, random));
        } else if random.one_in(12) {
            server.push(violation(Role::Server, random));
        } else if random.one_in(20) {
            client.push(Step::Vanish);
        } else {
            let client_closes = random.one_in(2);
            for script in [(client_closes, &mut client), (!client_closes || random.one_in(3), &mut server)] {
                if let (true, steps) = script {
                    let codes =
                        [None, Some(CloseCode::NORMAL), Some(CloseCode::GOING_AWAY), CloseCode::new(4000)];
                    let code = codes[random.below(codes.len())];
                    steps.push(if random.one_in(4) { Step::Abandon(code) } else { Step::Close(code) });
                }
            }
        }
        let idle_after = if random.one_in(10) { IDLE_AFTER } else { 0 };
        Self {
            piece_size_max,
            client: client.into(),
            server: server.into(),
            patience: Patience { ping_after: PING_AFTER, pong_within: PONG_WITHIN, idle_after },
            reset_at: random.one_in(8).then(|| ticks(random, FAULT_BEFORE)),
            loses_upward: lost_at.filter(|_| both_are_lost || upward_is_lost),
            loses_downward: lost_at.filter(|_| both_are_lost || !upward_is_lost),
        }
    }

    /// Checks what one side heard, and how it ended, against what the other side said.
    fn check(&self, listener: &Peer, speaker: &Peer) {
        let close_index = speaker.said.iter().position(|(opcode, _)| *opcode == Opcode::Close);
        assert!(
            close_index.is_none_or(|index| index + 1 == speaker.said.len()),
            "nothing is said after a Close"
        );
        let close = close_index.map(|index| &speaker.said[index]);

        let before_close = listener.heard_before_close.unwrap_or(listener.heard.len());
        let (heard, heard_late) = listener.heard.split_at(before_close);
        assert!(speaker.said.starts_with(heard), "what is heard was said, in this order");
        assert!(
            heard_late.is_empty() || heard_late.first() == close,
            "after our Close only the peer's is heard"
        );
        assert!(heard_late.len() <= 1, "a Close is heard once");

        let has_closed_first = listener.heard_before_close.is_some();
        let is_lost = self.loses_upward.or(self.loses_downward).is_some();
        let end = listener.end.expect("both sides have ended");
        match end {
            End::Answered => assert_eq!(heard, speaker.said, "all that was said before the Close is heard"),
            End::Closed => assert!(listener.heard.last().is_some_and(|last| Some(last) == close)),
            End::Violated(violation) => {
                let (broken, said_before) = speaker.broke.expect("somebody broke a rule");
                assert_eq!(violation, broken);
                if !has_closed_first {
                    let said = &speaker.said[..said_before];
                    assert_eq!(heard, said, "all that was said before the violation is heard");
                    let answer = (Opcode::Close, violation.close_code().get().to_be_bytes().to_vec());
                    assert_eq!(listener.said.last(), Some(&answer));
                }
            }
            End::Gone => assert!(
                self.reset_at.is_some()
                    || matches!(
                        speaker.end,
                        Some(End::Gone | End::PongTimeout | End::Slow | End::CloseTimeout | End::Vanished)
                    ),
                "nobody is gone unless cut, or having given up: {:?}",
                speaker.end
            ),
            End::PongTimeout | End::Slow | End::CloseTimeout => {
                assert!(is_lost, "{end:?}, and the network lost nothing");
            }
            End::Vanished => {}
        }
    }
}

/// What a side says before it ends.
fn script(random: &mut Random, piece_size_max: usize) -> Vec<Step> {
    let size_max = (piece_size_max * 40).min(100_000);
    let mut steps = Vec::new();
    for _ in 0..random.below(9) {
        steps.push(match random.below(8) {
            0 => Step::Control(Opcode::Ping, bytes(random, 126)),
            1 => Step::Control(Opcode::Pong, bytes(random, 126)),
            2 => Step::Rest(ticks(random, 500)),
            _ => {
                let size = match random.below(6) {
                    0 => 0,
                    // Where the length of a length changes.
                    1 => [125, 126, 65_535, 65_536][random.below(4)].min(size_max),
                    2 => random.below(10),
                    _ => random.below(size_max),
                };
                if random.one_in(2) {
                    Step::Message(MessageKind::Binary, bytes(random, size + 1))
                } else {
                    Step::Message(MessageKind::Text, text(random, size))
                }
            }
        });
    }
    steps
}

/// Some ticks, fewer than `bound`.
fn ticks(random: &mut Random, bound: Tick) -> Tick {
    Tick::try_from(random.below(bound as usize)).expect("it is below a Tick")
}

/// Some bytes, fewer than `bound`.
fn bytes(random: &mut Random, bound: usize) -> Vec<u8> {
    let size = random.below(bound);
    let mut bytes = random.bits().to_le_bytes().repeat(size / 8 + 1);
    bytes.truncate(size);
    bytes
}

/// Text of at least `size` bytes, in characters of every length.
fn text(random: &mut Random, size: usize) -> Vec<u8> {
    let mut text = String::new();
    while text.len() < size.min(64) {
        text.push(['a', 'é', '€', '\u{10ffff}'][random.below(4)]);
    }
    text.repeat(size.div_ceil(64)).into_bytes()
}

/// A broken rule, and bytes that break it when this side sends them between two messages.
fn violation(sender: Role, random: &mut Random) -> Step {
    let is_masked = sender == Role::Client;
    let frame = |head: &[u8], payload: &[u8], is_masked: bool| {
        let mut bytes = head.to_vec();
        if is_masked {
            bytes[1] |= 0x80;
            bytes.extend_from_slice(&[0; 4]);
        }
        bytes.extend_from_slice(payload);
        bytes
    };
    let (violation, mut bytes) = match random.below(16) {
        0 => (Violation::ReservedBits, frame(&[0xc1, 0], b"", is_masked)),
        1 => (Violation::ReservedOpcode { opcode: 11 }, frame(&[0x8b, 0], b"", is_masked)),
        2 => (Violation::NonMinimalLength, frame(&[0x82, 126, 0, 125], b"", is_masked)),
        3 => (Violation::LengthTopBit, frame(&[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0], b"", is_masked)),
        4 => (Violation::ControlTooLong, frame(&[0x89, 126, 0, 126], b"", is_masked)),
        5 => (Violation::ControlFragmented, frame(&[0x09, 0], b"", is_masked)),
        6 => (Violation::UnexpectedContinuation, frame(&[0x80, 0], b"", is_masked)),
        7 => {
            let parts = [frame(&[0x01, 1], b"a", is_masked), frame(&[0x82, 1], b"b", is_masked)];
            (Violation::MessageInterrupted, parts.concat())
        }
        8 => (Violation::InvalidUtf8, frame(&[0x81, 3], b"\xed\xa0\x80", is_masked)),
        9 => {
            let parts = [frame(&[0x01, 1], b"\xce", is_masked), frame(&[0x80, 1], b"a", is_masked)];
            (Violation::InvalidUtf8, parts.concat())
        }
        10 => (Violation::ClosePayloadOneByte, frame(&[0x88, 1], b"\x03", is_masked)),
        11 => (Violation::CloseCodeInvalid { code: 1006 }, frame(&[0x88, 2], b"\x03\xee", is_masked)),
        12 => (Violation::CloseReasonInvalidUtf8, frame(&[0x88, 3], b"\x03\xe8\xff", is_masked)),
        13 => {
            let size = FRAME_SIZE_MAX + 1;
            let head = [&[0x82, 127][..], &size.to_be_bytes()].concat();
            (Violation::FrameTooBig { size, limit: FRAME_SIZE_MAX }, frame(&head, b"", is_masked))
        }
        14 => {
            let size = MESSAGE_SIZE_MAX + 1;
            let head = [&[0x02, 127][..], &size.to_be_bytes()].concat();
            (Violation::MessageTooBig { size, limit: MESSAGE_SIZE_MAX }, frame(&head, b"", is_masked))
        }
        _ if is_masked => (Violation::Unmasked, frame(&[0x81, 1], b"a", false)),
        _ => (Violation::Masked, frame(&[0x81, 1], b"a", true)),
    };
    // Text is not read any more once its reader has sent a Close, and then what follows it had better make sense.
    if violation != Violation::InvalidUtf8 && random.one_in(2) {
        bytes.extend_from_slice(&random.bits().to_le_bytes());
    }
    Step::Violate(violation, bytes)
}

/// One direction of a TCP connection.
struct Pipe {
    piece_size_max: usize,
    in_flight: Vec<u8>,
    arrived: Vec<u8>,
    stalled_until: Tick,
    lost_at: Option<Tick>,
    is_lost: bool,
    /// True exactly while nothing more will be sent but what is in flight.
    is_finished: bool,
    is_reset: bool,
}

impl Pipe {
    fn new(plan: &Plan, lost_at: Option<Tick>) -> Self {
        Self {
            piece_size_max: plan.piece_size_max,
            in_flight: Vec::new(),
            arrived: Vec::new(),
            stalled_until: 0,
            lost_at,
            is_lost: false,
            is_finished: false,
            is_reset: false,
        }
    }

    /// Takes from the outbox what there is room for; whether that is anything.
    fn send(&mut self, outbox: &mut Vec<u8>) -> bool {
        let room = (4 * self.piece_size_max).saturating_sub(self.in_flight.len() + self.arrived.len());
        let size = room.min(outbox.len());
        shift(size, outbox, &mut self.in_flight);
        size > 0
    }

    /// Lets a tick pass: some bytes arrive, or none.
    fn carry(&mut self, now: Tick, random: &mut Random) {
        if self.lost_at == Some(now) {
            self.is_lost = true;
        }
        if random.one_in(40) {
            self.stalled_until = now + ticks(random, STALL_MAX);
        }
        if !self.is_lost && now >= self.stalled_until {
            let size = random.below(self.piece_size_max + 1).min(self.in_flight.len());
            shift(size, &mut self.in_flight, &mut self.arrived);
        }
    }

    /// Takes some of what has arrived.
    fn receive(&mut self, random: &mut Random) -> Vec<u8> {
        let size = (1 + random.below(2 * self.piece_size_max)).min(self.arrived.len());
        let mut bytes = Vec::new();
        shift(size, &mut self.arrived, &mut bytes);
        bytes
    }

    /// Drops everything; whoever reads is told, unless that is lost too.
    fn reset(&mut self) {
        self.is_reset = true;
        self.in_flight.clear();
        self.arrived.clear();
    }

    /// Whether the reader has come to the end of the bytes, or to a reset.
    fn is_at_end(&self) -> bool {
        let is_empty = self.in_flight.is_empty() && self.arrived.is_empty();
        !self.is_lost && (self.is_reset || self.is_finished && is_empty)
    }
}

/// Moves the first `size` bytes.
fn shift(size: usize, from: &mut Vec<u8>, to: &mut Vec<u8>) {
    to.extend_from_slice(&from[..size]);
    from.drain(..size);
}

/// One side: an endpoint, and what a service does around it.
struct Peer {
    rules: Rules,
    patience: Patience,
    script: VecDeque<Step>,
    endpoint: Endpoint,
    keepalive: Keepalive,
    /// Bytes that the pipe had no room for.
    outbox: Vec<u8>,
    /// When the pipe last took bytes, or there were none to take.
    flowed_at: Tick,
    /// When bytes were last left in the outbox.
    blocked_at: Tick,
    paused_until: Tick,
    resting_until: Tick,
    /// By when the peer's Close must have come.
    close_by: Option<Tick>,
    said: Vec<Saying>,
    heard: Vec<Saying>,
    /// How much was heard before our Close, if that was sent first.
    heard_before_close: Option<usize>,
    /// The rule that this side broke, and how much it had said before.
    broke: Option<(Violation, usize)>,
    end: Option<End>,
}

impl Peer {
    fn new(role: Role, plan: &Plan, script: VecDeque<Step>) -> Self {
        Self {
            rules: Rules {
                role,
                frame_size_max: FRAME_SIZE_MAX,
                message_size_max: MESSAGE_SIZE_MAX,
                reserved_bits: 0,
                masker: ringway::protocol::websocket::mask::wide,
            },
            patience: plan.patience,
            script,
            endpoint: Endpoint::new(),
            keepalive: Keepalive::new(1),
            outbox: Vec::new(),
            flowed_at: 0,
            blocked_at: 0,
            paused_until: 0,
            resting_until: 0,
            close_by: None,
            said: Vec::new(),
            heard: Vec::new(),
            heard_before_close: None,
            broke: None,
            end: None,
        }
    }

    /// Does what one tick gives time for.
    fn act(&mut self, now: Tick, incoming: &mut Pipe, outgoing: &mut Pipe, random: &mut Random) {
        if outgoing.send(&mut self.outbox) || self.outbox.is_empty() {
            self.flowed_at = now;
        }
        if self.end.is_some() {
            self.linger(incoming, outgoing, random);
            return;
        }
        if now < self.paused_until {
            return;
        }
        if random.one_in(60) {
            self.paused_until = now + ticks(random, PAUSE_MAX);
        }

        // A server that cannot send does not read: that is its backpressure. A client reads, or both would wait.
        if self.outbox.is_empty() || self.rules.role == Role::Client {
            if incoming.is_at_end() {
                self.end = Some(End::Gone);
                outgoing.reset();
                return;
            }
            let bytes = incoming.receive(random);
            if !bytes.is_empty() {
                self.keepalive.hear(now);
                self.hear(bytes, now, random);
                outgoing.send(&mut self.outbox);
            }
        }
        if self.end.is_some() {
            return;
        }
        if self.outbox.is_empty() {
            self.attend(now, outgoing, random);
            return;
        }
        self.blocked_at = now;
        if now - self.flowed_at > WRITE_WITHIN {
            self.end = Some(End::Slow);
            outgoing.reset();
        }
    }

    /// After the end: what is left is sent, and what still comes means nothing.
    fn linger(&mut self, incoming: &mut Pipe, outgoing: &mut Pipe, random: &mut Random) {
        let mut bytes = incoming.receive(random);
        if let Some(End::Answered | End::Closed | End::Violated(_)) = self.end {
            let event = self.endpoint.receive(&self.rules, &mut Exchange::new(&mut bytes));
            assert_eq!(event, Ok(None), "nothing is heard after a Close or a violation");
        }
        outgoing.is_finished |= self.outbox.is_empty();
    }

    /// Lets the endpoint receive, and answers all that it reports.
    fn hear(&mut self, mut bytes: Vec<u8>, now: Tick, random: &mut Random) {
        let mut exchange = Exchange::new(&mut bytes);
        loop {
            let event = match self.endpoint.receive(&self.rules, &mut exchange) {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(violation) => {
                    self.end = Some(End::Violated(violation));
                    if self.heard_before_close.is_none() {
                        let code = violation.close_code();
                        self.said.push((Opcode::Close, code.get().to_be_bytes().to_vec()));
                        match self.rules.role {
                            Role::Server => exchange.reply_close(Some(code), violation.kind().label()),
                            Role::Client => append(&mut self.outbox, Role::Client, &self.said, random),
                        }
                    }
                    break;
                }
            };
            match event {
                Event::Message { kind, payload, .. } => {
                    self.keepalive.message = now;
                    let saying = (kind.opcode(), exchange.payload(&payload).to_vec());
                    // The server is an echo.
                    if self.rules.role == Role::Server {
                        self.said.push(saying.clone());
                        exchange.reply(kind.opcode(), payload);
                    }
                    self.heard.push(saying);
                }
                Event::Ping(payload) => {
                    let bytes = exchange.payload(&payload).to_vec();
                    self.said.push((Opcode::Pong, bytes.clone()));
                    match self.rules.role {
                        Role::Server => exchange.reply(Opcode::Pong, payload),
                        Role::Client => append(&mut self.outbox, Role::Client, &self.said, random),
                    }
                    self.heard.push((Opcode::Ping, bytes));
                }
                Event::Pong(payload) => {
                    self.heard.push((Opcode::Pong, exchange.payload(&payload).to_vec()));
                }
                Event::Close(code, _) => {
                    let saying = (Opcode::Close, close_payload(code));
                    self.heard.push(saying.clone());
                    if self.heard_before_close.is_some() {
                        self.end = Some(End::Closed);
                        continue;
                    }
                    self.end = Some(End::Answered);
                    self.said.push(saying);
                    match self.rules.role {
                        Role::Server => exchange.reply_close(code, ""),
                        Role::Client => append(&mut self.outbox, Role::Client, &self.said, random),
                    }
                }
            }
        }
        let outgoing = exchange.finish();
        self.outbox.extend_from_slice(&bytes[outgoing.in_place]);
        self.outbox.extend_from_slice(&outgoing.spill);
        // A service drops an endpoint that is at rest, so nothing may depend on its having been there.
        if self.endpoint.is_at_rest() && random.one_in(2) {
            self.endpoint = Endpoint::new();
        }
    }

    /// Does what the clock wants, or else what the script says.
    fn attend(&mut self, now: Tick, outgoing: &mut Pipe, random: &mut Random) {
        if let Some(close_by) = self.close_by {
            if now >= close_by {
                self.end = Some(End::CloseTimeout);
                outgoing.reset();
            }
            return;
        }
        match self.keepalive.due(&self.patience, now) {
            Due::At(tick) => assert!(tick > now, "what is due is told as due"),
            Due::Ping => {
                self.say(Opcode::Ping, now.to_be_bytes().to_vec(), random);
                self.keepalive.ping(now);
            }
            Due::PongTimeout => {
                // It does not look at the clock while it is blocked or pauses.
                let silence = now - self.keepalive.heard.max(self.blocked_at);
                assert!(silence <= PING_AFTER + PONG_WITHIN + 2 * PAUSE_MAX, "a dead peer is found in time");
                self.end = Some(End::PongTimeout);
                outgoing.reset();
            }
            Due::Idle => self.close(Some(CloseCode::GOING_AWAY), now, random),
        }
        if self.end.is_none() && self.close_by.is_none() && now >= self.resting_until {
            self.step(now, outgoing, random);
        }
    }

    /// Does what the script says next.
    fn step(&mut self, now: Tick, outgoing: &mut Pipe, random: &mut Random) {
        // Whoever broke a rule says nothing more of its own.
        if self.broke.is_some() {
            return;
        }
        match self.script.pop_front() {
            None => {}
            Some(Step::Message(kind, payload)) => self.say_in_fragments(kind, &payload, random),
            Some(Step::Control(opcode, payload)) => self.say(opcode, payload, random),
            Some(Step::Rest(ticks)) => self.resting_until = now + ticks,
            Some(Step::Close(code)) => self.close(code, now, random),
            Some(Step::Abandon(code)) => {
                let key = masking_key(self.rules.role, random);
                frame::append(&mut self.outbox, Opcode::Text, false, b"never to be finish", key);
                self.close(code, now, random);
            }
            Some(Step::Violate(violation, bytes)) => {
                self.outbox.extend_from_slice(&bytes);
                self.broke = Some((violation, self.said.len()));
            }
            Some(Step::Vanish) => {
                self.end = Some(End::Vanished);
                outgoing.is_finished = true;
            }
        }
    }

    fn say(&mut self, opcode: Opcode, payload: Vec<u8>, random: &mut Random) {
        self.said.push((opcode, payload));
        append(&mut self.outbox, self.rules.role, &self.said, random);
    }

    /// Says a message in one frame or in several, with Pings in between.
    fn say_in_fragments(&mut self, kind: MessageKind, payload: &[u8], random: &mut Random) {
        let mut opcode = kind.opcode();
        let mut rest = payload;
        while random.one_in(2) {
            let fragment = rest.split_off(..random.below(rest.len() + 1)).expect("it is within");
            let key = masking_key(self.rules.role, random);
            frame::append(&mut self.outbox, opcode, false, fragment, key);
            opcode = Opcode::Continuation;
            if random.one_in(3) {
                self.say(Opcode::Ping, bytes(random, 126), random);
            }
        }
        let key = masking_key(self.rules.role, random);
        frame::append(&mut self.outbox, opcode, true, rest, key);
        self.said.push((kind.opcode(), payload.to_vec()));
    }

    fn close(&mut self, code: Option<CloseCode>, now: Tick, random: &mut Random) {
        self.say(Opcode::Close, close_payload(code), random);
        self.endpoint.close_sent();
        self.heard_before_close = Some(self.heard.len());
        self.close_by = Some(now + CLOSE_WITHIN);
    }
}

/// Appends the frame of what was said last.
fn append(outbox: &mut Vec<u8>, role: Role, said: &[Saying], random: &mut Random) {
    let (opcode, payload) = said.last().expect("something was said");
    frame::append(outbox, *opcode, true, payload, masking_key(role, random));
}

/// A new masking key for each frame of a client; a server has none.
fn masking_key(role: Role, random: &mut Random) -> Option<[u8; 4]> {
    (role == Role::Client).then(|| random.bits().to_le_bytes()[..4].try_into().expect("it has four bytes"))
}

fn close_payload(code: Option<CloseCode>) -> Vec<u8> {
    code.map_or_else(Vec::new, |code| code.get().to_be_bytes().to_vec())
}
