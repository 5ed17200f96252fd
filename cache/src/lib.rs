//! Denoising states of pictures already painted, found again by the embeddings of their prompts.
//!
//! This crate will hold the embedding index, the state store, the reuse policy and the eviction policy.
//! It will know nothing of HTTP and nothing of the engine: a state is bytes with a timestep, a prompt is
//! a vector. Nothing is built yet.
