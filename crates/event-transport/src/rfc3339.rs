//! Reads the times of other producers: RFC 3339 with any number of digits, up to the end of the year 9999.

use jiff::Timestamp;
use jiff::civil::DateTime;

/// Reads an RFC 3339 time. Digits beyond nanoseconds are cut off. The last hours of the year 9999, which
/// [`Timestamp`] cannot represent, become its last instant, so that no event is lost because of its time. Returns
/// `None` for a time that does not exist, that has no offset, or that has another spelling.
pub fn read(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    // 2018-04-05T17:31:00
    let date_time = bytes.get(..19)?;
    let shaped = date_time.iter().enumerate().all(|(at, byte)| match at {
        4 | 7 => *byte == b'-',
        10 => matches!(byte, b'T' | b't' | b' '),
        13 | 16 => *byte == b':',
        _ => byte.is_ascii_digit(),
    });
    if !shaped {
        return None;
    }
    let mut zone = 19;
    if bytes.get(19) == Some(&b'.') {
        zone = 20 + bytes[20..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if zone == 20 {
            return None;
        }
    }
    let two = |at: usize| {
        let digits = bytes.get(at..at + 2).filter(|two| two.iter().all(u8::is_ascii_digit))?;
        Some((digits[0] - b'0') * 10 + (digits[1] - b'0'))
    };
    let offset = &bytes[zone..];
    let offset = match offset {
        [b'Z' | b'z'] => true,
        [b'+' | b'-', _, _, b':', _, _] => two(zone + 1)? < 24 && two(zone + 4)? < 60,
        _ => false,
    };
    if !offset {
        return None;
    }
    let shortened;
    let text = if zone > 29 {
        shortened = [&text[..29], &text[zone..]].concat();
        shortened.as_str()
    } else {
        text
    };
    let Ok(time) = text.parse::<Timestamp>() else {
        let exists = text.starts_with("9999-") && text[..zone.min(29)].parse::<DateTime>().is_ok();
        return exists.then_some(Timestamp::MAX);
    };
    // A leap second is the last second of a day in UTC; it is read as the second before it.
    let leap = &bytes[17..19] == b"60";
    (!leap || time.as_second().rem_euclid(86_400) == 86_399).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nanos(text: &str) -> Option<i128> {
        read(text).map(Timestamp::as_nanosecond)
    }

    #[test]
    fn every_spelling_of_rfc_3339_is_read() {
        let whole = 1_522_949_460_000_000_000;
        for (text, fraction) in [
            ("2018-04-05T17:31:00Z", 0),
            ("2018-04-05t17:31:00z", 0),
            ("2018-04-05 17:31:00Z", 0),
            ("2018-04-05T17:31:00.5Z", 500_000_000),
            ("2018-04-05T17:31:00.123456789Z", 123_456_789),
            ("2018-04-05T17:31:00.1234567899Z", 123_456_789),
            ("2018-04-05T23:01:00.12345678999999999999999999+05:30", 123_456_789),
            ("2018-04-05T17:31:00-00:00", 0),
        ] {
            assert_eq!(nanos(text), Some(whole + fraction), "{text}");
        }
    }

    #[test]
    fn the_ends_of_the_calendar_are_read() {
        assert_eq!(read("9999-12-31T23:59:59Z"), Some(Timestamp::MAX));
        assert_eq!(read("9999-12-31T23:59:59.9999999999-23:59"), Some(Timestamp::MAX));
        assert!(read("9999-12-30T00:00:00Z").unwrap() < Timestamp::MAX);
        assert!(read("0000-01-01T00:00:00Z").is_some());
        assert_eq!(nanos("2016-12-31T23:59:60Z"), nanos("2016-12-31T23:59:59Z"));
    }

    #[test]
    fn impossible_and_foreign_times_are_refused() {
        for text in [
            "",
            "noon",
            "2018-04-05",
            "2018-04-05T17:31:00",
            "2018-04-05T17:31Z",
            "2018-04-05T17:31:00.Z",
            "2018-04-05T17:31:00,5Z",
            "2018-02-30T17:31:00Z",
            "2018-13-01T17:31:00Z",
            "2018-04-05T24:00:00Z",
            "2018-04-05T25:31:00Z",
            "2018-04-05T17:60:00Z",
            "2018-04-05T17:31:60Z",
            "2018-04-05T17:31:61Z",
            "9999-02-30T17:31:00Z",
            "9999-12-31T24:59:59Z",
            "2018-04-05T17:31:00+24:00",
            "2018-04-05T17:31:00+05:60",
            "2018-04-05T17:31:00+05",
            "2018-04-05T17:31:00+0530",
            "2018-04-05T17:31:00Z[UTC]",
            "20180405T173100Z",
            "-009999-01-01T00:00:00Z",
            "1522949460",
            "２018-04-05T17:31:00Z",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn times_of_ours_come_back(nanos in -62_167_219_200_000_000_000_i128..=Timestamp::MAX.as_nanosecond()) {
            let time = Timestamp::from_nanosecond(nanos).unwrap();
            proptest::prop_assert_eq!(read(&time.to_string()), Some(time));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[0-9TZ:+. é-]{0,40}") {
            let _ = read(&text);
        }
    }
}
