//! Which dead letters: what all commands are told in the same words.

use chrono::{DateTime, Utc};
use sea_orm::{ColumnTrait as _, Condition};

use super::State;
use crate::event::WorkerName;
use crate::store::entity::dead_letter::Column;

/// Which dead letters. What is empty or `None` asks for nothing; of several values of one kind, one must fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// By their ids.
    pub ids: Vec<i64>,
    /// What has become of them.
    pub states: Vec<State>,
    /// Whose they are.
    pub workers: Vec<WorkerName>,
    /// The events' names.
    pub events: Vec<String>,
    /// The rooms' own ids.
    pub rooms: Vec<String>,
    /// The people's ids.
    pub users: Vec<String>,
    /// What they last died of.
    pub causes: Vec<String>,
    /// The run that last replayed them.
    pub run: Option<String>,
    /// They last died then, or later.
    pub since: Option<DateTime<Utc>>,
    /// They last died before that.
    pub until: Option<DateTime<Utc>>,
}

impl Filter {
    /// Those of one run.
    pub fn of_run(run: &str) -> Self {
        Self { run: Some(run.to_owned()), ..Self::default() }
    }

    pub(super) fn condition(&self) -> Condition {
        let workers = self.workers.iter().map(|worker| worker.as_str());
        let states = self.states.iter().map(|state| state.as_str());
        Condition::all()
            .add_option(some(&self.ids).map(|ids| Column::Id.is_in(ids.iter().copied())))
            .add_option(some(&self.states).map(|_| Column::State.is_in(states)))
            .add_option(some(&self.workers).map(|_| Column::Worker.is_in(workers)))
            .add_option(some(&self.events).map(|events| Column::Event.is_in(events)))
            .add_option(some(&self.rooms).map(|rooms| Column::RoomId.is_in(rooms)))
            .add_option(some(&self.users).map(|users| Column::UserId.is_in(users)))
            .add_option(some(&self.causes).map(|causes| Column::Cause.is_in(causes)))
            .add_option(self.run.as_ref().map(|run| Column::ReplayRun.eq(run)))
            .add_option(self.since.map(|since| Column::LastFailedAt.gte(since)))
            .add_option(self.until.map(|until| Column::LastFailedAt.lt(until)))
    }

    /// Whether a letter that was found by it is still in one of its states.
    pub(super) fn takes(&self, state: &str) -> bool {
        self.states.is_empty() || self.states.iter().any(|wanted| wanted.as_str() == state)
    }
}

fn some<T>(values: &[T]) -> Option<&[T]> {
    (!values.is_empty()).then_some(values)
}
