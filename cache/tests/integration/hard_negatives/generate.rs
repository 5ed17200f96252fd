//! Generates pairs of prompts that embeddings hardly distinguish. Some pairs ask for different pictures, others say the
//! same in other words.

use serde::{Deserialize, Serialize};

use crate::policy_support::Random;

/// What a policy may do with a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Expected {
    /// One prompt must not be answered with the other's picture.
    Refuse,
    /// One prompt may be answered with the other's picture.
    MayAccept,
}

/// A line of the suite.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Pair {
    pub kind: String,
    pub expected: Expected,
    pub source: String,
    pub wanted: String,
}

const COLOURS: &[&str] = &["red", "yellow", "green", "blue", "purple", "white", "black"];
const THINGS: &[&str] =
    &["house", "tree", "boat", "castle", "tent", "windmill", "lighthouse", "balloon", "cat", "dog"];
const PLACES: &[&str] = &["in a meadow", "in the desert", "in the snow", "on the sea", "in the mountains"];
const TIMES: &[&str] = &["at night", "at sunset", "at dawn", "in broad daylight"];
const WEATHERS: &[&str] = &["in the rain", "in the fog", "under a clear sky", "with a rainbow"];
const OPENERS: &[&str] = &["", "", "", "a picture of ", "a painting of ", "an illustration of "];
const ABSENT: &[&str] = &["moon", "rainbow", "cloud", "bird", "fence"];
const NUMBERS: &[&str] = &["one", "two", "three", "four", "five", "seven", "2", "3", "4"];
const SIZES: &[&str] = &["small", "large", "tiny", "huge"];
const RELATIONS: &[&str] =
    &["left of", "right of", "behind", "in front of", "above", "below", "on top of", "inside"];
const DOINGS: &[&str] = &["chasing", "watching", "carrying", "painting", "feeding"];

/// All pairs: at least 500 to refuse and at least 200 that may be accepted.
pub fn suite() -> Vec<Pair> {
    let mut random = Random(6);
    let mut pairs = Vec::new();
    let refused: [(&str, Make); 9] = [
        ("colours swapped", colours),
        ("sides swapped", sides),
        ("negation", negation),
        ("another count", count),
        ("one word of many", one_word),
        ("relation swapped", relation),
        ("another size", size),
        ("who does it", doing),
        ("another place", place),
    ];
    for (kind, make) in refused {
        add(&mut pairs, &mut random, kind, Expected::Refuse, make, 70);
    }
    fixed(&mut pairs, "close wording", Expected::Refuse, CLOSE);
    let accepted: [(&str, Make); 5] = [
        ("opening", opening),
        ("spelling", spelling),
        ("list order", list_order),
        ("synonym", synonym),
        ("parts moved", moved),
    ];
    for (kind, make) in accepted {
        add(&mut pairs, &mut random, kind, Expected::MayAccept, make, 45);
    }
    pairs
}

type Make = fn(&mut Random) -> [String; 2];

fn add(pairs: &mut Vec<Pair>, random: &mut Random, kind: &str, expected: Expected, make: Make, count: usize) {
    let enough = pairs.len() + count;
    while pairs.len() < enough {
        let [source, wanted] = make(random);
        let pair = Pair { kind: kind.into(), expected, source, wanted };
        if pair.source != pair.wanted && !pairs.contains(&pair) {
            pairs.push(pair);
        }
    }
}

fn fixed(pairs: &mut Vec<Pair>, kind: &str, expected: Expected, all: &[[&str; 2]]) {
    let pair = |[source, wanted]: &[&str; 2]| Pair {
        kind: kind.into(),
        expected,
        source: (*source).into(),
        wanted: (*wanted).into(),
    };
    pairs.extend(all.iter().map(pair));
}

fn opener(r: &mut Random) -> &'static str {
    r.of(OPENERS)
}

/// A place, a time and a weather.
fn around(r: &mut Random) -> String {
    [r.of(PLACES), r.of(TIMES), r.of(WEATHERS)].join(" ")
}

