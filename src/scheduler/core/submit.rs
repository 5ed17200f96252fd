//! Requests come in: all of their pictures are accepted, or none.

use std::collections::HashMap;
use std::sync::Arc;

use super::Core;
use super::admission::Need;
use super::demand::Class;
use super::options::Facts;
use super::order::Lane;
use super::tasks::{JoinKey, Listener, Phase, Task, TaskKey};
use crate::scheduler::menu::Menu;
use crate::scheduler::messages::{Busy, MOST_PREVIEWS, MenuChoice, NewTask, Refusal, Submit, SubmitAnswer};
use crate::scheduler::{ClientId, TaskId, Time};

/// The longest time to a deadline, seconds: a week. Times beyond it would overflow when they are added up.
const LONGEST: f64 = 604_800.0;

/// What paints a picture of a request that is being accepted.
enum Painting {
    /// A task that is known already.
    Joined(TaskKey),
    /// A task of this request, by its place among the new ones.
    New(usize),
}

impl<Spec: Clone, Picture: Clone> Core<Spec, Picture> {
    /// Accepts a request's pictures, or says why not. Equal pictures of one scope under equal terms are painted once.
    ///
    /// The request keeps its place from here on: a second `submit` of the same name gets the same answer.
    pub fn submit(&mut self, now: Time, submit: Submit<Spec>) -> SubmitAnswer {
        self.tick(now);
        if let Some(known) = self.requests.get(&submit.request) {
            return SubmitAnswer::Accepted { tasks: known.answer.clone() };
        }
        if let Some(refused) = self.refuse_by_bounds(&submit) {
            return refused;
        }
        let mut facts = Vec::with_capacity(submit.tasks.len());
        for task in &submit.tasks {
            match self.facts(task) {
                Ok(of) => facts.push(Arc::new(of)),
                Err(why) => return SubmitAnswer::Never { why },
            }
        }
        let (paintings, new) = self.join(&submit, &facts);
        let needs: Vec<(Arc<Facts>, Need)> =
            new.iter().map(|&i| (facts[i].clone(), self.need(&facts[i]))).collect();
        if let Err(refused) = self.admit(now, &submit.client, &needs) {
            return refused;
        }
        self.accept(now, submit, &paintings, needs)
    }

    fn refuse_by_bounds(&self, submit: &Submit<Spec>) -> Option<SubmitAnswer> {
        let limits = self.config.limits;
        let (pictures, most) = (submit.tasks.len(), limits.pictures_per_request);
        if !(1..=most).contains(&pictures) {
            return Some(SubmitAnswer::Never { why: Refusal::Pictures { most } });
        }
        let of_client =
            (self.requests.open_of(&submit.client) + pictures).saturating_sub(limits.pictures_per_client);
        let of_all = (self.requests.open() + pictures).saturating_sub(limits.pictures);
        let why = match (self.closed, of_client, of_all) {
            (true, _, _) => Busy::Closing,
            (_, 1.., _) => Busy::ClientFull,
            (_, _, 1..) => Busy::Full,
            _ => return None,
        };
        // A client's pictures end at its own pace: all active clients take turns.
        let clients = if why == Busy::ClientFull { self.order.active() } else { 1 };
        let after_seconds = self.seconds_until_ended(of_client.max(of_all) * clients);
        Some(SubmitAnswer::Later { after_seconds, why })
    }

    /// The facts of a new task, checked.
    pub(super) fn facts(&self, task: &NewTask<Spec>) -> Result<Facts, Refusal> {
        let out = |field: &str| Err(Refusal::Terms { field: field.to_owned() });
        let NewTask { spec: _, model, shape, picture: _, terms, menu, start, previews } = task;
        let share = |value: f64| (0.0..=1.0).contains(&value);
        let checks = [
            ("floor", share(terms.floor)),
            ("best", share(terms.best)),
            ("deadline_seconds", (1e-3..=LONGEST).contains(&terms.deadline_seconds)),
            ("start.noise_level", start.is_none_or(|s| s.noise_level > 1e-3 && s.noise_level <= 1.0)),
            ("start.loss", start.is_none_or(|s| share(s.loss))),
            ("shape", shape.width > 0 && shape.height > 0),
            ("previews", *previews <= MOST_PREVIEWS),
        ];
        if let Some((field, _)) = checks.into_iter().find(|(_, holds)| !holds) {
            return out(field);
        }
        let Some(of_model) = self.menus.get(model) else {
            return Err(Refusal::Model { model: model.clone() });
        };
        let wrong = |reason: String| Refusal::Menu { reason };
        let (menu, allowed) = match menu {
            MenuChoice::Whole => (of_model.clone(), None),
            MenuChoice::Only { options } => {
                let find =
                    |id| of_model.find(id).ok_or_else(|| wrong(format!("the menu has no option {id:?}")));
                let mut places = options.iter().map(find).collect::<Result<Vec<usize>, _>>()?;
                places.sort_unstable();
                places.dedup();
                if places.is_empty() {
                    return Err(wrong("no option is allowed".to_owned()));
                }
                (of_model.clone(), Some(places))
            }
            MenuChoice::Own { option } => {
                let own = Menu::new(vec![(**option).clone()]).map_err(|error| wrong(error.to_string()))?;
                (Arc::new(own), None)
            }
        };
        let mut terms = terms.clone();
        terms.best = terms.best.max(terms.floor);
        let worth = self.worths.get(&terms.tier).unwrap_or(&self.plain_worth).clone();
        let class = Class::of(&terms, *shape, &menu, allowed.as_deref(), *start);
        Ok(Facts { model: model.clone(), shape: *shape, terms, menu, allowed, worth, start: *start, class })
    }

