//! Conditioning: a trajectory's encoded prompts. For a trajectory that resumes another picture's state it includes the
//! difference between that picture's prompt and its own.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::plan::{Guidance, Steering, StepPlan};

/// The text encoders' output for one prompt.
#[derive(Debug, Clone)]
pub struct EncodedPrompt {
    /// The first tokenizer's ids, one per token state.
    pub ids: Arc<[u32]>,
    /// The token states (tokens, width), which the denoiser attends to.
    pub token_states: Tensor,
    /// The pooled embedding (width,); `None` if the model's denoiser takes none. SDXL's takes one.
    pub pooled: Option<Tensor>,
}

/// The conditioning of a trajectory.
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// The prompt.
    pub prompt: EncodedPrompt,
    /// The negative prompt, which is often empty.
    pub negative: EncodedPrompt,
    /// SDXL's time ids (6,): original size, crop and target size.
    pub time_ids: Option<Tensor>,
    /// The prompt of the picture whose state the trajectory resumes: see [`Conditioning::with_source`].
    pub source: Option<ResumeSource>,
}

/// The prompt of another picture, and the difference from it to the trajectory's own prompt.
#[derive(Debug, Clone)]
pub struct ResumeSource {
    prompt: EncodedPrompt,
    /// The token states (tokens, width) of the trajectory's prompt minus those of the aligned source tokens.
    difference: Tensor,
    /// The difference of the pooled embeddings (width,).
    pooled_difference: Option<Tensor>,
}

impl Conditioning {
    /// The same prompts with a source, the prompt of a picture whose state is resumed. Steps can be steered away from it: see
    /// [`Steering`].
    ///
    /// # Errors
    /// [`Error::Invalid`] naming `source`, if another kind of model encoded it.
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
        let source = ResumeSource {
            difference: (&ours.token_states - aligned)?,
            pooled_difference: pooled,
            prompt: source,
        };
        Ok(Self { source: Some(source), ..self })
    }

    /// Refuses a plan with steered steps if there is no source.
    pub(crate) fn check(&self, plan: &StepPlan) -> Result<()> {
        let steered = plan.steps().iter().any(|step| step.guidance.steering != Steering::Prompts);
        if steered && self.source.is_none() { Err(no_source()) } else { Ok(()) }
    }

    /// The prompts that the rows of a step attend to, in the rows' order: the negative prompt if guidance uses it, the steered
    /// prompt, and the source if steering needs its prediction.
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
    /// This prompt plus `strength` times its difference from the source.
    fn extrapolated(&self, source: &ResumeSource, strength: f64) -> Result<Self> {
        let pooled = match (&self.pooled, &source.pooled_difference) {
            (Some(pooled), Some(difference)) => Some((pooled + (difference * strength)?)?),
            _ => self.pooled.clone(),
        };
        let token_states = (&self.token_states + (&source.difference * strength)?)?;
        Ok(Self { ids: self.ids.clone(), token_states, pooled })
    }
}

/// Aligns a prompt's tokens with a source's: returns the source's position for each token of the prompt.
///
/// Tokens of the longest common subsequence are aligned with each other. Tokens between two of them are spread evenly over the
/// source's tokens there, or aligned with the next common token if the source has none there. Padding is aligned with padding
/// at the same distance from the end of the text, because its states depend on that distance.
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

/// The number of ids before the padding. If the end of text is also the padding, as in CLIP, it includes the first one.
fn content(ids: &[u32]) -> usize {
    let padding = ids.iter().rev().take_while(|id| Some(*id) == ids.last()).count();
    (ids.len() - padding + 1).min(ids.len())
}

/// The positions in `a` and `b` of a longest common subsequence.
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

    /// The id 1 starts a text; 9 ends and pads it.
    #[test]
    fn tokens_are_aligned() {
        let source = [1, 20, 30, 40, 9, 9, 9, 9];
        assert_eq!(align(&source, &source), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(align(&[1, 20, 31, 40, 9, 9, 9, 9], &source), [0, 1, 2, 3, 4, 5, 6, 7], "another word");
        assert_eq!(align(&[1, 20, 30, 35, 40, 9, 9, 9], &source), [0, 1, 2, 3, 3, 4, 5, 6], "one inserted");
        assert_eq!(align(&[1, 20, 31, 32, 40, 9, 9, 9], &source), [0, 1, 2, 2, 3, 4, 5, 6], "two for one");
        assert_eq!(align(&[1, 40, 9, 9, 9, 9, 9, 9], &source), [0, 3, 4, 5, 6, 7, 7, 7], "two removed");
        assert_eq!(align(&[1, 9, 9, 9, 9, 9, 9, 9], &source), [0, 4, 5, 6, 7, 7, 7, 7], "all removed");
        assert_eq!(align(&[1, 20, 30, 40, 50, 60, 70, 9], &source), [0, 1, 2, 3, 4, 4, 4, 4], "no padding");
        assert_eq!(align(&[5, 6, 7], &[1, 2, 3]), [0, 1, 2], "nothing in common");
    }
}
