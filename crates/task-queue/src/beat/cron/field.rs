//! Parses one field of a cron expression strictly and writes it out value by value.

/// One field of an expression.
pub(super) struct Field {
    pub(super) name: &'static str,
    first: u8,
    last: u8,
    /// The names of the values, beginning with `first`.
    names: &'static [&'static str],
}

const fn field(name: &'static str, first: u8, last: u8, names: &'static [&'static str]) -> Field {
    Field { name, first, last, names }
}

const MONTHS: &[&str] = &[
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const DAYS: &[&str] = &["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];

pub(super) const FIELDS: [Field; 6] = [
    field("second", 0, 59, &[]),
    field("minute", 0, 59, &[]),
    field("hour", 0, 23, &[]),
    field("day of month", 1, 31, &[]),
    field("month", 1, 12, MONTHS),
    field("day of week", 0, 6, DAYS),
];

impl Field {
    /// Converts the field to croner's syntax: a star, or the values one by one; marks for special days stay as they
    /// are.
    pub(super) fn read(&self, text: &str) -> Result<String, String> {
        let wrong = |why: &str| Err(format!("the field for the {} is `{text}`: {why}", self.name));
        let is_day = matches!(self.name, "day of month" | "day of week");
        if text == "?" && is_day {
            return Ok("*".to_owned());
        }
        let (both, text) = match text.strip_prefix('+') {
            Some(rest) if self.name == "day of week" => ("+", rest),
            _ => ("", text),
        };
        let mut values = Vec::new();
        let mut special = Vec::new();
        let mut all = false;
        for item in text.split(',') {
            match self.item(item) {
                Ok(Item::All) => all = true,
                Ok(Item::Values(found)) => values.extend(found),
                Err(_) if is_day && self.is_special(item) => special.push(self.without_names(item)),
                Err(why) => return wrong(&why),
            }
        }
        if all {
            return Ok(format!("{both}*"));
        }
        values.sort_unstable();
        values.dedup();
        let values = values.iter().map(u8::to_string).chain(special).collect::<Vec<_>>().join(",");
        Ok(format!("{both}{values}"))
    }

    /// Parses one item of a list: `*`, `5`, `mon`, `1-5`, `fri-mon`, each with an optional step.
    fn item(&self, item: &str) -> Result<Item, String> {
        let (range, step) = match item.split_once('/') {
            None => (item, None),
            Some((range, step)) => {
                let parsed = step.parse::<u8>().ok().filter(|step| *step > 0);
                let step = parsed.ok_or_else(|| format!("`{step}` is not a step"))?;
                if step > self.last - self.first + 1 {
                    return Err(format!(
                        "a step of {step} is beyond the {} values of the field",
                        self.last - self.first + 1
                    ));
                }
                (range, Some(step))
            }
        };
        if range == "*" && step.is_none() {
            return Ok(Item::All);
        }
        let (from, to) = match range.split_once('-') {
            _ if range == "*" => (self.first, self.last),
            Some((from, to)) => (self.value(from)?, self.value(to)?),
            // As in the crontab of many systems, `5/15` continues to the end of the field.
            None if step.is_some() => (self.value(range)?, self.last),
            None => (self.value(range)?, self.value(range)?),
        };
        // Sunday is 0 and 7; `fri-sun` and `22-2` wrap around the end of the field.
        let span = self.last - self.first + 1;
        let length = if from <= to { to - from } else { to + span - from };
        let wrap = |value: u8| (value - self.first) % span + self.first;
        Ok(Item::Values(
            (0..=length).step_by(usize::from(step.unwrap_or(1))).map(|n| wrap(from + n)).collect(),
        ))
    }

    fn value(&self, text: &str) -> Result<u8, String> {
        let named =
            self.names.iter().position(|name| *name == text || (text.len() == 3 && name.starts_with(text)));
        if let Some(index) = named {
            return Ok(self.first + u8::try_from(index).expect("few names"));
        }
        // Sunday may be 7.
        let last = if self.name == "day of week" { 7 } else { self.last };
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse::<u8>() {
            Ok(value) if digits && (self.first..=last).contains(&value) => Ok(value),
            Ok(_) if digits => Err(format!("`{text}` is not within {} to {last}", self.first)),
            _ if text.is_empty() => Err("an item is missing".to_owned()),
            _ => Err(format!("`{text}` is not a value")),
        }
    }

    /// Whether the item has a mark that croner parses: `L`, `15W`, `5#2`, `5L`. croner also checks the rest of the
    /// item.
    fn is_special(&self, item: &str) -> bool {
        !item.is_empty()
            && !item.contains(['*', '/', '?'])
            && (item.contains('#') || item.ends_with(['l', 'w']) || item.starts_with("l-") || item == "lw")
    }

    fn without_names(&self, item: &str) -> String {
        let end = item.find('#').unwrap_or_else(|| item.trim_end_matches('l').len());
        let (name, mark) = item.split_at(end);
        match self.value(name) {
            // Sunday, written as 7.
            Ok(value) if value > self.last => format!("{}{}", self.first, mark.to_ascii_uppercase()),
            Ok(value) => format!("{value}{}", mark.to_ascii_uppercase()),
            Err(_) => item.to_ascii_uppercase(),
        }
    }
}

enum Item {
    All,
    Values(Vec<u8>),
}
