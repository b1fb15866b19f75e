//! Sending dead letters back to their workers, and what became of it.
//!
//! Each is sent with its id and the number of this replay, one more than were confirmed. Only when the queue has it for certain
//! is the row marked: whoever is killed in between sends it again, by the same number, and what it changes is the same. While a
//! page is being sent, the next one is read and the last one marked.
//!
//! A worker may be quicker than the mark. It raises `replays` to this number itself when it applies the letter, and so does the
//! worker `dead-letters` when it has died again; the state is then theirs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::num::NonZeroU32;
use std::time::Duration;

use chrono::Utc;
use futures_util::future::join_all;
use rand::RngExt as _;
use sea_orm::sea_query::{Expr, ExprTrait as _};
use sea_orm::{
    ColumnTrait as _, Condition, DatabaseConnection, DbErr, EntityTrait as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _,
};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::change::{lock, record};
use super::limits::{BadValue, MAX_REPLAYS, REPLAYS, check_body, check_name, check_source, check_time, value};
use super::walk::{PAGE_ROWS, Walk};
use super::{By, Filter, State};
use crate::event::{UnknownWorker, WorkerName};
use crate::plugnmeet::webhook::{self, ParseError};
use crate::queue::{MAX_BODY, Message, PublishError, Replay, Sender};
use crate::store::entity::dead_letter::{self, Column, Entity};
use crate::store::transaction;

/// How long the queue may take to have one letter for certain.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// How many pages of a replay with a rate there are in a second.
const PAGES_PER_SECOND: u32 = 4;

/// One replay of any number of dead letters.
#[derive(Debug, Clone)]
pub struct Run {
    /// What it is called: `replay_run` of its rows.
    pub id: String,
    /// Who does it, and why.
    pub by: By,
    /// The most that are sent in a second.
    pub rate: Option<NonZeroU32>,
}

/// What a replay has come to. What was not sent is as it was.
#[derive(Debug, Default)]
pub struct Report {
    /// How many were sent, and are in the queue for certain.
    pub sent: u64,
    /// How many of those could not be marked: they are sent again by the next run, which does no harm.
    pub unmarked: u64,
    /// How many were no longer in a state in which they were wanted when it was their turn.
    pub passed: u64,
    /// Those that no worker can be sent, and why.
    pub impossible: Vec<(i64, String)>,
    /// Why it ended before the end, unless it was told to stop.
    pub error: Option<ReplayError>,
}

