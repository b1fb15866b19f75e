//! The database's own time, in its own words: what several machines compare is not to depend on their clocks.
//!
//! That clock may be set, too. What it has written while it was ahead is told by lying farther away than anything that is right
//! can, and not believed.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend};

/// As sqlx writes it.
const SQLITE_FORMAT: &str = "%Y-%m-%dT%H:%M:%f+00:00";

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

    /// Whether a right is over that lasts until the time in the column `until`, and for as many seconds as the column `length` has
    /// from when it was last taken. Over is also one that lasts for more than twice its length from now: that was taken by a
    /// clock that has been set back since. (For a little more than once it may be one that was set back by a little.)
    pub fn is_over(self, until: &str, length: &str) -> String {
        let now = self.now();
        let latest = match self.0 {
            DbBackend::Sqlite => format!("strftime('{SQLITE_FORMAT}', 'now', (2 * {length}) || ' seconds')"),
            _ => format!("(clock_timestamp() + 2 * {length} * interval '1 second')"),
        };
        format!("({until} < {now} OR {until} > {latest})")
    }

    /// For how many seconds the time in `column` is over, as a double; less than nothing, if it was written by a clock that was
    /// ahead.
    pub fn seconds_since(self, column: &str) -> String {
        match self.0 {
            DbBackend::Sqlite => format!("((julianday('now') - julianday({column})) * 86400.0)"),
            _ => format!("(EXTRACT(EPOCH FROM clock_timestamp() - {column})::double precision)"),
        }
    }

    fn shifted(self, sign: char, time: Duration) -> String {
        let seconds = time.as_secs_f64();
        match self.0 {
            DbBackend::Sqlite => format!("strftime('{SQLITE_FORMAT}', 'now', '{sign}{seconds:.3} seconds')"),
            // Not now(), which is when the transaction began: it may have waited for a lock since.
            _ => format!("(clock_timestamp() {sign} interval '{seconds:.3} seconds')"),
        }
    }
}
