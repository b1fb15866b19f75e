//! Recordings: fetched from the server, looked at, archived with a thumbnail, done once.
//!
//! Both events ask for the same: `end_recording` usually comes long before the file can be had, `recording_proceeded` when it
//! can. Whichever comes takes the recording's [`lease`]; under it a job of its own asks the server for the file
//! ([`download`]), looks what it is ([`media`]), puts it where it stays ([`archive`]) and makes the row `ready` in one
//! transaction that gives the lease back. A delivery waits for its job only so long, for the broker does not wait for
//! hours: past that it comes back later and looks what has become of it.
//!
//! What goes wrong stands in the row's `error` while the event is tried again, and the row is `failed` when it is given up.
//! That a recording kills the processes that fetch it is counted by its lease, and not by its delivery, which may be gone by then.
//!
//! The server and its files are not trusted with this machine: where a download may lead ([`redirects`](rollcall_shared::plugnmeet::redirects)),
//! how long and how slow it may be ([`download`]), what of the disk it leaves to others ([`room`]), and what may be spent on
//! looking at it ([`media`]) have limits. A full disk is waited for; what another limit ended is dead at once.

mod archive;
pub mod checkup;
mod download;
mod lease;
mod media;
mod pace;
mod room;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use chrono::Utc;
use futures_util::FutureExt as _;
use rollcall_shared::causes::in_one_line;
use rollcall_shared::config::{self, Settings, UnknownSessions};
use rollcall_shared::dead_letters;
use rollcall_shared::event::{Change, Event, WorkerName};
use rollcall_shared::plugnmeet::api;
use rollcall_shared::queue::{DeadKind, Replayed};
use rollcall_shared::store::entity::live_session_recording::{ActiveModel, Column, Entity, Model};
use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, DatabaseConnection, EntityTrait as _, ExprTrait as _, QueryFilter as _,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use self::archive::{Archive, WorkFile};
use self::download::{Demands, Fetched};
use self::lease::{Asked, Lease};
use self::media::{Fault, Media, ToolError, Tools};
use crate::cause::Told;
use crate::sessions;
use crate::transaction::{apply, in_time, transaction};
use crate::worker::{Batch, Failure, Handled, Job, Outcome, Worker};

const PROCESSING: &str = "processing";
const READY: &str = "ready";
const FAILED: &str = "failed";

/// How long a job that has ended waits for a database that has gone away: longer than a restart takes, and fetching a gigabyte
/// again costs more than waiting.
const DATABASE_PATIENCE: Duration = Duration::from_mins(10);
/// How long it does so in a process that is told to stop.
const FAREWELL_PATIENCE: Duration = Duration::from_secs(10);
/// The longest that a job itself waits when a server wants to be left alone; for longer, the event comes back later.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// How often it does so for one request.
const WAITS: usize = 3;
/// When a job that was stopped with its process may go on in another.
const AT_ONCE: Duration = Duration::ZERO;

/// The worker.
#[derive(Debug)]
pub struct Recordings {
    archivist: Arc<Archivist>,
    /// Jobs that outlive their deliveries count too.
    slots: Arc<Semaphore>,
    concurrency: u32,
    hold: Duration,
    lease: Duration,
    jobs: TaskTracker,
    stop: CancellationToken,
}

/// What a job needs.
#[derive(Debug)]
struct Archivist {
    db: DatabaseConnection,
    servers: BTreeMap<String, api::Client>,
    unknown: UnknownSessions,
    tools: Tools,
    archive: Archive,
    demands: Demands,
    /// Whether recordings wait for room on the disk: so that it is told once.
    waits_for_room: AtomicBool,
}

/// How a job ended.
enum End {
    /// The recording is ready. The lease is given back.
    Ready,
    /// The lease is another job's.
    Lost,
    /// This process is told to stop.
    Stopped,
    /// There is no room on the disk: like this.
    Full(Failure),
    /// It did not work.
    Failed(Failure),
}

