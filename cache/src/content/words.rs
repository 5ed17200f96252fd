//! Extracts the meaningful words of a prompt. It removes only words that cannot change the picture.
//!
//! What stays, and why:
//! - Prepositions, numbers, sides and negations describe the picture's layout.
//! - "and" and commas separate phrases: "chocolate and milk" is not "chocolate milk".
//! - A plural s is a number.
//! - Copulas bind, unless a place follows: "the snow is white" is not "snow white".
//!
//! Known limit: "the" and "a" are the same at the start of a phrase, and so are small and capital letters. Names are
//! therefore not recognised: "the White House" is the same as "a white house".

use unicode_segmentation::UnicodeSegmentation;

/// The separator of two phrases.
pub const SEPARATOR: &str = ",";

const ARTICLES: &[&str] = &["a", "an", "the"];
/// Words of place.
const PLACING: &[&str] = &[
    "in", "on", "at", "by", "of", "to", "into", "onto", "from", "off", "under", "over", "above", "below",
    "behind", "before", "beside", "near", "inside", "outside", "across", "along", "around", "between",
    "among", "against", "through", "towards", "up", "down",
];
/// Words before which an article changes the quantity: "a few trees" is not "few trees".
const QUANTITIES: &[&str] = &["few", "little", "lot", "bit", "couple", "number"];
/// Adjectives that the nouns of a plain list may have.
const ADJECTIVES: &[&str] = &[
    "red", "orange", "yellow", "green", "blue", "purple", "violet", "pink", "brown", "white", "black",
    "grey", "golden", "silver", "small", "little", "tiny", "big", "large", "huge", "old", "young", "tall",
];
const NUMBERS: &[&str] =
    &["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"];
/// Words that ask for letters in the picture. In a prompt with one of them every character counts.
const WRITING: &[&str] = &[
    "say",
    "says",
    "saying",
    "said",
    "read",
    "reads",
    "reading",
    "spell",
    "spells",
    "spelling",
    "write",
    "writes",
    "written",
    "writing",
    "word",
    "words",
    "text",
    "letter",
    "letters",
    "lettering",
    "title",
    "titled",
    "label",
    "labelled",
    "labeled",
    "caption",
    "captioned",
    "name",
    "named",
    "called",
    "font",
];

/// The meaningful words of a prompt in order, with [`SEPARATOR`] between phrases. `None` if the prompt quotes or asks for
/// letters.
pub fn meaningful(prompt: &str) -> Option<Vec<String>> {
    let words = split(prompt)?;
    let words = without_opening(&words);
    let words = plain_list(words).unwrap_or_else(|| words.to_vec());
    Some(reduce(&words))
}

/// The single word in `text`, as [`meaningful`] spells it. `None` if `text` is not a single word, or if the word is an
/// article, a word of place, a number, a negation or a word that asks for letters.
pub fn plain_word(text: &str) -> Option<String> {
    const BINDING: &[&str] = &[
        "with", "without", "not", "only", "there", "is", "are", "that", "which", "left", "right", "front",
        "top",
    ];
    let [word] = meaningful(text)?.try_into().ok()?;
    let word: String = word;
    let binds =
        [ARTICLES, PLACING, QUANTITIES, NUMBERS, BINDING].iter().any(|list| list.contains(&word.as_str()));
    let lettered = word.chars().all(char::is_alphabetic);
    (lettered && !binds && word != SEPARATOR).then_some(word)
}

/// The prompt's words in lower case, and separators. `None` if the prompt quotes or asks for letters.
fn split(prompt: &str) -> Option<Vec<String>> {
    let text = prompt.to_lowercase().replace('’', "'");
    let mut words: Vec<String> = Vec::new();
    for piece in text.split_word_bounds() {
        match piece {
            "'" | "\"" | "`" | "‘" | "“" | "”" | "„" | "«" | "»" | "‹" | "›" => return None,
            word if WRITING.contains(&word) => return None,
            "," | ";" | "." | ":" | "!" | "?" | "(" | ")" | "…" | "、" | "。" | "，" | "&" | "and" => {
                separate(&mut words)
            }
            space if space.trim().is_empty() => {
                if space.contains(['\n', '\r']) {
                    separate(&mut words)
                }
            }
            word => words.extend(spelled(word)),
        }
    }
    words.pop_if(|last| last == SEPARATOR);
    Some(words)
}

