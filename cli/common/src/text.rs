//! Sizes and durations as people write and read them.

/// A size: `512MiB`, `2 GiB`, `10GB`, `0`.
///
/// # Errors
/// What is due, in words.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size: write `512MiB`, `2GiB`, `10GB` or `0`");
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let number: f64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit: f64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024.0 * 1024.0,
        "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "t" | "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        _ => return Err(wrong()),
    };
    let bytes = number * unit;
    if bytes.is_finite() && bytes <= 2f64.powi(60) {
        Ok(bytes as u64)
    } else {
        Err(wrong())
    }
}

/// The sum of sizes that a file or a server declares, which may be anything: at most the largest number.
pub fn total(sizes: impl IntoIterator<Item = u64>) -> u64 {
    sizes.into_iter().fold(0, u64::saturating_add)
}

/// `0.8 s`, `1 min 20 s`.
#[must_use]
pub fn duration(seconds: f64) -> String {
    if seconds < 9.95 {
        format!("{seconds:.1} s")
    } else if seconds < 59.5 {
        format!("{seconds:.0} s")
    } else {
        let whole = seconds.round() as u64;
        format!("{} min {} s", whole / 60, whole % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_summed() {
        assert_eq!(parse_size("512MiB"), Ok(512 << 20));
        assert_eq!(parse_size("1.5 GiB"), Ok(3 << 29));
        assert_eq!(parse_size("10GB"), Ok(10_000_000_000));
        assert_eq!(parse_size("0"), Ok(0));
        for wrong in ["", "MiB", "-1", "1 xb", "1e99TB", "1.2.3G"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(total([1, 2]), 3);
        assert_eq!(total([1, u64::MAX, 2]), u64::MAX);
    }

    #[test]
    fn durations_are_written_for_people() {
        assert_eq!(duration(0.84), "0.8 s");
        assert_eq!(duration(12.4), "12 s");
        assert_eq!(duration(80.2), "1 min 20 s");
    }
}
