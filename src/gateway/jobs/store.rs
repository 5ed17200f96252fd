//! Which jobs are kept, and which go first. Decisions only: time is handed in.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Idempotency, JobError, JobId};

/// What is kept at most.
#[derive(Debug, Clone, Copy)]
pub struct StoreLimits {
    /// Jobs, running ones included.
    pub jobs: usize,
    /// Bytes of image files, running jobs' included.
    pub bytes: usize,
    /// How long a finished job is kept.
    pub lifetime: Duration,
}

struct Kept<J> {
    job: Arc<J>,
    tenant: Arc<str>,
    key: Option<(Arc<str>, String)>,
    bytes: usize,
}

struct Finished {
    id: JobId,
    expires: Instant,
}

/// The jobs by name; those that have ended in the order of their ends, which is also that in which they expire.
pub struct Store<J> {
    limits: StoreLimits,
    kept: HashMap<JobId, Kept<J>>,
    finished: VecDeque<Finished>,
    keys: HashMap<(Arc<str>, String), ([u8; 32], JobId)>,
    /// Of all jobs.
    bytes: usize,
}

impl<J> Store<J> {
    /// An empty one.
    pub fn new(limits: StoreLimits) -> Self {
        Self { limits, kept: HashMap::new(), finished: VecDeque::new(), keys: HashMap::new(), bytes: 0 }
    }

    /// Whether one more job can be kept: there is room, or an ended one that gives way.
    pub fn has_room(&self) -> bool {
        self.kept.len() < self.limits.jobs || !self.finished.is_empty()
    }

    /// The job of the request that came under this key before.
    pub fn known(&self, tenant: &Arc<str>, it: &Idempotency) -> Result<Option<Arc<J>>, JobError> {
        match self.keys.get(&(tenant.clone(), it.key.clone())) {
            None => Ok(None),
            Some((body, _)) if *body != it.body => Err(JobError::KeyTaken),
            Some((_, id)) => Ok(self.get(id.as_str())),
        }
    }

    /// Keeps a running job.
    pub fn insert(
        &mut self,
        id: JobId,
        tenant: Arc<str>,
        job: Arc<J>,
        idempotency: Option<Idempotency>,
    ) -> Result<(), JobError> {
        if !self.has_room() {
            return Err(JobError::Full);
        }
        if self.kept.len() >= self.limits.jobs {
            self.give_way(|_| 1);
        }
        let key = idempotency.map(|it| {
            let key = (tenant.clone(), it.key);
            self.keys.insert(key.clone(), (it.body, id.clone()));
            key
        });
        self.kept.insert(id, Kept { job, tenant, key, bytes: 0 });
        Ok(())
    }

    /// Says whether a running job may hold so many bytes more. Finished jobs give way to it, running ones do not.
    pub fn grow(&mut self, id: &JobId, bytes: usize) -> bool {
        if self.has_ended(id) {
            return false;
        }
        let finished: usize =
            self.finished.iter().filter_map(|f| self.kept.get(&f.id)).map(|k| k.bytes).sum();
        if self.bytes - finished + bytes > self.limits.bytes {
            return false;
        }
        while self.bytes + bytes > self.limits.bytes {
            self.give_way(|kept| kept.bytes);
        }
        self.count(id, |held| held + bytes);
        true
    }

    /// A job has ended with so many bytes of files, no more than it held.
    pub fn ended(&mut self, id: &JobId, bytes: usize, now: Instant) {
        self.count(id, |_| bytes);
        self.finished.push_back(Finished { id: id.clone(), expires: now + self.limits.lifetime });
    }

    fn count(&mut self, id: &JobId, bytes: impl Fn(usize) -> usize) {
        let Some(kept) = self.kept.get_mut(id) else { return };
        self.bytes -= kept.bytes;
        kept.bytes = bytes(kept.bytes);
        self.bytes += kept.bytes;
    }

    /// Forgets what is too old.
    pub fn expire(&mut self, now: Instant) {
        while self.finished.front().is_some_and(|f| f.expires <= now) {
            self.drop_oldest();
        }
    }

    /// Forgets a job that has ended.
    pub fn forget(&mut self, id: &JobId) {
        let before = self.finished.len();
        self.finished.retain(|f| f.id != *id);
        if self.finished.len() < before {
            self.remove(id);
        }
    }

    /// A job.
    pub fn get(&self, id: &str) -> Option<Arc<J>> {
        self.kept.get(id).map(|kept| kept.job.clone())
    }

    /// All of them.
    pub fn jobs(&self) -> impl Iterator<Item = &Arc<J>> {
        self.kept.values().map(|kept| &kept.job)
    }

    /// Some job that has not ended.
    pub fn running(&self) -> Option<Arc<J>> {
        self.kept.iter().find(|(id, _)| !self.has_ended(id)).map(|(_, kept)| kept.job.clone())
    }

    fn has_ended(&self, id: &JobId) -> bool {
        self.finished.iter().any(|finished| finished.id == *id)
    }

