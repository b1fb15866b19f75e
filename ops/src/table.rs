//! Tables and times, as a terminal has room for them; as they are where it goes elsewhere.

use std::io::{self, IsTerminal as _};

use chrono::{DateTime, SecondsFormat, Utc};
use comfy_table::{CellAlignment, ContentArrangement, Table as Lines, presets};
use console::Term;
use rollcall_shared::display::in_line;

/// How narrow the last column may become before it is left out.
const LEAST: usize = 20;

/// What is between two columns.
const GAP: usize = 2;

/// A table that is fitted to the terminal: where there is no room, columns that can be done without are left out, and the last
/// one is cut. No other is ever cut: people copy what is in it.
pub(crate) struct Table {
    heads: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    right: Vec<usize>,
    hidden: Vec<usize>,
    dispensable: Vec<usize>,
}

impl Table {
    pub(crate) fn new(heads: &[&'static str]) -> Self {
        Self { heads: heads.to_vec(), rows: Vec::new(), right: Vec::new(), hidden: Vec::new(), dispensable: Vec::new() }
    }

    /// The column of this head is of numbers.
    pub(crate) fn numbers(mut self, head: &str) -> Self {
        self.right.extend(self.column(head));
        self
    }

    /// The column of this head is not shown, though rows have a cell for it.
    pub(crate) fn without(mut self, head: &str) -> Self {
        self.hidden.extend(self.column(head));
        self
    }

    /// The columns that are left out where there is no room, the first first.
    pub(crate) fn dispensable(mut self, heads: &[&str]) -> Self {
        self.dispensable.extend(heads.iter().filter_map(|head| self.column(head)).collect::<Vec<_>>());
        self
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| in_line(&cell)).to_vec());
    }

    /// The table for standard output.
    pub(crate) fn fitted(self) -> String {
        self.of_width(width())
    }

    /// The table for standard output, inside a page: nothing of it is left out.
    pub(crate) fn whole(self) -> String {
        self.of_width(None)
    }

    fn column(&self, head: &str) -> Option<usize> {
        self.heads.iter().position(|other| *other == head)
    }

    fn of_width(mut self, width: Option<usize>) -> String {
        let columns = self.shown(width);
        if let (Some(width), Some((last, others))) = (width, columns.split_last())
            && *last + 1 == self.heads.len()
        {
            let room = width.saturating_sub(self.width_of(others)).max(LEAST);
            for row in &mut self.rows {
                row[*last] = console::truncate_str(&row[*last], room, "…").into_owned();
            }
        }
        let mut lines = Lines::new();
        lines.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        lines.set_header(columns.iter().map(|column| self.heads[*column]));
        for row in &self.rows {
            lines.add_row(columns.iter().map(|column| row[*column].as_str()));
        }
        for (column, line) in columns.iter().zip(lines.column_iter_mut()) {
            let gap = if Some(column) == columns.last() { 0 } else { GAP };
            line.set_padding((0, gap.try_into().unwrap_or_default()));
            if self.right.contains(column) {
                line.set_cell_alignment(CellAlignment::Right);
            }
        }
        lines.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
    }

    /// The columns that are shown where there is so much room: those that cannot be done without, and the last one if it is not
    /// cut to less than can be read, and as many of the others as there is room for.
    fn shown(&self, width: Option<usize>) -> Vec<usize> {
        let mut columns: Vec<_> = (0..self.heads.len()).filter(|column| !self.hidden.contains(column)).collect();
        let last = columns.last().copied();
        for left_out in self.dispensable.iter().copied().chain(last) {
            if width.is_none_or(|width| self.least(&columns, last) <= width) {
                break;
            }
            columns.retain(|column| *column != left_out);
        }
        columns
    }

    /// How wide these columns are, with the last one of the table cut as far as it may be.
    fn least(&self, columns: &[usize], last: Option<usize>) -> usize {
        match columns.split_last() {
            Some((cut, others)) if Some(*cut) == last => self.width_of(others) + self.width(*cut).min(LEAST),
            _ => self.width_of(columns).saturating_sub(GAP),
        }
    }

    /// How wide these columns are, each with the gap behind it.
    fn width_of(&self, columns: &[usize]) -> usize {
        columns.iter().map(|column| self.width(*column) + GAP).sum()
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().map(|row| row[column].as_str()).chain([self.heads[column]]);
        cells.map(console::measure_text_width).max().unwrap_or_default()
    }
}

