//! The class that the demo plays: who is there when, which webhooks tell of it, and in which order they arrive.
//!
//! Everything is made from the stays of its people, second by second. What the tables should say in the end is
//! counted from those, on purpose not by Rollcall's rule.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rollcall_ops::standin::webhook::{Connection, Happening, RECORDER_BOT, Room, Webhook, short_id};
use uuid::Uuid;

use super::tables::{Person, Session, SessionKey};

/// How long the class lasts, in seconds; every time below is in seconds from its opening.
pub(super) const LENGTH: i64 = 45 * 60;
/// When the breakout room opens and closes.
const BREAKOUT: (i64, i64) = (20 * 60, 28 * 60);
/// When the recorder starts and stops, and when its file can be had.
const RECORDING: (i64, i64, i64) = (5 * 60, 35 * 60, 41 * 60);
/// How many of the students go to the breakout room.
const IN_BREAKOUT: usize = 5;

/// What the class is called: by the server, and by the LMS, which announced it.
pub(super) const TITLE: &str = "Physics فیزیک";
pub(super) const SUBJECT: &str = "Waves and sound";
pub(super) const ROOM_ID: &str = "physics-9";
pub(super) const TEACHER: (&str, &str) = ("42", "Teacher معلم");
const FIRST_STUDENT: usize = 1001;
const STUDENTS: [&str; 30] = [
    "Sara Ahmadi",
    "علی رضایی",
    "Nima Karimi",
    "زهرا محمدی",
    "Daniel Weber",
    "محمد حسینی",
    "Anna Kowalska",
    "فاطمه کریمی",
    "Jonas Lindqvist",
    "حسین جعفری",
    "Chloé Martin",
    "مریم موسوی",
    "Mehmet Yılmaz",
    "رضا صادقی",
    "Amara Okafor",
    "نرگس قاسمی",
    "Lucas Pereira",
    "امیر رحیمی",
    "Yuki Tanaka",
    "لیلا نوری",
    "Ivy O'Neill",
    "سینا یوسفی",
    "Omid Jafari",
    "الهام باقری",
    "Leila Moradi",
    "پارسا شریفی",
    "Maryam Hosseini",
    "مینا کاظمی",
    "Ali Rezaei",
    "آرش فرهادی",
];

/// The class, ready to be played.
#[derive(Debug)]
pub(super) struct Class {
    /// The class's room and its breakout room.
    pub(super) rooms: [Room; 2],
    pub(super) record_id: String,
    /// What is posted, in this order.
    pub(super) posts: Vec<Post>,
    /// What the tables should say in the end.
    pub(super) truth: BTreeMap<SessionKey, Session>,
    pub(super) mishaps: Mishaps,
}

/// A webhook on its way.
#[derive(Debug)]
pub(super) struct Post {
    /// When it is posted, from the class's opening.
    pub(super) after: Duration,
    /// Which room's sender posts it.
    pub(super) room: usize,
    pub(super) webhook: Webhook,
    happened: i64,
}

/// What went wrong on the way from the server.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Mishaps {
    pub(super) twice: usize,
    pub(super) out_of_order: usize,
    pub(super) never_sent: usize,
}

/// One person's presence in one room: the ground truth.
#[derive(Debug)]
struct Attendee {
    user_id: String,
    name: String,
    stays: Vec<Stay>,
}

