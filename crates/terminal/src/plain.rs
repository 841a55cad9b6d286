//! Escapes text from outside so that it cannot control a terminal.

use std::fmt::Write;

/// Returns the text on one line. Every character that could control a terminal becomes an escape: control
/// characters (`\n`, `\u{1b}`), line separators, and the marks that reverse the direction of the text after them.
pub fn plain(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) { safe.extend(c.escape_default()) } else { safe.push(c) }
    }
    safe
}

/// Returns JSON text on one line, without white space between its parts and with the characters that [`plain`]
/// escapes as JSON escapes. JSON itself allows DEL, C1 controls and direction marks. The value stays the same:
/// numbers keep their digits.
pub fn plain_json(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    let (mut quoted, mut escaped) = (false, false);
    for c in json.chars() {
        if !quoted && matches!(c, ' ' | '\n' | '\r' | '\t') {
            continue;
        }
        if c == '"' && !escaped {
            quoted = !quoted;
        }
        escaped = quoted && c == '\\' && !escaped;
        // All these characters are in the basic plane, so each is one UTF-16 unit.
        if is_unsafe(c) {
            write!(safe, "\\u{:04x}", c as u32).expect("a string takes it")
        } else {
            safe.push(c)
        }
    }
    safe
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{061c}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn control_characters_and_direction_marks_are_shown() {
        assert_eq!(
            plain("a\nb\u{1b}[2J\u{9b}1m\u{202e}c\u{7f}"),
            "a\\nb\\u{1b}[2J\\u{9b}1m\\u{202e}c\\u{7f}"
        );
        assert_eq!(plain("Grüße, 世界 🙂"), "Grüße, 世界 🙂");
    }

    #[test]
    fn json_is_one_line_and_its_numbers_stay() {
        let json =
            "{\n  \"a\": 1.10,\t\"b \\\\\": [\" \\\" \", 340282366920938463463374607431768211456]\r\n}";
        let line = "{\"a\":1.10,\"b \\\\\":[\" \\\" \",340282366920938463463374607431768211456]}";
        assert_eq!(plain_json(json), line);
    }

    proptest! {
        #[test]
        fn json_keeps_its_value_and_loses_its_controls(text in any::<String>()) {
            let json = plain_json(&serde_json::to_string(&text).unwrap());
            prop_assert!(!json.chars().any(is_unsafe));
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }
}
