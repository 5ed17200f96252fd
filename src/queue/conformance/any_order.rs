//! Whatever happens to a queue, in whatever order: what is accepted is never lost.

use std::collections::HashSet;

use proptest::prelude::*;

use super::{hear, job, painted, pull_from, stored};
use crate::queue::{Event, Failure, Job, JobLease, JobQueue, Line, QueueLimits};

/// What may happen to a queue.
#[derive(Debug, Clone)]
enum Act {
    Submit { client: usize, pictures: Vec<usize> },
    Pull(Line),
    PaintInstead(usize),
    Complete(usize),
    Fail(usize),
    DropLease(usize),
    DropSubscription(usize),
    Close,
    Stop,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0..3usize, prop::collection::vec(0..6usize, 1..4))
            .prop_map(|(client, pictures)| Act::Submit { client, pictures }),
        6 => prop_oneof![Just(Line::Paint), Just(Line::Show)].prop_map(Act::Pull),
        1 => any::<usize>().prop_map(Act::PaintInstead),
        3 => any::<usize>().prop_map(Act::Complete),
        1 => any::<usize>().prop_map(Act::Fail),
        1 => any::<usize>().prop_map(Act::DropLease),
        2 => any::<usize>().prop_map(Act::DropSubscription),
        1 => Just(Act::Close),
        1 => Just(Act::Stop),
    ]
}

/// What tells a picture apart.
fn name(job: &Job) -> String {
    format!("{}{}", job.client, job.index)
}

fn take<T>(from: &mut Vec<T>, at: usize) -> Option<T> {
    (!from.is_empty()).then(|| from.swap_remove(at % from.len()))
}

pub(in crate::queue) fn what_is_accepted_is_never_lost<Q: JobQueue>(make: impl Fn(QueueLimits) -> Q) {
    let acts = prop::collection::vec(act(), 0..60);
    proptest!(|(acts in acts)| {
        let queue = make(QueueLimits { length: 12, length_per_client: 8 });
        let (mut subscriptions, mut leases) = (Vec::new(), Vec::new());
        let (mut lost, mut stopped) = (HashSet::new(), false);
        for act in acts {
            match act {
                Act::Submit { client, pictures } => {
                    let client = ["a", "b", "c"][client];
                    let jobs: Vec<_> = pictures
                        .iter()
                        .map(|&index| if index % 2 == 0 { job(client, index) } else { stored(client, index) })
                        .collect();
                    let names: Vec<_> = jobs.iter().map(name).collect();
                    if let Ok(accepted) = queue.submit(jobs) {
                        prop_assert_eq!(accepted.len(), names.len());
                        subscriptions.extend(names.into_iter().zip(accepted));
                    }
                }
                Act::Pull(line) => leases.extend(pull_from(&queue, line)),
                Act::PaintInstead(at) => {
                    if let Some(lease) = take(&mut leases, at) {
                        lease.paint_instead();
                    }
                }
                Act::Complete(at) => {
                    if let Some(lease) = take(&mut leases, at) {
                        let file = name(lease.job());
                        lease.complete(painted(&file));
                    }
                }
                Act::Fail(at) => {
                    if let Some(lease) = take(&mut leases, at) {
                        let reason = name(lease.job());
                        lease.fail(Failure::Engine(reason));
                    }
                }
                Act::DropLease(at) => lost.extend(take(&mut leases, at).map(|lease| name(lease.job()))),
                Act::DropSubscription(at) => drop(take(&mut subscriptions, at)),
                Act::Close => queue.close(),
                Act::Stop => {
                    queue.stop();
                    stopped = true;
                }
            }
        }
        queue.close();
        for line in [Line::Show, Line::Paint] {
            leases.extend(std::iter::from_fn(|| pull_from(&queue, line)));
        }
        for lease in leases {
            let file = name(lease.job());
            lease.complete(painted(&file));
        }
        for (name, mut subscription) in subscriptions {
            match hear(&mut subscription) {
                Event::Done(painted) => prop_assert_eq!(painted.file, name.into_bytes()),
                Event::Failed(Failure::Engine(reason)) => prop_assert_eq!(reason, name),
                Event::Failed(Failure::Stopped) => prop_assert!(stopped || lost.contains(&name), "{} is lost", name),
                other => prop_assert!(false, "{:?} is no end of {}", other, name),
            }
            prop_assert_eq!(hear(&mut subscription), Event::Failed(Failure::Stopped), "one end only");
        }
    });
}
