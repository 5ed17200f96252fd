//! A request's place in the cache: whose it is, what it may be compared with, and what is kept of its pictures.

use pentimento_cache::{Compatibility, Content, NewPicture, PaintedPlan, Scope, SpecificationHash};
use tracing::Instrument;

use super::{LookUpError, Reuse};
use crate::gateway::embedder::Embedder;
use crate::gateway::{CacheMode, PictureRequest};
use crate::picture::{KeepOrder, PaintTask};
use crate::scheduler::messages::NewTask;

/// A request's place in the cache.
pub(super) struct Place {
    pub scope: Scope,
    pub compatibility: Compatibility,
    pub embedding: Vec<f32>,
    pub content: Content,
}

impl Reuse {
    /// Whose pictures a request of a tenant sees, and who sees its own. Namespaces that all tenants share have no tenant.
    pub fn scope(&self, tenant: &str, namespace: &str) -> Scope {
        let shared = self.options.shared_namespaces.contains(namespace);
        Scope {
            tenant: if shared { String::new() } else { tenant.to_owned() },
            namespace: namespace.to_owned(),
        }
    }

    /// A request's place, its prompt embedded.
    pub(super) async fn place(&self, request: &PictureRequest, scope: Scope) -> Result<Place, LookUpError> {
        let spec = request.first();
        let model = self.model(&spec.model)?;
        let compatibility = Compatibility {
            latent_space: model.latent_space.clone(),
            noise_schedule: model.noise_schedule.clone(),
            width: spec.size.width,
            height: spec.size.height,
            embedder: model.embedder.digest().to_owned(),
            negative_prompt: spec
                .negative_prompt
                .as_ref()
                .map_or_else(String::new, |negative| self.hash("negative", negative)),
        };
        let embedding = self.embeddings.embed(&model.embedder, &spec.prompt);
        let embedding = embedding.instrument(tracing::info_span!("embed")).await?;
        Ok(Place { scope, compatibility, embedding, content: Content::of(&spec.prompt, &self.secret) })
    }

    /// What the cache is to keep of a task's picture. Its worker adds what only painting tells: plan, quality, file and
    /// states.
    pub(super) fn keep_order(
        &self,
        request: &PictureRequest,
        place: &Place,
        task: &NewTask<PaintTask>,
    ) -> KeepOrder {
        let spec = &task.spec.spec;
        let picture = NewPicture {
            scope: place.scope.clone(),
            compatibility: place.compatibility.clone(),
            model: spec.model.clone(),
            guidance_scale: spec.guidance_scale,
            embedding: place.embedding.clone(),
            prompt: self.options.store_prompt_text.then(|| spec.prompt.clone()),
            prompt_hash: self.prompt_hash(&spec.prompt),
            content: place.content.clone(),
            specification: SpecificationHash::new(task.picture.hash),
            seed: spec.seed,
            plan: PaintedPlan::guided(request.full_steps() as u32),
            expected_quality: None,
            resumed: None,
            refresh: request.cache() == CacheMode::Refresh,
            file: None,
            states: Vec::new(),
        };
        KeepOrder { picture, shares: self.options.shares.clone() }
    }
}