/// Adds a separator, unless there is no word yet or the last one is a separator.
fn separate(words: &mut Vec<String>) {
    if words.last().is_some_and(|last| last != SEPARATOR) {
        words.push(SEPARATOR.into());
    }
}

/// Unifies the spelling of a word. It covers only words that mean the same in every context.
fn spelled(word: &str) -> Vec<String> {
    let one = |word: &str| vec![word.to_string()];
    match word {
        "center" | "middle" => one("centre"),
        "gray" => one("grey"),
        "color" => one("colour"),
        "colored" => one("coloured"),
        "colorful" => one("colourful"),
        "aeroplane" => one("airplane"),
        "no" => one("without"),
        "there's" | "it's" | "that's" => vec![word.replace("'s", ""), "is".into()],
        _ => match (word.strip_suffix("n't"), word.parse::<usize>()) {
            (Some(stem), _) => vec![stem.into(), "not".into()],
            (_, Ok(n @ 1..=12)) if !word.starts_with(['0', '+']) => one(NUMBERS[n - 1]),
            _ => one(word),
        },
    }
}

/// The words after an opening such as "please show me a picture of".
fn without_opening(words: &[String]) -> &[String] {
    let mut rest = words;
    take(&mut rest, &["please", "kindly"]);
    if rest.len() > 1 && ["can", "could", "would", "will"].contains(&rest[0].as_str()) && rest[1] == "you" {
        rest = &rest[2..];
        take(&mut rest, &["please", "kindly"]);
    }
    let follows = |words: &[String]| {
        let next = words.get(1).map_or("", String::as_str);
        ARTICLES.contains(&next) || ["me", "us", "picture", "image"].contains(&next)
    };
    if follows(rest) {
        take(&mut rest, &["show", "create", "generate", "make", "give", "want"]);
        take(&mut rest, &["me", "us"]);
    }
    let mut inner = rest;
    take(&mut inner, ARTICLES);
    if take(&mut inner, &["picture", "image"]) && take(&mut inner, &["of"]) {
        rest = inner;
    }
    if rest.is_empty() { words } else { rest }
}

fn take(words: &mut &[String], any: &[&str]) -> bool {
    let found = words.first().is_some_and(|first| any.contains(&first.as_str()));
    if found {
        *words = &words[1..];
    }
    found
}

/// Sorts a plain list, whose order means nothing, and marks it with a separator in front. `None` for other prompts.
///
/// In a plain list every item has an article or a number, then adjectives, then a noun. Any other word might bind across
/// items, as in "a boat left of a house and a tree". "a red house and tree" is not a plain list either, because "red" may
/// belong to both items.
fn plain_list(words: &[String]) -> Option<Vec<String>> {
    let mut things: Vec<&[String]> = words.split(|word| word == SEPARATOR).collect();
    let adjective = |word: &String| ADJECTIVES.contains(&word.as_str());
    let is_plain = |thing: &&[String]| match thing {
        [first, adjectives @ .., noun] => {
            (ARTICLES.contains(&first.as_str()) || NUMBERS.contains(&first.as_str()))
                && adjectives.iter().all(adjective)
                && !adjective(noun)
                && !PLACING.contains(&noun.as_str())
        }
        _ => false,
    };
    (things.len() > 1 && things.iter().all(is_plain)).then(|| {
        // The article is not compared, so that "the" and "a" do not change the order.
        things.sort_by_key(|thing| match ARTICLES.contains(&thing[0].as_str()) {
            true => &thing[1..],
            false => thing,
        });
        things.insert(0, &[]);
        things.join(&SEPARATOR.to_string())
    })
}