/// One connection, from second to second.
#[derive(Debug, Clone, Copy)]
struct Stay {
    from: i64,
    to: i64,
    ending: Ending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The leave tells this reason.
    Told(&'static str),
    /// The leave never comes: the server has lost it.
    Lost,
}

const LEFT: Ending = Ending::Told("CLIENT_INITIATED");
const TIMED_OUT: Ending = Ending::Told("CONNECTION_TIMEOUT");
const PUT_OUT: Ending = Ending::Told("DUPLICATE_IDENTITY");
const ROOM_CLOSED: Ending = Ending::Told("ROOM_DELETED");

impl Class {
    /// A class that opened at `opened_at` and whose recording has `recorded` bytes; the same `seed` makes the same
    /// class.
    pub(super) fn write(opened_at: DateTime<Utc>, recorded: u64, seed: u64) -> Self {
        let mut script = Script { opened_at, rng: StdRng::seed_from_u64(seed), posts: Vec::new(), never_sent: 0 };
        let class = Room {
            room_id: ROOM_ID.into(),
            sid: Uuid::new_v4().to_string(),
            title: TITLE.into(),
            parent_room_id: None,
            created_at: script.at(-30),
        };
        let breakout = Room {
            room_id: format!("{ROOM_ID}-group-a"),
            sid: Uuid::new_v4().to_string(),
            title: "Group A".into(),
            parent_room_id: Some(ROOM_ID.into()),
            created_at: script.at(BREAKOUT.0),
        };
        let record_id = format!("{}-{}", class.sid, script.at(RECORDING.0).timestamp_millis());
        let rooms = [class, breakout];

        let people = script.people_of_the_class();
        let group = script.people_of_the_breakout_room();
        script.play_room(0, &rooms[0], (0, LENGTH), &people);
        script.play_room(1, &rooms[1], BREAKOUT, &group);
        script.play_recording(&rooms[0], &record_id, recorded);

        let truth = BTreeMap::from([
            (SessionKey::of(&rooms[0]), script.truth(&rooms[0], Some(SUBJECT), (0, LENGTH), &people)),
            (SessionKey::of(&rooms[1]), script.truth(&rooms[1], Some("Group A"), BREAKOUT, &group)),
        ]);
        let (posts, mishaps) = script.delivered();
        Self { rooms, record_id, posts, truth, mishaps }
    }
}

struct Script {
    opened_at: DateTime<Utc>,
    rng: StdRng,
    posts: Vec<Post>,
    never_sent: usize,
}

impl Script {
    fn at(&self, second: i64) -> DateTime<Utc> {
        self.opened_at + TimeDelta::seconds(second)
    }

    /// The teacher, who is there from the first second to the last, and the students, each with habits of their own.
    fn people_of_the_class(&mut self) -> Vec<Attendee> {
        let (user_id, name) = TEACHER;
        let stays = vec![Stay { from: 1, to: LENGTH, ending: ROOM_CLOSED }];
        let mut people = vec![Attendee { user_id: user_id.into(), name: name.into(), stays }];
        for (index, name) in STUDENTS.into_iter().enumerate() {
            let stays = self.stays_of_student(index);
            people.push(Attendee { user_id: (FIRST_STUDENT + index).to_string(), name: name.into(), stays });
        }
        people
    }

    /// Ten kinds of students, three of each.
    fn stays_of_student(&mut self, index: usize) -> Vec<Stay> {
        let from = self.rng.random_range(2..240);
        match index % 10 {
            0 | 1 => vec![Stay { from, to: LENGTH, ending: ROOM_CLOSED }],
            2 => self.with_breaks(from, 1, LEFT),
            3 => self.with_breaks(from, 2, TIMED_OUT),
            4 => self.with_breaks(from, 4, LEFT),
            // Comes in again from another device, which puts the first connection out in the same second.
            5 => self.with_handover(from, PUT_OUT),
            6 => self.with_handover(from, Ending::Lost),
            // Is in until the end, and the server forgets to tell of it.
            7 => vec![Stay { from, to: LENGTH, ending: Ending::Lost }],
            8 => vec![Stay { from, to: self.rng.random_range(1200..2400), ending: LEFT }],
            // Looks in, and comes back late.
            _ => {
                let back = self.rng.random_range(600..1500);
                let looked_in = Stay { from, to: from + self.rng.random_range(20..90), ending: LEFT };
                vec![looked_in, Stay { from: back, to: LENGTH, ending: ROOM_CLOSED }]
            }
        }
    }

    /// In from `from` to the end, but for some breaks.
    fn with_breaks(&mut self, from: i64, breaks: i64, ending: Ending) -> Vec<Stay> {
        let part = (LENGTH - from) / (breaks + 1);
        let mut stays = Vec::new();
        let mut start = from;
        for number in 1..=breaks {
            let out = from + number * part - self.rng.random_range(0..part / 3);
            stays.push(Stay { from: start, to: out, ending });
            start = out + self.rng.random_range(3..part / 2);
        }
        stays.push(Stay { from: start, to: LENGTH, ending: ROOM_CLOSED });
        stays
    }