impl Worker for Recordings {
    const NAME: WorkerName = WorkerName::Recordings;

    async fn handle(&self, batch: &Batch) -> Result<Handled, Failure> {
        // A job each. What fails as a batch is given again one by one.
        let mut events = batch.iter();
        match (events.next(), events.next()) {
            (Some((event, replay)), None) => self.archive(event, replay).await,
            _ => Err(Failure::transient(anyhow!("recordings are archived one by one"))),
        }
    }

    async fn gave_up(&self, event: &Event, failure: &Failure) -> Result<(), Failure> {
        let Change::Recording(recording) = &event.change else { return Ok(()) };
        let update = ActiveModel { status: Set(FAILED.into()), ..error_row(failure) };
        let update = &Entity::update_many()
            .set(update)
            .filter(Column::Source.eq(&event.room.source))
            .filter(Column::RecordId.eq(&recording.record_id))
            .filter(Column::Status.ne(READY));
        transaction(&self.archivist.db, |tx| async move { Ok(update.clone().exec(&*tx).await.map(|_| ())?) }).await
    }

    /// Stops the jobs: each gives its lease back, so that another process takes over at once, and removes its files.
    async fn shutdown(&self) {
        self.stop.cancel();
        self.jobs.close();
        self.jobs.wait().await;
    }
}

impl Recordings {
    /// The worker as the settings have it, with `db` to write to.
    ///
    /// # Errors
    /// The storage cannot be opened, or an HTTP client cannot be made.
    pub fn new(settings: &Settings, db: DatabaseConnection) -> anyhow::Result<Self> {
        let config::Recordings { concurrency, hold, lease, read_timeout, ref redirect_hosts, .. } = settings.recordings;
        let tools = Tools::new(&settings.recordings);
        if let Err(error) = tools.check() {
            tracing::warn!(%error, "no recording can be archived until this is mended");
        }
        let client = |(name, server): (&String, &config::PlugNMeet)| {
            let client = api::Client::new(server, read_timeout, redirect_hosts);
            anyhow::Ok((name.clone(), client.with_context(|| format!("setting plugnmeet.{name}"))?))
        };
        let archivist = Archivist {
            db,
            servers: settings.plugnmeet.iter().map(client).collect::<Result<_, _>>()?,
            unknown: settings.sessions.unknown,
            tools,
            archive: Archive::open(settings)?,
            demands: Demands::of(&settings.recordings),
            waits_for_room: AtomicBool::new(false),
        };
        Ok(Self {
            archivist: Arc::new(archivist),
            slots: Arc::new(Semaphore::new(concurrency)),
            concurrency: concurrency.try_into().context("setting recordings.concurrency")?,
            hold,
            lease,
            jobs: TaskTracker::new(),
            stop: CancellationToken::new(),
        })
    }

    async fn archive(&self, event: &Event, replay: Option<Replayed>) -> Result<Handled, Failure> {
        let row = self.archivist.open(event, replay).await?;
        if row.status == READY {
            apply(&self.archivist.db, replay.as_slice(), |_| async { Ok(()) }).await?;
            return Ok(Outcome::Applied.into());
        }
        // Alone: whichever of several has killed this process, all would be poison.
        let slots = if lease::is_last_chance(&self.archivist.db, row.id).await? { self.concurrency } else { 1 };
        let Ok(slots) = Arc::clone(&self.slots).try_acquire_many_owned(slots) else {
            return Ok(Outcome::LookAgain(self.lease).into());
        };
        match Lease::ask(&self.archivist.db, row.id, self.lease).await? {
            Asked::Ours(lease) => {
                let job = self.start(row.id, replay, lease, slots);
                let ended = Box::pin(wait_for(job, self.hold, self.lease));
                Ok(Handled::UnderWay(Job { ended, look_again: self.lease }))
            }
            Asked::Held => Ok(Outcome::LookAgain(self.lease).into()),
            Asked::Failed(failure) => Err(failure),
            Asked::Poison => Err(poison(&row)),
        }
    }

