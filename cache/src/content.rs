//! A prompt's content: its words that carry meaning, in order, as keyed hashes.

mod synonyms;
mod words;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher24;

pub use synonyms::{SynonymError, Synonyms};

/// Stands in [`Content::words`] where a comma, an "and" or another mark parts two phrases. No word hashes to it.
const PARTING: u64 = 0;

/// The content words of a prompt in the order they stand, each as a keyed hash, so that prompts can be
/// compared word by word without being kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Content {
    /// One hash per content word; 0 where two phrases are parted, and in front of a list without an order.
    pub words: Vec<u64>,
    /// Whether the prompt quotes or asks for letters. Then its words are letters of the picture, and no synonym stands
    /// for one of them.
    pub literal: bool,
}

impl Content {
    /// The content of a prompt. The key is the cache's secret: without it nobody can tell from a stored
    /// hash which word it was. Equal words hash equally under one key, on every machine and version.
    pub fn of(prompt: &str, key: &[u8; 16]) -> Self {
        let Some(meaningful) = words::meaningful(prompt) else {
            let words = prompt.split_whitespace().map(|word| hash(word, key)).collect();
            return Self { words, literal: true };
        };
        Self { words: meaningful.iter().map(|word| hash(word, key)).collect(), literal: false }
    }

    fn without_partings(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().copied().filter(|&word| word != PARTING)
    }
}

fn hash(word: &str, key: &[u8; 16]) -> u64 {
    match word == words::PARTING {
        true => PARTING,
        false => SipHasher24::new_with_key(key).hash(word.as_bytes()).max(1),
    }
}

/// Whether two prompts ask for the same picture as far as their words tell: the same content words, parted
/// alike, in the same order.
///
/// Order is what binds a colour to its subject and a subject to its side, so any other order is refused; the
/// one exception, plain lists ("a red house and a blue tree"), is put in one order by [`Content::of`].
/// It errs towards refusal: a picture painted again is cheap, a wrong one is not. Two prompts without any
/// content word are not the same: nothing is known of them. [`Synonyms::same_content`] does the same with an operator's
/// synonyms.
pub fn same_content(a: &Content, b: &Content) -> bool {
    !a.words.is_empty() && a == b
}

/// How the words of two prompts differ: features for a predictor, not a gate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Difference {
    /// Words of the source that the wanted prompt lacks.
    pub removed: u32,
    /// Words of the wanted prompt that the source lacks.
    pub added: u32,
    /// Words of both.
    pub kept: u32,
    /// Places at which the kept words, read in order, disagree.
    pub reordered: u32,
}

impl Difference {
    /// From the source's content to the wanted one's.
    pub fn between(source: &Content, wanted: &Content) -> Self {
        let (ours, theirs) = (common(wanted, source), common(source, wanted));
        let count = |content: &Content| content.without_partings().count() as u32;
        let kept = ours.len() as u32;
        Self {
            removed: count(source) - kept,
            added: count(wanted) - kept,
            kept,
            reordered: ours.iter().zip(&theirs).filter(|(a, b)| a != b).count() as u32,
        }
    }

    /// Whether both prompts hold the same words in the same order.
    pub fn is_none(&self) -> bool {
        self.removed + self.added + self.reordered == 0
    }
}

/// Words of `a` that `b` has too, as often as both have them, in `a`'s order.
fn common(a: &Content, b: &Content) -> Vec<u64> {
    let mut left: HashMap<u64, u32> = HashMap::new();
    b.without_partings().for_each(|word| *left.entry(word).or_default() += 1);
    let mut take = |word: &u64| match left.get_mut(word) {
        Some(count) if *count > 0 => {
            *count -= 1;
            true
        }
        _ => false,
    };
    a.without_partings().filter(|word| take(word)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(prompt: &str) -> Content {
        Content::of(prompt, b"sixteen byte key")
    }

    #[test]
    fn a_hash_is_stable_and_keyed() {
        assert_eq!(content("house").words, Content::of("The HOUSE.", b"sixteen byte key").words);
        assert_ne!(content("house"), Content::of("house", b"another long key"));
        assert_eq!(
            content("house").words,
            [0xbae2_8d0b_9f6e_0c3c],
            "stored hashes must mean the same in every version"
        );
    }

    #[test]
    fn empty_prompts_are_not_the_same() {
        assert!(!same_content(&content(""), &content("")));
        assert!(!same_content(&content("..."), &content("!")));
    }

    #[test]
    fn difference_counts_words() {
        let of = |a, b| Difference::between(&content(a), &content(b));
        let expect = |removed, added, kept, reordered| Difference { removed, added, kept, reordered };
        assert_eq!(of("a red house", "red house"), expect(0, 0, 2, 0));
        assert_eq!(of("a red house", "a blue house at night"), expect(1, 3, 1, 0));
        assert_eq!(of("red house blue tree", "blue house red tree"), expect(0, 0, 4, 2));
        assert_eq!(of("big big house", "big house house"), expect(1, 1, 2, 0));
        assert_eq!(of("", ""), Difference::default());
    }

    #[test]
    fn partings_are_no_words_of_a_difference() {
        assert!(Difference::between(&content("a house, at night"), &content("a house at night")).is_none());
    }
}
