//! One round: its steps, then quiet, then the books.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, StreamExt as _, stream};
use reqwest::StatusCode;
use rollcall_ops::standin::{Endpoint, Fault, Recording, StandIn};
use rollcall_shared::event::{AnyWorker, WorkerName};
use rollcall_shared::store::entity::{course_live_session, dead_letter};
use rustix::process::Signal;
use sea_orm::{ColumnTrait as _, EntityTrait as _, PaginatorTrait as _, QueryFilter as _};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::books::{Books, Kind, Seen, Totals, Wrong};
use super::plan::{Plan, Program, Step};
use super::traces::{self, ROOMS};
use super::world::World;
use crate::broker;
use crate::installation::{Process, metric};
use crate::joins::announce;
use crate::webhooks::{Scheme, Sender};

/// How many webhooks are under way at once.
const CLIENTS: usize = 16;
/// How long an answer is waited for before the webhook is posted again.
const ANSWER: Duration = Duration::from_secs(40);
/// How long a command or a program may take to end once nothing is broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long nothing may change while something waits. The longest that a program waits by itself is a fraction of it.
const STALL: Duration = Duration::from_secs(45);
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Where the ingress counts what no worker wants.
const IGNORED: &str = r#"rollcall_ingress_ignored_total{event="track_published"}"#;

pub(super) struct Round<'a> {
    world: &'a mut World,
    plan: Plan,
    books: Arc<Mutex<Books>>,
    server: StandIn,
    programs: BTreeMap<Program, Process>,
    ingress: watch::Sender<Option<SocketAddr>>,
    /// Where each ingress that there was counts.
    admins: Vec<SocketAddr>,
    posting: JoinSet<()>,
    /// What an operator has typed, and has not ended.
    commands: Vec<Process>,
    /// The queues that have refused.
    refusing: BTreeSet<&'static str>,
    began: Instant,
    story: Vec<String>,
}

/// What went wrong in a round, and how it came to that.
pub(super) struct Failure {
    what: String,
    wrong: Vec<Wrong>,
    story: Vec<String>,
    logs: Vec<String>,
}

impl<'a> Round<'a> {
    /// Plays a round; how many events ended where.
    ///
    /// # Errors
    /// The books are wrong, or something stands still.
    pub(super) async fn play(world: &'a mut World, plan: Plan) -> Result<Totals, Failure> {
        let server = StandIn::start("key", &"secret".into()).await.unwrap();
        world.installation.server("main", "key", "secret", server.url().as_str());
        world.prepare(&plan).await;
        let mut round = Self {
            world,
            plan,
            books: Arc::default(),
            server,
            programs: BTreeMap::new(),
            ingress: watch::Sender::new(None),
            admins: Vec::new(),
            posting: JoinSet::new(),
            commands: Vec::new(),
            refusing: BTreeSet::new(),
            began: Instant::now(),
            story: Vec::new(),
        };
        // A panic is to tell its seed and its story too.
        let played = AssertUnwindSafe(round.steps_and_quiet()).catch_unwind().await;
        match played.unwrap_or_else(|_| Err("the test itself has panicked: see above".to_owned())) {
            Ok(seen) => {
                let wrong = round.books().audit(&seen);
                let totals = round.books().totals(&seen);
                if wrong.is_empty() { Ok(totals) } else { Err(round.failure("the books are wrong".into(), wrong)) }
            }
            Err(what) => Err(round.post_mortem(what).await),
        }
    }

    async fn steps_and_quiet(&mut self) -> Result<Seen, String> {
        if self.plan.must_announce {
            for room in 0..ROOMS {
                announce(&self.world.installation, &format!("room-{room}"), "Algebra").await;
            }
        } else {
            self.books().announced();
        }
        self.start_all().await;
        for step in std::mem::take(&mut self.plan.steps) {
            self.tell(step.to_string());
            self.take(step).await;
            self.revive().await;
        }
        self.tell("everything is mended".to_owned());
        self.mend().await?;
        self.quiet().await
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap()
    }