    /// Starts the job, which goes on whether or not somebody waits for what it comes to.
    fn start(
        &self,
        id: i64,
        replay: Option<Replayed>,
        lease: Lease,
        slots: OwnedSemaphorePermit,
    ) -> oneshot::Receiver<Result<Outcome, Failure>> {
        let (done, waiting) = oneshot::channel();
        let (archivist, stop, look_again) = (Arc::clone(&self.archivist), self.stop.clone(), self.lease);
        let job = async move {
            let end = tokio::select! {
                () = stop.cancelled() => End::Stopped,
                () = lease.keep() => End::Lost,
                end = AssertUnwindSafe(archivist.job(id, replay, &lease)).catch_unwind() => match end {
                    Ok(Ok(end)) => end,
                    Ok(Err(failure)) if room::is_full(failure.error()) => End::Full(failure),
                    Ok(Err(failure)) => End::Failed(failure),
                    Err(_) => End::Failed(Failure::transient(Told::new("panic", "the job panicked"))),
                },
            };
            archivist.tell_of_room(&end);
            // A lease that is left behind tells of a death.
            let conclude = || archivist.conclude(id, &lease, &end, done.is_closed());
            let concluded = match stop.run_until_cancelled(patiently(DATABASE_PATIENCE, conclude)).await {
                Some(concluded) => concluded,
                None => patiently(FAREWELL_PATIENCE, conclude).await,
            };
            if let Err(error) = concluded {
                tracing::warn!(%error, "a lease could not be given back; it runs out by itself");
            }
            drop(slots);
            // Where the delivery stops waiting just now, the failure is lost and the event tried once more than it would be.
            let _ = done.send(match end {
                End::Ready => Ok(Outcome::Applied),
                End::Lost | End::Full(_) => Ok(Outcome::LookAgain(look_again)),
                End::Stopped => Ok(Outcome::LookAgain(AT_ONCE)),
                End::Failed(failure) => Err(failure),
            });
        };
        self.jobs.spawn(job.in_current_span());
        waiting
    }
}

/// Waits for a job as long as a delivery may, which then looks after it.
async fn wait_for(
    mut job: oneshot::Receiver<Result<Outcome, Failure>>,
    hold: Duration,
    look_again: Duration,
) -> Result<Outcome, Failure> {
    let ended = match tokio::time::timeout(hold, &mut job).await {
        Ok(ended) => ended.ok(),
        Err(_) => {
            job.close();
            job.try_recv().ok()
        }
    };
    ended.unwrap_or(Ok(Outcome::LookAgain(look_again)))
}

impl Archivist {
    /// The recording's row, `processing` if it is new or was given up before. What is poison was given up for good, unless an
    /// operator has it tried again.
    async fn open(&self, event: &Event, replay: Option<Replayed>) -> Result<Model, Failure> {
        let Change::Recording(recording) = &event.change else {
            return Err(Failure::permanent(anyhow!("this event is not about a recording: {:?}", event.change)));
        };
        transaction(&self.db, |tx| async move {
            let tx = &*tx;
            let session = sessions::resolve(tx, &[&event.room], self.unknown).await?;
            let new = ActiveModel {
                session_id: Set(*session.first().context("the room has no session").map_err(Failure::permanent)?),
                source: Set(event.room.source.clone()),
                record_id: Set(recording.record_id.clone()),
                title: Set(event.room.title.as_deref().and_then(clean)),
                status: Set(PROCESSING.into()),
                ..Default::default()
            };
            let key = [Column::Source, Column::RecordId];
            Entity::insert(new).on_conflict_do_nothing_on(key).exec_without_returning(tx).await?;
            let this = Column::Source.eq(&event.room.source).and(Column::RecordId.eq(&recording.record_id));
            let row = Entity::find().filter(this).one(tx).await?;
            let mut row = row.context("the recording's row is gone").map_err(Failure::transient)?;
            if row.status == FAILED {
                if replay.is_some() {
                    lease::begin_anew(tx, row.id).await?;
                } else if lease::is_poison(tx, row.id).await? {
                    return Err(poison(&row));
                }
                row.status = PROCESSING.into();
                let again =
                    ActiveModel { status: Set(PROCESSING.into()), updated_at: Set(Utc::now()), ..Default::default() };
                let given_up = Column::Id.eq(row.id).and(Column::Status.eq(FAILED));
                Entity::update_many().set(again).filter(given_up).exec(tx).await?;
            }
            Ok(row)
        })
        .await
    }

