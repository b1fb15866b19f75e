//! `rollcall`, the operator's one tool: one module a subcommand.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod address;
mod attendance;
mod confirm;
mod demo;
mod dlq;
mod doctor;
mod migrate;
mod output;
mod pause;
mod person;
mod progress;
mod purge;
mod send;
mod status;
mod table;
mod time;
mod up;
mod who;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rollcall_shared::causes::in_one_line;

/// The operator's tool of Rollcall, which turns a PlugNMeet server's webhooks into attendance, closed rooms and
/// archived recordings.
#[derive(Debug, Parser)]
#[command(name = "rollcall", version)]
struct Cli {
    /// The settings file; without it, rollcall.toml in the working directory if there is one.
    ///
    /// The environment wins over the file: ROLLCALL__QUEUE__URL is queue.url.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

/// What a shell says of a program that SIGPIPE has ended: as most are whose output nobody reads any more.
const ENDED_BY_PIPE: u8 = 128 + 13;

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Args),
    Status(status::Args),
    Pause(pause::Pause),
    Resume(pause::Resume),
    Purge(purge::Args),
    Migrate(migrate::Args),
    Send(Box<send::Args>),
    Attendance(attendance::Args),
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Person(person::Args),
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Dlq(Box<dlq::Args>),
    Doctor(doctor::Args),
    Demo(demo::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    rollcall_shared::tls::use_ring();
    rollcall_shared::private::keep_new_files();
    let config = cli.config.as_deref();
    let outcome = match cli.command {
        Command::Up(args) => up::run(args, config).await,
        Command::Status(args) => status::run(args, config).await,
        Command::Pause(args) => pause::pause(args, config).await,
        Command::Resume(args) => pause::resume(args, config).await,
        Command::Purge(args) => purge::run(args, config).await,
        Command::Migrate(args) => migrate::run(args, config).await,
        Command::Attendance(args) => attendance::run(args, config).await,
        Command::Person(args) => person::run(args, config).await,
        Command::Send(args) => send::run(*args, config).await,
        Command::Dlq(args) => dlq::run(*args, config).await,
        Command::Doctor(args) => doctor::run(args, config).await,
        Command::Demo(args) => demo::run(args).await,
    };
    outcome.unwrap_or_else(|error| {
        if error.chain().any(|cause| cause.is::<output::Closed>()) {
            return ExitCode::from(ENDED_BY_PIPE);
        }
        output::complain(format_args!("rollcall: {}", in_one_line(&error)));
        ExitCode::FAILURE
    })
}

/// An error and its causes, in one line.
fn causes(error: impl Into<anyhow::Error>) -> String {
    in_one_line(&error.into())
}
