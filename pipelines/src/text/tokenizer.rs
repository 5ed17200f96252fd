//! CLIP's tokenizer, read from the files of a model's folder in their old or new form.

use std::borrow::Cow;

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use crate::error::{Error, Result};

/// The default length that texts are padded and truncated to.
const CLIP_LENGTH: usize = 77;

/// The pattern that splits text into words, before the merges.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Reads a file of a component's folder by its name; returns `None` if there is no such file.
pub type ReadFile<'a> = dyn Fn(&str) -> Result<Option<Cow<'static, [u8]>>> + 'a;

/// Converts text to token ids of a fixed length: start of text, tokens, end of text, padding.
#[derive(Debug, Clone)]
pub struct ClipTokenizer {
    inner: Tokenizer,
    start: u32,
    end: u32,
    pad: u32,
    max_length: usize,
}

impl ClipTokenizer {
    /// The files that a tokenizer may have.
    pub const FILES: [&str; 5] =
        ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"];

    /// Reads a tokenizer through `files`: `tokenizer.json`, or else `vocab.json` and `merges.txt`; and `tokenizer_config.json` and
    /// `special_tokens_map.json` if they exist.
    ///
    /// # Errors
    /// Those of `files`, [`Error::Config`] naming a file that is missing or does not parse, and [`Error::Tokenizer`] if a special
    /// token is not in the vocabulary.
    pub fn from_files(files: &ReadFile<'_>) -> Result<Self> {
        let settings = TokenizerSettings::read(files)?;
        let mut inner = match files("tokenizer.json")? {
            Some(bytes) => load("tokenizer.json", &bytes)?,
            None => load("vocab.json", definition(files, &settings)?.to_string().as_bytes())?,
        };
        // `encode` itself truncates, pads and adds special tokens, so that this does not depend on the kind of file.
        inner.with_truncation(None).map_err(|e| Error::Tokenizer(e.to_string()))?;
        inner.with_padding(None);
        inner.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        let id = |token: &SpecialToken| {
            let absent = || Error::Tokenizer(format!("{:?} is not in the vocabulary", token.content));
            inner.token_to_id(&token.content).ok_or_else(absent)
        };
        let (start, end, pad) = (id(&settings.bos)?, id(&settings.eos)?, id(&settings.pad)?);
        Ok(Self { start, end, pad, max_length: settings.max_length, inner })
    }

    /// The ids of `text`, exactly [`Self::max_length`] of them. Tokens that do not fit are dropped.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let tokens = self.tokens(text)?;
        let kept = tokens.len().min(self.max_length - 2);
        let mut ids = Vec::with_capacity(self.max_length);
        ids.push(self.start);
        ids.extend_from_slice(&tokens[..kept]);
        ids.push(self.end);
        ids.resize(self.max_length, self.pad);
        Ok(ids)
    }

    /// The number of ids of `text` with start and end. If it exceeds [`Self::max_length`], [`Self::encode`] drops tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn count(&self, text: &str) -> Result<usize> {
        Ok(self.tokens(text)?.len() + 2)
    }

    /// The length of every encoded text.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| Error::Tokenizer(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }
}

fn load(file: &str, json: &[u8]) -> Result<Tokenizer> {
    Tokenizer::from_bytes(json).map_err(|e| Error::config(file, e.to_string()))
}

fn parse(file: &str, bytes: &[u8]) -> Result<Map<String, Value>> {
    serde_json::from_slice(bytes).map_err(|e| Error::config(file, e.to_string()))
}

/// A special token. In the files it is a string or an object.
#[derive(Debug, Clone)]
struct SpecialToken {
    content: String,
    /// Whether it is matched in the normalised (lower-case) text instead of the original.
    normalized: bool,
}

impl SpecialToken {
    fn parse(value: &Value) -> Option<Self> {
        let content = value.as_str().or_else(|| value.get("content")?.as_str())?.to_owned();
        let normalized = value.get("normalized").and_then(Value::as_bool).unwrap_or(false);
        Some(Self { content, normalized })
    }
}

/// The settings in the files beside the vocabulary.
struct TokenizerSettings {
    bos: SpecialToken,
    eos: SpecialToken,
    unk: SpecialToken,
    pad: SpecialToken,
    max_length: usize,
}

impl TokenizerSettings {
    fn read(files: &ReadFile<'_>) -> Result<Self> {
        // The second file overrides the first, as in transformers.
        let mut map = Map::new();
        for file in ["special_tokens_map.json", "tokenizer_config.json"] {
            if let Some(bytes) = files(file)? {
                map.extend(parse(file, &bytes)?.into_iter().filter(|(_, value)| !value.is_null()));
            }
        }
        let token = |key: &str, default: &str| {
            map.get(key)
                .and_then(SpecialToken::parse)
                .unwrap_or_else(|| SpecialToken { content: default.to_owned(), normalized: false })
        };
        // The value 1e30 means no limit.
        let length = map.get("model_max_length").and_then(Value::as_u64).filter(|n| *n < 100_000);
        let max_length = length.map_or(CLIP_LENGTH, |n| n as usize);
        if max_length < 2 {
            return Err(Error::config("tokenizer_config.json", "model_max_length: less than 2"));
        }
        Ok(Self {
            bos: token("bos_token", "<|startoftext|>"),
            eos: token("eos_token", "<|endoftext|>"),
            unk: token("unk_token", "<|endoftext|>"),
            pad: token("pad_token", "<|endoftext|>"),
            max_length,
        })
    }
}

/// The `tokenizer.json` that transformers builds from `vocab.json` and `merges.txt`.
fn definition(files: &ReadFile<'_>, settings: &TokenizerSettings) -> Result<Value> {
    let require = |file: &str| files(file)?.ok_or_else(|| Error::config(file, "not found"));
    let vocab = parse("vocab.json", &require("vocab.json")?)?;
    let merges = require("merges.txt")?;
    let merges = std::str::from_utf8(&merges).map_err(|e| Error::config("merges.txt", e.to_string()))?;
    let merges = merges.lines().filter(|line| !line.starts_with("#version") && !line.is_empty());
    Ok(json!({
        "version": "1.0",
        "added_tokens": added_tokens(&vocab, settings)?,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "model": {
            "type": "BPE",
            "unk_token": settings.unk.content,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": false,
            "merges": merges.collect::<Vec<_>>(),
            "vocab": vocab,
        },
    }))
}

/// The special tokens, each once. If a token has several roles, the last role's way of matching applies, as in transformers.
/// The padding is one of them. In Stable Diffusion 2 it is "!", so that an exclamation mark in a prompt is this token.
fn added_tokens(vocab: &Map<String, Value>, settings: &TokenizerSettings) -> Result<Vec<Value>> {
    let mut added: Vec<Value> = Vec::new();
    for token in [&settings.bos, &settings.eos, &settings.unk, &settings.pad] {
        let SpecialToken { content, normalized } = token;
        let absent = || Error::Tokenizer(format!("{content:?} is not in the vocabulary"));
        let id = vocab.get(content).ok_or_else(absent)?;
        added.retain(|earlier| earlier["content"] != **content);
        added.push(json!({
            "id": id, "content": content, "normalized": normalized, "special": true,
            "single_word": false, "lstrip": false, "rstrip": false,
        }));
    }
    Ok(added)
}
