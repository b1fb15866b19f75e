//! Tables and times, as a terminal has room for them; as they are where it goes elsewhere.

use std::io::{self, IsTerminal as _};

use chrono::{DateTime, SecondsFormat, Utc};
use comfy_table::{CellAlignment, ContentArrangement, Row, Table as Lines, presets};
use console::Term;

/// How narrow the last column may become before it is left out.
const LEAST: usize = 20;

/// A table whose last column is cut where there is no room for it.
pub(super) struct Table {
    heads: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    right: Vec<usize>,
}

impl Table {
    pub(super) fn new(heads: &[&'static str]) -> Self {
        Self { heads: heads.to_vec(), rows: Vec::new(), right: Vec::new() }
    }

    /// The column of this head is of numbers.
    pub(super) fn numbers(mut self, head: &str) -> Self {
        self.right.extend(self.heads.iter().position(|other| *other == head));
        self
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| printable(&cell)).to_vec());
    }

    /// The table for standard output.
    pub(super) fn fitted(self) -> String {
        let width = width();
        self.of_width(width)
    }

    /// The table for standard output, inside a page: nothing of it is left out.
    pub(super) fn whole(self) -> String {
        self.of_width(None)
    }

    fn of_width(mut self, width: Option<usize>) -> String {
        if width.is_some_and(|width| width < self.needs() + LEAST) {
            self.heads.pop();
            self.rows.iter_mut().for_each(|row| drop(row.pop()));
        }
        let mut lines = Lines::new();
        lines.load_style(presets::NOTHING);
        lines.set_header(self.heads.clone());
        for row in self.rows {
            let mut line = Row::from(row);
            if width.is_some() {
                line.max_height(1);
            }
            lines.add_row(line);
        }
        if let Some(width) = width {
            lines.set_content_arrangement(ContentArrangement::Dynamic).set_width(width.try_into().unwrap_or(u16::MAX));
        }
        let last = self.heads.len().saturating_sub(1);
        for (index, column) in lines.column_iter_mut().enumerate() {
            column.set_padding((0, if index == last { 0 } else { 2 }));
            if self.right.contains(&index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        lines.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
    }

    /// How wide all columns but the last one are.
    fn needs(&self) -> usize {
        let columns = self.heads.len().saturating_sub(1);
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| console::measure_text_width(&row[column]));
            cells.chain([self.heads[column].len()]).max().unwrap_or_default() + 2
        };
        (0..columns).map(width).sum()
    }
}

/// How wide the terminal is; `None` where there is none.
fn width() -> Option<usize> {
    Term::stdout().size_checked().map(|(_, columns)| columns.into())
}

/// When it was: how long ago for people, exactly for programs.
pub(super) fn when(at: DateTime<Utc>) -> String {
    if !io::stdout().is_terminal() {
        return exactly(at);
    }
    let ago = (Utc::now() - at).to_std().unwrap_or_default();
    format!("{:#} ago", indicatif::HumanDuration(ago))
}

/// RFC 3339, to the second.
pub(super) fn exactly(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// In one line, and nothing that a terminal would take for an order: errors hold what servers say.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}
