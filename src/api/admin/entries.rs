//! What the cache holds: counted, listed, looked at, removed.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use pentimento_cache::{CacheError, EntryId, Filter};
use tokio::runtime::Handle;

use super::wire::{
    Deleted, EntryList, EntryObject, EntryQuery, PolicyObject, PurgeAnswer, PurgeRequest, StatsObject,
};
use super::{Admin, query};
use crate::api::answer::unix_seconds;
use crate::api::{ApiError, ErrorBody, body};
use crate::gateway::Reuse;

/// Entries of a page where the request does not say.
const PAGE: usize = 100;
/// The most entries of a page.
const MAX_PAGE: usize = 1000;

/// How the cache is doing.
#[utoipa::path(get, path = "/admin/v1/cache/stats", tag = "cache",
    responses((status = 200, body = StatsObject), (status = 401, body = ErrorBody)))]
pub async fn stats(State(admin): State<Arc<Admin>>) -> Json<StatsObject> {
    let policy = PolicyObject::of(&admin.reuse);
    Json(StatsObject::new(admin.reuse.cache().stats(), admin.max_entries, admin.max_bytes, policy))
}

/// The entries, page by page.
#[utoipa::path(get, path = "/admin/v1/cache/entries", tag = "cache", params(EntryQuery),
    responses((status = 200, body = EntryList), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody)))]
pub async fn list(
    State(admin): State<Arc<Admin>>,
    wanted: Result<Query<EntryQuery>, QueryRejection>,
) -> Result<Json<EntryList>, ApiError> {
    let EntryQuery { after, limit, tenant, namespace, model, prompt } = query(wanted)?;
    let limit = limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(ApiError::invalid("limit", &format!("must be between 1 and {MAX_PAGE}, not {limit}")));
    }
    let after = after.map(EntryId::try_from).transpose().map_err(|why| ApiError::invalid("after", &why))?;
    let filter = Filter { tenant, namespace, model, prompt_contains: prompt, ..Filter::default() };
    let scan = move |runtime: &Handle, reuse: &Reuse| {
        runtime.block_on(reuse.cache().entries(&filter, after.as_ref(), limit))
    };
    let page = admin.aside(scan).await?.await.map_err(|e| ApiError::internal(&e))??;
    let next = (page.len() == limit).then(|| page.last().map(|last| last.id.clone().into())).flatten();
    Ok(Json(EntryList { data: page.into_iter().map(EntryObject::from).collect(), next }))
}

/// One entry.
#[utoipa::path(get, path = "/admin/v1/cache/entries/{id}", tag = "cache",
    params(("id" = String, Path, description = "The entry's id")),
    responses((status = 200, body = EntryObject), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub async fn one(
    State(admin): State<Arc<Admin>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<EntryObject>, ApiError> {
    let id = entry_id(id)?;
    let entry = admin.reuse.cache().entry(&id).await?;
    Ok(Json(entry.ok_or_else(|| ApiError::entry(id.as_str()))?.into()))
}

/// Removes an entry and its states.
#[utoipa::path(delete, path = "/admin/v1/cache/entries/{id}", tag = "cache",
    params(("id" = String, Path, description = "The entry's id")),
    responses((status = 200, body = Deleted), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub async fn delete(
    State(admin): State<Arc<Admin>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Deleted>, ApiError> {
    let id = entry_id(id)?;
    match admin.reuse.cache().remove(&id).await? {
        true => Ok(Json(Deleted { id: id.into(), deleted: true })),
        false => Err(ApiError::entry(id.as_str())),
    }
}

fn entry_id(id: Result<Path<String>, PathRejection>) -> Result<EntryId, ApiError> {
    let Path(id) = id.unwrap_or_else(|_| Path(String::new())); // not UTF-8: no entry is called that
    EntryId::try_from(id.clone()).map_err(|_| ApiError::entry(&id))
}

/// Removes all entries that the body means, with their states. A body that names nothing is refused.
#[utoipa::path(post, path = "/admin/v1/cache/purge", tag = "cache", request_body = PurgeRequest,
    responses((status = 200, body = PurgeAnswer), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody)))]
pub async fn purge(State(admin): State<Arc<Admin>>, request: Request) -> Result<Json<PurgeAnswer>, ApiError> {
    let wanted: PurgeRequest = body::json(request, admin.max_body_bytes, admin.read_timeout).await?;
    let dry_run = wanted.dry_run == Some(true);
    let filter = purge_filter(wanted, &admin.reuse)?;
    let entries = if dry_run {
        let counted = admin.aside(move |runtime, reuse| runtime.block_on(count(reuse, &filter))).await?;
        counted.await.map_err(|e| ApiError::internal(&e))??
    } else {
        let purged = admin.reuse.cache().purge(filter).await?;
        tracing::info!(entries = purged, "purged");
        purged
    };
    Ok(Json(PurgeAnswer { entries, dry_run }))
}

fn purge_filter(wanted: PurgeRequest, reuse: &Reuse) -> Result<Filter, ApiError> {
    let PurgeRequest { prompt, tenant, namespace, model, older_than_seconds, all, dry_run: _ } = wanted;
    let filter = Filter {
        prompt_hash: prompt.map(|prompt| reuse.prompt_hash(&prompt)),
        tenant,
        namespace,
        model,
        created_before: older_than_seconds.map(|age| unix_seconds(SystemTime::now()).saturating_sub(age)),
        ..Filter::default()
    };
    match (filter == Filter::default(), all == Some(true)) {
        (true, false) => Err(ApiError::invalid("all", "must be true where nothing else says what to purge")),
        (false, true) => Err(ApiError::invalid("all", "cannot be true beside what says what to purge")),
        _ => Ok(filter),
    }
}

async fn count(reuse: &Reuse, filter: &Filter) -> Result<usize, CacheError> {
    let (mut count, mut after) = (0, None);
    loop {
        let page = reuse.cache().entries(filter, after.as_ref(), MAX_PAGE).await?;
        count += page.len();
        match page.last() {
            Some(last) => after = Some(last.id.clone()),
            None => return Ok(count),
        }
    }
}
