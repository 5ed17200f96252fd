//! What steers a trajectory: its prompts and, where it goes on from another picture's state, what changed
//! between that picture's prompt and its own.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::plan::{Guidance, Steering, StepPlan};

/// What the text encoders made of one prompt.
#[derive(Debug, Clone)]
pub struct EncodedPrompt {
    /// The first tokenizer's ids, one a token state.
    pub ids: Arc<[u32]>,
    /// Token states, (tokens, width): what the denoiser attends to.
    pub token_states: Tensor,
    /// The pooled embedding, (width,), where the model's denoiser takes one (SDXL).
    pub pooled: Option<Tensor>,
}

/// What steers a trajectory: prompt, negative prompt and the family's extras.
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// The prompt.
    pub prompt: EncodedPrompt,
    /// The negative prompt (often the empty one).
    pub negative: EncodedPrompt,
    /// SDXL's time ids, (6,): original size, crop, target size.
    pub time_ids: Option<Tensor>,
    /// The prompt of the picture that the trajectory was resumed from: see [`Conditioning::with_source`].
    pub source: Option<Source>,
}

/// The prompt of another picture, and how the trajectory's own differs from it.
#[derive(Debug, Clone)]
pub struct Source {
    prompt: EncodedPrompt,
    /// Token states, (tokens, width), of the trajectory's prompt less those of the source, token held
    /// against token.
    difference: Tensor,
    /// The same of the pooled embeddings, (width,).
    pooled_difference: Option<Tensor>,
}

impl Conditioning {
    /// The same prompts, for going on from a state of a picture of `source`: what steps steer away from
    /// whose [`Steering`] is not by the prompts alone. Their difference is taken here, once.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `source` where it is not of the same model's kind.
    pub fn with_source(self, source: EncodedPrompt) -> Result<Self> {
        let ours = &self.prompt;
        let alike = source.token_states.dims() == ours.token_states.dims()
            && source.ids.len() == ours.ids.len()
            && source.token_states.dim(0)? == source.ids.len()
            && source.pooled.is_some() == ours.pooled.is_some();
        if !alike {
            return Err(Error::invalid("source", "was encoded by another model than the prompt"));
        }
        let partners = align(&ours.ids, &source.ids);
        let device = ours.token_states.device();
        let aligned = source.token_states.index_select(&Tensor::new(partners, device)?, 0)?;
        let pooled = match (&ours.pooled, &source.pooled) {
            (Some(ours), Some(theirs)) => Some((ours - theirs)?),
            _ => None,
        };
        let source =
            Source { difference: (&ours.token_states - aligned)?, pooled_difference: pooled, prompt: source };
        Ok(Self { source: Some(source), ..self })
    }

    /// Whether the steps of `plan` have what they are steered by.
    pub(crate) fn check(&self, plan: &StepPlan) -> Result<()> {
        let steered = plan.steps().iter().any(|step| step.guidance.steering != Steering::Prompts);
        if steered && self.source.is_none() { Err(no_source()) } else { Ok(()) }
    }

    /// What the rows of a step attend to, in their order: the negative prompt, where guidance has one, the
    /// prompt as it is steered, the source, where its prediction is asked for.
    pub(crate) fn rows(&self, guidance: Guidance) -> Result<impl Iterator<Item = Cow<'_, EncodedPrompt>>> {
        let negative = guidance.has_negative().then_some(&self.negative).map(Cow::Borrowed);
        let (prompt, source) = match (guidance.steering, &self.source) {
            (Steering::Prompts, _) => (Cow::Borrowed(&self.prompt), None),
            (_, None) => return Err(no_source()),
            (Steering::Contrastive { .. }, Some(source)) => {
                (Cow::Borrowed(&self.prompt), Some(Cow::Borrowed(&source.prompt)))
            }
            (Steering::Extrapolated { strength }, Some(source)) => {
                (Cow::Owned(self.prompt.extrapolated(source, strength.into())?), None)
            }
        };
        Ok([negative, Some(prompt), source].into_iter().flatten())
    }
}

