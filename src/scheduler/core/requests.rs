//! Requests: which pictures of them are open, and which were answered already.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::tasks::TaskKey;
use crate::scheduler::{ClientId, RequestId, TaskId};

/// A request that was accepted.
#[derive(Debug)]
pub(super) struct Request {
    pub client: ClientId,
    /// What `submit` answered.
    pub answer: Vec<TaskId>,
    /// The task of each picture that has not ended.
    pub pictures: Vec<Option<TaskKey>>,
    open: usize,
}

/// All requests that are open, and the last of those that are over.
#[derive(Debug)]
pub(super) struct Requests {
    requests: HashMap<RequestId, Request>,
    /// Requests that are over, the oldest first.
    over: VecDeque<RequestId>,
    /// Open pictures by client, and in all.
    open_of: BTreeMap<ClientId, usize>,
    open: usize,
    remembered: usize,
}

impl Requests {
    pub fn new(remembered: usize) -> Self {
        Self {
            requests: HashMap::new(),
            over: VecDeque::new(),
            open_of: BTreeMap::new(),
            open: 0,
            remembered,
        }
    }

    pub fn get(&self, id: &RequestId) -> Option<&Request> {
        self.requests.get(id)
    }

    /// Pictures that have not ended.
    pub fn open(&self) -> usize {
        self.open
    }

    /// The same of one client.
    pub fn open_of(&self, client: &ClientId) -> usize {
        self.open_of.get(client).copied().unwrap_or(0)
    }

    /// Adds a request, whose pictures are painted by `tasks`.
    pub fn insert(&mut self, id: RequestId, client: ClientId, tasks: Vec<(TaskId, TaskKey)>) {
        let open = tasks.len();
        self.open += open;
        *self.open_of.entry(client.clone()).or_default() += open;
        let (answer, pictures) = tasks.into_iter().map(|(id, key)| (id, Some(key))).unzip();
        self.requests.insert(id, Request { client, answer, pictures, open });
    }

    /// A picture ends. Whether it was open: an end is told once.
    pub fn close(&mut self, id: &RequestId, index: u32) -> bool {
        let Some(request) = self.requests.get_mut(id) else { return false };
        if request.pictures.get_mut(index as usize).and_then(Option::take).is_none() {
            return false;
        }
        request.open -= 1;
        self.open -= 1;
        if let Some(count) = self.open_of.get_mut(&request.client) {
            *count -= 1;
            if *count == 0 {
                self.open_of.remove(&request.client);
            }
        }
        if request.open == 0 {
            self.over.push_back(id.clone());
            if self.over.len() > self.remembered
                && let Some(oldest) = self.over.pop_front()
            {
                self.requests.remove(&oldest);
            }
        }
        true
    }

    /// What the maps hold, for tests of what grows.
    #[cfg(test)]
    pub fn sizes(&self) -> [usize; 3] {
        [self.requests.len(), self.over.len(), self.open_of.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_end_once_and_the_last_requests_are_remembered() {
        let mut requests = Requests::new(2);
        for i in 0..5u64 {
            let id: RequestId = format!("r{i}").into();
            let task = |index| (TaskId { request: id.clone(), index }, 2 * i + u64::from(index));
            requests.insert(id.clone(), "c".into(), vec![task(0), task(1)]);
            assert_eq!((requests.open(), requests.open_of(&"c".into())), (2, 2));
            assert!(requests.close(&id, 1) && !requests.close(&id, 1) && !requests.close(&id, 7));
            assert!(requests.close(&id, 0) && !requests.close(&id, 0));
        }
        assert_eq!((requests.open(), requests.sizes()), (0, [2, 2, 0]));
        assert!(requests.get(&"r4".into()).is_some() && requests.get(&"r2".into()).is_none());
    }
}
