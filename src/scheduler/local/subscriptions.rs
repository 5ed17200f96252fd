//! Which requests listen to which task, and what each was told.

use std::collections::HashMap;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::RequestEvent;
use crate::scheduler::messages::{MOST_PREVIEWS, Notice};
use crate::scheduler::{RequestId, TaskId};

/// The most events of one picture: it is begun, previewed and ended.
const MOST_EVENTS: usize = MOST_PREVIEWS as usize + 2;

/// A picture of a request that a task paints.
#[derive(Debug)]
struct Hearer {
    request: RequestId,
    index: u32,
    /// Previews that the request asked for, and those of them that it was sent.
    previews: u32,
    sent: u32,
}

/// A task, as far as its listeners go.
#[derive(Debug)]
struct Painting {
    /// Its number among all tasks, by arrival.
    arrival: u64,
    begun: bool,
    hearers: Vec<Hearer>,
}

/// A request that is listened to.
#[derive(Debug)]
struct Request<Picture> {
    events: mpsc::Sender<RequestEvent<Picture>>,
    /// The task of each picture that has not ended.
    tasks: Vec<Option<TaskId>>,
}

/// All requests that are listened to. Each event is told at most once, so that a channel of `MOST_EVENTS` for each
/// picture never fills, and telling never waits.
#[derive(Debug)]
pub(super) struct Subscriptions<Picture> {
    requests: HashMap<RequestId, Request<Picture>>,
    paintings: HashMap<TaskId, Painting>,
    arrivals: u64,
    /// The arrivals of tasks that are not begun, rising.
    waiting: Vec<u64>,
}

impl<Picture> Default for Subscriptions<Picture> {
    fn default() -> Self {
        Self { requests: HashMap::new(), paintings: HashMap::new(), arrivals: 0, waiting: Vec::new() }
    }
}

impl<Picture> Subscriptions<Picture> {
    /// Listens to an accepted request: the task of each picture, and how many previews each wants.
    pub fn add(
        &mut self,
        request: &RequestId,
        pictures: Vec<(TaskId, u32)>,
    ) -> mpsc::Receiver<RequestEvent<Picture>> {
        let (events, receiver) = mpsc::channel((MOST_EVENTS * pictures.len()).max(1));
        let tasks = pictures.iter().map(|(task, _)| Some(task.clone())).collect();
        for (index, (task, previews)) in (0..).zip(pictures) {
            let painting = self.paintings.entry(task).or_insert_with(|| {
                self.arrivals += 1;
                self.waiting.push(self.arrivals);
                Painting { arrival: self.arrivals, begun: false, hearers: vec![] }
            });
            if painting.begun {
                let _ = events.try_send(RequestEvent::Begun { index }); // the receiver is in hand
            }
            painting.hearers.push(Hearer { request: request.clone(), index, previews, sent: 0 });
        }
        self.requests.insert(request.clone(), Request { events, tasks });
        receiver
    }

    /// A task was given to a worker.
    pub fn begin(&mut self, task: &TaskId) {
        let Some(painting) = self.paintings.get_mut(task).filter(|painting| !painting.begun) else { return };
        painting.begun = true;
        if let Ok(place) = self.waiting.binary_search(&painting.arrival) {
            self.waiting.remove(place);
        }
        for Hearer { request, index, .. } in &painting.hearers {
            tell(&self.requests, request, RequestEvent::Begun { index: *index });
        }
    }

    /// Preview `number` of `of`, from 1, is there. Each listener hears those that are nearest to its own positions.
    pub fn preview(&mut self, task: &TaskId, number: u32, of: u32, file: &Bytes) {
        let Some(painting) = self.paintings.get_mut(task) else { return };
        for hearer in &mut painting.hearers {
            let next = hearer.sent + 1..=hearer.previews;
            let Some(mine) = next.into_iter().find(|mine| nearest(*mine, hearer.previews, of) == number)
            else {
                continue;
            };
            hearer.sent = mine;
            let event = RequestEvent::Preview { index: hearer.index, number: mine - 1, file: file.clone() };
            tell(&self.requests, &hearer.request, event);
        }
    }

