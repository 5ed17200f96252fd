//! From prompts to token states: CLIP's tokenizer and text tower (Radford et al. 2021, arXiv 2103.00020).

mod clip;
mod tokenizer;

pub use clip::{ClipTextConfig, ClipTextEncoder, TextStates};
pub use tokenizer::{ClipTokenizer, ReadFile};