    /// What is done under the lease.
    async fn job(&self, id: i64, replay: Option<Replayed>, lease: &Lease) -> Result<End, Failure> {
        let row = in_time(async { Ok(Entity::find_by_id(id).one(&self.db).await?) }).await?;
        let row = row.context("the recording's row is gone").map_err(Failure::transient)?;
        if row.status == READY {
            // Another job was done with it between our look at the row and our lease.
            apply(&self.db, replay.as_slice(), |tx| async move { Ok(lease.end(&tx).await.map(|_| ())?) }).await?;
            return Ok(End::Ready);
        }
        let end = self.archive(&row, replay, lease).await;
        end.map_err(|failure| within(format!("recording {} of {}", row.record_id, row.source), failure))
    }

    /// From the server's word for it to a row that says `ready`.
    async fn archive(&self, row: &Model, replay: Option<Replayed>, lease: &Lease) -> Result<End, Failure> {
        let server = self.server(&row.source)?;
        self.sweep().await;
        self.look_for_room()?;
        let info = asking("asking about it", || server.recording_info(&row.record_id)).await?;
        self.tools.check().map_err(|error| Failure::transient(error.told()))?;

        let file = self.archive.work_file(row.id, lease, archive::RECORDING);
        let fetched = download::fetch(server, &row.record_id, &file.path, self.archive.room(), &self.demands)
            .await
            .map_err(|failure| within("downloading", failure))?;
        tracing::debug!(bytes = fetched.size, "downloaded");
        let thumbnail = self.archive.work_file(row.id, lease, archive::THUMBNAIL);
        // Meanwhile the disk gets on with it: publishing waits for that.
        let (synced, looked) = tokio::join!(file.sync(), self.look(&file, &thumbnail));
        // Said once: the next sync of the same file would not tell again.
        synced.context("cannot write to the disk").map_err(Failure::transient)?;
        let (media, thumbnail_error) = looked?;
        tracing::debug!(?media, "looked at");

        let recorded_at = info.created_at.unwrap_or(row.created_at);
        let key = archive::key(&row.source, recorded_at, row.id, &fetched.sha256);
        let file_key = format!("{key}.{}", media.extension);
        let thumbnail_key = (media.video.is_some() && thumbnail_error.is_none()).then(|| format!("{key}.jpg"));
        self.publish(&file, &file_key).await?;
        if let Some(key) = &thumbnail_key {
            self.publish(&thumbnail, key).await?;
        }

        let title = info.title.as_deref().and_then(clean).or_else(|| row.title.clone());
        let ready = ActiveModel {
            file_name: Set(Some(archive::file_name(title.as_deref(), recorded_at, &row.record_id, media.extension))),
            title: Set(title),
            file_key: Set(Some(file_key)),
            thumbnail_key: Set(thumbnail_key),
            recorded_at: Set(info.created_at),
            error: Set(thumbnail_error),
            ..ready_row(&fetched, media)
        };
        let done = patiently(DATABASE_PATIENCE, || self.make_ready(row.id, replay, lease, &ready)).await?;
        tracing::info!(record_id = row.record_id, bytes = fetched.size, "a recording is archived");
        Ok(if done { End::Ready } else { End::Lost })
    }