    /// Forgets a job that has ended, to make room: the oldest of the tenant whose ended jobs take the most, so that nobody
    /// drives another's out.
    fn give_way(&mut self, size: impl Fn(&Kept<J>) -> usize) {
        let mut taken: HashMap<&str, usize> = HashMap::new();
        let ended = || self.finished.iter().filter_map(|finished| self.kept.get(&finished.id));
        for kept in ended() {
            *taken.entry(&kept.tenant).or_default() += size(kept);
        }
        // Of equal ones whose job is the oldest.
        let most = taken.values().max().copied();
        let place = ended().position(|kept| taken.get(&*kept.tenant).copied() == most);
        if let Some(finished) = place.and_then(|place| self.finished.remove(place)) {
            self.remove(&finished.id);
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.finished.pop_front() {
            self.remove(&oldest.id);
        }
    }

    fn remove(&mut self, id: &JobId) {
        let Some(kept) = self.kept.remove(id) else { return };
        self.bytes -= kept.bytes;
        if let Some(key) = kept.key {
            self.keys.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> Store<u8> {
        Store::new(StoreLimits { jobs: 3, bytes: 100, lifetime: Duration::from_secs(10) })
    }

    fn put(store: &mut Store<u8>, job: u8) -> Result<JobId, JobError> {
        put_for("a", store, job)
    }

    fn put_for(tenant: &str, store: &mut Store<u8>, job: u8) -> Result<JobId, JobError> {
        let id = JobId::random().unwrap();
        store.insert(id.clone(), tenant.into(), Arc::new(job), None).map(|()| id)
    }

    fn kept(store: &Store<u8>) -> Vec<u8> {
        let mut jobs: Vec<_> = store.jobs().map(|job| **job).collect();
        jobs.sort_unstable();
        jobs
    }

    #[test]
    fn running_jobs_are_never_dropped_and_the_oldest_finished_goes_first() {
        let (mut store, now) = (store(), Instant::now());
        let ids: Vec<_> = (1..=3).map(|job| put(&mut store, job).unwrap()).collect();
        assert_eq!(put(&mut store, 4), Err(JobError::Full));
        store.ended(&ids[1], 10, now);
        store.ended(&ids[0], 10, now);
        assert!(put(&mut store, 4).is_ok());
        assert_eq!(kept(&store), [1, 3, 4], "the second was the first to end");
        assert!(put(&mut store, 5).is_ok() && put(&mut store, 6) == Err(JobError::Full));
        assert_eq!(kept(&store), [3, 4, 5]);
    }

    #[test]
    fn who_holds_the_most_gives_way_first() {
        let (mut store, now) = (store(), Instant::now());
        for (tenant, job) in [("a", 1), ("b", 2), ("b", 3)] {
            let id = put_for(tenant, &mut store, job).unwrap();
            assert!(store.grow(&id, 10 * usize::from(job)));
            store.ended(&id, 10 * usize::from(job), now);
            assert!(!store.grow(&id, 1), "it has ended");
        }
        let id = put_for("b", &mut store, 4).unwrap();
        assert_eq!(kept(&store), [1, 3, 4], "not the oldest, which is another's");
        assert!(store.grow(&id, 70));
        assert_eq!(kept(&store), [1, 4], "nor by bytes");
    }

    #[test]
    fn jobs_fill_no_more_than_their_bytes() {
        let (mut store, now) = (store(), Instant::now());
        let ids: Vec<_> = (1..=3).map(|job| put(&mut store, job).unwrap()).collect();
        assert!(store.grow(&ids[0], 30) && store.grow(&ids[1], 70));
        store.ended(&ids[0], 30, now);
        assert!(!store.grow(&ids[2], 31), "a running job does not give way");
        assert_eq!(kept(&store), [1, 2, 3], "and nothing is forgotten in vain");
        assert!(store.grow(&ids[2], 30));
        assert_eq!(kept(&store), [2, 3], "a finished one does");
        store.ended(&ids[1], 20, now);
        assert!(store.grow(&ids[2], 50), "what the second held beyond its end is free again");
        assert_eq!(kept(&store), [2, 3]);
        store.forget(&ids[1]);
        assert!(store.grow(&ids[2], 20) && !store.grow(&ids[2], 1));
    }

    #[test]
    fn finished_jobs_expire_and_can_be_forgotten() {
        let (mut store, now) = (store(), Instant::now());
        let (a, b) = (put(&mut store, 1).unwrap(), put(&mut store, 2).unwrap());
        store.ended(&a, 1, now);
        store.expire(now + Duration::from_secs(9));
        assert!(store.get(a.as_str()).is_some());
        store.expire(now + Duration::from_secs(10));
        assert_eq!(kept(&store), [2], "a running job does not expire");
        store.forget(&b);
        assert_eq!(store.running(), Some(Arc::new(2)), "nor can it be forgotten");
        store.ended(&b, 1, now);
        store.forget(&b);
        assert!(kept(&store).is_empty() && store.running().is_none());
    }

    #[test]
    fn a_key_means_its_tenants_request_for_as_long_as_the_job_is_kept() {
        let (mut store, now) = (store(), Instant::now());
        let it = |body| Idempotency { key: "k".into(), body: [body; 32] };
        let (anna, bert): (Arc<str>, Arc<str>) = ("anna".into(), "bert".into());
        let id = JobId::random().unwrap();
        store.insert(id.clone(), anna.clone(), Arc::new(1), Some(it(7))).unwrap();
        assert_eq!(store.known(&anna, &it(7)), Ok(Some(Arc::new(1))));
        assert_eq!(store.known(&anna, &it(8)), Err(JobError::KeyTaken));
        assert_eq!(store.known(&bert, &it(8)), Ok(None));
        store.ended(&id, 0, now);
        store.forget(&id);
        assert_eq!(store.known(&anna, &it(8)), Ok(None));
    }
}
