//! A sentence-transformers folder with a BERT as embedder.

use std::path::Path;

use candle_core::{Device, Tensor};
use candle_transformers::models::bert::{BertModel, Config};
use serde::Deserialize;
use serde_json::Value;
use tokenizers::{Tokenizer, TruncationParams};

use super::folder::Folder;
use super::{EmbedError, Embedder, unit};

const MODULES: &str = "./modules.json";
/// The start, one token and the end.
const SHORTEST: usize = 3;

/// One entry of modules.json.
#[derive(Deserialize)]
struct Listed {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

/// Where modules.json puts what an embedding comes from. Its `Normalize` needs no place: every embedding
/// has length 1 here.
struct Modules {
    transformer: String,
    pooling: String,
}

impl Modules {
    fn read(folder: &Folder) -> Result<Self, EmbedError> {
        let (mut transformer, mut pooling) = (None, None);
        for Listed { path, kind } in folder.require::<Vec<Listed>>(MODULES)? {
            let part = if path.is_empty() { ".".to_owned() } else { path };
            match kind.rsplit('.').next() {
                Some("Transformer") => transformer = Some(part),
                Some("Pooling") => pooling = Some(part),
                Some("Normalize") => {}
                _ => return Err(folder.fault(MODULES, format!("a module of type {kind} is not supported"))),
            }
        }
        let absent = |kind: &str| folder.fault(MODULES, format!("names no {kind}"));
        Ok(Self {
            transformer: transformer.ok_or_else(|| absent("Transformer"))?,
            pooling: pooling.ok_or_else(|| absent("Pooling"))?,
        })
    }
}

/// What of the tokens' states is a text's embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pooling {
    Mean,
    Cls,
}

impl Pooling {
    fn read(folder: &Folder, part: &str) -> Result<Self, EmbedError> {
        let file = format!("{part}/config.json");
        let config: serde_json::Map<String, Value> = folder.require(&file)?;
        let on = config
            .iter()
            .filter(|(key, value)| key.starts_with("pooling_mode_") && value.as_bool() == Some(true));
        match on.map(|(key, _)| key.as_str()).collect::<Vec<_>>()[..] {
            ["pooling_mode_mean_tokens"] => Ok(Self::Mean),
            ["pooling_mode_cls_token"] => Ok(Self::Cls),
            ref other => Err(folder.fault(
                &file,
                format!("exactly one of pooling_mode_mean_tokens and pooling_mode_cls_token must be true, not {other:?}"),
            )),
        }
    }

    /// (1, T, D) to (D,).
    fn pool(self, states: &Tensor) -> candle_core::Result<Tensor> {
        let states = states.squeeze(0)?;
        match self {
            Self::Mean => states.mean(0),
            Self::Cls => states.get(0),
        }
    }
}

/// sentence_bert_config.json.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Settings {
    max_seq_length: Option<usize>,
    do_lower_case: bool,
}

/// What of tokenizer_config.json bounds a text where sentence_bert_config.json does not.
#[derive(Default, Deserialize)]
struct TokenizerSettings {
    /// "No limit" is written as 1e30, which is no integer.
    model_max_length: Option<f64>,
}

/// A sentence-transformers folder: a BERT, its tokens' states pooled by their mean or by the first's.
pub struct SentenceEmbedder {
    tokenizer: Tokenizer,
    lower_case: bool,
    bert: BertModel,
    pooling: Pooling,
    digest: String,
    dimensions: usize,
}

impl SentenceEmbedder {
    /// Whether a folder is sentence-transformers'.
    pub fn fits(path: &Path) -> bool {
        path.join(MODULES).is_file()
    }

    /// Reads a folder.
    ///
    /// # Errors
    /// [`EmbedError`], naming the file at fault.
    pub fn load(path: &Path) -> Result<Self, EmbedError> {
        let folder = Folder::new(path);
        let Modules { transformer: part, pooling } = Modules::read(&folder)?;
        let file = |name: &str| format!("{part}/{name}");
        let config = bert_config(&folder, &file("config.json"))?;
        let settings: Settings = folder.json(&file("sentence_bert_config.json"))?.unwrap_or_default();
        let limits: TokenizerSettings = folder.json(&file("tokenizer_config.json"))?.unwrap_or_default();
        let wanted = settings.max_seq_length.or(limits.model_max_length.map(|n| n as usize));
        let most = config.max_position_embeddings;
        let tokenizer = tokenizer(&folder, &file("tokenizer.json"), wanted.unwrap_or(most).min(most))?;
        let bert = folder.network(&part, |weights| BertModel::load(weights, &config))?;
        let mut names = vec![MODULES.to_owned(), format!("{pooling}/config.json")];
        let own = ["config.json", "sentence_bert_config.json", "tokenizer.json", "tokenizer_config.json"];
        names.extend(own.map(file));
        Ok(Self {
            tokenizer,
            lower_case: settings.do_lower_case,
            bert,
            pooling: Pooling::read(&folder, &pooling)?,
            digest: folder.digest(&part, &names)?,
            dimensions: config.hidden_size,
        })
    }
}

fn bert_config(folder: &Folder, file: &str) -> Result<Config, EmbedError> {
    let json: Value = folder.require(file)?;
    // Others of its family (RoBERTa, MPNet, …) count positions or name weights in another way.
    let kind = json.get("model_type").and_then(Value::as_str).unwrap_or_default();
    if kind != "bert" {
        return Err(folder.fault(file, format!("model_type: {kind:?} is not supported, only \"bert\"")));
    }
    let config: Config = serde_json::from_value(json).map_err(|e| folder.fault(file, e))?;
    let (width, heads) = (config.hidden_size, config.num_attention_heads);
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(folder.fault(file, format!("num_attention_heads: {heads} do not divide {width}")));
    }
    Ok(config)
}

/// A tokenizer that cuts texts off after `length` tokens and never pads: prompts are embedded one by one.
fn tokenizer(folder: &Folder, file: &str, length: usize) -> Result<Tokenizer, EmbedError> {
    let bytes = folder.read(file)?.ok_or_else(|| folder.fault(file, "not found"))?;
    let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|e| folder.fault(file, e))?;
    tokenizer.with_padding(None);
    if length < SHORTEST {
        return Err(folder.fault(file, format!("texts of {length} tokens are too short")));
    }
    let cut = TruncationParams { max_length: length, ..Default::default() };
    tokenizer.with_truncation(Some(cut)).map_err(|e| folder.fault(file, e))?;
    Ok(tokenizer)
}

impl Embedder for SentenceEmbedder {
    fn digest(&self) -> &str {
        &self.digest
    }

    fn dimensions(&self) -> usize {
        self.dimensions
    }

    fn embed(&self, prompt: &str) -> Result<Vec<f32>, EmbedError> {
        let lower = self.lower_case.then(|| prompt.to_lowercase());
        let text = lower.as_deref().unwrap_or(prompt).trim();
        let encoding =
            self.tokenizer.encode_fast(text, true).map_err(|e| EmbedError::Tokenizer(e.to_string()))?;
        let ids = Tensor::new(encoding.get_ids(), &Device::Cpu)?.unsqueeze(0)?;
        let states = self.bert.forward(&ids, &ids.zeros_like()?, None)?;
        unit(&self.pooling.pool(&states)?)
    }
}
