//! What must hold of compression for any bytes that a peer may send, as functions that fuzzers and stable tests call.

use flate2::{Decompress, FlushDecompress, Status};

use super::codec::{Codec, Inflater};
use super::contexts::Contexts;
use super::{COMPRESSOR_BITS_MIN, Offer, Policy, Terms, WINDOW_BITS_MAX};
use crate::protocol::http::list;
use crate::protocol::websocket::violation::Violation;

/// Any bytes as what a client offers.
///
/// What is agreed on is an answer by the grammar, within the policy, with nothing in it that a client may only be told when
/// it has offered that; and neither an extension before nor one behind has a say in it.
///
/// # Panics
/// Where one of these does not hold.
pub fn fuzz_extensions(data: &[u8]) {
    let Some((choice, value)) = data.split_first() else { return };
    let policy = policy(*choice);
    let agreed = Terms::agree([value].into_iter(), policy);
    let before = [b"x-other; a=\"b\", ", value].concat();
    assert_eq!(Terms::agree([&before[..]].into_iter(), policy), agreed);
    assert_eq!(Terms::agree([&b"x-other"[..], value, b"permessage-deflat"].into_iter(), policy), agreed);
    let Some(terms) = agreed else { return };
    if list::closes_its_quotes(value) {
        let behind = [value, b", permessage-deflate; server_max_window_bits=8"].concat();
        assert_eq!(Terms::agree([&behind[..]].into_iter(), policy), agreed);
    }
    let mut out = Vec::new();
    terms.write(&mut out);
    let answer = Offer::parse(&out).expect("an answer is an offer, too");
    assert_eq!(list::elements(&out).count(), 1);
    if let Some(bits) = answer.server_max_window_bits {
        assert!(bits <= policy.window_bits && bits >= 8);
    }
    let offers = || list::elements(value).filter_map(Offer::parse);
    let taken = offers().next().expect("something was offered");
    assert!(taken.server_max_window_bits.is_none_or(|bits| answer.server_max_window_bits <= Some(bits)));
    assert!(!taken.server_no_context_takeover || answer.server_no_context_takeover);
    assert!(!taken.client_no_context_takeover || answer.client_no_context_takeover);
    assert!(policy.keeps_contexts || answer.server_no_context_takeover && answer.client_no_context_takeover);
    if let Some(told) = answer.client_max_window_bits {
        let offered = taken.client_max_window_bits.expect("a client is told what it knows of");
        assert!(told <= offered);
    }
    assert!((COMPRESSOR_BITS_MIN..=WINDOW_BITS_MAX).contains(&terms.compressor_bits()));
}

/// Any bytes as a compressed message, after one that was good.
///
/// It inflates to what zlib makes of it, or is told to be malformed or too big; never to more than the limit, nor with more
/// memory than a message of that size may take; and a limit changes nothing but that.
///
/// # Panics
/// Where one of these does not hold.
pub fn fuzz_inflate(data: &[u8]) {
    let Some((choice, payload)) = data.split_first() else { return };
    let limit = [0, 100, 70_000, 1 << 20][usize::from(choice >> 6)];
    let terms =
        Terms::agree([&b"permessage-deflate; client_max_window_bits"[..]].into_iter(), policy(*choice));
    let terms = terms.expect("the offer makes sense");
    let mut inflater = Inflater::default();
    let mut inflate = |payload: &[u8], limit| {
        let mut contexts = Contexts::new(terms);
        let hello = inflater.inflate(&mut contexts, &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00], 5);
        assert_eq!(hello, Ok(&b"Hello"[..]));
        let inflated = inflater.inflate(&mut contexts, payload, limit).map(<[u8]>::to_vec);
        assert!(contexts.held_size() <= 2 << WINDOW_BITS_MAX);
        inflated
    };
    let inflated = inflate(payload, limit);
    let all = inflate(payload, 64 << 20);
    match (&inflated, &all) {
        (Ok(message), all) => {
            assert!(message.len() as u64 <= limit);
            assert_eq!(all.as_ref(), Ok(message));
        }
        (Err(Violation::MessageTooBig { .. }), Ok(all)) => assert!(all.len() as u64 > limit),
        // What is malformed may be too big before it is found to be.
        (Err(violation), all) => assert!(
            all.as_ref() == Err(violation) || matches!(violation, Violation::MessageTooBig { .. }),
            "{violation:?} {all:?}"
        ),
    }
    if let Ok(message) = all {
        let keeps = policy(*choice).keeps_contexts;
        compare_with_zlib(payload, if keeps { b"Hello" } else { b"" }, &message);
    }
}

/// Compares with what zlib makes of a payload in one go, as far as no block says that it is the last.
fn compare_with_zlib(payload: &[u8], window: &[u8], message: &[u8]) {
    let mut zlib = Decompress::new_with_window_bits(false, WINDOW_BITS_MAX);
    if !window.is_empty() {
        zlib.set_dictionary(window).expect("a raw stream takes a window");
    }
    let mut out = vec![0; message.len() + 1];
    let input = [payload, &[0, 0, 0xff, 0xff]].concat();
    let status = zlib.decompress(&input, &mut out, FlushDecompress::Sync).expect("it was inflated before");
    let size = usize::try_from(zlib.total_out()).expect("it lies in memory");
    if status == Status::StreamEnd {
        assert!(message.starts_with(&out[..size]));
    } else {
        assert_eq!(&out[..size], message);
    }
}