    fn server(&self, source: &str) -> Result<&api::Client, Failure> {
        self.servers
            .get(source)
            .ok_or_else(|| Told::new("server-unknown", format!("the settings have no server plugnmeet.{source}")))
            .map_err(Failure::transient)
    }

    /// Before a server is asked for anything: it would be in vain.
    fn look_for_room(&self) -> Result<(), Failure> {
        self.archive.room().check(0).map_err(Failure::transient)
    }

    async fn sweep(&self) {
        if let Err(error) = self.archive.sweep(&self.db).await {
            tracing::warn!(error = in_one_line(&error), "what died jobs have left could not be removed");
        }
    }

    /// What the file is; its thumbnail, or why there is none although it has a picture.
    async fn look(&self, file: &WorkFile, thumbnail: &WorkFile) -> Result<(Media, Option<String>), Failure> {
        // Both at once, although the thumbnail of a file without a picture is made in vain.
        let (media, made) =
            tokio::try_join!(async { self.tools.probe(&file.path).await.map_err(not_probed) }, async {
                Ok(self.tools.thumbnail(&file.path, &thumbnail.path).await)
            },)?;
        let error = match made {
            Err(error) if media.video.is_some() => Some(format!("no thumbnail: {:#}", anyhow::Error::new(error))),
            _ => None,
        };
        if let Some(error) = &error {
            tracing::warn!(error, "a recording has no thumbnail");
        }
        Ok((media, error))
    }

    async fn publish(&self, file: &WorkFile, key: &str) -> Result<(), Failure> {
        let stored = self.archive.publish(file, key).await.with_context(|| format!("storing {key}"));
        stored.map_err(Failure::transient)
    }

    /// Makes the row ready and gives the lease back; `false`, and nothing changed, if the lease is another job's.
    async fn make_ready(
        &self,
        id: i64,
        replay: Option<Replayed>,
        lease: &Lease,
        ready: &ActiveModel,
    ) -> Result<bool, Failure> {
        transaction(&self.db, |tx| async move {
            let ours = lease.end(&tx).await?;
            if ours {
                Entity::update_many().set(ready.clone()).filter(Column::Id.eq(id)).exec(&*tx).await?;
                dead_letters::applied(&tx, replay.as_slice()).await?;
            }
            Ok(ours)
        })
        .await
    }

    /// Says when recordings begin to wait for room on the disk, and when they go on.
    fn tell_of_room(&self, end: &End) {
        match end {
            End::Full(failure) if !self.waits_for_room.swap(true, Ordering::Relaxed) => {
                tracing::warn!(error = %failure, "recordings wait for room on the disk");
            }
            End::Ready if self.waits_for_room.swap(false, Ordering::Relaxed) => {
                tracing::info!("there is room for recordings again");
            }
            _ => {}
        }
    }

    /// Gives the lease back after a job that did not make the recording ready, and says why in the row. Where it is another
    /// job's, nobody has died for that.
    async fn conclude(&self, id: i64, lease: &Lease, end: &End, nobody_waits: bool) -> Result<(), Failure> {
        let failure = match end {
            End::Ready => return Ok(()),
            // A database that is away is nobody's failure.
            End::Lost | End::Stopped | End::Failed(Failure::Unreachable(_)) => None,
            End::Failed(failure) | End::Full(failure) => Some(failure),
        };
        let is_left = nobody_waits && matches!(end, End::Failed(_));
        transaction(&self.db, |tx| async move {
            let ours = match failure {
                Some(failure) if is_left => lease.end_with(&tx, failure).await?,
                _ => lease.end(&tx).await?,
            };
            if !ours {
                lease.take_death_back(&tx).await?;
            } else if let Some(failure) = failure {
                let this = Column::Id.eq(id).and(Column::Status.eq(PROCESSING));
                Entity::update_many().set(error_row(failure)).filter(this).exec(&*tx).await?;
            }
            Ok(())
        })
        .await
    }
}

