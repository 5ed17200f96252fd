//! A cache as one archive, out of this deployment and into it.
//!
//! The cache writes and reads archives on a thread that may block. An OS pipe stands between that thread and the
//! connection: it holds a few pages, and when one side goes the other one learns of it.

use std::io;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use pentimento_cache::{Filter, Moved};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use super::wire::{ExportQuery, ImportAnswer};
use super::{Admin, query};
use crate::api::body::POLITENESS;
use crate::api::{ApiError, ErrorBody};
use crate::gateway::MoveError;

/// Bytes of an archive that are handed on at once.
const PIECE: usize = 64 * 1024;

/// The entries and their states as one tar archive.
#[utoipa::path(get, path = "/admin/v1/cache/export", tag = "cache", params(ExportQuery),
    responses(
        (status = 200, description = "The archive; if it cannot be finished the connection breaks", content_type = "application/x-tar"),
        (status = 400, body = ErrorBody),
        (status = 401, body = ErrorBody)))]
pub async fn export(
    State(admin): State<Arc<Admin>>,
    wanted: Result<Query<ExportQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let ExportQuery { tenant, namespace, model, prompt } = query(wanted)?;
    let filter = Filter { tenant, namespace, model, prompt_contains: prompt, ..Filter::default() };
    let (reader, writer) = io::pipe().map_err(|e| ApiError::internal(&e))?;
    let reader = pipe::Receiver::from_owned_fd(reader.into()).map_err(|e| ApiError::internal(&e))?;
    let written = admin
        .aside(move |runtime, reuse| {
            let out = io::BufWriter::with_capacity(PIECE, writer);
            runtime.block_on(reuse.export(&filter, out))
        })
        .await?;
    let pieces = futures_util::stream::try_unfold(Some((reader, written)), next_piece);
    let headers = [
        (header::CONTENT_TYPE, "application/x-tar"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"pentimento-cache.tar\""),
    ];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// What is still to be read, and the thread that writes it.
type Export = Option<(pipe::Receiver, JoinHandle<Result<Moved, MoveError>>)>;

/// The next piece of an archive. At its end, whether it is whole: an error breaks the connection, so that nobody
/// takes half an archive for one.
async fn next_piece(export: Export) -> io::Result<Option<(Bytes, Export)>> {
    let Some((mut reader, written)) = export else { return Ok(None) };
    let mut piece = Vec::with_capacity(PIECE);
    if reader.read_buf(&mut piece).await? > 0 {
        return Ok(Some((piece.into(), Some((reader, written)))));
    }
    let outcome = written.await.map_err(io::Error::other)?;
    let Moved { entries, states, unreadable, .. } = outcome.map_err(|error| {
        tracing::error!(%error, "an export failed");
        io::Error::other(error)
    })?;
    tracing::info!(entries, states, unreadable, "exported");
    Ok(None)
}

/// Adds the entries of an archive that an export wrote, in place of older entries of the same pictures. If
/// something is wrong with it, the entries before that are kept.
#[utoipa::path(post, path = "/admin/v1/cache/import", tag = "cache",
    request_body(content_type = "application/x-tar", description = "The archive"),
    responses(
        (status = 200, body = ImportAnswer),
        (status = 400, description = "`invalid_archive`: damaged, foreign, or made under another secret", body = ErrorBody),
        (status = 401, body = ErrorBody),
        (status = 408, description = "The body did not arrive in time", body = ErrorBody),
        (status = 413, description = "The archive is larger than twice `cache_max_bytes`", body = ErrorBody)))]
pub async fn import(
    State(admin): State<Arc<Admin>>,
    request: Request,
) -> Result<Json<ImportAnswer>, ApiError> {
    let (reader, writer) = io::pipe().map_err(|e| ApiError::internal(&e))?;
    let writer = pipe::Sender::from_owned_fd(writer.into()).map_err(|e| ApiError::internal(&e))?;
    let most = admin.max_archive_bytes();
    let place = admin.aside(move |runtime, reuse| {
        let input = io::BufReader::with_capacity(PIECE, reader);
        runtime.block_on(reuse.import(input, most))
    });
    let imported = tokio::time::timeout(admin.request_timeout, place).await;
    let imported = imported.map_err(|_| ApiError::too_slow())??;
    let arrived = hand_over(request.into_body(), writer, &admin).await;
    let outcome = imported.await.map_err(|e| ApiError::internal(&e))?;
    let moved = match (outcome, arrived) {
        // Cut short, it may have looked whole.
        (Ok(_), Err(error)) => return Err(error),
        (outcome, _) => outcome?,
    };
    tracing::info!(entries = moved.entries, states = moved.states, "imported");
    Ok(Json(moved.into()))
}

/// Gives the body to whoever reads the pipe. Once nobody does, because the archive was refused, the rest is still
/// read, within bounds, so that the client reads the answer instead of finding the connection reset.
async fn hand_over(mut body: Body, writer: pipe::Sender, admin: &Admin) -> Result<(), ApiError> {
    let most = admin.max_archive_bytes().saturating_mul(POLITENESS as u64);
    let (mut writer, mut total) = (Some(writer), 0u64);
    loop {
        let frame = tokio::time::timeout(admin.read_timeout, body.frame()).await;
        let Some(frame) = frame.map_err(|_| ApiError::broken_body())? else { return Ok(()) };
        let Ok(data) = frame.map_err(|_| ApiError::broken_body())?.into_data() else { continue };
        total = total.saturating_add(data.len() as u64);
        if let Some(open) = &mut writer
            && open.write_all(&data).await.is_err()
        {
            writer = None;
        }
        if total > most {
            return Ok(());
        }
    }
}
