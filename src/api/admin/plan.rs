//! By which policy pictures get their plans, and what the scheduler has to do.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{Admin, policy};
use crate::api::{ApiError, ErrorBody, body};
use crate::gateway::Gateway;
use crate::scheduler::OptionId;
use crate::scheduler::core::{Policy, SetLoad, StepTime};

/// A plan policy with its settings, as `plan_policy` in the configuration takes it.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(tag = "policy", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PlanPolicy {
    /// Every picture gets one option of its model's menu, whatever the load, and no less than its tier's floor.
    Fixed {
        /// The option; none: each picture's best.
        #[serde(default)]
        option: Option<String>,
    },
    /// All pictures of a model that begin at the same load get one option.
    PerModel {},
    /// Each picture gets the option that is worth most at the present load.
    Adaptive {
        /// Whether pictures in flight follow the load, too.
        #[serde(default = "yes")]
        replan: bool,
    },
}

fn yes() -> bool {
    true
}

impl From<PlanPolicy> for Policy {
    fn from(policy: PlanPolicy) -> Self {
        match policy {
            PlanPolicy::Fixed { option } => Self::Fixed { option: option.map(OptionId::from) },
            PlanPolicy::PerModel {} => Self::PerModel,
            PlanPolicy::Adaptive { replan } => Self::Adaptive { replan },
        }
    }
}

impl From<Policy> for PlanPolicy {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Fixed { option } => Self::Fixed { option: option.map(String::from) },
            Policy::PerModel => Self::PerModel {},
            Policy::Adaptive { replan } => Self::Adaptive { replan },
        }
    }
}

/// The plan policy in force, and what the scheduler has to do.
#[derive(Debug, Serialize, ToSchema)]
pub struct PlanObject {
    /// The policy and its settings: {"policy": "adaptive", "replan": true}.
    #[schema(value_type = Object)]
    plan: PlanPolicy,
    /// Pictures that wait or are painted; equal ones count once.
    tasks: usize,
    /// Pictures that workers hold.
    running: usize,
    /// Clients that wait for pictures.
    clients: usize,
    /// Workers that poll.
    workers: usize,
    /// Sets of interchangeable workers.
    sets: Vec<WorkerSetObject>,
    /// The models' plan menus.
    menus: Vec<MenuObject>,
}

/// A set of interchangeable workers.
#[derive(Debug, Serialize, ToSchema)]
pub struct WorkerSetObject {
    /// Ids of the models that its workers can load.
    models: Vec<String>,
    /// Its workers.
    workers: usize,
    /// What a second of machine time costs, in worth: the higher, the cheaper the plans. 0 without load.
    price: f64,
    /// Seconds until all that waits is painted, each picture with the cheapest plan of its tier.
    backlog_seconds: f64,
    /// Predicted times of steps, of the kinds that were seen.
    step_times: Vec<StepTimeObject>,
}

/// What a step takes.
#[derive(Debug, Serialize, ToSchema)]
pub struct StepTimeObject {
    /// The model's id.
    model: String,
    /// `WIDTHxHEIGHT`.
    size: String,
    /// Rows of the batch.
    rows: u32,
    /// Predicted milliseconds.
    ms: f64,
}

/// A model's plan menu.
#[derive(Debug, Serialize, ToSchema)]
pub struct MenuObject {
    /// The model's id.
    model: String,
    /// Whether its options were measured.
    measured: bool,
    /// Its options by rising cost.
    options: Vec<OptionObject>,
}

/// An option of a plan menu.
#[derive(Debug, Serialize, ToSchema)]
pub struct OptionObject {
    /// Its name.
    id: String,
    /// Steps from noise to picture.
    steps: usize,
    /// Rows that they take: what it costs.
    rows: f64,
    /// Its expected quality, relative to the model's full plan.
    quality: f64,
}

/// Another plan policy.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanChange {
    /// `policy`: `adaptive` (`replan`: whether pictures in flight are replanned), `per-model`, or `fixed` (`option`: an
    /// option of a model's menu; null: each picture's best).
    #[schema(value_type = Option<Object>)]
    plan: Option<Map<String, Value>>,
}

