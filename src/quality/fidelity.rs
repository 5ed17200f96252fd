//! Fidelity: the share of the attributes that a prompt names which the classifier finds in its picture.

use serde::{Deserialize, Serialize};

/// One subject, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Subject {
    /// House, tree, boat, …
    pub kind: String,
    /// Its colour.
    #[serde(default)]
    pub colour: Option<String>,
    /// Small or large.
    #[serde(default)]
    pub size: Option<String>,
    /// Left, center or right.
    #[serde(default)]
    pub place: Option<String>,
}

/// What a prompt names; what it leaves out is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Attributes {
    /// Time of day.
    #[serde(default)]
    pub time: Option<String>,
    /// Terrain.
    #[serde(default)]
    pub terrain: Option<String>,
    /// Weather.
    #[serde(default)]
    pub weather: Option<String>,
    /// Subjects, in the order they are named.
    #[serde(default)]
    pub subjects: Vec<Subject>,
}

/// What the classifier finds in a picture.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Found {
    /// Time of day.
    pub time: String,
    /// Terrain.
    pub terrain: String,
    /// Weather.
    pub weather: String,
    /// Subjects from left to right.
    pub subjects: Vec<Subject>,
}

/// So many of so many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// Named and found.
    pub found: usize,
    /// Named.
    pub named: usize,
}

impl Share {
    /// Between 0 and 1; a prompt that names nothing is fully met.
    pub fn ratio(self) -> f64 {
        if self.named == 0 { 1.0 } else { self.found as f64 / self.named as f64 }
    }

    fn count(&mut self, named: Option<&str>, found: Option<&str>) {
        if named.is_some() {
            self.named += 1;
            self.found += usize::from(named == found);
        }
    }
}

/// Compares what a prompt names with what its picture shows. Each named subject is held against a found
/// one of its kind, so that most attributes agree; without one of its kind it has none of its attributes.
/// What the picture shows beyond the prompt costs nothing.
pub fn fidelity(named: &Attributes, found: &Found) -> Share {
    let mut share = Share::default();
    share.count(named.time.as_deref(), Some(&found.time));
    share.count(named.terrain.as_deref(), Some(&found.terrain));
    share.count(named.weather.as_deref(), Some(&found.weather));
    let subjects = best_match(&named.subjects, &found.subjects);
    Share { found: share.found + subjects.found, named: share.named + subjects.named }
}

/// Exhaustive: pictures hold at most three subjects.
fn best_match(named: &[Subject], found: &[Subject]) -> Share {
    let Some((first, rest)) = named.split_first() else { return Share::default() };
    let absent = best_match(rest, found);
    let mut best = Share { found: absent.found, named: absent.named + attributes_of(first) };
    for i in (0..found.len()).filter(|&i| found[i].kind == first.kind) {
        let others: Vec<Subject> =
            found.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, s)| s.clone()).collect();
        let others = best_match(rest, &others);
        let here = agree(first, &found[i]);
        if here.found + others.found > best.found {
            best.found = here.found + others.found;
        }
    }
    best
}

fn attributes_of(subject: &Subject) -> usize {
    agree(subject, subject).named
}

fn agree(named: &Subject, found: &Subject) -> Share {
    let mut share = Share::default();
    share.count(Some(&named.kind), Some(&found.kind));
    share.count(named.colour.as_deref(), found.colour.as_deref());
    share.count(named.size.as_deref(), found.size.as_deref());
    share.count(named.place.as_deref(), found.place.as_deref());
    share
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(text: &str) -> Subject {
        let mut words = text.split(' ').map(str::to_owned);
        Subject { size: words.next(), colour: words.next(), kind: words.next().unwrap(), place: words.next() }
    }

    fn found(subjects: &[&str]) -> Found {
        Found {
            time: "night".into(),
            terrain: "snow".into(),
            weather: "clear".into(),
            subjects: subjects.iter().map(|s| subject(s)).collect(),
        }
    }

    fn named(time: &str, subjects: &[&str]) -> Attributes {
        Attributes {
            time: Some(time.into()),
            subjects: subjects.iter().map(|s| subject(s)).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn all_that_is_named_counts_and_nothing_else() {
        let share = fidelity(
            &named("night", &["large red house left"]),
            &found(&["large red house left", "small blue boat right"]),
        );
        assert_eq!((share.found, share.named), (5, 5));
        assert_eq!(fidelity(&Attributes::default(), &found(&[])).ratio(), 1.0);
    }

    #[test]
    fn swapped_bindings_lose_what_is_swapped() {
        let shown = found(&["large blue house left", "large red tree right"]);
        let share = fidelity(&named("night", &["large red house left", "large blue tree right"]), &shown);
        assert_eq!((share.found, share.named), (7, 9), "both colours are wrong");
    }

    #[test]
    fn another_kind_is_another_subject() {
        let share = fidelity(&named("night", &["large red house left"]), &found(&["large red boat left"]));
        assert_eq!((share.found, share.named), (1, 5));
    }

    #[test]
    fn an_absent_subject_has_none_of_its_attributes() {
        let share = fidelity(
            &named("day", &["large red house left", "small white boat right"]),
            &found(&["small white boat right"]),
        );
        assert_eq!((share.found, share.named), (4, 9));
    }
}