fn no_source() -> Error {
    Error::invalid("source", "a step is steered by the source prompt, but the conditioning has none")
}

impl EncodedPrompt {
    /// This prompt, `strength` times its difference from the source farther on.
    fn extrapolated(&self, source: &Source, strength: f64) -> Result<Self> {
        let pooled = match (&self.pooled, &source.pooled_difference) {
            (Some(pooled), Some(difference)) => Some((pooled + (difference * strength)?)?),
            _ => self.pooled.clone(),
        };
        let token_states = (&self.token_states + (&source.difference * strength)?)?;
        Ok(Self { ids: self.ids.clone(), token_states, pooled })
    }
}

/// For every token of a prompt the source's token that it is held against.
///
/// Tokens of the longest common subsequence are held against each other. Where other words stand between
/// two such tokens they are spread evenly over the source's words there; where the source has none, they are
/// held against the token that they were put before. Padding is held against padding: states differ by how
/// far behind the text they stand.
fn align(prompt: &[u32], source: &[u32]) -> Vec<u32> {
    let (content, source_content) = (content(prompt), content(source));
    let mut partners = Vec::with_capacity(prompt.len());
    let mut source_from = 0;
    let ends = std::iter::once((content, source_content));
    for (i, j) in common_subsequence(&prompt[..content], &source[..source_content]).into_iter().chain(ends) {
        let (gap, source_gap) = (i - partners.len(), j - source_from);
        let last = source.len() - 1;
        partners.extend((0..gap).map(|k| (source_from + k * source_gap / gap).min(last) as u32));
        if i < content {
            partners.push(j as u32);
        }
        source_from = j + 1;
    }
    let padding = prompt.len() - content;
    partners.extend((0..padding).map(|k| (source_content + k).min(source.len() - 1) as u32));
    partners
}

/// How many ids come before the padding; where it is the end of text over again, as CLIP's is, with that end.
fn content(ids: &[u32]) -> usize {
    let padding = ids.iter().rev().take_while(|id| Some(*id) == ids.last()).count();
    (ids.len() - padding + 1).min(ids.len())
}

/// The places, in `a` and in `b`, of a longest common subsequence.
fn common_subsequence(a: &[u32], b: &[u32]) -> Vec<(usize, usize)> {
    let mut longest = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            longest[i][j] = match a[i] == b[j] {
                true => 1 + longest[i + 1][j + 1],
                false => longest[i + 1][j].max(longest[i][j + 1]),
            };
        }
    }
    let (mut i, mut j, mut pairs) = (0, 0, Vec::new());
    while i < a.len() && j < b.len() {
        if a[i] == b[j] {
            pairs.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if longest[i + 1][j] >= longest[i][j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 starts a text, 9 ends and pads it.
    #[test]
    fn tokens_are_held_against_their_like() {
        let source = [1, 20, 30, 40, 9, 9, 9, 9];
        assert_eq!(align(&source, &source), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(align(&[1, 20, 31, 40, 9, 9, 9, 9], &source), [0, 1, 2, 3, 4, 5, 6, 7], "another word");
        assert_eq!(align(&[1, 20, 30, 35, 40, 9, 9, 9], &source), [0, 1, 2, 3, 3, 4, 5, 6], "one put in");
        assert_eq!(align(&[1, 20, 31, 32, 40, 9, 9, 9], &source), [0, 1, 2, 2, 3, 4, 5, 6], "two for one");
        assert_eq!(align(&[1, 40, 9, 9, 9, 9, 9, 9], &source), [0, 3, 4, 5, 6, 7, 7, 7], "two left out");
        assert_eq!(align(&[1, 9, 9, 9, 9, 9, 9, 9], &source), [0, 4, 5, 6, 7, 7, 7, 7], "nothing left");
        assert_eq!(align(&[1, 20, 30, 40, 50, 60, 70, 9], &source), [0, 1, 2, 3, 4, 4, 4, 4], "no padding");
        assert_eq!(align(&[5, 6, 7], &[1, 2, 3]), [0, 1, 2], "nothing in common");
    }
}