    /// What paints each picture, and the places of those that nothing paints yet.
    fn join(&self, submit: &Submit<Spec>, facts: &[Arc<Facts>]) -> (Vec<Painting>, Vec<usize>) {
        let mut new = Vec::new();
        let mut own: HashMap<JoinKey, usize> = HashMap::new();
        let mut joined: HashMap<TaskKey, usize> = HashMap::new();
        let mut paintings = Vec::with_capacity(facts.len());
        for (i, (task, facts)) in submit.tasks.iter().zip(facts).enumerate() {
            let key = JoinKey::of(&task.picture, facts);
            let known = self.tasks.joinable(&key, 1).and_then(|task| {
                let more = joined.entry(task).or_default();
                *more += 1;
                self.tasks.joinable(&key, *more)
            });
            paintings.push(match (known, own.get(&key)) {
                (Some(task), _) => Painting::Joined(task),
                (None, Some(place)) => Painting::New(*place),
                (None, None) => {
                    own.insert(key, new.len());
                    new.push(i);
                    Painting::New(new.len() - 1)
                }
            });
        }
        (paintings, new)
    }

    fn accept(
        &mut self,
        now: Time,
        submit: Submit<Spec>,
        paintings: &[Painting],
        needs: Vec<(Arc<Facts>, Need)>,
    ) -> SubmitAnswer {
        let Submit { request, client, tasks } = submit;
        let mut new: Vec<TaskKey> = Vec::with_capacity(needs.len());
        let mut needs = needs.into_iter();
        let mut named = Vec::with_capacity(tasks.len());
        for (index, (task, painting)) in (0..).zip(tasks.into_iter().zip(paintings)) {
            let previews = task.previews;
            let key = match painting {
                Painting::Joined(key) => *key,
                Painting::New(place) if *place < new.len() => new[*place],
                Painting::New(_) => {
                    let Some((facts, need)) = needs.next() else { continue }; // each new picture has one
                    let id = TaskId { request: request.clone(), index };
                    let key = self.create(now, id, &client, task, facts, &need);
                    new.push(key);
                    key
                }
            };
            if let Some(task) = self.tasks.get_mut(key) {
                let more = previews > task.previews();
                let (request, client) = (request.clone(), client.clone());
                task.listeners.push(Listener { request, index, client, previews });
                named.push((task.id.clone(), key));
                if let Some(run) = task.run().filter(|_| more) {
                    self.woken.insert(run.worker);
                }
            }
        }
        let answer = named.iter().map(|(id, _)| id.clone()).collect();
        self.requests.insert(request, client, named);
        for key in new {
            self.wake_for(key);
        }
        SubmitAnswer::Accepted { tasks: answer }
    }

    fn create(
        &mut self,
        now: Time,
        id: TaskId,
        client: &ClientId,
        task: NewTask<Spec>,
        facts: Arc<Facts>,
        need: &Need,
    ) -> TaskKey {
        let deadline = now.after(facts.terms.deadline_seconds);
        let model = facts.model.clone();
        let key = self.tasks.insert(Task {
            id,
            spec: task.spec,
            facts,
            picture: task.picture,
            client: client.clone(),
            deadline,
            listeners: Vec::with_capacity(1),
            phase: Phase::Waiting(Lane::InTime),
            suspended: None,
            attempt: 0,
            past: vec![],
            losses: 0,
            checkpoint: None,
            least_steps: 0,
            yielded: false,
            bucket: None,
        });
        self.order.push(client, &model, Lane::InTime, deadline, key);
        self.put_into_bucket(key, 1.0, need.seconds);
        key
    }
}