/// Why a replay ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The queue is not there, or does not take more.
    #[error("the queue did not take them all: {0}")]
    Queue(#[from] PublishError),
    /// The database.
    #[error("the database: {0}")]
    Database(#[from] DbErr),
}

/// A letter as it is sent.
struct Outgoing {
    worker: WorkerName,
    replay: Replay,
    message: Message,
}

impl Run {
    /// A new one. Its name says when it was, in UTC.
    pub fn new(by: By, rate: Option<NonZeroU32>) -> Self {
        let mut id = Utc::now().format("%Y%m%d-%H%M%S-").to_string();
        write!(id, "{:04x}", rand::rng().random::<u16>()).expect("a string takes everything");
        Self { id, by, rate }
    }

    /// Sends the dead letters of `filter` back to their workers, until there are no more or `stop` says so. `told` is told how
    /// many more were sent or passed by, again and again.
    pub async fn replay(
        &self,
        db: &DatabaseConnection,
        sender: &Sender,
        filter: &Filter,
        stop: &CancellationToken,
        told: impl Fn(u64),
    ) -> Report {
        let mut report = Report::default();
        let mut unmarked = Vec::new();
        if let Err(error) = self.send_all(db, sender, filter, stop, &told, (&mut report, &mut unmarked)).await {
            report.error = Some(error);
        }
        if let Err(error) = self.mark(db, filter, &unmarked).await {
            report.unmarked = unmarked.len() as u64;
            report.error.get_or_insert(error.into());
        }
        report
    }

    async fn send_all(
        &self,
        db: &DatabaseConnection,
        sender: &Sender,
        filter: &Filter,
        stop: &CancellationToken,
        told: &impl Fn(u64),
        (report, unmarked): (&mut Report, &mut Vec<Replay>),
    ) -> Result<(), ReplayError> {
        let mut pages = Pages::new(self, db, filter, stop).await?;
        let mut page = pages.next().await?;
        while let Some(Page { letters, passed, impossible }) = page {
            report.passed += passed;
            report.impossible.extend(impossible);
            let (sent, next, marked) =
                tokio::join!(send(sender, letters), pages.next(), self.mark(db, filter, unmarked));
            if marked.is_ok() {
                unmarked.clear();
            }
            unmarked.extend(&sent.confirmed);
            report.sent += sent.confirmed.len() as u64;
            told(passed + sent.confirmed.len() as u64);
            sent.error.map_or(Ok(()), Err)?;
            marked?;
            page = next?;
        }
        Ok(())
    }

    /// Says of letters that they were sent.
    async fn mark(&self, db: &DatabaseConnection, filter: &Filter, sent: &[Replay]) -> Result<(), DbErr> {
        let mut from = vec![State::Dead, State::Replaying];
        from.extend([State::Applied, State::Dropped].into_iter().filter(|state| filter.takes(state.as_str())));
        let mut by_number: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
        for replay in sent {
            by_number.entry(replay.number).or_default().push(replay.dead_letter_id);
        }
        for (number, ids) in &by_number {
            for ids in ids.chunks(PAGE_ROWS) {
                self.mark_as(db, &from, *number, ids).await?;
            }
        }
        Ok(())
    }

    /// What somebody has dropped or purged meanwhile stays dropped, unless it was sent because it was.
    async fn mark_as(&self, db: &DatabaseConnection, from: &[State], number: i32, ids: &[i64]) -> Result<(), DbErr> {
        transaction(db, |tx| async move {
            lock(&tx, ids).await?;
            let now = Utc::now();
            let these = Condition::all().add(Column::Id.is_in(ids.iter().copied()));
            let is_news = Column::Replays.lt(number);
            let from = from.iter().map(|state| state.as_str());
            let waits = is_news.clone().and(Column::State.is_in(from));
            let state = Expr::case(waits, State::Replaying.as_str()).finally(Expr::col(Column::State));
            let replays = Expr::case(is_news, number).finally(Expr::col(Column::Replays));
            Entity::update_many()
                .col_expr(Column::State, state.into())
                .col_expr(Column::Replays, replays.into())
                .col_expr(Column::ReplayedAt, Expr::value(now))
                .col_expr(Column::ReplayedBy, Expr::value(self.by.name.as_str()))
                .col_expr(Column::ReplayRun, Expr::value(self.id.as_str()))
                .col_expr(Column::UpdatedAt, Expr::value(now))
                .filter(these.clone())
                .exec(&*tx)
                .await?;
            record(&tx, these, "replayed", &self.by, now).await?;
            Ok(())
        })
        .await
    }
}

/// What is to be sent at once.
#[derive(Default)]
struct Page {
    letters: Vec<Outgoing>,
    passed: u64,
    impossible: Vec<(i64, String)>,
}

/// The pages of a run, each read when it is due.
struct Pages<'a> {
    db: &'a DatabaseConnection,
    filter: &'a Filter,
    stop: &'a CancellationToken,
    walk: Walk,
    rate: Option<NonZeroU32>,
    begun: Instant,
    given: u32,
}

impl<'a> Pages<'a> {
    async fn new(
        run: &Run,
        db: &'a DatabaseConnection,
        filter: &'a Filter,
        stop: &'a CancellationToken,
    ) -> Result<Self, DbErr> {
        let rows = run.rate.map_or(PAGE_ROWS, |rate| rate.get().div_ceil(PAGES_PER_SECOND) as usize);
        let walk = Walk::new(db, filter, rows).await?;
        Ok(Self { db, filter, stop, walk, rate: run.rate, begun: Instant::now(), given: 0 })
    }

    /// The next page, when it is due; none at the end, or when told to stop.
    async fn next(&mut self) -> Result<Option<Page>, DbErr> {
        let due =
            self.begun + self.rate.map_or(Duration::ZERO, |rate| Duration::from_secs(1) * self.given / rate.get());
        if self.stop.run_until_cancelled(sleep_until(due)).await.is_none() || self.stop.is_cancelled() {
            return Ok(None);
        }
        let ids = self.walk.next(self.db).await?;
        if ids.is_empty() {
            return Ok(None);
        }
        let rows = Entity::find().filter(Column::Id.is_in(ids.iter().copied())).order_by_asc(Column::Id);
        let mut page = Page::default();
        for row in rows.all(self.db).await? {
            // Since its id was read, somebody may have dropped it.
            if !self.filter.takes(&row.state) {
                continue;
            }
            let id = row.id;
            match Outgoing::of(row) {
                Ok(outgoing) => page.letters.push(outgoing),
                Err(why) => page.impossible.push((id, why.to_string())),
            }
        }
        page.passed = (ids.len() - page.letters.len()) as u64;
        self.given = self.given.saturating_add(u32::try_from(page.letters.len()).unwrap_or(u32::MAX));
        Ok(Some(page))
    }
}

