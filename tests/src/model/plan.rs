//! What is done to an installation: steps, drawn at random from a seed. The same seed gives the same steps.
//!
//! A round has one [`Weather`]: which steps are likely, and how much is posted. Some faults need their own: a queue that refuses
//! beside a great many dead letters, say, or jobs that take seconds.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rollcall_shared::event::{AnyWorker, WorkerName};

use super::books::Kind;

/// Where the queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackEnd {
    /// RabbitMQ and PostgreSQL.
    Servers,
    /// The files of one machine.
    Files,
}

/// What is likely to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// Operators at work, and nothing breaks: there are no copies of anything.
    Calm,
    /// Programs are killed, stopped and frozen.
    Crashes,
    /// The broker goes, comes back, blocks and closes connections; or sessions with the database end.
    Outages,
    /// Queues refuse what they are given, while a great many die.
    Refusals,
    /// Recordings take seconds, and connections are lost.
    SlowRecordings,
    /// Operators purge, and are killed at it.
    Purges,
    /// The workers' clocks jump.
    Clocks,
    /// The disk of the queue is full.
    FullDisk,
}

/// One program of an installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// `rollcall-ingress`
    Ingress,
    /// `rollcall-worker`
    Worker(AnyWorker),
}

/// One thing that happens.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// So many new events are posted, while the next steps happen.
    Post(Kind, u32),
    /// So many that were posted are posted once more.
    PostAgain(usize),
    /// The LMS announces the rooms that it had not.
    Announce,
    /// The next downloads take so long.
    SlowServer(usize, Duration),
    /// The next downloads fail.
    FailingServer(usize),
    /// SIGKILL; it is started again.
    Kill(Program),
    /// SIGTERM; it is started again.
    Restart(Program),
    /// SIGSTOP, and SIGCONT after so long.
    Freeze(Program, Duration),
    /// The broker closes every connection.
    CloseConnections,
    /// The broker closes one of its connections.
    CloseOne(usize),
    /// The queues of this name refuse what they are given.
    Refuse(&'static str),
    /// No queue refuses any more.
    Accept,
    /// The broker is short of memory, and takes nothing.
    Block,
    /// The broker has memory again.
    Unblock,
    /// The broker is stopped and started.
    RestartBroker,
    /// The broker is killed and started.
    KillBroker,
    /// The programs' sessions with the database are ended.
    EndSessions,
    /// `rollcall pause`
    Pause(WorkerName),
    /// `rollcall resume`
    Resume(WorkerName),
    /// `rollcall purge`; where it is killed, how long after it has dropped the first.
    Purge(WorkerName, Option<Duration>),
    /// The workers' clocks are so many seconds ahead.
    Clock(i64),
    /// So many bytes are left on the queue's disk.
    FillDisk(u64),
    /// There is room again.
    EmptyDisk,
    /// Nothing happens.
    Wait(Duration),
}

/// A round: everything that follows from its seed.
#[derive(Debug)]
pub struct Plan {
    /// What it was made from.
    pub seed: u64,
    /// What is likely to happen.
    pub weather: Weather,
    /// Whether all programs are one process: `rollcall up`.
    pub is_together: bool,
    /// Whether the LMS has to announce rooms: `sessions.unknown = "reject"`.
    pub must_announce: bool,
    /// `workers.batch_size`
    pub batch_size: usize,
    /// `recordings.hold`
    pub hold: Duration,
    /// What happens.
    pub steps: Vec<Step>,
}

/// How likely a step is, and how it is made.
type Chance = (u32, fn(&mut StdRng) -> Step);

impl Plan {
    /// The plan of this seed.
    pub fn new(seed: u64, back_end: BackEnd) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        // In turn, so that none is long in coming.
        let weathers = Weather::on(back_end);
        let weather = weathers[(seed % weathers.len() as u64) as usize];
        let chances = weather.chances(back_end);
        let length = rng.random_range(weather.length());
        Self {
            seed,
            weather,
            // `rollcall up` has the clock of the machine.
            is_together: back_end == BackEnd::Files && weather != Weather::Clocks && rng.random(),
            must_announce: weather == Weather::Refusals || rng.random_bool(0.3),
            batch_size: weather.batch_size(&mut rng),
            hold: Duration::from_secs(if weather == Weather::SlowRecordings { 10 } else { rng.random_range(1..4) }),
            steps: (0..length).map(|_| draw(&mut rng, &chances)).collect(),
        }
    }
}

