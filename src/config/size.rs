//! Sizes in bytes as people write them: `"16MiB"`.

/// The number of bytes that `text` stands for: digits and one of B, kB, KB, KiB, MB, MiB, GB and GiB, nothing between.
///
/// `None` where it is anything else, or more than 64 bits hold.
pub(super) fn parse(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let scale: u64 = match unit {
        "B" => 1,
        "kB" | "KB" => 1_000,
        "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(scale)
}

/// `value` as [`parse`] reads it and people like it: in the largest binary unit that divides it.
pub(super) fn format(value: u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if value != 0 && value.trailing_zeros() >= shift {
            return format!("{}{unit}", value >> shift);
        }
    }
    format!("{value}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_exact_units() {
        let cases = [
            ("0B", Some(0)),
            ("125B", Some(125)),
            ("64KiB", Some(65_536)),
            ("1kB", Some(1_000)),
            ("1KB", Some(1_000)),
            ("16MiB", Some(16_777_216)),
            ("3MB", Some(3_000_000)),
            ("1GiB", Some(1 << 30)),
            ("2GB", Some(2_000_000_000)),
            ("", None),
            ("16", None),
            ("MiB", None),
            ("16 MiB", None),
            ("16mib", None),
            ("-1B", None),
            ("+1B", None),
            ("1.5MiB", None),
            ("99999999999999999999B", None),
            ("18446744073709551615GiB", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_size_is_read_as_it_is_written() {
        for (value, text) in
            [(0, "0B"), (125, "125B"), (65_536, "64KiB"), (1 << 30, "1GiB"), (1 << 40, "1024GiB")]
        {
            assert_eq!(format(value), text);
            assert_eq!(parse(text), Some(value));
        }
    }
}
