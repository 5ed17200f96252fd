//! Made-up prompts for traces that have none: scenes of the storybook's world, and edits of them.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

use crate::quality::{Attributes, Subject};

/// An attribute's values, and how a prompt says each. A prompt always says a value in the same words, so that an edit
/// changes no other word.
type Values = &'static [(&'static str, &'static str)];

const SIZES: Values = &[("small", "small"), ("large", "large")];
const COLOURS: Values = &[
    ("red", "red"),
    ("yellow", "yellow"),
    ("green", "green"),
    ("blue", "blue"),
    ("purple", "purple"),
    ("white", "white"),
    ("black", "black"),
];
const KINDS: Values = &[
    ("house", "house"),
    ("tree", "tree"),
    ("boat", "boat"),
    ("castle", "castle"),
    ("tent", "tent"),
    ("windmill", "windmill"),
    ("lighthouse", "lighthouse"),
    ("balloon", "balloon"),
];
const PLACES: Values = &[("left", "on the left"), ("center", "in the middle"), ("right", "on the right")];
const TERRAINS: Values = &[
    ("meadow", "in a meadow"),
    ("desert", "in the desert"),
    ("snow", "in the snow"),
    ("sea", "on the sea"),
    ("mountains", "in the mountains"),
    ("forest", "in the forest"),
];
const WEATHERS: Values = &[
    ("clear", "under a clear sky"),
    ("cloudy", "under a cloudy sky"),
    ("rain", "in the rain"),
    ("fog", "in the fog"),
    ("rainbow", "with a rainbow"),
];
const TIMES: Values =
    &[("day", "by day"), ("sunset", "at sunset"), ("night", "at night"), ("dawn", "at dawn")];

/// All attributes, in the order in which a prompt names them.
const ATTRIBUTES: [Values; 7] = [SIZES, COLOURS, KINDS, PLACES, TERRAINS, WEATHERS, TIMES];

/// What a prompt describes: which value each attribute has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scene([usize; 7]);

impl Scene {
    /// Draws a scene.
    pub fn draw(random: &mut ChaCha8Rng) -> Self {
        Self(ATTRIBUTES.map(|values| below(random, values.len())))
    }

    /// The same scene but for one attribute.
    pub fn edited(mut self, random: &mut ChaCha8Rng) -> Self {
        let attribute = below(random, ATTRIBUTES.len());
        let values = ATTRIBUTES[attribute].len();
        self.0[attribute] = (self.0[attribute] + 1 + below(random, values - 1)) % values;
        self
    }

    /// The prompt.
    pub fn prompt(&self) -> String {
        let [size, colour, kind, place, terrain, weather, time] = self.values().map(|(_, words)| words);
        format!("a {size} {colour} {kind} {place} {terrain} {weather} {time}")
    }

    /// What the prompt names.
    pub fn named(&self) -> Attributes {
        let [size, colour, kind, place, terrain, weather, time] =
            self.values().map(|(name, _)| name.to_owned());
        Attributes {
            time: Some(time),
            terrain: Some(terrain),
            weather: Some(weather),
            subjects: vec![Subject { kind, colour: Some(colour), size: Some(size), place: Some(place) }],
        }
    }

    fn values(&self) -> [(&'static str, &'static str); 7] {
        std::array::from_fn(|i| ATTRIBUTES[i][self.0[i]])
    }
}

/// A whole number below `end`.
fn below(random: &mut ChaCha8Rng, end: usize) -> usize {
    (random.next_u64() % end as u64) as usize
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    #[test]
    fn an_edit_changes_one_attribute_and_the_words_that_say_it() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..1000 {
            let scene = Scene::draw(&mut random);
            let edited = scene.edited(&mut random);
            let changed = scene.0.iter().zip(&edited.0).filter(|(a, b)| a != b).count();
            assert_eq!(changed, 1, "{} / {}", scene.prompt(), edited.prompt());
            assert_ne!(scene.prompt(), edited.prompt());
            let [before, after] =
                [&scene, &edited].map(|scene| serde_json::to_string(&scene.named()).unwrap());
            assert_ne!(before, after);
        }
        let scene = Scene([1, 0, 0, 2, 2, 2, 2]);
        assert_eq!(scene.prompt(), "a large red house on the right in the snow in the rain at night");
        assert_eq!(scene.named().subjects[0].kind, "house");
    }
}
