//! Which dead letters: the options that all subcommands share.

use anyhow::{Result, bail};
use chrono::{DateTime, Utc};
use clap::ValueEnum;
use rollcall_shared::dead_letters::{Filter, State};
use rollcall_shared::event::WorkerName;

use crate::time;

/// Which dead letters. Options of different names must all fit; of one that is repeated, one value must.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Which dead letters")]
pub(super) struct Select {
    /// Of this worker: attendance, rooms, recordings.
    #[arg(long, value_name = "WORKER")]
    worker: Vec<WorkerName>,
    /// With this event, such as participant_joined.
    #[arg(long, value_name = "EVENT")]
    event: Vec<String>,
    /// About this room.
    #[arg(long, value_name = "ID")]
    room: Vec<String>,
    /// About this person.
    #[arg(long, value_name = "ID")]
    user: Vec<String>,
    /// Last died of this, as `groups` says it.
    #[arg(long, value_name = "CAUSE")]
    cause: Vec<String>,
    /// Last died then or later: how long ago (2h, 3days), a day (2026-11-22, UTC), RFC 3339, or Unix seconds.
    #[arg(long, value_name = "TIME", value_parser = time::past)]
    since: Option<DateTime<Utc>>,
    /// Last died before that.
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    until: Option<DateTime<Utc>>,
    /// In this state. [default: those that the command is for: dead ones, or to restore, dropped ones; of given ids or a
    /// run, to replay or drop: dead or replaying ones, and to look at: any]
    #[arg(long, value_name = "STATE", value_delimiter = ',')]
    state: Vec<Wanted>,
    /// Last sent back by this replay, which says its run's name.
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
    /// With this id.
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    id: Vec<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Wanted {
    /// Waits for somebody.
    Dead,
    /// Was sent back to its worker, which has not told yet.
    Replaying,
    /// Has taken effect.
    Applied,
    /// Somebody said that nothing more shall become of it.
    Dropped,
    /// Whatever has become of it.
    All,
}

/// The same for subcommands that change what is selected: they want to be told.
#[derive(Debug, clap::Args)]
pub(super) struct SelectSome {
    /// The dead letters, by their ids, as with --id.
    #[arg(value_name = "ID")]
    ids: Vec<i64>,
    #[command(flatten)]
    select: Select,
    /// All that there are.
    #[arg(long, help_heading = "Which dead letters", conflicts_with_all = ["ids", "id"])]
    all: bool,
}

impl Select {
    /// The filter of a command that looks: where nothing else is said, for those in `state`; of ids or a run, in any.
    pub(super) fn filter(&self, state: State) -> Filter {
        let is_named = !self.id.is_empty() || self.run.is_some();
        self.in_states(if is_named { &[] } else { std::slice::from_ref(&state) })
    }

    fn in_states(&self, unless_said: &[State]) -> Filter {
        let states = match self.state.as_slice() {
            [] => unless_said.to_vec(),
            wanted if wanted.contains(&Wanted::All) => Vec::new(),
            wanted => wanted.iter().filter_map(|wanted| wanted.state()).collect(),
        };
        Filter {
            ids: self.id.clone(),
            states,
            workers: self.worker.clone(),
            events: self.event.clone(),
            rooms: self.room.clone(),
            users: self.user.clone(),
            causes: self.cause.clone(),
            run: self.run.clone(),
            since: self.since,
            until: self.until,
        }
    }
}

impl SelectSome {
    /// The filter of a command that changes: where nothing else is said, for those in `state`; of ids or a run, in `named`
    /// too.
    ///
    /// # Errors
    /// Nothing at all was said.
    pub(super) fn filter(&self, state: State, named: &[State]) -> Result<Filter> {
        let ids = || self.ids.iter().chain(&self.select.id).copied();
        let is_named = ids().next().is_some() || self.select.run.is_some();
        let mut states = vec![state];
        states.extend(named.iter().filter(|_| is_named));
        let mut filter = self.select.in_states(&states);
        filter.ids = ids().collect();
        let nothing = Filter { states: filter.states.clone(), ..Filter::default() };
        if filter == nothing && !self.all {
            bail!(
                "which dead letters? Give ids (`rollcall dlq list` shows them), options such as --cause, --worker or --since, \
                 or --all"
            );
        }
        Ok(filter)
    }
}

impl Wanted {
    fn state(self) -> Option<State> {
        match self {
            Self::Dead => Some(State::Dead),
            Self::Replaying => Some(State::Replaying),
            Self::Applied => Some(State::Applied),
            Self::Dropped => Some(State::Dropped),
            Self::All => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        select: SelectSome,
    }

    fn filter(arguments: &str) -> Result<Filter> {
        Cli::try_parse_from(format!("x {arguments}").split_whitespace())?
            .select
            .filter(State::Dead, &[State::Replaying])
    }

    #[test]
    fn nothing_is_never_everything() {
        assert!(filter("").unwrap_err().to_string().contains("--all"));
        assert!(filter("--state dropped").unwrap_err().to_string().contains("--all"));
        assert_eq!(filter("--all").unwrap(), Filter { states: vec![State::Dead], ..Filter::default() });
        assert!(filter("5 --all").is_err());
    }

    #[test]
    fn the_dead_are_meant_unless_it_is_said_which() {
        let unresolved = vec![State::Dead, State::Replaying];
        let named = Filter { ids: vec![5, 6], states: unresolved.clone(), ..Filter::default() };
        for arguments in ["5 6", "--id 5,6", "5 --id 6"] {
            assert_eq!(filter(arguments).unwrap(), named, "{arguments}");
        }
        assert_eq!(filter("--run r").unwrap(), Filter { states: unresolved, ..Filter::of_run("r") });
        let causes = filter("--cause a --cause b --worker rooms").unwrap();
        assert_eq!((causes.causes.len(), causes.workers.len(), causes.states), (2, 1, vec![State::Dead]));
        assert_eq!(filter("--cause a --state all").unwrap().states, []);
        assert_eq!(filter("5 --state dead,dropped").unwrap().states, [State::Dead, State::Dropped]);
        assert_eq!(filter("5 --state all").unwrap().states, []);
    }

    #[test]
    fn of_what_is_named_everything_is_looked_at() {
        #[derive(Parser)]
        struct Cli {
            #[command(flatten)]
            select: Select,
        }
        let states = |arguments: &str| {
            let cli = Cli::try_parse_from(format!("x {arguments}").split_whitespace()).unwrap();
            cli.select.filter(State::Dead).states
        };
        assert_eq!(states("--room r"), [State::Dead]);
        assert_eq!(states("--id 5"), []);
        assert_eq!(states("--run r"), []);
        assert_eq!(states("--run r --state dead"), [State::Dead]);
    }
}