/// Why a dead letter cannot be sent.
#[derive(Debug, thiserror::Error)]
enum Unsendable {
    #[error(transparent)]
    Value(#[from] BadValue),
    #[error(transparent)]
    Worker(#[from] UnknownWorker),
    #[error("it was edited, and its worker would not understand it: {0}; edit it again, or --revert that")]
    Edited(ParseError),
}

impl Outgoing {
    /// A row as the message that it becomes, or why it cannot be one.
    fn of(row: dead_letter::Model) -> Result<Self, Unsendable> {
        check_name("event", &row.event)?;
        check_source(&row.source)?;
        check_time("received_at", row.received_at)?;
        check_body("body", row.body.len(), MAX_BODY)?;
        let worker = row.worker.parse::<WorkerName>()?;
        let id = row.message_id.parse().map_err(|_| value("message_id", &row.message_id, "a UUID"))?;
        let number = row.replays.checked_add(1).filter(|number| (1..=MAX_REPLAYS).contains(number));
        let number = number.ok_or_else(|| value("replays", row.replays, REPLAYS))?;
        if row.original_body.is_some()
            && let Err(problem) = webhook::parse(&row.source, &row.body, row.received_at)
        {
            return Err(Unsendable::Edited(problem));
        }
        let replay = Replay { dead_letter_id: row.id, number };
        let message = Message {
            id,
            event_id: row.event_id,
            room_id: row.room_id,
            received_at: row.received_at,
            traceparent: row.traceparent,
            replay: Some(replay),
            ..Message::new(&row.source, &row.event, row.body.into())
        };
        Ok(Self { worker, replay, message })
    }
}

/// What has become of a page.
#[derive(Default)]
struct Sent {
    confirmed: Vec<Replay>,
    error: Option<ReplayError>,
}

/// Sends letters at once, and waits until each is in the queue for certain or is not.
async fn send(sender: &Sender, letters: Vec<Outgoing>) -> Sent {
    let one = async |Outgoing { worker, replay, message }| {
        sender.send(worker, message, CONFIRM_TIMEOUT).await.map(|()| replay)
    };
    let mut all = Sent::default();
    for sent in join_all(letters.into_iter().map(one)).await {
        match sent {
            Ok(replay) => all.confirmed.push(replay),
            Err(error) => all.error = Some(error.into()),
        }
    }
    all
}

/// What has become of the dead letters of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// Their worker has not told yet.
    pub replaying: u64,
    /// They have taken effect.
    pub applied: u64,
    /// They have died again.
    pub dead: u64,
    /// Somebody has dropped them since.
    pub dropped: u64,
}

impl Standing {
    /// How many there are. A replay that sends one of them again makes it its own: they become fewer.
    pub fn count(self) -> u64 {
        self.replaying + self.applied + self.dead + self.dropped
    }
}

/// The workers that have not told yet of a letter of the run.
///
/// # Errors
/// The database.
pub async fn awaited(db: &DatabaseConnection, run: &str) -> Result<Vec<String>, DbErr> {
    Entity::find()
        .select_only()
        .distinct()
        .column(Column::Worker)
        .filter(Column::ReplayRun.eq(run))
        .filter(Column::State.eq(State::Replaying.as_str()))
        .order_by_asc(Column::Worker)
        .into_tuple()
        .all(db)
        .await
}

/// What has become of the dead letters of a run, so far.
///
/// # Errors
/// The database.
pub async fn standing(db: &DatabaseConnection, run: &str) -> Result<Standing, DbErr> {
    let counts: Vec<(String, i64)> = Entity::find()
        .select_only()
        .column(Column::State)
        .expr(Column::Id.count())
        .filter(Column::ReplayRun.eq(run))
        .group_by(Column::State)
        .into_tuple()
        .all(db)
        .await?;
    let count = |state: State| {
        let count = counts.iter().find(|(name, _)| name == state.as_str()).map_or(0, |(_, count)| *count);
        count.try_into().unwrap_or_default()
    };
    Ok(Standing {
        replaying: count(State::Replaying),
        applied: count(State::Applied),
        dead: count(State::Dead),
        dropped: count(State::Dropped),
    })
}
