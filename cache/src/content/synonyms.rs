//! Words that an operator declares to mean the same.
//!
//! A synonym counts as the first word of its group. That is decided when two prompts are compared, not when a prompt is
//! stored: so a change of the groups holds for pictures that are stored already, and what no longer means the same is
//! no longer found.

use std::collections::HashMap;

use super::{Content, PARTING, hash, same_content, words};

/// Most groups, and most words of one. Groups come from a file or an admin request, whose size they bound: 256 groups of
/// 16 words are far more than a person lists.
const MOST_GROUPS: usize = 256;
const MOST_WORDS: usize = 16;
/// Longest word, in bytes.
const LONGEST_WORD: usize = 64;

/// Why a list of groups is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SynonymError {
    /// More groups, or a larger one, than there may be; or a group of fewer than two words.
    #[error("at most {MOST_GROUPS} groups of 2 to {MOST_WORDS} words of at most {LONGEST_WORD} bytes each")]
    Size,
    /// Not one plain word.
    #[error(
        "{0:?} is not one word that may stand for another: no phrases, articles, numbers, words of place or negations"
    )]
    Word(String),
    /// A word that stands twice.
    #[error("{0:?} stands more than once")]
    Twice(String),
}

/// Groups of words that mean the same, as keyed hashes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Synonyms {
    /// From each word of a group to the group's first.
    firsts: HashMap<u64, u64>,
}

impl Synonyms {
    /// From groups of words, in any case and spelling. `key` is the one that [`Content::of`] is given.
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

    /// As [`same_content`], where a word and its synonym are one word.
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
            // A list without an order was ordered by its own words.
            Some((&PARTING, list)) => {
                let mut things: Vec<&[u64]> = list.split(|word| *word == PARTING).collect();
                things.sort();
                [&[PARTING], things.join(&PARTING).as_slice()].concat()
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