    fn with_handover(&mut self, from: i64, ending: Ending) -> Vec<Stay> {
        let over = self.rng.random_range(600..2000);
        vec![Stay { from, to: over, ending }, Stay { from: over, to: LENGTH, ending: ROOM_CLOSED }]
    }

    /// Some students are in the breakout room as well, on a connection of its own.
    fn people_of_the_breakout_room(&mut self) -> Vec<Attendee> {
        let (opens, closes) = BREAKOUT;
        let members = STUDENTS.into_iter().enumerate().step_by(STUDENTS.len() / IN_BREAKOUT);
        members
            .map(|(index, name)| {
                let from = opens + self.rng.random_range(1..40);
                let stays = vec![Stay { from, to: closes, ending: ROOM_CLOSED }];
                Attendee { user_id: (FIRST_STUDENT + index).to_string(), name: name.into(), stays }
            })
            .collect()
    }

    /// Everything that a room's webhooks tell, ended by the API: its end first, then the leaves of all who are still
    /// in.
    fn play_room(&mut self, number: usize, room: &Room, (opens, closes): (i64, i64), people: &[Attendee]) {
        self.post(number, room, Happening::RoomCreated, room.created_at.timestamp() - self.opened_at.timestamp());
        self.post(number, room, Happening::RoomStarted, opens);
        self.post(number, room, Happening::SessionEnded, closes);
        for person in people {
            for stay in &person.stays {
                self.play_stay(number, room, person, *stay);
            }
        }
        self.post(number, room, Happening::RoomFinished, closes);
        self.post(number, room, Happening::ArtifactCreated(&Uuid::new_v4().to_string()), closes + 50);
    }

    fn play_stay(&mut self, number: usize, room: &Room, person: &Attendee, stay: Stay) {
        let connection = self.connection(&person.user_id, &person.name, stay.from);
        self.post(number, room, Happening::Joined(&connection), stay.from);
        match stay.ending {
            Ending::Told(reason) => self.post(number, room, Happening::Left(&connection, reason), stay.to),
            Ending::Lost => self.never_sent += 1,
        }
        if person.user_id == TEACHER.0 {
            self.post(number, room, Happening::TrackPublished(&connection), stay.from + 5);
        }
    }

    /// The recorder comes as a bot, and the file long after it has gone.
    fn play_recording(&mut self, room: &Room, record_id: &str, recorded: u64) {
        let (starts, stops, ready) = RECORDING;
        let bot = self.connection(RECORDER_BOT, "bot", starts - 1);
        self.post(0, room, Happening::Joined(&bot), starts - 1);
        self.post(0, room, Happening::StartRecording(record_id), starts);
        self.post(0, room, Happening::EndRecording(record_id), stops);
        self.post(0, room, Happening::Left(&bot, "CLIENT_INITIATED"), stops + 1);
        self.post(0, room, Happening::RecordingProceeded(record_id, recorded), ready);
    }

    fn connection(&mut self, user_id: &str, name: &str, joined: i64) -> Connection {
        let milliseconds = TimeDelta::milliseconds(self.rng.random_range(0..1000));
        Connection {
            sid: format!("PA_{}", short_id()),
            identity: user_id.to_owned(),
            name: name.to_owned(),
            joined_at: Some(self.at(joined) + milliseconds),
        }
    }

    fn post(&mut self, room_number: usize, room: &Room, happening: Happening<'_>, second: i64) {
        let webhook = room.webhook(happening, self.at(second));
        // A room is made before it opens; the play starts there.
        let after = Duration::from_secs(u64::try_from(second).unwrap_or_default());
        self.posts.push(Post { after, room: room_number, webhook, happened: second });
    }

