//! A look-up for people: what would be decided, and why. Nothing is counted.

use std::sync::Arc;

use pentimento_cache::{Decision, LookUp, Neighbour, Scope, SpecificationHash};

use super::look_up::QualityNow;
use super::stored::is_good_enough;
use super::{LookUpError, Reuse};
use crate::gateway::PictureRequest;
use crate::picture::PaintTask;
use crate::scheduler::messages::NewTask;

impl Reuse {
    /// What would be decided for a request's first picture, `task`, and what is near it.
    ///
    /// # Errors
    /// [`LookUpError`]
    pub async fn explain(
        &self,
        request: &PictureRequest,
        tenant: &str,
        task: &NewTask<PaintTask>,
        now: &QualityNow<'_>,
    ) -> Result<LookUp, LookUpError> {
        let scope = self.scope(tenant, request.namespace());
        let policy = self.policy.read().of(request.names_quality());
        if request.has_seed()
            && policy.exact_hits()
            && let Some(found) = self.explain_exact(request, &scope, task, now).await?
        {
            return Ok(found);
        }
        let place = Arc::new(self.place(request, scope).await?);
        let range = request.range();
        let wanted = now(task).map_or(range.floor, |now| now.clamp(range.floor, range.best));
        self.look_up(request, &policy, &place, 0, task.spec.spec.seed, wanted).await
    }

    async fn explain_exact(
        &self,
        request: &PictureRequest,
        scope: &Scope,
        task: &NewTask<PaintTask>,
        now: &QualityNow<'_>,
    ) -> Result<Option<LookUp>, LookUpError> {
        let specification = SpecificationHash::new(task.picture.hash);
        let hit = self.cache.exact(scope, &specification).await?;
        let hit = hit.filter(|hit| is_good_enough(hit, request.range(), || now(task)));
        let Some(hit) = hit.filter(|hit| hit.picture.is_some()) else { return Ok(None) };
        let Some(entry) = self.cache.entry(&hit.entry).await? else { return Ok(None) };
        let quality = hit.expected_quality.unwrap_or_default();
        let why = format!(
            "the same prompt, seed and parameters were painted before, and an expected quality of {quality:.3} is \
             what the request would get now, or better"
        );
        let decision = Decision::Exact { entry: hit.entry, why };
        Ok(Some(LookUp { decision, neighbours: vec![Neighbour { entry, similarity: 1.0 }] }))
    }
}