    /// A picture ended.
    pub fn end(&mut self, notice: Notice<Picture>) {
        let (id, index) = (notice.request.clone(), notice.index);
        self.forget(&id, index);
        let Some(request) = self.requests.get(&id) else { return };
        let _ = request.events.try_send(RequestEvent::End(notice)); // the listener may have left
        if request.tasks.iter().all(Option::is_none) {
            self.requests.remove(&id);
        }
    }

    /// The listener left. Returns how many pictures it had open.
    pub fn remove(&mut self, request: &RequestId) -> usize {
        let pictures = self.requests.get(request).map_or(0, |request| request.tasks.len());
        let open = (0..pictures as u32).filter(|index| self.forget(request, *index)).count();
        self.requests.remove(request);
        open
    }

    /// A request's picture is open no more. Whether it was; the last listener of a task takes it along.
    fn forget(&mut self, request: &RequestId, index: u32) -> bool {
        let of = self.requests.get_mut(request);
        let Some(task) = of.and_then(|of| of.tasks.get_mut(index as usize)?.take()) else { return false };
        let Some(painting) = self.paintings.get_mut(&task) else { return true };
        painting.hearers.retain(|hearer| hearer.request != *request || hearer.index != index);
        if painting.hearers.is_empty() {
            if let Ok(place) = self.waiting.binary_search(&painting.arrival) {
                self.waiting.remove(place);
            }
            self.paintings.remove(&task);
        }
        true
    }

    /// Tasks that came before a picture's and are not begun; `None` once it is begun, or has ended.
    pub fn ahead(&self, request: &RequestId, index: u32) -> Option<usize> {
        let task = self.requests.get(request)?.tasks.get(index as usize)?.as_ref()?;
        let painting = self.paintings.get(task).filter(|painting| !painting.begun)?;
        Some(self.waiting.partition_point(|arrival| *arrival < painting.arrival))
    }

    /// Tasks that are not begun.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// What the maps hold, for tests of what grows.
    #[cfg(test)]
    pub fn sizes(&self) -> [usize; 3] {
        [self.requests.len(), self.paintings.len(), self.waiting.len()]
    }
}

fn tell<Picture>(
    requests: &HashMap<RequestId, Request<Picture>>,
    request: &RequestId,
    event: RequestEvent<Picture>,
) {
    if let Some(request) = requests.get(request) {
        let _ = request.events.try_send(event); // the listener may have left
    }
}

/// The number of the preview, of `of` in all, that lies nearest to preview `mine` of `wanted`. Preview n of k lies at the
/// share n / (k + 1) of the steps; of two that are equally near it is the earlier.
fn nearest(mine: u32, wanted: u32, of: u32) -> u32 {
    // mine / (wanted + 1) * (of + 1), rounded half down.
    let (twice, parts) = (2 * mine * (of + 1), 2 * (wanted + 1));
    (twice + wanted).div_euclid(parts).clamp(1, of.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_previews_are_those_nearest_to_their_own_places() {
        let heard = |wanted: u32, of| (1..=wanted).map(|mine| nearest(mine, wanted, of)).collect::<Vec<_>>();
        assert_eq!((heard(1, 1), heard(2, 2), heard(3, 3)), (vec![1], vec![1, 2], vec![1, 2, 3]));
        assert_eq!((heard(1, 2), heard(1, 3), heard(2, 3)), (vec![1], vec![2], vec![1, 3]));
    }

    #[test]
    fn nothing_is_kept_of_what_ended_or_left() {
        let mut all: Subscriptions<()> = Subscriptions::default();
        let task = |index| TaskId { request: "a".into(), index };
        let a = all.add(&"a".into(), vec![(task(0), 0), (task(1), 1)]);
        let b = all.add(&"b".into(), vec![(task(1), 3)]);
        assert_eq!((all.ahead(&"a".into(), 0), all.ahead(&"b".into(), 0)), (Some(0), Some(1)));
        all.begin(&task(0));
        assert_eq!((all.ahead(&"a".into(), 0), all.ahead(&"b".into(), 0)), (None, Some(0)));
        assert_eq!((all.remove(&"a".into()), all.remove(&"a".into())), (2, 0));
        assert_eq!(all.sizes(), [1, 1, 1]);
        assert_eq!((all.remove(&"b".into()), all.sizes()), (1, [0, 0, 0]));
        drop((a, b));
    }
}
