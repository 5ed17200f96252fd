//! Eviction policies: which parts are removed when the cache is full. Each policy is a pure function of a part's use.

/// How a stored state or picture was used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// How often it was resumed or served.
    pub uses: u64,
    /// The share of the plan that a use of it saves, from 0 to 1.
    pub share: f32,
    /// The time when its picture was painted, in seconds since 1970.
    pub created: u64,
    /// The time of its picture's last use, in seconds since 1970.
    pub last_used: u64,
}

/// Assigns a worth to each stored state and picture. The one of least worth is evicted first, and of equal ones the
/// oldest.
pub trait EvictionPolicy: Send + Sync {
    /// The policy's name in configuration and answers.
    fn name(&self) -> &'static str;

    /// The worth, a finite number. Its unit is the policy's own.
    fn worth(&self, usage: &Usage) -> f64;
}

/// NIRVANA's "least computationally beneficial and frequently used": the number of uses times the share of the plan that
/// a use saves.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lcbfu;

impl EvictionPolicy for Lcbfu {
    fn name(&self) -> &'static str {
        "lcbfu"
    }
    fn worth(&self, usage: &Usage) -> f64 {
        usage.uses as f64 * f64::from(usage.share)
    }
}

/// Least recently used.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lru;

impl EvictionPolicy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }
    fn worth(&self, usage: &Usage) -> f64 {
        usage.last_used.max(usage.created) as f64
    }
}

/// Least frequently used.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lfu;

impl EvictionPolicy for Lfu {
    fn name(&self) -> &'static str {
        "lfu"
    }
    fn worth(&self, usage: &Usage) -> f64 {
        usage.uses as f64
    }
}

/// First in, first out.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fifo;

impl EvictionPolicy for Fifo {
    fn name(&self) -> &'static str {
        "fifo"
    }
    fn worth(&self, usage: &Usage) -> f64 {
        usage.created as f64
    }
}

/// The policy of a name; `None` for an unknown name.
pub fn eviction_policy(name: &str) -> Option<std::sync::Arc<dyn EvictionPolicy>> {
    match name {
        "lcbfu" => Some(std::sync::Arc::new(Lcbfu)),
        "lru" => Some(std::sync::Arc::new(Lru)),
        "lfu" => Some(std::sync::Arc::new(Lfu)),
        "fifo" => Some(std::sync::Arc::new(Fifo)),
        _ => None,
    }
}
