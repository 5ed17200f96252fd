//! Fake clients and their gateways.

use rand_chacha::ChaCha8Rng;

use super::engine::{SHAPE, Sketch};
use super::{Scenario, below, uniform};
use crate::scheduler::messages::{MenuChoice, NewTask, PictureId, StoredStart, Submit, Terms};
use crate::scheduler::{ModelId, RequestId};

/// What is known of a request on its gateway's side.
#[derive(Debug)]
pub(super) struct Asked {
    pub submit: Submit<Sketch>,
    /// Whether the gateway has an answer.
    pub answered: bool,
    /// Whether the client will leave.
    pub leaves: bool,
}

/// The name of the n-th request.
pub(super) fn request_id(request: usize) -> RequestId {
    format!("request-{request}").into()
}

/// The name of the n-th model.
pub(super) fn model_id(model: usize) -> ModelId {
    format!("model-{model}").into()
}

/// The n-th request.
pub(super) fn ask(request: usize, scenario: &Scenario, random: &mut ChaCha8Rng) -> Asked {
    let greedy = uniform(random) < 0.5;
    let client = if greedy { 0 } else { below(random, scenario.clients) };
    let pictures = if uniform(random) < 0.2 { 4 } else { 1 };
    let model = model_id(below(random, scenario.models));
    let tasks = (0..pictures).map(|index| task(request, index, &model, scenario, random)).collect();
    Asked {
        submit: Submit {
            request: request_id(request),
            client: format!("client-{client}").as_str().into(),
            tasks,
        },
        answered: false,
        leaves: uniform(random) < scenario.faults.cancelled,
    }
}

fn task(
    request: usize,
    index: usize,
    model: &ModelId,
    scenario: &Scenario,
    random: &mut ChaCha8Rng,
) -> NewTask<Sketch> {
    let faults = &scenario.faults;
    // One in eight asks for what another one may ask for, too.
    let popular = uniform(random) < 0.125;
    let name = if popular { below(random, 8) } else { 1000 + 64 * request + index };
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&(name as u64).to_le_bytes());
    let (tier, floor) =
        [("low", 0.9), ("auto", 0.95), ("high", 0.99)][if popular { 1 } else { below(random, 3) }];
    let stored = StoredStart { noise_level: 0.6, loss: 0.005, least_steps: 8, required: false };
    let start = (!popular && uniform(random) < 0.25).then_some(stored);
    let menu = match (popular, below(random, 10)) {
        (false, 0) => MenuChoice::Only { options: vec!["12".into()] },
        _ => MenuChoice::Whole,
    };
    let spec = Sketch {
        deadly: !popular && uniform(random) < faults.deadly,
        failing: !popular && uniform(random) < faults.failing,
        start: start.map(|start| (start.noise_level, start.loss)),
    };
    let slack = if popular { 1.0 } else { 0.5 + uniform(random) };
    NewTask {
        spec,
        model: model.clone(),
        shape: SHAPE,
        picture: PictureId { scope: "shared".to_owned(), hash },
        terms: Terms {
            tier: tier.to_owned(),
            floor,
            best: 1.0,
            deadline_seconds: slack * scenario.deadline_seconds,
            firm: false,
        },
        menu,
        start,
        previews: 0,
    }
}