impl Weather {
    fn on(back_end: BackEnd) -> &'static [Self] {
        use Weather::{Calm, Clocks, Crashes, FullDisk, Outages, Purges, Refusals, SlowRecordings};
        match back_end {
            BackEnd::Servers => &[Calm, Crashes, Outages, Refusals, SlowRecordings, Purges, Clocks],
            // A purge that is killed has to be so in the right moment: twice as often.
            BackEnd::Files => &[Calm, Purges, Crashes, SlowRecordings, Purges, Clocks, FullDisk],
        }
    }

    fn length(self) -> std::ops::Range<usize> {
        match self {
            // What a purge has left behind, the next one finds.
            Self::SlowRecordings | Self::Purges => 12..24,
            // Each of them is of thousands.
            Self::Refusals => 14..22,
            // A broker takes seconds to come back.
            Self::Outages => 20..35,
            _ => 30..60,
        }
    }

    fn batch_size(self, rng: &mut StdRng) -> usize {
        match self {
            Self::Purges => one_of(rng, &[1, 2, 5]),
            Self::Refusals => one_of(rng, &[200, 500]),
            _ => one_of(rng, &[1, 20, 200]),
        }
    }

    /// What may happen, and how likely.
    fn chances(self, back_end: BackEnd) -> Vec<Chance> {
        let mut chances: Vec<Chance> = vec![
            (6, |rng| Step::Post(any_kind(rng), rng.random_range(1..60))),
            (1, |rng| Step::PostAgain(rng.random_range(1..20))),
            (1, |_| Step::Announce),
            (3, |rng| Step::Wait(milliseconds(rng, 10..1_000))),
        ];
        let more: &[Chance] = match self {
            Self::Calm => &[
                (3, |rng| Step::Post(Kind::Join, rng.random_range(200..600))),
                (2, |rng| Step::Pause(worker(rng))),
                (2, |rng| Step::Resume(worker(rng))),
                (2, |rng| Step::Purge(worker(rng), None)),
                (1, |rng| Step::FailingServer(rng.random_range(1..5))),
            ],
            Self::Crashes => &[
                (4, |rng| Step::Kill(program(rng))),
                (2, |rng| Step::Restart(program(rng))),
                (2, |rng| Step::Freeze(program(rng), milliseconds(rng, 100..3_000))),
                (1, |rng| Step::SlowServer(rng.random_range(1..10), milliseconds(rng, 500..4_000))),
                (1, |rng| Step::Pause(worker(rng))),
                (1, |rng| Step::Resume(worker(rng))),
            ],
            Self::Outages => &[
                (2, |_| Step::CloseConnections),
                (2, |rng| Step::CloseOne(rng.random_range(0..20))),
                (1, |_| Step::Block),
                (2, |_| Step::Unblock),
                (1, |_| Step::RestartBroker),
                (1, |_| Step::KillBroker),
                (2, |_| Step::EndSessions),
                (1, |rng| Step::Pause(worker(rng))),
                (1, |rng| Step::Resume(worker(rng))),
            ],
            Self::Refusals => &[
                (4, |_| Step::Refuse("attendance.retry")),
                (1, |rng| Step::Refuse(one_of(rng, &["attendance.suspect", "attendance.dead", "recordings.retry"]))),
                (1, |_| Step::Accept),
                (4, |rng| Step::Post(Kind::Unannounced, rng.random_range(150..400))),
                (6, |rng| Step::Post(Kind::Nobody, rng.random_range(500..1_500))),
                // What was refused is tried again each second.
                (5, |rng| Step::Wait(milliseconds(rng, 1_000..3_000))),
            ],
            Self::SlowRecordings => &[
                (4, |rng| Step::Post(Kind::Recording, rng.random_range(10..30))),
                (4, |rng| Step::SlowServer(rng.random_range(20..40), milliseconds(rng, 2_000..4_000))),
                (3, |rng| Step::Wait(milliseconds(rng, 1_000..3_000))),
            ],
            Self::Purges => &[
                (4, |rng| Step::Post(Kind::Join, rng.random_range(200..600))),
                (2, |rng| Step::Purge(WorkerName::Attendance, Some(milliseconds(rng, 0..200)))),
                (1, |rng| Step::Freeze(Program::Worker(AnyWorker::Events(worker(rng))), milliseconds(rng, 100..1_000))),
            ],
            Self::Clocks => &[
                (3, |rng| Step::Post(Kind::Unannounced, rng.random_range(1..20))),
                (2, |rng| Step::Clock(one_of(rng, &[3_600, -3_600, 60, -60]))),
                (2, |_| Step::Clock(0)),
                (2, |rng| Step::FailingServer(rng.random_range(1..10))),
            ],
            Self::FullDisk => &[
                (2, |rng| Step::FillDisk(one_of(rng, &[0, 100_000, 1_000_000, 64 << 20]))),
                (3, |_| Step::EmptyDisk),
                (1, |rng| Step::Kill(program(rng))),
                (1, |rng| Step::Purge(worker(rng), None)),
            ],
        };
        chances.extend(more);
        if self == Self::SlowRecordings && back_end == BackEnd::Servers {
            chances.extend([(4, (|_| Step::CloseConnections) as fn(&mut StdRng) -> Step)]);
        }
        if self == Self::SlowRecordings && back_end == BackEnd::Files {
            let kill = |_: &mut StdRng| Step::Kill(Program::Worker(AnyWorker::Events(WorkerName::Recordings)));
            chances.extend([(1, kill as fn(&mut StdRng) -> Step)]);
        }
        chances
    }
}