fn colours(r: &mut Random) -> [String; 2] {
    let ([a, b], [x, y]) = (r.two(COLOURS), r.two(THINGS));
    let (o, around) =
        (opener(r), if r.next().is_multiple_of(2) { String::new() } else { format!(" {}", around(r)) });
    [format!("{o}a {a} {x} and a {b} {y}{around}"), format!("{o}a {b} {x} and a {a} {y}{around}")]
}

fn sides(r: &mut Random) -> [String; 2] {
    let [x, y] = r.two(THINGS);
    let (o, around) = (opener(r), around(r));
    let text = |left: &str, right: &str| format!("{o}a {x} on the {left} and a {y} on the {right} {around}");
    [text("left", "right"), text("right", "left")]
}

fn negation(r: &mut Random) -> [String; 2] {
    let (o, a, x, t, n) = (opener(r), r.of(COLOURS), r.of(THINGS), r.of(TIMES), r.of(ABSENT));
    let [with, without] = r.of(&[
        &["with a", "without a"],
        &["and a", "and no"],
        &["with one", "with no"],
        &["that has a", "that doesn't have a"],
        &["which is near a", "which is not near a"],
    ]);
    [format!("{o}a {a} {x} {with} {n} {t}"), format!("{o}a {a} {x} {without} {n} {t}")]
}

fn count(r: &mut Random) -> [String; 2] {
    let (o, a, x, around) = (opener(r), r.of(COLOURS), r.of(THINGS), around(r));
    let [m, n] = loop {
        let [m, n] = r.two(NUMBERS);
        // "2" and "two" are one number.
        if !matches!(
            (m, n),
            ("2", "two") | ("two", "2") | ("3", "three") | ("three", "3") | ("4", "four") | ("four", "4")
        ) {
            break [m, n];
        }
    };
    [format!("{o}{m} {a} {x}s {around}"), format!("{o}{n} {a} {x}s {around}")]
}

fn one_word(r: &mut Random) -> [String; 2] {
    let ([x, y], [b, c], o, around) = (r.two(THINGS), r.two(COLOURS), opener(r), around(r));
    let text = |colour: &str| {
        format!(
            "{o}an old {x} with a {colour} roof and a garden full of flowers beside a quiet road and a {y} {around}, \
             soft light, many details"
        )
    };
    [text(b), text(c)]
}

fn relation(r: &mut Random) -> [String; 2] {
    let ([x, y], how, around) = (r.two(THINGS), r.of(RELATIONS), around(r));
    [format!("a {x} {how} a {y} {around}"), format!("a {y} {how} a {x} {around}")]
}

fn size(r: &mut Random) -> [String; 2] {
    let ([m, n], a, x, o, around) = (r.two(SIZES), r.of(COLOURS), r.of(THINGS), opener(r), around(r));
    [format!("{o}a {m} {a} {x} {around}"), format!("{o}a {n} {a} {x} {around}")]
}

fn doing(r: &mut Random) -> [String; 2] {
    let ([x, y], what, around) = (r.two(THINGS), r.of(DOINGS), around(r));
    let what = if r.next().is_multiple_of(2) { what.to_string() } else { format!("is {what}") };
    [format!("a {x} {what} a {y} {around}"), format!("a {y} {what} a {x} {around}")]
}

fn place(r: &mut Random) -> [String; 2] {
    let ([p, q], a, x, t) = (r.two(PLACES), r.of(COLOURS), r.of(THINGS), r.of(TIMES));
    [format!("a {a} {x} {p} {t}"), format!("a {a} {x} {q} {t}")]
}