    fn tell(&mut self, what: String) {
        self.story.push(format!("{:6.1} s  {what}", self.began.elapsed().as_secs_f64()));
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Post(kind, count) => self.post_new(kind, count).await,
            Step::PostAgain(count) => {
                let accepted = self.books().all_accepted();
                self.post(accepted.into_iter().rev().take(count).collect());
            }
            Step::Announce => self.announce_late_rooms().await,
            Step::SlowServer(count, time) => self.server.script(Endpoint::Download, vec![Fault::Late(time); count]),
            Step::FailingServer(count) => {
                self.books().server_has_failed();
                self.server.script(Endpoint::Download, vec![Fault::status(500); count]);
            }
            Step::Kill(program) => self.kill(program).await,
            Step::Restart(program) => self.restart(program).await,
            Step::Freeze(program, time) => {
                self.books().copies_are_about();
                let process = &self.programs[&self.of(program)];
                process.signal(Signal::STOP);
                sleep(time).await;
                process.signal(Signal::CONT);
            }
            Step::CloseConnections => {
                self.died(&WorkerName::ALL);
                self.rabbitmqctl(&["close_all_connections", "an operator wants it"]).await;
            }
            Step::CloseOne(which) => self.close_one(which).await,
            Step::Refuse(queues) => self.refuse(queues).await,
            Step::Accept => self.accept().await,
            Step::Block => {
                self.books().copies_are_about();
                self.rabbitmqctl(&["set_vm_memory_high_watermark", "0.00001"]).await;
            }
            Step::Unblock => self.rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"]).await,
            Step::RestartBroker => {
                self.died(&WorkerName::ALL);
                if let Some(broker) = &self.world.broker {
                    broker.stop().await;
                    broker.start().await;
                }
            }
            Step::KillBroker => {
                self.died(&WorkerName::ALL);
                if let Some(broker) = &self.world.broker {
                    broker.kill().await;
                    broker.start().await;
                }
            }
            Step::EndSessions => {
                self.books().copies_are_about();
                self.world.installation.end_database_sessions().await;
            }
            Step::Pause(worker) => self.type_in(&["pause", worker.as_str(), "--timeout", "1s"]),
            Step::Resume(worker) => self.type_in(&["resume", worker.as_str()]),
            Step::Purge(worker, killed) => self.purge(worker, killed).await,
            Step::Clock(seconds) => {
                if let Some(clock) = &self.world.clock {
                    clock.set(seconds);
                }
            }
            Step::FillDisk(left) => {
                self.books().copies_are_about();
                if let Some(disk) = &self.world.disk {
                    disk.fill_up_to(left);
                }
            }
            Step::EmptyDisk => {
                if let Some(disk) = &self.world.disk {
                    disk.make_room();
                }
            }
            Step::Wait(time) => sleep(time).await,
        }
    }

    /// What these workers had may come again, and whatever one took alone is one step closer to be a poison.
    fn died(&self, workers: &[WorkerName]) {
        let mut books = self.books();
        books.copies_are_about();
        books.died(workers);
    }

    /// The workers that are in that process.
    fn workers_in(&self, process: Program) -> Vec<WorkerName> {
        match process {
            Program::Worker(AnyWorker::Events(worker)) => vec![worker],
            Program::Ingress if self.plan.is_together => WorkerName::ALL.into(),
            Program::Ingress | Program::Worker(AnyWorker::DeadLetters) => Vec::new(),
        }
    }

    async fn rabbitmqctl(&self, arguments: &[&str]) {
        if let Some(broker) = &self.world.broker {
            broker.rabbitmqctl(arguments).await;
        }
    }

    async fn close_one(&self, which: usize) {
        let Some(broker) = &self.world.broker else { return };
        self.died(&WorkerName::ALL);
        let listed = broker.rabbitmqctl(&["list_connections", "--quiet", "--no-table-headers", "pid"]).await;
        let pids: Vec<_> = listed.lines().map(str::trim).filter(|line| line.starts_with('<')).collect();
        if let Some(pid) = pids.get(which % pids.len().max(1)) {
            broker.rabbitmqctl(&["close_connection", pid, "an operator wants it"]).await;
        }
    }

    async fn refuse(&mut self, queues: &'static str) {
        if !self.refusing.insert(queues) {
            return;
        }
        let definition = r#"{"max-length":1,"overflow":"reject-publish"}"#;
        self.rabbitmqctl(&["set_policy", queues, &self.pattern(queues), definition, "--apply-to", "queues"]).await;
    }

    fn pattern(&self, queues: &str) -> String {
        format!("^{}\\.{}", self.world.installation.prefix, queues.replace('.', "\\."))
    }

    /// Where the limit is taken away altogether, RabbitMQ 3.10 never tells those that it has refused that it takes messages
    /// again (`rabbit_fifo:evaluate_limit`).
    async fn accept(&mut self) {
        let definition = r#"{"max-length":1000000,"overflow":"reject-publish"}"#;
        for queues in std::mem::take(&mut self.refusing) {
            self.rabbitmqctl(&["set_policy", queues, &self.pattern(queues), definition, "--apply-to", "queues"]).await;
        }
    }

    fn type_in(&mut self, arguments: &[&str]) {
        self.commands.push(self.world.installation.spawn("rollcall", arguments));
    }

    async fn purge(&mut self, worker: WorkerName, killed: Option<Duration>) {
        self.books().purged(worker);
        let dropped = self.dropped().await;
        self.type_in(&["purge", worker.as_str(), "--reason", "it is part of the test", "--yes"]);
        if let Some(time) = killed {
            self.died(&[worker]);
            let mut purge = self.commands.pop().expect("it was typed in");
            while purge.has_ended().is_none() && self.dropped().await == dropped {
                sleep(Duration::from_millis(5)).await;
            }
            sleep(time).await;
            purge.kill().await;
        }
    }

    async fn dropped(&self) -> u64 {
        let dropped = dead_letter::Entity::find().filter(dead_letter::Column::State.eq("dropped"));
        // A file that is being written to does not answer.
        dropped.count(&self.world.installation.db).await.unwrap_or_default()
    }
}