/// Removes articles, copulas and relative pronouns that do not change the meaning. After another word an article does
/// ("in the front of", "only the house"), so there it is replaced by "the".
fn reduce(words: &[String]) -> Vec<String> {
    let mut kept: Vec<String> = Vec::with_capacity(words.len());
    for (i, word) in words.iter().enumerate() {
        let next = words.get(i + 1).map_or(SEPARATOR, String::as_str);
        let after_next = words.get(i + 2).map_or(SEPARATOR, String::as_str);
        let last = kept.last().map_or(SEPARATOR, String::as_str);
        match word.as_str() {
            article if ARTICLES.contains(&article) && next != SEPARATOR => {
                if QUANTITIES.contains(&next) {
                    kept.push(article.into());
                } else if ![SEPARATOR, "with", "without"].contains(&last) {
                    kept.push("the".into());
                }
            }
            "there" if last == SEPARATOR && ["is", "are"].contains(&next) && after_next != SEPARATOR => {}
            "is" | "are" if i > 0 && words[i - 1] == "there" && last == SEPARATOR && next != SEPARATOR => {}
            "that" | "which" if ["is", "are"].contains(&next) && PLACING.contains(&after_next) => {}
            "is" | "are" if PLACING.contains(&next) => {}
            "without" if last == "with" => {
                kept.pop();
                kept.push("without".into());
            }
            word => kept.push(word.into()),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::plain_word;

    fn meaningful(prompt: &str) -> Vec<String> {
        let letters = || prompt.split_whitespace().map(String::from).collect();
        super::meaningful(prompt).unwrap_or_else(letters)
    }

    #[track_caller]
    fn same(prompts: &[&str]) {
        for prompt in prompts {
            assert_eq!(meaningful(prompts[0]), meaningful(prompt), "{} / {prompt}", prompts[0]);
        }
    }

    #[track_caller]
    fn different(prompts: &[&str]) {
        for (i, a) in prompts.iter().enumerate() {
            for b in &prompts[i + 1..] {
                assert_ne!(meaningful(a), meaningful(b), "{a} / {b}");
            }
        }
    }

    #[test]
    fn meaningless_words_are_removed() {
        same(&[
            "a red house",
            "Red house.",
            "the red  house!",
            "Please show me a picture of a red house",
            "could you please make an image of a red house?",
            "There is a red house",
            "there's a red house",
        ]);
        same(&["a house on the left", "the house is on the left", "a house which is on a left"]);
    }

    #[test]
    fn one_spelling_of_one_word() {
        same(&["a gray boat in the center", "a grey boat in the middle", "a grey boat in the centre"]);
        same(&["2 boats", "two boats"]);
        same(&["a sea with no moon", "a sea without a moon", "the sea with no moon"]);
        same(&["a tree that isn't green", "a tree that is not green"]);
    }

    #[test]
    fn a_plain_list_has_no_order() {
        same(&["a red house and a blue tree", "a blue tree and a red house", "a blue tree, the red house"]);
        same(&["two boats & a small red tent", "a small red tent, 2 boats"]);
        different(&["a red house and a blue tree", "a blue house and a red tree"]);
        different(&["a cat and a dog running", "a dog running and a cat"]);
        different(&["a boat left of a house and a tree", "a tree and a boat left of a house"]);
        different(&["red house and tree", "tree and red house"]);
        different(&["a red house and tree", "a tree and a red house"]);
    }

    #[test]
    fn what_may_change_the_picture_stays() {
        different(&["a house", "houses", "two houses", "three houses", "a few houses", "few houses"]);
        different(&["snow is white", "snow white", "white snow"]);
        different(&["chocolate and milk", "chocolate milk"]);
        different(&["in front of the car", "in the front of the car"]);
        different(&["a house on fire", "a house on the fire"]);
        different(&["a boat is a house", "a boat house"]);
        different(&["a house is painting", "a house painting"]);
        different(&["a tilted plane", "a tilted airplane"]);
        different(&["a moon", "no moon", "not a moon"]);
        different(&["a house 🎄", "a house 🔥", "a house"]);
        different(&["a house -tree", "a house tree"]);
        different(&["a [red] house", "a (red) house", "a red house"]);
        different(&["a man-eating fish", "a man eating fish"]);
        different(&["only the house is red", "the only house is red"]);
        different(&["a man", "a man with a dog", "a man in a dog", "a man on a dog"]);
        different(&["a photo of a house", "a painting of a house", "a house"]);
    }

    #[test]
    fn letters_in_the_picture_are_taken_literally() {
        different(&["a sign that says the end", "a sign that says end", "a sign that says The End"]);
        different(&["a shirt with \"OPEN\"", "a shirt with \"open\"", "a shirt with open"]);
        different(&["a shirt with 'please'", "a shirt with 'Please'"]);
    }

    #[test]
    fn a_plain_word_is_one_word_that_binds_nothing() {
        assert_eq!(plain_word("Cottage").as_deref(), Some("cottage"));
        assert_eq!(plain_word("gray").as_deref(), Some("grey"));
        for none in [
            "",
            "hot air balloon",
            "snow-white",
            "the",
            "on",
            "two",
            "2",
            "not",
            "isn't",
            "without",
            "left",
            "letter",
            "\"house\"",
            ",",
            "and",
            "🎄",
        ] {
            assert_eq!(plain_word(none), None, "{none}");
        }
    }
}
