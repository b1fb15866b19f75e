//! Small pieces of SQL that more than one rule needs.

use sea_orm::ColumnTrait;
use sea_orm::sea_query::{Expr, ExprTrait as _, IntoValueTuple};

/// How many rows go into one statement: SQLite takes about 32,000 values, PostgreSQL 65,535.
pub(crate) const ROWS_PER_STATEMENT: usize = 500;

/// `(a, b, …) IN ((1, 2, …), …)`
pub(crate) fn among<C: ColumnTrait, const N: usize>(
    columns: [C; N],
    keys: impl IntoIterator<Item = impl IntoValueTuple>,
) -> Expr {
    Expr::tuple(columns.map(Expr::col)).in_tuples(keys)
}