/// Pairs that differ in small words, endings or signs that change the picture.
const CLOSE: &[[&str; 2]] = &[
    ["a cat and a dog running", "a dog running and a cat"],
    ["a red house and tree", "a tree and a red house"],
    ["a boat left of a house and a tree", "a tree and a boat left of a house"],
    ["a bowl of chocolate and milk", "a bowl of chocolate milk"],
    ["a child in front of the car", "a child in the front of the car"],
    ["a house on fire", "a house on the fire"],
    ["snow is white", "snow white"],
    ["a boat that is a house", "a boat house"],
    ["a house", "houses"],
    ["a few trees", "few trees"],
    ["a tree in a meadow", "trees in a meadow"],
    ["a dog without a leash", "a dog with a leash"],
    ["a man, not a woman", "a woman, not a man"],
    ["no house but a tree", "no tree but a house"],
    ["a sign that says \"open\"", "a sign that says \"closed\""],
    ["a sign that says The End", "a sign that says the end"],
    ["a sign with the word a", "a sign with the word"],
    ["a house 🎄", "a house 🔥"],
    ["a house 🎄", "a house"],
    ["a house -tree", "a house tree"],
    ["a face + a mask", "a face / a mask"],
    ["a house at 5 o'clock", "a house at 6 o'clock"],
    ["10 boats", "100 boats"],
    ["a man eating fish", "a man-eating fish"],
    ["a house in the north", "a house in the south"],
    ["a house is painting", "a house painting"],
    ["a tilted plane", "a tilted airplane"],
    ["a [red] house", "a (red) house"],
    ["a picture of a picture of a house", "a picture of a house"],
    ["a frame around a picture", "a picture around a frame"],
    ["a boat under a bridge", "a boat on a bridge"],
    ["a dog bigger than a cat", "a cat bigger than a dog"],
    ["only the house is red", "the only house is red"],
    ["a white cat with a black dog and a hat", "a black cat with a white dog and a hat"],
    ["the glass is half full", "the glass is full half"],
    ["一只红色的猫", "一只蓝色的猫"],
    ["ein Haus mit einem Baum", "ein Haus ohne einen Baum"],
    ["une maison avec la lune", "une maison sans la lune"],
    ["красный дом и синее дерево", "синий дом и красное дерево"],
];

fn opening(r: &mut Random) -> [String; 2] {
    let (a, x, around) = (r.of(COLOURS), r.of(THINGS), around(r));
    let first = r.of(&[
        "a picture of ",
        "please show me ",
        "Could you make an image of ",
        "There is ",
        "create a picture of ",
    ]);
    let article = r.of(&["the", "a", "A", "The"]);
    let end = r.of(&["", ".", "!"]);
    [format!("a {a} {x} {around}"), format!("{first}{article} {a} {x} {around}{end}")]
}

fn spelling(r: &mut Random) -> [String; 2] {
    let ([x, y], around) = (r.two(THINGS), around(r));
    let [m, n] = r.of(&[
        &["in the center", "in the centre"],
        &["in the middle", "in the center"],
        &["in gray fog", "in grey fog"],
        &["with no moon", "without a moon"],
        &["with 2 birds", "with two birds"],
        &["that isn't red", "that is not red"],
    ]);
    [format!("a {x} and a {y} {m} {around}"), format!("The {x} and the {y} {n} {around}")]
}

fn list_order(r: &mut Random) -> [String; 2] {
    let ([a, b], [x, y], s) = (r.two(COLOURS), r.two(THINGS), r.of(SIZES));
    let (o, and) = (r.of(&["", "a picture of "]), r.of(&[" and ", ", "]));
    [format!("{o}a {a} {x} and a {s} {b} {y}"), format!("{o}a {s} {b} {y}{and}the {a} {x}")]
}

fn synonym(r: &mut Random) -> [String; 2] {
    let (a, around) = (r.of(COLOURS), around(r));
    let [m, n] = r.of(&[
        &["house", "cottage"],
        &["boat", "ship"],
        &["castle", "fortress"],
        &["balloon", "hot air balloon"],
        &["huge tree", "big tree"],
    ]);
    [format!("a {a} {m} {around}"), format!("a {a} {n} {around}")]
}

fn moved(r: &mut Random) -> [String; 2] {
    let (a, x, p, t) = (r.of(COLOURS), r.of(THINGS), r.of(PLACES), r.of(TIMES));
    let of = r.of(&["", "a painting of "]);
    [format!("{of}a {a} {x} {p} {t}"), format!("{t}, {of}a {a} {x} {p}")]
}
