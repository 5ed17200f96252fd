//! Eviction policies: which states go when the cache is full. Pure functions of how they were used.

/// How a kept state was used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// How often it was resumed.
    pub uses: u64,
    /// The share of its plan that lay before it: what a use saves.
    pub share: f32,
    /// When its picture was painted, in seconds since 1970.
    pub created: u64,
    /// When its picture was last reused, in seconds since 1970.
    pub last_used: u64,
}

/// Says what a kept state is worth. The one of least worth is evicted first; of equal ones, the oldest.
pub trait EvictionPolicy: Send + Sync {
    /// Its name in configuration and answers.
    fn name(&self) -> &'static str;

    /// The worth, finite, in a unit of the policy's own.
    fn worth(&self, usage: &Usage) -> f64;
}

/// NIRVANA's "least computationally beneficial and frequently used": uses times the share of a plan saved.
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

/// The policy of a name.
pub fn eviction_policy(name: &str) -> Option<std::sync::Arc<dyn EvictionPolicy>> {
    match name {
        "lcbfu" => Some(std::sync::Arc::new(Lcbfu)),
        "lru" => Some(std::sync::Arc::new(Lru)),
        "lfu" => Some(std::sync::Arc::new(Lfu)),
        "fifo" => Some(std::sync::Arc::new(Fifo)),
        _ => None,
    }
}