/// Any bytes as messages that are sent, of every level and window.
///
/// Whatever is compressed becomes smaller, and a peer with no more than the window that was agreed on inflates it to the
/// same; what is kept is within the window.
///
/// # Panics
/// Where one of these does not hold.
pub fn fuzz_compress(data: &[u8]) {
    let Some(([choice, level, bits, cuts], messages)) = data.split_first_chunk() else { return };
    let policy = policy(*choice);
    let (level, bits) = (1 + level % 9, 8 + bits % 8);
    let offer = format!("permessage-deflate; server_max_window_bits={bits}");
    let terms = Terms::agree([offer.as_bytes()].into_iter(), policy).expect("the offer makes sense");
    let mut contexts = Contexts::new(terms);
    let mut codec = Codec::default();
    let peer_bits = bits.min(policy.window_bits).max(COMPRESSOR_BITS_MIN);
    let mut peer = Decompress::new_with_window_bits(false, peer_bits);
    for message in messages.chunks(1 + usize::from(*cuts) * 16) {
        let Some(compressed) = codec.compressors.compress(&mut contexts, level, message) else { continue };
        assert!(compressed.len() < message.len());
        if !policy.keeps_contexts {
            peer.reset(false);
        }
        let (input, mut out) = ([compressed, &[0, 0, 0xff, 0xff]].concat(), vec![0; message.len() + 1]);
        let before = peer.total_out();
        peer.decompress(&input, &mut out, FlushDecompress::Sync).expect("what we send inflates");
        assert_eq!(peer.total_out() - before, message.len() as u64);
        assert_eq!(&out[..message.len()], message);
        assert!(contexts.held_size() <= 1 << peer_bits);
    }
}

/// The policy that an input chooses.
fn policy(choice: u8) -> Policy {
    Policy { keeps_contexts: choice & 1 != 0, window_bits: 9 + (choice >> 1 & 7).min(6) }
}

#[cfg(test)]
mod tests {
    use super::super::NAME;
    use super::*;
    use crate::protocol::websocket::fuzz::Random;

    const SEED: u64 = 0x7692;

    #[test]
    fn offers_hold_under_mutation() {
        const WORDS: [&[u8]; 16] = [
            b"permessage-deflate",
            b"permessage-deflate; client_max_window_bits",
            b"; server_no_context_takeover",
            b"; client_no_context_takeover",
            b"; server_max_window_bits=10",
            b"; server_max_window_bits=\"8\"",
            b"; client_max_window_bits=15",
            b"; client_max_window_bits",
            b", ",
            b"; ",
            b"\"",
            b"\\",
            b"x-webkit-deflate-frame",
            b"=",
            b"9",
            b" ",
        ];
        let mut random = Random(SEED);
        let mut agreed = 0;
        for _ in 0..20_000 {
            let mut data = vec![random.bits().to_le_bytes()[0]];
            for _ in 0..=random.below(8) {
                data.extend_from_slice(WORDS[random.below(WORDS.len())]);
            }
            fuzz_extensions(&data);
            agreed += usize::from(Terms::agree([&data[1..]].into_iter(), policy(data[0])).is_some());
        }
        assert!(agreed > 1_000, "{agreed}");
    }

    /// Something that compresses, or does not.
    fn message(random: &mut Random) -> Vec<u8> {
        let mut message = Vec::new();
        for _ in 0..random.below(60) {
            match random.below(3) {
                0 => message.extend_from_slice(&random.bits().to_le_bytes()),
                1 => message.extend_from_slice(b"some words that come again "),
                _ => message.extend(std::iter::repeat_n(random.bits().to_le_bytes()[0], random.below(300))),
            }
        }
        message
    }

    #[test]
    fn messages_hold_as_they_are_sent_and_under_mutation_as_they_come() {
        let mut random = Random(SEED);
        let mut codec = Codec::default();
        let terms = Terms::agree([NAME].into_iter(), policy(0)).unwrap();
        for _ in 0..1_500 {
            let mut data = random.bits().to_le_bytes()[..4].to_vec();
            data.extend_from_slice(&message(&mut random));
            fuzz_compress(&data);
            let level = 1 + data[1] % 9;
            let compressed = codec.compressors.compress(&mut Contexts::new(terms), level, &data[4..]);
            let mut payload = vec![data[0]];
            payload.extend_from_slice(compressed.unwrap_or(&data[4..]));
            fuzz_inflate(&payload);
            for _ in 0..=random.below(3) {
                let at = random.below(payload.len());
                match random.below(3) {
                    0 => payload.truncate(at),
                    1 => payload.insert(at, random.bits().to_le_bytes()[0]),
                    _ => payload[at] = random.bits().to_le_bytes()[0],
                }
                if payload.is_empty() {
                    break;
                }
            }
            fuzz_inflate(&payload);
        }
    }
}