/// What is posted.
impl Round<'_> {
    async fn post_new(&mut self, kind: Kind, count: u32) {
        let numbers: Vec<_> = (0..count).map(|_| self.books().open(kind)).collect();
        for number in &numbers {
            if kind == Kind::Recording {
                let recording = &self.world.recording;
                let id = traces::record_id(*number);
                self.server.add_recording(Recording::new(&id, "room-0", "sid-of-room-0", recording));
            }
            if kind == Kind::Finish && self.plan.must_announce {
                announce(&self.world.installation, &traces::room(*number, kind), "Algebra").await;
            }
        }
        self.post(numbers.into_iter().map(|number| (number, kind)).collect());
    }

    /// Posts each until it is accepted, while other things happen.
    fn post(&mut self, events: Vec<(u32, Kind)>) {
        let (books, ingress) = (self.books.clone(), self.ingress.subscribe());
        let keys = self.world.installation.keys("main").clone();
        let sender = Sender::with(keys, SocketAddr::from(([127, 0, 0, 1], 1)));
        self.posting.spawn(async move {
            let post = |(number, kind)| post_one(number, kind, sender.clone(), ingress.clone(), books.clone());
            stream::iter(events).for_each_concurrent(CLIENTS, post).await;
        });
    }

    async fn announce_late_rooms(&self) {
        self.books().announced();
        for room in 0..ROOMS {
            let room = format!("late-{room}");
            let db = &self.world.installation.db;
            let known = course_live_session::Entity::find().filter(course_live_session::Column::RoomId.eq(&room));
            if known.one(db).await.unwrap().is_none() {
                announce(&self.world.installation, &room, "Algebra").await;
            }
        }
    }
}