/// The columns that follow from the file.
fn ready_row(fetched: &Fetched, media: Media) -> ActiveModel {
    let recording_type = if media.video.is_some() { "video" } else { "voice" };
    let (width, height, codec) = media.video.map(|video| (video.width, video.height, video.codec)).unwrap_or_default();
    ActiveModel {
        recording_type: Set(Some(recording_type.into())),
        status: Set(READY.into()),
        file_size: Set(fetched.size.try_into().ok()),
        sha256: Set(Some(fetched.sha256.clone())),
        duration_seconds: Set(media.duration_seconds),
        width: Set(width),
        height: Set(height),
        video_codec: Set(codec),
        updated_at: Set(Utc::now()),
        ..Default::default()
    }
}

fn error_row(failure: &Failure) -> ActiveModel {
    ActiveModel { error: Set(clean(&failure.to_string())), updated_at: Set(Utc::now()), ..Default::default() }
}

fn poison(row: &Model) -> Failure {
    let what =
        "whoever fetches it dies: the process that has it was gone again and again before it could say how that went";
    let error = Told::new(DeadKind::Poison.as_str(), what);
    within(format!("recording {} of {}", row.record_id, row.source), Failure::Poison(error.into()))
}

/// A text that PostgreSQL takes (it refuses NUL); `None` if nothing is left.
fn clean(text: &str) -> Option<String> {
    let text = text.replace(char::is_control, " ").trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// The file came whole and is no page of a proxy's, so what ffprobe cannot do with it now it will not do later either. Everything
/// else is this machine's trouble.
fn not_probed(error: ToolError) -> Failure {
    let fault = error.fault();
    let error = anyhow::Error::new(error.told());
    match fault {
        Fault::NoRecording => Failure::permanent(error.context("the file is not a recording")),
        Fault::TooCostly => Failure::permanent(error.context("looking what the file is")),
        Fault::Machine => Failure::transient(error.context("looking what the file is")),
    }
}

/// Asks a server, and again when it said how soon it may be asked again.
async fn asking<T, F>(doing: &'static str, ask: impl Fn() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, api::Error>>,
{
    for _ in 0..WAITS {
        let answer = ask().await;
        let wait = answer.as_ref().err().and_then(api::Error::retry_after).filter(|wait| *wait <= LONGEST_WAIT);
        let Some(wait) = wait else { return answer.map_err(|error| refused(doing, error)) };
        tracing::debug!(?wait, "the server wants to be left alone");
        tokio::time::sleep(wait).await;
    }
    ask().await.map_err(|error| refused(doing, error))
}

fn refused(doing: &'static str, error: api::Error) -> Failure {
    let kind = error.kind();
    let error = anyhow::Error::new(error).context(doing);
    match kind {
        api::Kind::Transient => Failure::Transient(error),
        api::Kind::Permanent => Failure::Permanent(error),
    }
}

/// Does it again while the database is away, for [`DATABASE_PATIENCE`].
async fn patiently<T, F: Future<Output = Result<T, Failure>>>(
    patience: Duration,
    work: impl Fn() -> F,
) -> Result<T, Failure> {
    let deadline = Instant::now() + patience;
    loop {
        match work().await {
            Err(Failure::Unreachable(error)) if Instant::now() < deadline => {
                tracing::warn!(error = in_one_line(&error), "a job that has ended waits for the database");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            done => return done,
        }
    }
}

/// The failure, saying what it happened to.
fn within(what: impl std::fmt::Display + Send + Sync + 'static, failure: Failure) -> Failure {
    match failure {
        Failure::Transient(error) => Failure::Transient(error.context(what)),
        Failure::Permanent(error) => Failure::Permanent(error.context(what)),
        Failure::Poison(error) => Failure::Poison(error.context(what)),
        Failure::Unreachable(error) => Failure::Unreachable(error.context(what)),
    }
}

#[cfg(test)]
pub(crate) mod tests;