/// How wide the terminal is; `None` where there is none.
fn width() -> Option<usize> {
    Term::stdout().size_checked().map(|(_, columns)| columns.into())
}

/// When it was: how long ago for people, exactly for programs.
pub(crate) fn when(at: DateTime<Utc>) -> String {
    if !io::stdout().is_terminal() {
        return exactly(at);
    }
    let ago = (Utc::now() - at).to_std().unwrap_or_default();
    format!("{:#} ago", indicatif::HumanDuration(ago))
}

/// RFC 3339, to the second.
pub(crate) fn exactly(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: &str = "0b9fd6e2-58a8-4c43-9a54-1c4d0d6c5f1a";

    fn table(error: &str) -> Table {
        let mut table =
            Table::new(&["ID", "STATE", "FAILED", "ROOM", "ERROR"]).numbers("ID").dispensable(&["FAILED", "STATE"]);
        for (id, state, room) in [("7", "dead", ROOM), ("1234", "dropped", "b")] {
            table.row([id, state, "2 hours ago", room, error].map(str::to_owned));
        }
        table
    }

    #[test]
    fn with_room_for_it_everything_is_shown_in_columns() {
        let text = table("why").of_width(Some(80));
        let expected = format!(
            "  ID  STATE    FAILED       {:36}  ERROR\n   7  dead     2 hours ago  {ROOM}  why\n1234  dropped  2 hours ago  {:36}  why",
            "ROOM", "b"
        );
        assert_eq!(text, expected);
        assert_eq!(table("why").whole(), expected);
    }

    #[test]
    fn the_last_column_is_cut_and_then_others_go_and_no_word_to_copy_is_cut() {
        let long = "an error that goes on and on and on and on";
        let widths = |text: &str| text.lines().map(console::measure_text_width).max().unwrap();
        let text = table(long).of_width(Some(90));
        assert!(text.contains("FAILED") && text.contains("an error that goes") && text.contains('…'), "{text}");
        assert_eq!(widths(&text), 90);
        for (width, heads) in
            [(80, vec!["ID", "STATE", "ROOM", "ERROR"]), (70, vec!["ID", "ROOM", "ERROR"]), (50, vec!["ID", "ROOM"])]
        {
            let text = table(long).of_width(Some(width));
            assert_eq!(text.lines().next().unwrap().split_whitespace().collect::<Vec<_>>(), heads, "{width}");
            assert!(widths(&text) <= width && text.contains(ROOM), "{width}: {text}");
        }
        assert!(table(long).of_width(Some(20)).contains(ROOM), "rather too wide than cut");
    }

    #[test]
    fn a_last_column_of_a_few_letters_is_kept_as_it_is() {
        let text = table("ab").of_width(Some(55));
        assert!(text.contains("ERROR") && text.contains("ab") && !text.contains("FAILED"), "{text}");
    }

    #[test]
    fn a_column_can_be_left_out_for_good() {
        let text = table("why").without("STATE").whole();
        assert!(!text.contains("STATE") && !text.contains("dropped") && text.contains("FAILED"), "{text}");
    }

    #[test]
    fn a_cell_is_one_line_and_gives_no_orders() {
        let mut table = Table::new(&["A", "B"]);
        table.row(["one\ntwo".into(), "\u{1b}[2Jx\u{9b}".into()]);
        assert_eq!(table.whole(), "A        B\none two  \u{fffd}[2Jx\u{fffd}");
    }
}
