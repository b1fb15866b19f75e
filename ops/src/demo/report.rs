//! The demo's report: what the tables say, for people to read.
//!
//! Names come last in a line: a terminal that writes Persian from right to left would turn the columns after them
//! around.

use std::fmt::Write;
use std::path::Path;

use chrono::{DateTime, TimeDelta, Utc};
use rollcall_shared::store::entity::live_session_recording;

use super::tables::{Found, Interval, Person, Session, SessionKey, stored};

/// How many cells the picture of a session has, from its start to its end.
const CELLS: i32 = 36;
/// As wide as a long user id.
const USER_WIDTH: usize = 6;

/// The report.
pub(super) fn report(found: &Found, media: &Path) -> String {
    let mut text = String::new();
    // The class first, then its breakout rooms.
    let mut sessions: Vec<_> = found.played.sessions.iter().collect();
    sessions.sort_by_key(|(_, session)| session.started_at);
    for (key, session) in sessions {
        write_session(&mut text, found, key, session).expect("a string can be written to");
    }
    for recording in &found.recordings {
        write_recording(&mut text, recording, media).expect("a string can be written to");
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn write_session(text: &mut String, found: &Found, key: &SessionKey, session: &Session) -> std::fmt::Result {
    let lasted = session.ended_at.zip(session.started_at).map_or(0, |(end, start)| (end - start).num_seconds());
    let (start, end) = (clock(session.started_at), clock(session.ended_at));
    writeln!(text, "{}", session.subject.as_deref().unwrap_or("(no subject)"))?;
    write!(text, "  room {}", key.room_id)?;
    if let Some(parent) = &session.parent_room_id {
        write!(text, ", a breakout room of {parent}")?;
    }
    writeln!(text, ", session {}", key.sid.as_deref().unwrap_or("unknown"))?;
    let (day, people) = (day(session.started_at), session.people.len());
    writeln!(text, "  opened {day} {start} UTC, ended {end}, lasted {}; {people} people", span(lasted))?;
    writeln!(text)?;
    let gap = usize::try_from(CELLS).unwrap_or_default().saturating_sub(2 * start.len());
    writeln!(
        text,
        "  {:USER_WIDTH$}  {:11}  {:8}  {:8}  {:>9}  {:>5}  {start}{:gap$}{end}  name",
        "user", "role", "entered", "left", "was there", "joins", ""
    )?;
    let mut people: Vec<_> = session.people.iter().collect();
    people.sort_by_key(|(user_id, person)| (person.role != "moderator", person.entered_at, user_id.as_str()));
    for (user_id, person) in people {
        let picture = picture(found, key, user_id, session);
        write_person(text, user_id, person, &picture)?;
    }
    writeln!(text)
}

fn write_person(text: &mut String, user_id: &str, person: &Person, picture: &str) -> std::fmt::Result {
    let left = if person.is_online { "online".to_owned() } else { clock(person.exited_at) };
    writeln!(
        text,
        "  {user_id:USER_WIDTH$}  {:11}  {:8}  {left:8}  {:>9}  {:>5}  {picture}  {}",
        person.role,
        clock(person.entered_at),
        span(person.total_seconds),
        person.join_count,
        person.name.as_deref().unwrap_or("(no name)"),
    )
}

/// A person's presence as a row of cells: full for most of it, a dot for none of it.
fn picture(found: &Found, key: &SessionKey, user_id: &str, session: &Session) -> String {
    let Some((start, end)) = session.started_at.zip(session.ended_at) else { return String::new() };
    let intervals = found.intervals.get(&(key.clone(), user_id.to_owned())).map_or(&[][..], Vec::as_slice);
    let cell = (end - start) / CELLS;
    (0..CELLS).map(|number| shade(intervals, start + cell * number, cell)).collect()
}

fn shade(intervals: &[Interval], from: DateTime<Utc>, length: TimeDelta) -> char {
    let inside = |(start, end): &Interval| {
        let inside = *end.min(&(from + length)) - *start.max(&from);
        inside.max(TimeDelta::zero())
    };
    let inside: TimeDelta = intervals.iter().map(inside).sum();
    if inside.is_zero() {
        '·'
    } else if inside * 2 < length {
        '▌'
    } else {
        '█'
    }
}

fn write_recording(text: &mut String, row: &live_session_recording::Model, media: &Path) -> std::fmt::Result {
    writeln!(text, "Recording {}", row.record_id)?;
    write!(text, "  {}", row.status)?;
    if let Some(kind) = &row.recording_type {
        write!(text, ", {kind}")?;
    }
    if let Some(codec) = &row.video_codec {
        write!(text, " ({codec})")?;
    }
    if let Some((width, height)) = row.width.zip(row.height) {
        write!(text, ", {width} × {height}")?;
    }
    if let Some(seconds) = row.duration_seconds {
        write!(text, ", {seconds:.1} s")?;
    }
    if let Some(bytes) = row.file_size {
        #[expect(clippy::cast_precision_loss, reason = "two places are shown")]
        write!(text, ", {:.2} MB", bytes as f64 / 1e6)?;
    }
    writeln!(text)?;
    if let Some(error) = &row.error {
        writeln!(text, "  note       {error}")?;
    }
    for (what, key) in [("file", &row.file_key), ("thumbnail", &row.thumbnail_key)] {
        let place = key.as_deref().map_or("none".to_owned(), |key| stored(media, key).display().to_string());
        writeln!(text, "  {what:9}  {place}")?;
    }
    writeln!(text)
}

fn clock(at: Option<DateTime<Utc>>) -> String {
    at.map_or("-".to_owned(), |at| at.format("%H:%M:%S").to_string())
}

fn day(at: Option<DateTime<Utc>>) -> String {
    at.map_or("-".to_owned(), |at| at.format("%Y-%m-%d").to_string())
}

/// Seconds as minutes and seconds.
fn span(seconds: i64) -> String {
    format!("{}m {:02}s", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::tables::Played;
    use std::collections::BTreeMap;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    fn person(name: &str, seconds: i64) -> Person {
        Person {
            name: Some(name.to_owned()),
            role: "participant".into(),
            entered_at: Some(at(0)),
            exited_at: Some(at(seconds)),
            is_online: false,
            total_seconds: seconds,
            join_count: 1,
        }
    }

    #[test]
    fn columns_stand_one_below_the_other_in_any_script() {
        let key = SessionKey { room_id: "r".into(), sid: Some("S".into()) };
        let people = [("7", "Chloé Martin", 600), ("1001", "سارا احمدی", 3600)];
        let session = Session {
            parent_room_id: None,
            subject: Some("فیزیک".into()),
            started_at: Some(at(0)),
            ended_at: Some(at(3600)),
            people: people.iter().map(|(id, name, seconds)| ((*id).into(), person(name, *seconds))).collect(),
        };
        let intervals = people
            .iter()
            .map(|(id, _, seconds)| ((key.clone(), (*id).to_owned()), vec![(at(0), at(*seconds))]))
            .collect();
        let played = Played { sessions: BTreeMap::from([(key, session)]), recordings: BTreeMap::new() };
        let report = report(&Found { played, recordings: Vec::new(), intervals }, Path::new("/media"));
        let (header, rows) = report.split_once("  user").unwrap();
        assert!(header.contains("lasted 60m 00s; 2 people"), "{header}");
        let place = |line: &str, text: &str| line.split_once(text).unwrap().0.chars().count();
        let mut lines = rows.lines();
        let columns = place(lines.next().unwrap(), "name") + "  user".len();
        let (first, second) = (lines.next().unwrap(), lines.next().unwrap());
        assert_eq!((place(first, "سارا"), place(second, "Chloé")), (columns, columns));
        assert_eq!(first.matches('█').count(), 36);
        assert_eq!((second.matches('█').count(), second.matches('·').count()), (6, 30));
    }

    #[test]
    fn a_cell_tells_how_much_of_it_somebody_was_there() {
        let length = TimeDelta::seconds(60);
        assert_eq!(shade(&[], at(0), length), '·');
        assert_eq!(shade(&[(at(50), at(70))], at(0), length), '▌');
        assert_eq!(shade(&[(at(0), at(20)), (at(40), at(90))], at(0), length), '█');
    }
}