fn draw(rng: &mut StdRng, chances: &[Chance]) -> Step {
    let mut left = rng.random_range(0..chances.iter().map(|(weight, _)| weight).sum());
    for (weight, step) in chances {
        if left < *weight {
            return step(rng);
        }
        left -= weight;
    }
    unreachable!("it is less than their sum")
}

fn one_of<T: Copy>(rng: &mut StdRng, these: &[T]) -> T {
    these[rng.random_range(0..these.len())]
}

fn any_kind(rng: &mut StdRng) -> Kind {
    use Kind::{Bot, Finish, Join, Leave, Nobody, Recording, Start, Unannounced, Unwanted};
    one_of(rng, &[Join, Join, Leave, Start, Finish, Recording, Nobody, Unannounced, Bot, Unwanted])
}

fn worker(rng: &mut StdRng) -> WorkerName {
    one_of(rng, &WorkerName::ALL)
}

fn program(rng: &mut StdRng) -> Program {
    match rng.random_range(0..=AnyWorker::ALL.len()) {
        0 => Program::Ingress,
        other => Program::Worker(AnyWorker::ALL[other - 1]),
    }
}

fn milliseconds(rng: &mut StdRng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ingress => f.write_str("the ingress"),
            Self::Worker(worker) => write!(f, "the worker {worker}"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Post(kind, count) => write!(f, "post {count} × {kind:?}"),
            Self::PostAgain(count) => write!(f, "post {count} once more"),
            Self::Announce => f.write_str("the LMS announces its rooms"),
            Self::SlowServer(count, time) => write!(f, "the next {count} downloads take {time:?}"),
            Self::FailingServer(count) => write!(f, "the next {count} downloads fail"),
            Self::Kill(program) => write!(f, "kill {program}"),
            Self::Restart(program) => write!(f, "restart {program}"),
            Self::Freeze(program, time) => write!(f, "freeze {program} for {time:?}"),
            Self::CloseConnections => f.write_str("the broker closes every connection"),
            Self::CloseOne(which) => write!(f, "the broker closes connection {which}"),
            Self::Refuse(queue) => write!(f, "{queue} refuses what it is given"),
            Self::Accept => f.write_str("no queue refuses any more"),
            Self::Block => f.write_str("the broker is short of memory"),
            Self::Unblock => f.write_str("the broker has memory again"),
            Self::RestartBroker => f.write_str("restart the broker"),
            Self::KillBroker => f.write_str("kill the broker"),
            Self::EndSessions => f.write_str("end the sessions with the database"),
            Self::Pause(worker) => write!(f, "rollcall pause {worker}"),
            Self::Resume(worker) => write!(f, "rollcall resume {worker}"),
            Self::Purge(worker, None) => write!(f, "rollcall purge {worker}"),
            Self::Purge(worker, Some(time)) => write!(f, "rollcall purge {worker}, killed {time:?} after its first"),
            Self::Clock(seconds) => write!(f, "the workers' clocks are {seconds} s ahead"),
            Self::FillDisk(left) => write!(f, "the queue's disk has {left} bytes left"),
            Self::EmptyDisk => f.write_str("the queue's disk has room again"),
            Self::Wait(time) => write!(f, "wait {time:?}"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, weather, is_together, must_announce, batch_size, hold, steps } = self;
        let how = if *is_together { "rollcall up" } else { "a program each" };
        let unknown = if *must_announce { ", rooms must be announced" } else { "" };
        write!(
            f,
            "seed {seed}: {weather:?}, {how}, batches of {batch_size}, hold {hold:?}{unknown}, {} steps",
            steps.len()
        )
    }
}
