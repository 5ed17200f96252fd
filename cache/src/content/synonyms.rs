//! Synonyms: words that an operator declares to mean the same.
//!
//! Each synonym counts as the first word of its group. This is applied when two prompts are compared, not when a prompt is
//! stored, so that a change of the groups also holds for stored pictures.

use std::collections::HashMap;

use super::{Content, SEPARATOR, hash, same_content, words};

/// The most groups, and the most words of a group. They bound the size of a file or an admin request. 256 groups of 16
/// words are far more than a person lists.
const MOST_GROUPS: usize = 256;
const MOST_WORDS: usize = 16;
/// The longest word, in bytes.
const LONGEST_WORD: usize = 64;

/// The reason why a list of groups is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SynonymError {
    /// There are too many groups, a group is too large or has fewer than two words, or a word is too long.
    #[error("at most {MOST_GROUPS} groups of 2 to {MOST_WORDS} words of at most {LONGEST_WORD} bytes each")]
    Size,
    /// A synonym is not a single plain word.
    #[error(
        "{0:?} is not one word that may stand for another: no phrases, articles, numbers, words of place or negations"
    )]
    Word(String),
    /// A word occurs more than once.
    #[error("{0:?} occurs more than once")]
    Twice(String),
}

/// Groups of words that mean the same, as keyed hashes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Synonyms {
    /// The first word of the group of each word.
    firsts: HashMap<u64, u64>,
}

impl Synonyms {
    /// The synonyms of groups of words, in any case and spelling. `key` must be the key given to [`Content::of`].
    ///
    /// # Errors
    /// [`SynonymError`]
    pub fn new(groups: &[Vec<String>], key: &[u8; 16]) -> Result<Self, SynonymError> {
        if groups.len() > MOST_GROUPS {
            return Err(SynonymError::Size);
        }
        let mut firsts = HashMap::new();
        for group in groups {
            if !(2..=MOST_WORDS).contains(&group.len()) {
                return Err(SynonymError::Size);
            }
            let mut first = None;
            for word in group {
                let hash = hash(&plain(word)?, key);
                if firsts.insert(hash, *first.get_or_insert(hash)).is_some() {
                    return Err(SynonymError::Twice(word.clone()));
                }
            }
        }
        Ok(Self { firsts })
    }

    /// [`same_content`] with each word replaced by the first of its group.
    pub fn same_content(&self, a: &Content, b: &Content) -> bool {
        if self.firsts.is_empty() || a.literal || b.literal {
            return same_content(a, b);
        }
        !a.words.is_empty() && self.as_first_words(a) == self.as_first_words(b)
    }

    fn as_first_words(&self, content: &Content) -> Vec<u64> {
        let words: Vec<u64> =
            content.words.iter().map(|word| *self.firsts.get(word).unwrap_or(word)).collect();
        match words.split_first() {
            // The list was sorted by its own words. It is sorted again by the first words of their groups.
            Some((&SEPARATOR, list)) => {
                let mut things: Vec<&[u64]> = list.split(|word| *word == SEPARATOR).collect();
                things.sort();
                [&[SEPARATOR], things.join(&SEPARATOR).as_slice()].concat()
            }
            _ => words,
        }
    }
}

fn plain(word: &str) -> Result<String, SynonymError> {
    if word.len() > LONGEST_WORD {
        return Err(SynonymError::Size);
    }
    words::plain_word(word).ok_or_else(|| SynonymError::Word(word.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8; 16] = b"sixteen byte key";

    fn groups(words: &[&str]) -> Vec<Vec<String>> {
        words.iter().map(|group| group.split(' ').map(String::from).collect()).collect()
    }

    fn same(words: &[&str], a: &str, b: &str) -> bool {
        let synonyms = Synonyms::new(&groups(words), KEY).unwrap();
        synonyms.same_content(&Content::of(a, KEY), &Content::of(b, KEY))
    }

    #[test]
    fn a_synonym_counts_as_its_groups_first_word() {
        let listed = ["house cottage Hut", "big huge"];
        assert!(same(&listed, "a red house at night", "a red cottage at night"));
        assert!(same(&listed, "a huge hut", "the big cottage"));
        assert!(!same(&listed, "a red house", "a red tent"));
        assert!(!same(&listed, "a red house", "a blue cottage"));
        assert!(!same(&[], "a red house", "a red cottage"));
    }

    #[test]
    fn a_list_without_an_order_has_none_with_synonyms_either() {
        assert!(same(&["house cottage"], "a red house and a green goat", "a green goat and a red cottage"));
        assert!(!same(&["house cottage"], "a red house and a green goat", "a green cottage and a red goat"));
        assert!(
            !same(&["house cottage"], "a red house and goat", "a goat and a red cottage"),
            "the order binds"
        );
    }

    #[test]
    fn letters_have_no_synonyms() {
        assert!(!same(&["house cottage"], "a sign that says house", "a sign that says cottage"));
        assert!(!same(&["house cottage"], "the word \"house\"", "the word \"cottage\""));
        assert!(same(&["house cottage"], "a sign that says house", "a sign that says house"));
    }

    #[test]
    fn impossible_lists_are_refused() {
        let refused = |words: &[&str]| Synonyms::new(&groups(words), KEY).unwrap_err();
        assert_eq!(refused(&["house"]), SynonymError::Size);
        assert_eq!(refused(&["house cottage", "hut House"]), SynonymError::Twice("House".into()));
        assert_eq!(refused(&["left right"]), SynonymError::Word("left".into()));
        assert_eq!(refused(&["two three"]), SynonymError::Word("two".into()));
        assert_eq!(refused(&["house wind-mill"]), SynonymError::Word("wind-mill".into()));
        assert_eq!(refused(&[&"a".repeat(200)]), SynonymError::Size);
        let many: Vec<Vec<String>> = (0..300).map(|_| groups(&["a b"]).remove(0)).collect();
        assert_eq!(Synonyms::new(&many, KEY), Err(SynonymError::Size));
    }
}
