//! What others wrote, where people read it: names, titles, ids, errors and bodies are of anybody's making, and a terminal takes
//! some characters for orders, an eye others for none.
//!
//! [`is_order`] is the one rule. A table has a text [`in_line`], a page has it [`on_page`], and JSON spells such characters out
//! ([`json`]), so that it says the same; log lines go through [`Spelt`].

use std::io::{self, Write};

/// What stands where an order stood: it is seen that there was something.
const MARK: char = '\u{fffd}';

/// Whether a terminal or a reader's eye takes the character for an order: a control character (C0, DEL, C1), the end of a line
/// or of a paragraph, a mark of direction, or one without a width that hides something. Not the two joiners, which Persian and
/// emoji need.
pub fn is_order(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The text in one line, with no orders.
pub fn in_line(text: &str) -> String {
    text.chars().map(shown).collect()
}

/// A page with its lines as they are, and no other orders.
pub fn on_page(text: &str) -> String {
    text.chars().map(|character| if character == '\n' { character } else { shown(character) }).collect()
}

/// White space stays some.
fn shown(character: char) -> char {
    match character {
        order if !is_order(order) => order,
        space if space.is_whitespace() => ' ',
        _ => MARK,
    }
}

/// The same JSON, over as many lines, with every order spelt out. It is text of `serde_json`, in which they only stand in strings.
pub fn json(text: &str) -> String {
    spelt(text, |character| character == '\n')
}

/// The text with every order spelt out as JSON does, but for those that stay.
fn spelt(text: &str, stays: impl Fn(char) -> bool) -> String {
    let mut spelt = String::with_capacity(text.len());
    for character in text.chars() {
        if !is_order(character) || stays(character) {
            spelt.push(character);
        } else {
            spelt.extend(character.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    spelt
}

/// Writes whole lines with every order spelt out: each call of `write` is one line, as `tracing_subscriber` writes an event.
#[derive(Debug)]
pub struct Spelt<W> {
    to: W,
    has_colours: bool,
}

impl<W> Spelt<W> {
    /// Writes to `to`. Where lines have colours, the orders for those stay: whoever writes such lines has taken the same out of
    /// what others wrote.
    pub fn new(to: W, has_colours: bool) -> Self {
        Self { to, has_colours }
    }

    fn line(&self, line: &str) -> String {
        let stays = |character: char| self.has_colours && character == '\u{1b}';
        let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
        spelt(line, stays) + end
    }
}

impl<W: Write> Write for Spelt<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.to.write_all(self.line(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clear screen, a C1 order, DEL, text that runs backwards, two kinds of new lines, and what hides in no width.
    const NASTY: &str = "a\u{1b}[2J\u{9b}2J\u{7f}\u{202e}gpj\u{2066}\u{61c}\u{2028}b\r\nc\t\u{200b}\u{e0041}";

    #[test]
    fn nothing_of_it_is_left_anywhere() {
        for shown in [in_line(NASTY), on_page(NASTY), json(NASTY)] {
            assert!(!shown.chars().any(|character| is_order(character) && character != '\n'), "{shown:?}");
        }
        assert_eq!(in_line(NASTY), "a\u{fffd}[2J\u{fffd}2J\u{fffd}\u{fffd}gpj\u{fffd}\u{fffd} b  c \u{fffd}\u{fffd}");
        assert_eq!(on_page("one\ntwo\n"), "one\ntwo\n");
    }

    #[test]
    fn what_people_write_stays_as_it_is() {
        for text in ["می\u{200c}خواهم", "👩\u{200d}🏫", "é ü – ß", "שלום", "日本"] {
            assert_eq!((in_line(text), json(text)), (text.to_owned(), text.to_owned()));
        }
    }

    #[test]
    fn json_says_the_same() {
        let value = serde_json::json!({ "a\u{9b}": NASTY, "b": "\u{10ffff}\u{e0041}" });
        for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            assert_eq!(serde_json::from_str::<serde_json::Value>(&json(&text)).unwrap(), value);
        }
    }

    #[test]
    fn a_log_line_is_one_line() {
        let mut out = Vec::new();
        Spelt::new(&mut out, false).write_all(b"{\"a\":\"\xc2\x9b\x1b\"}\n").unwrap();
        Spelt::new(&mut out, true).write_all("\u{1b}[2mWARN\u{1b}[0m a\nb \u{202e}\n".as_bytes()).unwrap();
        let expected = "{\"a\":\"\\u009b\\u001b\"}\n\u{1b}[2mWARN\u{1b}[0m a\\u000ab \\u202e\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
