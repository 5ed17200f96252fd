//! Fake clients and their gateways: the requests of a scenario, one after the other.

use rand_chacha::ChaCha8Rng;

use super::scenario::{Drawn, Recorded, Requests, Scenario, TIERS, Tier};
use super::worker::{Fails, SHAPE, Sketch};
use super::{below, exponential, uniform};
use crate::scheduler::menu::{Measured, MenuOption};
use crate::scheduler::messages::{MenuChoice, NewTask, PictureId, StoredStart, Submit, Terms};
use crate::scheduler::{ClientId, ModelId, RequestId, Time};

/// Where a picture may be gone on from, if a stored state is near enough.
const STORED: StoredStart = StoredStart { noise_level: 0.6, loss: 0.005, least_steps: 8, required: false };

/// The name of the n-th request.
pub(super) fn request_id(request: usize) -> RequestId {
    format!("request-{request}").into()
}

/// The name of the n-th model.
pub(super) fn model_id(model: usize) -> ModelId {
    format!("model-{model}").into()
}

/// The requests that are still to come.
pub(super) struct Gateway<'a> {
    scenario: &'a Scenario,
    models: Vec<ModelId>,
    clients: Vec<ClientId>,
    made: usize,
}

impl<'a> Gateway<'a> {
    pub fn new(scenario: &'a Scenario) -> Self {
        let clients = match scenario.requests {
            Requests::Drawn(Drawn { clients, .. }) => clients,
            Requests::Recorded(_) => 0,
        };
        Self {
            scenario,
            models: (0..scenario.models).map(model_id).collect(),
            clients: (0..clients).map(|client| format!("client-{client}").into()).collect(),
            made: 0,
        }
    }

    /// How many requests were made.
    pub fn made(&self) -> usize {
        self.made
    }

    /// Whether all requests were made.
    pub fn is_over(&self) -> bool {
        self.made == self.scenario.requests.count()
    }

    /// When the next request is made, after one at `now`.
    pub fn next_at(&self, now: Time, random: &mut ChaCha8Rng) -> Option<Time> {
        match &self.scenario.requests {
            _ if self.is_over() => None,
            Requests::Drawn(drawn) => Some(now.after(exponential(random, 1.0 / drawn.per_second))),
            // A second, in which all workers poll for the first time.
            Requests::Recorded(recorded) => Some(Time::ZERO.after(1.0 + recorded[self.made].at)),
        }
    }

    /// The next request.
    pub fn ask(&mut self, random: &mut ChaCha8Rng) -> Submit<Sketch> {
        let number = self.made;
        self.made += 1;
        match &self.scenario.requests {
            Requests::Drawn(drawn) => self.drawn(number, drawn, random),
            Requests::Recorded(recorded) => self.recorded(number, &recorded[number], random),
        }
    }

    fn drawn(&self, number: usize, drawn: &Drawn, random: &mut ChaCha8Rng) -> Submit<Sketch> {
        let client = if uniform(random) < 0.5 { 0 } else { below(random, drawn.clients) };
        let pictures = if uniform(random) < drawn.batches { 4 } else { 1 };
        let model = &self.models[below(random, self.models.len())];
        let mut task = |index: usize| {
            // One in eight asks for what another one may ask for, too.
            let popular = uniform(random) < 0.125;
            let name = if popular { below(random, 8) } else { 1000 + 64 * number + index };
            let tier = TIERS[if popular { 1 } else { [0, 1, 3][below(random, 3)] }];
            let start = (!popular && uniform(random) < drawn.stored).then_some(STORED);
            let menu = match (popular, below(random, 10)) {
                (false, 0) => self.middle(),
                _ => MenuChoice::Whole,
            };
            let patience = if popular { 1.0 } else { 0.5 + uniform(random) };
            let spec = self.sketch(popular, start, random);
            let deadline_seconds = patience * self.scenario.deadline_seconds;
            new_task(spec, model, name, tier, deadline_seconds, menu, start)
        };
        let tasks = (0..pictures).map(&mut task).collect();
        Submit { request: request_id(number), client: self.clients[client].clone(), tasks }
    }

    /// An option in the middle of the menu, which a client pinned.
    fn middle(&self) -> MenuChoice {
        let menu = &self.scenario.menu;
        MenuChoice::Only {
            options: menu.get(menu.len() / 2).map(|option| option.id.clone()).into_iter().collect(),
        }
    }

    fn recorded(&self, number: usize, request: &Recorded, random: &mut ChaCha8Rng) -> Submit<Sketch> {
        let model = &self.models[request.model % self.models.len()];
        let tier = TIERS[request.tier];
        // A request for n pictures has n times the time.
        let patience = tier.patience * request.pictures as f64;
        let deadline_seconds = request.deadline_seconds.unwrap_or(patience * self.scenario.deadline_seconds);
        let mut task = |index: usize| {
            let start = request.stored.then_some(STORED);
            let menu = request.steps.map_or(MenuChoice::Whole, |steps| self.pinned(steps));
            let spec = self.sketch(false, start, random);
            new_task(spec, model, 64 * number + index, tier, deadline_seconds, menu, start)
        };
        let tasks = (0..request.pictures).map(&mut task).collect();
        Submit { request: request_id(number), client: request.client.as_ref().into(), tasks }
    }

    /// The plan of a client that pinned a number of steps: an option of the menu, or one of its own.
    fn pinned(&self, steps: usize) -> MenuChoice {
        let found = self.scenario.menu.iter().find(|option| option.steps.len() == steps);
        match found {
            Some(option) => MenuChoice::Only { options: vec![option.id.clone()] },
            None => {
                let quality = Measured { noise_level: 1.0, mean: 1.0, low: 1.0, high: 1.0 };
                let option = MenuOption::even(&format!("pinned-{steps}"), steps, 0.0, vec![quality]);
                MenuChoice::Own { option: Box::new(option) }
            }
        }
    }

    fn sketch(&self, popular: bool, start: Option<StoredStart>, random: &mut ChaCha8Rng) -> Sketch {
        let faults = &self.scenario.faults;
        let stage = [Fails::Encoding, Fails::Stepping, Fails::Decoding][below(random, 3)];
        let fails = match (uniform(random) < faults.deadly, uniform(random) < faults.failing) {
            _ if popular => None,
            (true, _) => Some(Fails::Deadly),
            (false, fails) => fails.then_some(stage),
        };
        Sketch { fails, start: start.map(|start| (start.noise_level, start.loss)), own: None }
    }
}

fn new_task(
    mut spec: Sketch,
    model: &ModelId,
    name: usize,
    tier: Tier,
    deadline_seconds: f64,
    menu: MenuChoice,
    start: Option<StoredStart>,
) -> NewTask<Sketch> {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&(name as u64).to_le_bytes());
    if let MenuChoice::Own { option } = &menu {
        spec.own = Some((**option).clone().into());
    }
    NewTask {
        spec,
        model: model.clone(),
        shape: SHAPE,
        picture: PictureId { scope: "shared".to_owned(), hash },
        terms: Terms {
            tier: tier.name.to_owned(),
            floor: tier.floor,
            best: 1.0,
            deadline_seconds: deadline_seconds.clamp(1e-3, 86_400.0),
            firm: false,
        },
        menu,
        start,
        previews: 0,
    }
}
