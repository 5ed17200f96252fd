//! Names of things, as messages carry them.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A name with its hash. Names are compared by their hashes first: the scheduler looks names up dozens of times for each
/// message, and most names of one kind begin alike.
#[derive(Clone)]
struct Name {
    hash: u64,
    text: Arc<str>,
}

impl Name {
    fn new(text: Arc<str>) -> Self {
        // FNV-1a: the same in every process, so that equal runs have equal orders.
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self { hash, text }
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && (Arc::ptr_eq(&self.text, &other.text) || self.text == other.text)
    }
}

impl Eq for Name {}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        let equal = || {
            if Arc::ptr_eq(&self.text, &other.text) { Ordering::Equal } else { self.text.cmp(&other.text) }
        };
        self.hash.cmp(&other.hash).then_with(equal)
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        /// Its order is arbitrary, and the same in every process.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(from = "String", into = "String")]
        pub struct $name(Name);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0.text
            }
        }

        impl From<&str> for $name {
            fn from(name: &str) -> Self {
                Self(Name::new(name.into()))
            }
        }

        impl From<String> for $name {
            fn from(name: String) -> Self {
                Self(Name::new(name.into()))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.as_str())
            }
        }
    };
}

name! {
    /// A request, as its gateway named it. A second `submit` of the same name is the same request.
    RequestId
}
name! {
    /// A client that takes turns with the others: a tenant, or an address.
    ClientId
}
name! {
    /// A model.
    ModelId
}
name! {
    /// A worker, for as long as its host keeps the name. Its incarnation tells one process from the next.
    WorkerId
}
name! {
    /// An option of a plan menu.
    OptionId
}

/// A task: one picture to be painted, named by the first picture of a request that asked for it. The name is the same
/// under every leader, since it needs no counter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskId {
    /// The request that asked for it first.
    pub request: RequestId,
    /// Which of that request's pictures it is, from 0.
    pub index: u32,
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.request, self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_equal_by_their_text_alone_and_their_order_agrees() {
        let [one, same, other] = ["worker-1", "worker-1", "worker-2"].map(WorkerId::from);
        assert!(one == same && one.cmp(&same).is_eq() && one != other && one.cmp(&other).is_ne());
        assert_eq!(one.cmp(&other), other.cmp(&one).reverse());
        // Names of one hash, as chance may have it.
        let twin = |text: &str| Name { hash: 7, text: text.into() };
        assert!(twin("a") < twin("b") && twin("a") != twin("b") && twin("a") == twin("a"));
    }
}