    /// The webhooks in the order in which they arrive: some late, so that leaves come before their joins and joins
    /// after the room's end, and some twice.
    fn delivered(mut self) -> (Vec<Post>, Mishaps) {
        let mut mishaps = Mishaps { never_sent: self.never_sent, ..Mishaps::default() };
        let mut again = Vec::new();
        for post in &mut self.posts {
            if post.webhook.event.starts_with("participant_") && self.rng.random_bool(0.2) {
                post.after += Duration::from_secs(self.rng.random_range(20..600));
            }
            if self.rng.random_bool(0.15) {
                let later = [0, self.rng.random_range(10..300)][self.rng.random_range(0..2)];
                let after = post.after + Duration::from_secs(later);
                again.push(Post { after, room: post.room, webhook: post.webhook.clone(), happened: post.happened });
            }
        }
        // A stable sort: what is posted in the same second stays in the order in which it was told.
        self.posts.sort_by_key(|post| post.after);
        let mut latest = [i64::MIN; 2];
        for post in &self.posts {
            mishaps.out_of_order += usize::from(post.happened < latest[post.room]);
            latest[post.room] = latest[post.room].max(post.happened);
        }
        mishaps.twice = again.len();
        self.posts.extend(again);
        self.posts.sort_by_key(|post| post.after);
        (self.posts, mishaps)
    }

    fn truth(&self, room: &Room, subject: Option<&str>, (opens, closes): (i64, i64), people: &[Attendee]) -> Session {
        Session {
            parent_room_id: room.parent_room_id.clone(),
            subject: subject.map(str::to_owned),
            started_at: Some(self.at(opens)),
            ended_at: Some(self.at(closes)),
            people: people.iter().map(|person| (person.user_id.clone(), self.truth_of(person))).collect(),
        }
    }

    /// Counted second by second: was there a connection, or not?
    fn truth_of(&self, person: &Attendee) -> Person {
        let is_in = |second: i64| person.stays.iter().any(|stay| (stay.from..stay.to).contains(&second));
        let seconds: Vec<i64> = (0..LENGTH).filter(|second| is_in(*second)).collect();
        let role = if person.user_id == TEACHER.0 { "moderator" } else { "participant" };
        Person {
            name: Some(person.name.clone()),
            role: role.to_owned(),
            entered_at: seconds.first().map(|first| self.at(*first)),
            exited_at: seconds.last().map(|last| self.at(*last + 1)),
            is_online: false,
            total_seconds: seconds.len() as i64,
            join_count: person.stays.len() as i32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(seed: u64) -> Class {
        Class::write(DateTime::from_timestamp(1_800_000_000, 0).unwrap(), 1_000_000, seed)
    }

    #[test]
    fn a_class_has_its_people_and_its_mishaps() {
        for seed in 0..50 {
            let class = class(seed);
            let people = |room: usize| &class.truth[&SessionKey::of(&class.rooms[room])].people;
            assert_eq!((people(0).len(), people(1).len()), (1 + STUDENTS.len(), IN_BREAKOUT));
            assert_eq!(people(0)["42"].total_seconds, LENGTH - 1);
            assert!(people(0).values().all(|person| (1..LENGTH).contains(&person.total_seconds)));
            assert!(class.mishaps.twice > 0 && class.mishaps.out_of_order > 0, "seed {seed}: {:?}", class.mishaps);
            assert_eq!(class.mishaps.never_sent, 6);
        }
    }

    #[test]
    fn the_stays_of_a_person_do_not_overlap() {
        let mut script =
            Script { opened_at: DateTime::UNIX_EPOCH, rng: StdRng::seed_from_u64(7), posts: Vec::new(), never_sent: 0 };
        for _ in 0..100 {
            for person in script.people_of_the_class() {
                assert!(person.stays.windows(2).all(|pair| pair[0].to <= pair[1].from), "{person:?}");
                assert!(person.stays.iter().all(|stay| stay.from < stay.to && stay.to <= LENGTH), "{person:?}");
            }
        }
    }

    #[test]
    fn the_same_seed_is_the_same_class() {
        let shape = |seed| {
            let class = class(seed);
            class.posts.iter().map(|post| (post.after, post.webhook.event)).collect::<Vec<_>>()
        };
        assert_eq!(shape(3), shape(3));
        assert_ne!(shape(3), shape(4));
    }
}
