//! A request's pictures as the scheduler takes them.

use pentimento_cache::Scope;

use super::{PictureRequest, Rejection};
use crate::picture::{PaintTask, PictureSpec};
use crate::scheduler::messages::{NewTask, PictureId, Terms};

/// One task for each of a request's pictures, from noise, of which nothing is kept yet. `secret` keys the pictures' names.
///
/// # Errors
/// [`Rejection::Internal`] where a specification has no name.
pub fn tasks(
    request: &PictureRequest,
    request_id: &str,
    scope: &Scope,
    secret: &[u8; 16],
    terms: &Terms,
) -> Result<Vec<NewTask<PaintTask>>, Rejection> {
    let Scope { tenant, namespace } = scope;
    // A separator that no tenant and no namespace holds. Equal pictures are painted once only where the cache is to keep
    // the same of them.
    let scope = format!("{tenant}\n{namespace}\n{}", request.cache().keeping());
    let task = |spec: &PictureSpec| {
        let hash = spec.hash(secret).map_err(|error| Rejection::Internal(error.to_string()))?;
        Ok(NewTask {
            spec: PaintTask { request: request_id.to_owned(), spec: spec.clone(), start: None, keep: None },
            model: request.model().id.clone(),
            shape: request.shape(),
            picture: PictureId { scope: scope.clone(), hash },
            terms: terms.clone(),
            menu: request.menu().clone(),
            start: None,
            previews: request.wishes().previews,
        })
    };
    request.specs().iter().map(task).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::gateway::request::tests::request;
    use crate::gateway::{CacheMode, Wanted, terms};

    #[test]
    fn pictures_are_named_by_what_they_are_and_where_they_are_kept() {
        let names = |wanted: Wanted, tenant: &str| {
            let request = request(Wanted { seed: Some(1), ..wanted }).unwrap();
            let scope = Scope { tenant: tenant.into(), namespace: "default".into() };
            let hour = Duration::from_secs(3600);
            let terms = terms(request.tier(), request.range(), request.objective(), Duration::ZERO, hour);
            let tasks = tasks(&request, "r", &scope, &[7; 16], &terms).unwrap();
            tasks.into_iter().map(|task| task.picture).collect::<Vec<_>>()
        };
        let two = names(Wanted { n: Some(2), ..Wanted::default() }, "a");
        assert_eq!(two[0], names(Wanted::default(), "a")[0]);
        assert_ne!(two[0].hash, two[1].hash);
        assert_ne!(two[0].scope, names(Wanted::default(), "b")[0].scope);
        for cache in [CacheMode::Off, CacheMode::Refresh] {
            let other = &names(Wanted { cache, ..Wanted::default() }, "a")[0];
            assert!(other.hash == two[0].hash && other.scope != two[0].scope, "{cache:?}");
        }
        let jpeg = Wanted {
            format: Some(crate::picture::file::Format::Jpeg),
            previews: Some(2),
            ..Wanted::default()
        };
        assert_eq!(names(jpeg, "a")[0], two[0], "the file is the listener's own affair");
    }
}
