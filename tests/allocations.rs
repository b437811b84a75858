//! The steady path of an echo allocates nothing, however many messages pass.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use ringway::protocol::websocket::endpoint::{Endpoint, Event};
use ringway::protocol::websocket::exchange::Exchange;
use ringway::protocol::websocket::frame::{self, Opcode, Role, Rules, Tally};
use ringway::protocol::websocket::walker::Walker;

const RULES: Rules = Rules {
    role: Role::Server,
    frame_size_max: 1 << 20,
    message_size_max: 1 << 20,
    reserved_bits: 0,
    masker: ringway::protocol::websocket::mask::wide,
};

#[test]
fn whole_frames_are_echoed_without_an_allocation() {
    for (size, count) in [(0, 1), (20, 1), (20, 16), (1_024, 4), (16_384, 2)] {
        let received = frames(&[
            (Opcode::Text, true, &"κ".repeat(size / 2).into_bytes()),
            (Opcode::Binary, true, &vec![7; size]),
            (Opcode::Ping, true, &vec![7; size.min(125)]),
            (Opcode::Pong, true, b""),
        ])
        .repeat(count);
        let mut buffer = received.clone();
        let allocations = count_allocations(|| {
            for _ in 0..50 {
                buffer.copy_from_slice(&received);
                // As a service does it: nothing is kept between reads that end with a message.
                let mut endpoint = Endpoint::new();
                assert_eq!(echo(&mut endpoint, &mut buffer), 3 * count);
                assert!(endpoint.is_at_rest());
            }
        });
        assert_eq!(allocations, 0, "{count} times {size} bytes");
    }
}

#[test]
fn a_message_in_pieces_costs_allocations_that_its_size_bounds_and_not_the_number_of_pieces() {
    let mut received = frames(&[(Opcode::Binary, false, b"first")]);
    received.extend_from_slice(&frames(&[(Opcode::Continuation, false, b"")]).repeat(1_000));
    received.extend_from_slice(&frames(&[(Opcode::Continuation, true, b"last")]));
    let mut endpoint = Endpoint::new();
    let allocations = count_allocations(|| {
        let mut replies = 0;
        for byte in &mut received {
            replies += echo(&mut endpoint, std::slice::from_mut(byte));
        }
        assert_eq!(replies, 1);
    });
    // The message and the header that reads cut off grow by doubling; each header that is cut off after that reuses it.
    assert!(allocations < 10, "{allocations}");
}

#[test]
fn a_walk_allocates_nothing_wherever_it_is_cut() {
    let received = frames(&[
        (Opcode::Text, false, b"in two"),
        (Opcode::Ping, true, b""),
        (Opcode::Continuation, true, &[b'x'; 300]),
    ]);
    let mut walker = Walker::new();
    let mut tally = Tally::default();
    let allocations = count_allocations(|| {
        for size in 1..=received.len() {
            for piece in received.chunks(size) {
                assert_eq!(walker.walk(&RULES, piece, &mut tally, |_| ()).end, None);
            }
        }
    });
    assert_eq!(allocations, 0);
    assert_eq!(tally.messages as usize, received.len());
}

/// Replies to all messages and Pings, and returns to how many.
fn echo(endpoint: &mut Endpoint, bytes: &mut [u8]) -> usize {
    let mut exchange = Exchange::new(bytes);
    let mut replies = 0;
    while let Some(event) = endpoint.receive(&RULES, &mut exchange).expect("no rule is broken") {
        match event {
            Event::Message { kind, payload, .. } => exchange.reply(kind.opcode(), payload),
            Event::Ping(payload) => exchange.reply(Opcode::Pong, payload),
            Event::Pong(_) => continue,
            Event::Close(..) => panic!("nobody closes"),
        }
        replies += 1;
    }
    assert!(exchange.finish().size() > 0 || replies == 0);
    replies
}

fn frames(frames: &[(Opcode, bool, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (opcode, fin, payload) in frames {
        frame::append(&mut bytes, *opcode, *fin, payload, Some([1, 2, 3, 4]));
    }
    bytes
}

/// Counts the allocations of this thread while the function runs, those that grow included.
fn count_allocations(run: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    run();
    COUNT.get() - before
}

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, and a count.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

impl Counting {
    fn count() {
        // A thread that ends may still free and allocate when its counter is gone; nobody reads that one.
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
    }
}

#[expect(unsafe_code, reason = "there is no other way to count allocations; it hands everything on")]
// SAFETY: each call is handed on unchanged to the system's allocator, whose contract is this one.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::count();
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
