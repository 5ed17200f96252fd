//! A prompt's content: its meaningful words in order, as keyed hashes.

mod synonyms;
mod words;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher24;

pub use synonyms::{SynonymError, Synonyms};

/// The separator of two phrases in [`Content::words`]. It stands for a comma, an "and" or another mark. No word's hash is
/// equal to it.
const SEPARATOR: u64 = 0;

/// The content words of a prompt in their order, each as a keyed hash, so that prompts can be compared word by word
/// without being stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Content {
    /// One hash per content word, and 0 between two phrases. A list whose order means nothing is sorted and begins with 0.
    pub words: Vec<u64>,
    /// Whether the prompt quotes or asks for letters. Its words may then be letters in the picture, so synonyms do not
    /// apply to it.
    pub literal: bool,
}

impl Content {
    /// The content of a prompt. `key` is the cache's secret, without which a stored hash does not reveal its word. Under one
    /// key equal words have equal hashes, on every machine and in every version.
    pub fn of(prompt: &str, key: &[u8; 16]) -> Self {
        let Some(meaningful) = words::meaningful(prompt) else {
            let words = prompt.split_whitespace().map(|word| hash(word, key)).collect();
            return Self { words, literal: true };
        };
        Self { words: meaningful.iter().map(|word| hash(word, key)).collect(), literal: false }
    }

    fn without_separators(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().copied().filter(|&word| word != SEPARATOR)
    }
}

fn hash(word: &str, key: &[u8; 16]) -> u64 {
    match word == words::SEPARATOR {
        true => SEPARATOR,
        false => SipHasher24::new_with_key(key).hash(word.as_bytes()).max(1),
    }
}

/// Whether two prompts have the same content words, with the same separators, in the same order.
///
/// The order matters because it binds a colour to its subject and a subject to its side. The one exception are plain lists
/// ("a red house and a blue tree"), which [`Content::of`] sorts. In doubt the answer is no, because painting a picture
/// again costs less than returning a wrong one. Two prompts without content words are therefore not the same.
/// [`Synonyms::same_content`] also applies an operator's synonyms.
pub fn same_content(a: &Content, b: &Content) -> bool {
    !a.words.is_empty() && a == b
}

/// How the words of two prompts differ. A predictor of the quality loss uses these numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Difference {
    /// Words of the source that the wanted prompt does not have.
    pub removed: u32,
    /// Words of the wanted prompt that the source does not have.
    pub added: u32,
    /// Words that both prompts have.
    pub kept: u32,
    /// Positions at which the sequences of kept words differ.
    pub reordered: u32,
}

impl Difference {
    /// The difference from the source's content to the wanted one's.
    pub fn between(source: &Content, wanted: &Content) -> Self {
        let (ours, theirs) = (common(wanted, source), common(source, wanted));
        let count = |content: &Content| content.without_separators().count() as u32;
        let kept = ours.len() as u32;
        Self {
            removed: count(source) - kept,
            added: count(wanted) - kept,
            kept,
            reordered: ours.iter().zip(&theirs).filter(|(a, b)| a != b).count() as u32,
        }
    }

    /// Whether both prompts have the same words in the same order.
    pub fn is_none(&self) -> bool {
        self.removed + self.added + self.reordered == 0
    }
}

/// The words that `a` and `b` have in common, each as often as both have it, in `a`'s order.
fn common(a: &Content, b: &Content) -> Vec<u64> {
    let mut left: HashMap<u64, u32> = HashMap::new();
    b.without_separators().for_each(|word| *left.entry(word).or_default() += 1);
    let mut take = |word: &u64| match left.get_mut(word) {
        Some(count) if *count > 0 => {
            *count -= 1;
            true
        }
        _ => false,
    };
    a.without_separators().filter(|word| take(word)).collect()
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
    fn separators_are_no_words_of_a_difference() {
        assert!(Difference::between(&content("a house, at night"), &content("a house at night")).is_none());
    }
}