async fn post_one(
    number: u32,
    kind: Kind,
    sender: Sender,
    ingress: watch::Receiver<Option<SocketAddr>>,
    books: Arc<Mutex<Books>>,
) {
    let body = traces::body(number, kind);
    loop {
        let address = *ingress.borrow();
        if let Some(address) = address {
            books.lock().unwrap().posted(number);
            match timeout(ANSWER, sender.clone().to(address).try_post(&body, Scheme::Token)).await {
                Ok(Ok((StatusCode::OK, _))) => return books.lock().unwrap().accepted(number),
                Ok(Ok((StatusCode::SERVICE_UNAVAILABLE, _)) | Err(_)) | Err(_) => {}
                Ok(Ok((status, answer))) => panic!("answered {status}: {answer}"),
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// The programs.
impl Round<'_> {
    /// Which process that program is in.
    fn of(&self, program: Program) -> Program {
        if self.plan.is_together { Program::Ingress } else { program }
    }

    async fn start_all(&mut self) {
        self.start(Program::Ingress).await;
        if !self.plan.is_together {
            for worker in AnyWorker::ALL {
                self.start(Program::Worker(worker)).await;
            }
        }
    }

    async fn start(&mut self, program: Program) {
        let process = match program {
            Program::Worker(worker) => self.world.spawn_worker(worker.as_str()),
            Program::Ingress => {
                let installation = &self.world.installation;
                let ingress =
                    if self.plan.is_together { installation.up().await } else { installation.ingress().await };
                self.ingress.send_replace(Some(ingress.address));
                self.admins.push(ingress.admin);
                ingress.process
            }
        };
        self.programs.insert(program, process);
    }

    async fn kill(&mut self, program: Program) {
        let program = self.of(program);
        self.died(&self.workers_in(program));
        if let Some(process) = self.programs.remove(&program) {
            process.kill().await;
        }
        self.start(program).await;
    }

    async fn restart(&mut self, program: Program) {
        let program = self.of(program);
        self.books().copies_are_about();
        if let Some(mut process) = self.programs.remove(&program) {
            process.signal(Signal::TERM);
            let status = process.ended().await;
            if !status.success() {
                self.died(&self.workers_in(program));
                self.tell(format!("{program} ended with {status}"));
            }
        }
        self.start(program).await;
    }

    /// Starts again what has ended by itself, as a supervisor does.
    async fn revive(&mut self) {
        let ended: Vec<_> =
            self.programs.iter_mut().filter_map(|(program, process)| Some((*program, process.has_ended()?))).collect();
        for (program, status) in ended {
            self.tell(format!("{program} has ended by itself with {status}"));
            self.died(&self.workers_in(program));
            self.start(program).await;
        }
    }
}

/// From the last step to what there is to see.
impl Round<'_> {
    async fn mend(&mut self) -> Result<(), String> {
        if let Some(disk) = &self.world.disk {
            disk.make_room();
        }
        if let Some(clock) = &self.world.clock {
            clock.set(0);
        }
        self.accept().await;
        self.rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"]).await;
        self.revive().await;
        self.commands_end().await?;
        for worker in WorkerName::ALL {
            self.type_in(&["resume", worker.as_str()]);
        }
        self.commands_end().await?;
        let posting = std::mem::take(&mut self.posting).join_all();
        let posted = timeout(PATIENCE * 2, posting).await;
        posted.map(drop).map_err(|_| "what is posted is not accepted, although nothing is broken".to_owned())
    }

    async fn commands_end(&mut self) -> Result<(), String> {
        for mut command in std::mem::take(&mut self.commands) {
            let ended = timeout(PATIENCE, command.ended_within(PATIENCE * 2)).await;
            ended.map_err(|_| format!("a command does not end: {}", command.tail()))?;
        }
        Ok(())
    }

    /// Waits until everything has come to its end, and nothing is in any hand.
    async fn quiet(&mut self) -> Result<Seen, String> {
        loop {
            self.nothing_waits().await?;
            self.ignored_is_counted().await?;
            // What somebody has in hand is in no queue that can be looked into.
            self.stop_all().await?;
            let seen = self.look().await?;
            if self.books().unfinished(&seen).is_empty() && self.waiting().await?.is_empty() {
                return Ok(seen);
            }
            self.start_all().await;
        }
    }

    async fn nothing_waits(&mut self) -> Result<(), String> {
        let mut last = (String::new(), Instant::now());
        loop {
            let seen = self.look().await?;
            let waiting = self.waiting().await?;
            let unfinished = self.books().unfinished(&seen);
            if unfinished.is_empty() && waiting.is_empty() {
                return Ok(());
            }
            let missing = traces::summary(&self.books(), &unfinished);
            let now = format!("not at their end: {missing}; waiting: {waiting:?}");
            if last.0 != now {
                last = (now, Instant::now());
            } else if last.1.elapsed() > STALL {
                return Err(format!("nothing has changed for {STALL:?}: {now}"));
            }
            sleep(LOOK_AGAIN).await;
            self.revive().await;
        }
    }

    /// Where no count has gone with a process.
    async fn ignored_is_counted(&self) -> Result<(), String> {
        let [admin] = self.admins[..] else { return Ok(()) };
        let ignored = self.books().ignored();
        let counted = metric(admin, IGNORED).await.unwrap_or_default();
        if counted == ignored as f64 { Ok(()) } else { Err(format!("{counted} are counted as ignored, not {ignored}")) }
    }

    async fn stop_all(&mut self) -> Result<(), String> {
        for process in self.programs.values() {
            process.signal(Signal::TERM);
        }
        for (program, mut process) in std::mem::take(&mut self.programs) {
            let ended = timeout(PATIENCE, process.ended_within(PATIENCE * 2)).await;
            let status = ended.map_err(|_| format!("{program} does not stop: {}", process.tail()))?;
            if !status.success() {
                return Err(format!("{program} ended with {status}: {}", process.tail()));
            }
        }
        Ok(())
    }

    async fn look(&self) -> Result<Seen, String> {
        let kind = |number| self.books().kind(number);
        traces::in_tables(&self.world.installation.db, &kind).await.map_err(|error| error.to_string())
    }

    /// How many wait in each queue, and in the spool.
    async fn waiting(&self) -> Result<BTreeMap<String, u32>, String> {
        let installation = &self.world.installation;
        let mut waiting = broker::depths(installation).await?;
        let spooled = broker::spooled(installation).await.map_err(|error| error.to_string())?.len();
        if spooled > 0 {
            waiting.insert("spool".to_owned(), spooled.try_into().unwrap());
        }
        Ok(waiting)
    }

    /// Ends everything, and looks where everything is.
    async fn post_mortem(mut self, what: String) -> Failure {
        let logs = self.logs();
        for (_, process) in std::mem::take(&mut self.programs) {
            process.kill().await;
        }
        self.commands.clear();
        self.posting.shutdown().await;
        // The broker takes its time to see who is gone.
        sleep(Duration::from_secs(2)).await;
        let seen = self.look().await.unwrap_or_default();
        let waiting = broker::take_all(&self.world.installation).await;
        let seen = seen.and_waiting(waiting);
        let wrong = self.books().audit(&seen);
        Failure { logs, ..self.failure(what, wrong) }
    }

    fn failure(&self, what: String, wrong: Vec<Wrong>) -> Failure {
        Failure { what, wrong, story: self.story.clone(), logs: Vec::new() }
    }

    fn logs(&self) -> Vec<String> {
        self.programs
            .iter()
            .map(|(program, process)| format!("{program} last said:\n{}", last_words(process)))
            .collect()
    }
}

/// The last lines of a log, each as far as it fits a screen.
fn last_words(process: &Process) -> String {
    let log = process.log();
    let short = |line: &str| format!("    {}", line.chars().take(200).collect::<String>());
    let lines: Vec<_> = log.lines().rev().take(4).map(short).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, wrong, story, logs } = self;
        for line in story {
            writeln!(f, "  {line}")?;
        }
        writeln!(f, "{what}")?;
        for line in logs {
            writeln!(f, "{line}")?;
        }
        let mut alike = BTreeMap::<_, Vec<_>>::new();
        for one in wrong {
            alike.entry(one.to_string()).or_default().extend(one.number());
        }
        for (wrong, numbers) in alike {
            let some: Vec<_> = numbers.iter().take(5).map(|number| format!("EV_{number}")).collect();
            writeln!(f, "  {wrong} × {} {}", numbers.len().max(1), some.join(", "))?;
        }
        Ok(())
    }
}
