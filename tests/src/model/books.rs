//! The model of the queue: what was posted, and where each event may be once everything is quiet.
//!
//! An event is a number that stands in everything it leaves behind: its id `EV_7`, its person `P7`, its recording `REC_7`, its
//! start at second 7. [`Books`] keep what was posted and what was done that makes a difference; [`Seen`] is what somebody found
//! in the tables and the queues; [`Books::audit`] says what is wrong with it.
//!
//! | event | worker | may be |
//! | --- | --- | --- |
//! | join, leave, start, finish | attendance, rooms | applied |
//! | recording | recordings | applied; dead, where the server failed |
//! | join of nobody | attendance | dead |
//! | join of a room that is not announced | attendance | dead; applied, once it was announced |
//! | join of a bot | attendance | nowhere: ignored |
//! | what no worker wants | | nowhere: ignored, and counted at the door |
//!
//! What a worker wants may also be dropped, where that worker was purged; and dead as a poison, where it was killed often enough.
//!
//! Each is in one place, but where a copy may be about: it was posted more than once, or a process or a connection ended that had
//! it (at least once in). Then it may be in several, and still counts once in each. So may a recording, whose job outlives its
//! delivery: what is dropped then is the message that looks after the job.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use rollcall_shared::event::WorkerName;

/// How often a suspect may take its worker along before it is a poison.
const DEATHS: usize = 3;

/// What an event is about, and so what has to become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Somebody joins a room.
    Join,
    /// Somebody leaves a room; the join was never heard of.
    Leave,
    /// A room is opened.
    Start,
    /// A room of its own ends.
    Finish,
    /// A recording can be had.
    Recording,
    /// A join that does not say who: it cannot be understood.
    Nobody,
    /// A join of a room that the LMS has not announced, and has to.
    Unannounced,
    /// A join of a recorder.
    Bot,
    /// An event outside the catalogue.
    Unwanted,
}

impl Kind {
    /// Who wants it, if anybody does.
    pub fn worker(self) -> Option<WorkerName> {
        match self {
            Self::Join | Self::Leave | Self::Nobody | Self::Unannounced | Self::Bot => Some(WorkerName::Attendance),
            Self::Start | Self::Finish => Some(WorkerName::Rooms),
            Self::Recording => Some(WorkerName::Recordings),
            Self::Unwanted => None,
        }
    }

    /// Whether nothing comes of it, and that is all right.
    fn is_ignored(self) -> bool {
        matches!(self, Self::Bot | Self::Unwanted)
    }
}

/// Where an event was seen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In the tables, with its effect.
    Applied,
    /// Among the dead letters, of this kind.
    Dead(String),
    /// Among the dead letters, dropped by an operator.
    Dropped,
    /// In this queue.
    Waiting(String),
}

/// What somebody has seen.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Each place of each event, as often as it is there.
    pub places: BTreeMap<u32, Vec<Place>>,
    /// What is there and no event of ours, or has the wrong effect.
    pub strange: Vec<String>,
}

/// One event, as it was posted.
#[derive(Debug, Clone, Copy)]
struct Posted {
    kind: Kind,
    /// How often it was sent, answered or not.
    posts: usize,
    /// How often it was answered with 200.
    accepted: usize,
}

/// What was posted, and what was done that makes a difference.
#[derive(Debug, Default)]
pub struct Books {
    events: BTreeMap<u32, Posted>,
    purged: BTreeSet<WorkerName>,
    /// How often a worker may have died of what it took alone.
    deaths: BTreeMap<WorkerName, usize>,
    is_announced: bool,
    copies_are_about: bool,
    server_has_failed: bool,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wrong {
    /// It was accepted, and is nowhere.
    Lost(u32, Kind),
    /// It is where it may not be.
    Misplaced(u32, Kind, Place),
    /// It is there more often than it may be.
    Twice(u32, Kind, Vec<Place>),
    /// It is of no event of ours, or has the wrong effect.
    Strange(String),
}

/// How many ended where.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Totals(BTreeMap<&'static str, usize>);

impl Books {
    /// A new event.
    pub fn open(&mut self, kind: Kind) -> u32 {
        let number = self.events.len().try_into().expect("there are not that many");
        self.events.insert(number, Posted { kind, posts: 0, accepted: 0 });
        number
    }

    /// It is about to be sent.
    pub fn posted(&mut self, number: u32) {
        self.events.entry(number).and_modify(|event| event.posts += 1);
    }

    /// It was answered with 200.
    pub fn accepted(&mut self, number: u32) {
        self.events.entry(number).and_modify(|event| event.accepted += 1);
    }

    /// Somebody has begun to purge a worker.
    pub fn purged(&mut self, worker: WorkerName) {
        self.purged.insert(worker);
    }

    /// These workers were killed, or their connections: a suspect that one had is one step closer to be a poison.
    pub fn died(&mut self, workers: &[WorkerName]) {
        for worker in workers {
            *self.deaths.entry(*worker).or_default() += 1;
        }
    }

    /// The LMS has announced what it had not.
    pub fn announced(&mut self) {
        self.is_announced = true;
    }

    /// Something ended that had messages: they may come again although they are settled.
    pub fn copies_are_about(&mut self) {
        self.copies_are_about = true;
    }

    /// The server has failed at recordings.
    pub fn server_has_failed(&mut self) {
        self.server_has_failed = true;
    }

