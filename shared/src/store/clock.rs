//! The database's own time, in its own words: what several machines compare is not to depend on their clocks.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend};

/// SQL for times by the database's clock. SQLite keeps times as text, here in the form that sqlx writes, so that they compare
/// as times do.
#[derive(Debug, Clone, Copy)]
pub struct Clock(DbBackend);

impl Clock {
    /// That of the database behind a connection.
    pub fn of(db: &impl ConnectionTrait) -> Self {
        Self(db.get_database_backend())
    }

    /// Now.
    pub fn now(self) -> String {
        self.shifted('+', Duration::ZERO)
    }

    /// So long after now.
    pub fn after(self, time: Duration) -> String {
        self.shifted('+', time)
    }

    /// So long before now.
    pub fn before(self, time: Duration) -> String {
        self.shifted('-', time)
    }

    /// For how many seconds the time in `column` is over, as a double.
    pub fn seconds_since(self, column: &str) -> String {
        match self.0 {
            DbBackend::Sqlite => format!("((julianday('now') - julianday({column})) * 86400.0)"),
            _ => format!("(EXTRACT(EPOCH FROM clock_timestamp() - {column})::double precision)"),
        }
    }

    fn shifted(self, sign: char, time: Duration) -> String {
        let seconds = time.as_secs_f64();
        match self.0 {
            DbBackend::Sqlite => format!("strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now', '{sign}{seconds:.3} seconds')"),
            // Not now(), which is when the transaction began: it may have waited for a lock since.
            _ => format!("(clock_timestamp() {sign} interval '{seconds:.3} seconds')"),
        }
    }
}
