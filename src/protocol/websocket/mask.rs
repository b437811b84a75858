//! Masking and unmasking of payloads (RFC 6455 section 5.3).

/// A masking key, as it stands in a frame header.
pub type MaskingKey = [u8; 4];

/// The step of the wide loop, in bytes: four vector registers of the baseline x86-64.
const STEP: usize = 64;

/// Masks or unmasks `bytes` in place; both are the same exclusive or.
///
/// `offset` is the place of the first byte within its frame's payload, so that a payload may come in pieces.
pub fn apply(bytes: &mut [u8], key: MaskingKey, offset: u64) {
    let key = rotate(key, offset);
    let wide: [u8; STEP] = std::array::from_fn(|index| key[index % 4]);
    let mut chunks = bytes.chunks_exact_mut(STEP);
    for chunk in &mut chunks {
        for (byte, mask) in chunk.iter_mut().zip(wide) {
            *byte ^= mask;
        }
    }
    // At most 63 bytes remain: by eights, then one by one. Small payloads live here.
    let eight = u64::from_ne_bytes(std::array::from_fn(|index| key[index % 4]));
    let mut rest = chunks.into_remainder().chunks_exact_mut(8);
    for chunk in &mut rest {
        let word = u64::from_ne_bytes(chunk.try_into().expect("chunks_exact gives eight bytes"));
        chunk.copy_from_slice(&(word ^ eight).to_ne_bytes());
    }
    for (byte, mask) in rest.into_remainder().iter_mut().zip(key.iter().cycle()) {
        *byte ^= mask;
    }
}

/// The key as seen from a byte that is `offset` bytes into the payload.
fn rotate(key: MaskingKey, offset: u64) -> MaskingKey {
    let shift = usize::from(offset.to_le_bytes()[0] & 3);
    std::array::from_fn(|index| key[(index + shift) % 4])
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
            for split in [0, 1, size / 3, size / 2, size].into_iter().filter(|split| *split <= size) {
                let mut masked = plain.clone();
                apply(&mut masked[..split], KEY, 0);
                apply(&mut masked[split..], KEY, split as u64);
                assert_eq!(masked, expected, "{size} bytes split at {split}");
            }
        }
    }
}