    /// The numbers and kinds of all that was accepted.
    pub fn all_accepted(&self) -> Vec<(u32, Kind)> {
        let accepted = self.events.iter().filter(|(_, event)| event.accepted > 0);
        accepted.map(|(number, event)| (*number, event.kind)).collect()
    }

    /// How often an event that no worker wants was accepted: that has to be counted.
    pub fn ignored(&self) -> usize {
        self.events.values().filter(|event| event.kind == Kind::Unwanted).map(|event| event.accepted).sum()
    }

    /// The kind of an event.
    pub fn kind(&self, number: u32) -> Option<Kind> {
        self.events.get(&number).map(|event| event.kind)
    }

    /// What was accepted, is wanted, and has not come to its end.
    pub fn unfinished(&self, seen: &Seen) -> Vec<u32> {
        let has_ended = |number: &u32| seen.places.get(number).is_some_and(|places| places.iter().any(Place::is_final));
        let wanted = self.events.iter().filter(|(_, event)| event.accepted > 0 && !event.kind.is_ignored());
        wanted.map(|(number, _)| *number).filter(|number| !has_ended(number)).collect()
    }

    /// What is wrong with what was seen, now that everything is quiet.
    pub fn audit(&self, seen: &Seen) -> Vec<Wrong> {
        let mut wrong: Vec<_> = seen.strange.iter().cloned().map(Wrong::Strange).collect();
        for (number, event) in &self.events {
            let places = seen.places.get(number).map_or(&[][..], Vec::as_slice);
            wrong.extend(self.audit_one(*number, *event, places));
        }
        let unknown = seen.places.keys().filter(|number| !self.events.contains_key(number));
        wrong.extend(unknown.map(|number| Wrong::Strange(format!("event {number} was never posted"))));
        wrong
    }

    fn audit_one(&self, number: u32, event: Posted, places: &[Place]) -> Vec<Wrong> {
        let Posted { kind, posts, accepted } = event;
        let misplaced = places.iter().filter(|place| !self.may_be(kind, place));
        let mut wrong: Vec<_> = misplaced.map(|place| Wrong::Misplaced(number, kind, place.clone())).collect();
        if places.is_empty() && accepted > 0 && !kind.is_ignored() {
            wrong.push(Wrong::Lost(number, kind));
        }
        let times = |place: &Place| places.iter().filter(|other| *other == place).count();
        let letters = places.iter().filter(|place| matches!(place, Place::Dead(_) | Place::Dropped)).count();
        let is_alone = posts < 2 && !self.copies_are_about && kind != Kind::Recording;
        if times(&Place::Applied) > 1 || letters > posts || (is_alone && places.len() > 1) {
            wrong.push(Wrong::Twice(number, kind, places.to_vec()));
        }
        wrong
    }

    fn may_be(&self, kind: Kind, place: &Place) -> bool {
        let Some(worker) = kind.worker() else { return false };
        match place {
            Place::Applied => match kind {
                Kind::Nobody | Kind::Bot | Kind::Unwanted => false,
                Kind::Unannounced => self.is_announced,
                _ => true,
            },
            Place::Dropped => self.purged.contains(&worker),
            Place::Waiting(_) => false,
            Place::Dead(why) => match why.as_str() {
                "permanent" => kind == Kind::Nobody,
                "exhausted" => kind == Kind::Unannounced || (kind == Kind::Recording && self.server_has_failed),
                "poison" => self.deaths.get(&worker).is_some_and(|deaths| *deaths >= DEATHS),
                _ => false,
            },
        }
    }

    /// How many ended where.
    pub fn totals(&self, seen: &Seen) -> Totals {
        let mut totals = Totals::default();
        for (number, event) in &self.events {
            let places = seen.places.get(number).map_or(&[][..], Vec::as_slice);
            let word = match places.first() {
                Some(Place::Applied) => "applied",
                Some(Place::Dead(_)) => "dead",
                Some(Place::Dropped) => "dropped",
                Some(Place::Waiting(_)) => "waiting",
                None if event.kind.is_ignored() => "ignored",
                None => "nowhere",
            };
            *totals.0.entry(word).or_default() += 1;
        }
        totals
    }
}

impl Place {
    fn is_final(&self) -> bool {
        !matches!(self, Self::Waiting(_))
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<_> = self.0.iter().map(|(word, count)| format!("{count} {word}")).collect();
        f.write_str(&parts.join(", "))
    }
}

impl Wrong {
    /// Which event it is about, if it is about one.
    pub fn number(&self) -> Option<u32> {
        match self {
            Self::Lost(number, _) | Self::Misplaced(number, ..) | Self::Twice(number, ..) => Some(*number),
            Self::Strange(_) => None,
        }
    }
}

/// Without its number.
impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(_, kind) => write!(f, "LOST, accepted and nowhere: {kind:?}"),
            Self::Misplaced(_, kind, Place::Waiting(queue)) => write!(f, "STUCK in {queue}: {kind:?}"),
            Self::Misplaced(_, kind, place) => write!(f, "MISPLACED, {place:?}: {kind:?}"),
            Self::Twice(_, kind, places) => write!(f, "TWICE, {places:?}: {kind:?}"),
            Self::Strange(what) => write!(f, "STRANGE: {what}"),
        }
    }
}
