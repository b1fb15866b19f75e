//! All dead letters of a filter, some at a time, in the order of their ids.
//!
//! Which they are is asked in long lists of ids, so that it hardly matters how the database finds them; what is in them, in
//! pages that are bounded by rows and by bytes, so that it hardly matters how many and how large they are. What comes in
//! behind the last one of the beginning is left out, or a replay that fails would never end.

use std::collections::VecDeque;

use sea_orm::sea_query::{Expr, ExprTrait as _, Func};
use sea_orm::{
    ColumnTrait as _, DatabaseConnection, DbBackend, DbErr, EntityTrait as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _, Select,
};

use super::Filter;
use crate::store::entity::dead_letter::{Column, Entity};

/// How many ids are asked for at once.
const IDS: u64 = 10_000;

/// The most rows in a page: a statement names each.
pub(super) const PAGE_ROWS: usize = 500;

/// The most bytes of bodies in a page, unless it is of one row.
const PAGE_BYTES: i64 = 4 << 20;

/// Where a walk is.
pub(super) struct Walk {
    found: Select<Entity>,
    last: i64,
    after: i64,
    /// Ids and the lengths of their bodies.
    ahead: VecDeque<(i64, i64)>,
    page_rows: usize,
}

impl Walk {
    /// Begins, with `page_rows` in a page at most.
    pub(super) async fn new(db: &DatabaseConnection, filter: &Filter, page_rows: usize) -> Result<Self, DbErr> {
        let found = Entity::find().filter(filter.condition()).select_only();
        let last: Option<i64> =
            Entity::find().select_only().expr(Column::Id.max()).into_tuple().one(db).await?.unwrap_or_default();
        let last = last.unwrap_or_default();
        Ok(Self { found, last, after: i64::MIN, ahead: VecDeque::new(), page_rows: page_rows.clamp(1, PAGE_ROWS) })
    }

    /// The next ids; none at the end.
    pub(super) async fn next(&mut self, db: &DatabaseConnection) -> Result<Vec<i64>, DbErr> {
        if self.ahead.is_empty() {
            self.look_ahead(db).await?;
        }
        let mut page = Vec::new();
        let mut bytes = 0;
        while let Some((id, size)) = self.ahead.front().copied() {
            bytes += size;
            if page.len() >= self.page_rows || (bytes > PAGE_BYTES && !page.is_empty()) {
                break;
            }
            self.ahead.pop_front();
            page.push(id);
        }
        Ok(page)
    }

    async fn look_ahead(&mut self, db: &DatabaseConnection) -> Result<(), DbErr> {
        if self.after >= self.last {
            return Ok(());
        }
        let ids = self.found.clone().column(Column::Id).expr(body_length(db.get_database_backend()));
        let range = Column::Id.gt(self.after).and(Column::Id.lte(self.last));
        let ids: Vec<(i64, i64)> = ids.filter(range).order_by_asc(Column::Id).limit(IDS).into_tuple().all(db).await?;
        self.after = ids.last().map_or(self.last, |(id, _)| *id);
        self.ahead = ids.into();
        Ok(())
    }
}

/// Neither database reads a body to tell its length.
fn body_length(backend: DbBackend) -> Expr {
    let length = match backend {
        DbBackend::Sqlite => Func::cust("length").arg(Expr::col(Column::Body)),
        _ => Func::cust("octet_length").arg(Expr::col(Column::Body)),
    };
    Expr::from(length).cast_as("bigint")
}