impl From<StepTime> for StepTimeObject {
    fn from(time: StepTime) -> Self {
        let StepTime { model, shape, rows, seconds } = time;
        let size = format!("{}x{}", shape.width, shape.height);
        Self { model: model.into(), size, rows, ms: seconds * 1000.0 }
    }
}

impl From<SetLoad> for WorkerSetObject {
    fn from(set: SetLoad) -> Self {
        let SetLoad { models, workers, price, backlog_seconds, step_times } = set;
        let models = models.into_iter().map(String::from).collect();
        let step_times = step_times.into_iter().map(StepTimeObject::from).collect();
        Self { models, workers, price, backlog_seconds, step_times }
    }
}

impl PlanObject {
    fn of(gateway: &Gateway) -> Self {
        let load = gateway.scheduler.load();
        let menu = |model: &Arc<crate::gateway::ServedModel>| MenuObject {
            model: model.id.as_str().to_owned(),
            measured: model.menu.is_measured(),
            options: model.menu.options().iter().map(OptionObject::from).collect(),
        };
        Self {
            plan: gateway.scheduler.policy().into(),
            tasks: load.tasks,
            running: load.running,
            clients: load.clients,
            workers: load.workers,
            sets: load.sets.into_iter().map(WorkerSetObject::from).collect(),
            menus: gateway.catalogue.models().iter().map(menu).collect(),
        }
    }
}

impl From<&crate::menu::MeasuredOption> for OptionObject {
    fn from(option: &crate::menu::MeasuredOption) -> Self {
        let from_noise = option.from[0];
        Self {
            id: option.option.id.clone(),
            steps: option.option.steps,
            rows: from_noise.rows,
            quality: from_noise.quality.mean,
        }
    }
}

/// The plan policy in force, and what the scheduler has to do.
#[utoipa::path(get, path = "/admin/v1/plan", tag = "plan",
    responses((status = 200, body = PlanObject), (status = 401, body = ErrorBody)))]
pub async fn get(State(admin): State<Arc<Admin>>) -> Json<PlanObject> {
    Json(PlanObject::of(&admin.gateway))
}

/// Plans by another policy from now on, until the server ends.
#[utoipa::path(put, path = "/admin/v1/plan", tag = "plan", request_body = PlanChange,
    responses(
        (status = 200, description = "The policy now in force", body = PlanObject),
        (status = 400, description = "A setting is wrong; `param` names it", body = ErrorBody),
        (status = 401, body = ErrorBody)))]
pub async fn put(State(admin): State<Arc<Admin>>, request: Request) -> Result<Json<PlanObject>, ApiError> {
    let change: PlanChange = body::nested_json(request, admin.max_body_bytes, admin.read_timeout).await?;
    let plan: PlanPolicy = policy::parse("plan", change.plan.ok_or_else(|| ApiError::missing("plan"))?)?;
    if let PlanPolicy::Fixed { option: Some(id) } = &plan {
        let known = admin.gateway.catalogue.models().iter().any(|model| model.menu.get(id).is_some());
        if !known {
            return Err(ApiError::invalid("plan.option", &format!("no model's menu has an option {id:?}")));
        }
    }
    tracing::info!(?plan, "the plan policy was set");
    admin.gateway.scheduler.set_policy(plan.into());
    Ok(Json(PlanObject::of(&admin.gateway)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_those_of_the_scheduler() {
        for json in [
            r#"{"policy":"adaptive","replan":false}"#,
            r#"{"policy":"per-model"}"#,
            r#"{"policy":"fixed","option":"ddim-8"}"#,
            r#"{"policy":"fixed","option":null}"#,
        ] {
            let ours: PlanPolicy = serde_json::from_str(json).unwrap();
            let inner: Policy = serde_json::from_str(json).unwrap();
            assert_eq!(Policy::from(ours.clone()), inner);
            assert_eq!(PlanPolicy::from(inner), ours);
            assert_eq!(serde_json::to_string(&ours).unwrap(), json);
        }
        for wrong in [r#"{"policy":"per-model","level":3}"#, r#"{"policy":"fixed","steps":7}"#] {
            assert!(serde_json::from_str::<PlanPolicy>(wrong).is_err(), "{wrong}");
        }
    }
}
