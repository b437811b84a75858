//! Masking and unmasking of payloads (RFC 6455 section 5.3).

/// A masking key, as it stands in a frame header.
pub type MaskingKey = [u8; 4];

/// What masks long payloads: [`wide`], or the same compiled for wider vectors.
pub type Masker = fn(&mut [u8], MaskingKey);

/// The step of the wide loop, in bytes: four vector registers of the baseline x86-64.
const STEP: usize = 64;

/// Masks or unmasks `bytes` in place; both are the same exclusive or.
///
/// `offset` is the place of the first byte within its frame's payload, so that a payload may come in pieces.
pub fn apply(bytes: &mut [u8], key: MaskingKey, offset: u64) {
    apply_with(wide, bytes, key, offset);
}

/// As [`apply`], with `masker` for what is long enough to be worth it.
#[inline]
pub fn apply_with(masker: Masker, bytes: &mut [u8], key: MaskingKey, offset: u64) {
    let key = rotate(key, offset);
    if bytes.len() < STEP { narrow(bytes, key) } else { masker(bytes, key) }
}

/// Masks in steps that the compiler turns into vector instructions, whichever it may use where this is inlined.
#[inline(always)]
#[allow(clippy::inline_always, reason = "a caller compiled for wider vectors is what makes it faster")]
pub fn wide(bytes: &mut [u8], key: MaskingKey) {
    let repeated: [u8; STEP] = std::array::from_fn(|index| key[index % 4]);
    let mut chunks = bytes.chunks_exact_mut(STEP);
    for chunk in &mut chunks {
        for (byte, mask) in chunk.iter_mut().zip(repeated) {
            *byte ^= mask;
        }
    }
    narrow(chunks.into_remainder(), key);
}

/// Masks by words: small payloads live here, and the rests of large ones.
#[inline]
fn narrow(bytes: &mut [u8], key: MaskingKey) {
    let four = u32::from_ne_bytes(key);
    let eight = u64::from(four) << 32 | u64::from(four);
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ eight).to_ne_bytes();
    }
    let (halves, rest) = rest.as_chunks_mut::<4>();
    for half in halves {
        *half = (u32::from_ne_bytes(*half) ^ four).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(key) {
        *byte ^= mask;
    }
}

/// The key as seen from a byte that is `offset` bytes into the payload.
#[inline]
fn rotate(key: MaskingKey, offset: u64) -> MaskingKey {
    // The first byte of the key is the first in memory, so it leaves first to the right of a little-endian word.
    u32::from_le_bytes(key).rotate_right(8 * u32::from(offset.to_le_bytes()[0] & 3)).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: MaskingKey = [0x37, 0xfa, 0x21, 0x3d];

    #[test]
    fn the_example_of_rfc_6455_section_5_7() {
        let mut payload = *b"\x7f\x9f\x4d\x51\x58";
        apply(&mut payload, KEY, 0);
        assert_eq!(&payload, b"Hello");
    }

    #[test]
    fn every_length_agrees_with_the_definition_wherever_it_is_split() {
        for size in 0..300_usize {
            let plain: Vec<u8> = (0..size).map(|index| (index * 7 % 251).to_le_bytes()[0]).collect();
            let expected: Vec<u8> =
                plain.iter().enumerate().map(|(index, byte)| byte ^ KEY[index % 4]).collect();
            for split in [0, 1, 2, 3, size / 3, size / 2, size].into_iter().filter(|split| *split <= size) {
                let mut masked = plain.clone();
                apply(&mut masked[..split], KEY, 0);
                apply(&mut masked[split..], KEY, split as u64);
                assert_eq!(masked, expected, "{size} bytes split at {split}");
            }
        }
    }
}
