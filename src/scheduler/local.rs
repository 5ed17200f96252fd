//! The scheduler in this process: the core behind one mutex, with the subscriptions and wake-ups that a core has not.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::core::{Config, Load, Policy};
use super::menu::{Menu, MenuOption};
use super::messages::{
    Busy, EndAnswer, NewTask, Notice, Poll, PollAnswer, Refusal, Shape, Submit, TaskEnd,
};
use super::{ModelId, TaskId};

/// Why a request was not accepted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NotAccepted {
    /// Not now.
    #[error("{why}")]
    Later {
        /// When there is room, as predicted. No place is kept.
        after: Duration,
        /// What is full.
        why: Busy,
    },
    /// Not at any time.
    #[error("{0}")]
    Never(Refusal),
}

/// What a request's listener is told of its pictures.
#[derive(Debug, Clone, PartialEq)]
pub enum RequestEvent<Picture> {
    /// A picture was given to a worker.
    Begun {
        /// Which of the request's pictures.
        index: u32,
    },
    /// An early look at a picture.
    Preview {
        /// Which of the request's pictures.
        index: u32,
        /// Which of the previews that this request asked for, from 0.
        number: u32,
        /// A JPEG.
        file: Bytes,
    },
    /// The end of a picture. Each is told once.
    End(Notice<Picture>),
}

/// The pictures of an accepted request. Dropped before their end, they are cancelled.
pub struct Listener<Picture> {
    _picture: std::marker::PhantomData<Picture>,
}

impl<Picture> Listener<Picture> {
    /// The next event; `None` once each picture's end was told.
    pub async fn next(&mut self) -> Option<RequestEvent<Picture>> {
        todo!()
    }

    /// How many pictures are likely begun before this one of the request's; `None` once it is begun.
    pub fn ahead(&self, _index: u32) -> Option<usize> {
        todo!()
    }
}

/// The scheduler in this process. Clones are the same one.
pub struct LocalScheduler<Spec, Picture> {
    inner: Arc<std::marker::PhantomData<(Spec, Picture)>>,
}

impl<Spec, Picture> Clone for LocalScheduler<Spec, Picture> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<Spec: Clone + Send + 'static, Picture: Clone + Send + 'static> LocalScheduler<Spec, Picture> {
    /// A scheduler without models and workers.
    pub fn new(_config: Config) -> Self {
        todo!()
    }

    /// Sets the menu of a model.
    pub fn set_menu(&self, _model: ModelId, _menu: Menu) {
        todo!()
    }

    /// The plan policy in force.
    pub fn policy(&self) -> Policy {
        todo!()
    }

    /// Changes the plan policy.
    pub fn set_policy(&self, _policy: Policy) {
        todo!()
    }

    /// Accepts all pictures of a request, or none.
    ///
    /// # Errors
    /// [`NotAccepted`]
    pub fn submit(&self, _submit: Submit<Spec>) -> Result<Listener<Picture>, NotAccepted> {
        todo!()
    }

    /// A worker's poll: answered once something changes for it, after a second at the latest.
    pub async fn poll(&self, _poll: Poll<Picture>) -> PollAnswer<Spec> {
        todo!()
    }

    /// The end of an attempt.
    pub fn end(&self, _end: TaskEnd<Picture>) -> EndAnswer {
        todo!()
    }

    /// An early look at a task's picture, at a share of its steps; whoever wants one there is told.
    pub fn preview(&self, _task: &TaskId, _attempt: u32, _number: u32, _file: Bytes) {
        todo!()
    }

    /// What there is to do.
    pub fn load(&self) -> Load {
        todo!()
    }

    /// The last published price of a second of a model's machine time; `None` before there is one.
    pub fn price(&self, _model: &ModelId) -> Option<f64> {
        todo!()
    }

    /// The expected quality of what a task would get if it were begun now; `None` where no worker serves its model.
    pub fn quality_now(&self, _task: &NewTask<Spec>) -> Option<f64> {
        todo!()
    }

    /// Predicted seconds of a picture with all steps of an option on an idle machine; `None` before a step was measured.
    pub fn unloaded_seconds(&self, _model: &ModelId, _shape: Shape, _option: &MenuOption) -> Option<f64> {
        todo!()
    }

    /// Accepts nothing more; what was accepted is painted.
    pub fn close(&self) {
        todo!()
    }

    /// Whether nothing more is accepted.
    pub fn is_closed(&self) -> bool {
        todo!()
    }

    /// Resolves once nothing waits and nothing is painted.
    pub async fn idle(&self) {
        todo!()
    }

    /// Ends all open pictures as stopped.
    pub fn stop(&self) {
        todo!()
    }
}
