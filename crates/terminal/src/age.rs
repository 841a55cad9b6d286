//! Formats durations for people in at most two units, such as `3m 20s`.

use jiff::SignedDuration;

/// The two largest units of a duration without its sign: `450ms`, `56s`, `3m 20s`, `2h 5m`, `4d 3h`.
pub fn age(duration: SignedDuration) -> String {
    let duration = duration.unsigned_abs();
    let seconds = duration.as_secs();
    let two = |large: u64, unit: char, small: u64, sub: char| match small {
        0 => format!("{large}{unit}"),
        _ => format!("{large}{unit} {small}{sub}"),
    };
    match seconds {
        0 => format!("{}ms", duration.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3_600 => two(seconds / 60, 'm', seconds % 60, 's'),
        3_600..86_400 => two(seconds / 3_600, 'h', seconds % 3_600 / 60, 'm'),
        _ => two(seconds / 86_400, 'd', seconds % 86_400 / 3_600, 'h'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_units_are_enough() {
        let said = |milliseconds| age(SignedDuration::from_millis(milliseconds));
        for (milliseconds, text) in [
            (0, "0ms"),
            (450, "450ms"),
            (56_929, "56s"),
            (-56_929, "56s"),
            (60_000, "1m"),
            (200_999, "3m 20s"),
            (7_200_000, "2h"),
            (7_500_000, "2h 5m"),
            (356_400_000, "4d 3h"),
        ] {
            assert_eq!(said(milliseconds), text);
        }
        assert_eq!(age(SignedDuration::MIN), age(SignedDuration::MAX));
    }
}
