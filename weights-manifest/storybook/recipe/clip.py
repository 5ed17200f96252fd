"""Stage 4: the tokenizer and the CLIP pair, trained contrastively (Radford et al., 2021).

The text tower conditions the UNet with its token states and gives the cache its prompt embeddings;
with the image tower it gives a CLIP score.
"""

import json
import random

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers, Regex
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

import common
import world
from common import arguments, autocast, load_pictures, scene_and_rng, to_tensor

MAX_TOKENS = 40
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
WIDTH = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4)
BATCH = 256


def _train_tokenizer(folder):
    """CLIP's BPE (lower case, `</w>`), its merges learned from captions, so that each of the world's words is one token."""
    rng = random.Random(1)
    captions = [world.caption(world.sample_scene(rng), rng)[0] for _ in range(40_000)]
    t = Tokenizer(models.BPE(unk_token=EOS, end_of_word_suffix="</w>", continuing_subword_prefix=""))
    t.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(words, behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=1400, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False)
    t.train_from_iterator(captions, trainer)
    learned = json.loads(t.to_str())["model"]
    pairs = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    # CLIP's order: bytes, bytes that end a word, merges, specials
    tokens = alphabet + [a + "</w>" for a in alphabet] + ["".join(p) for p in pairs] + [BOS, EOS]
    vocab = {tok: i for i, tok in enumerate(dict.fromkeys(tokens))}
    t.model = models.BPE(vocab, pairs, unk_token=EOS, end_of_word_suffix="</w>", continuing_subword_prefix="")
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.RobertaProcessing((EOS, vocab[EOS]), (BOS, vocab[BOS]), trim_offsets=False, add_prefix_space=False)
    t.add_special_tokens([AddedToken(BOS, normalized=False), AddedToken(EOS, normalized=False)])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(p) for p in pairs) + "\n")
    t.save(str(folder / "tokenizer.json"))
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_TOKENS, "do_lower_case": True, "errors": "replace"}, indent=2))


def load_tokenizer(args) -> CLIPTokenizer:
    folder = args.work / "tokenizer"
    if not (folder / "tokenizer_config.json").exists():
        _train_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(folder)


def token_ids(tokenizer, captions) -> torch.Tensor:
    return tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt").input_ids


def build_clip(tokenizer) -> CLIPModel:
    ids = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    text = dict(**WIDTH, vocab_size=len(tokenizer), max_position_embeddings=MAX_TOKENS, projection_dim=128, **ids)
    vision = dict(**WIDTH, image_size=64, patch_size=8, projection_dim=128)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def load_clip(args) -> tuple[CLIPTokenizer, CLIPModel]:
    tokenizer = load_tokenizer(args)
    clip = build_clip(tokenizer)
    clip.load_state_dict(torch.load(args.work / "clip.pt", weights_only=True)["ema"])
    return tokenizer, clip.eval()


if __name__ == "__main__":
    args = arguments(__doc__, minutes=(16.0, "wall-clock budget"))
    pictures = load_pictures(args)
    tokenizer = load_tokenizer(args)
    model = build_clip(tokenizer)
    batch = 16 if args.smoke else BATCH

    def embeds(out):
        return getattr(out, "pooler_output", out)

    def loss_fn(rng):
        index = rng.integers(2000 if len(pictures) > 4000 else 0, len(pictures), size=batch)
        caption_rng = random.Random(int(rng.integers(2**62)))
        ids = token_ids(tokenizer, [world.caption(scene_and_rng(int(i))[0], caption_rng, drop=0.1)[0] for i in index])
        with autocast():
            longest = int((ids == tokenizer.eos_token_id).int().argmax(1).max()) + 1  # causal: padding changes nothing
            t = embeds(model.get_text_features(input_ids=ids[:, :longest]))
            v = embeds(model.get_image_features(pixel_values=to_tensor(pictures[index])))
        t, v = F.normalize(t.float(), dim=1), F.normalize(v.float(), dim=1)
        logits = model.logit_scale.clamp(max=4.6).exp() * t @ v.T
        target = torch.arange(batch)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    model = common.train(args, "clip", model, loss_fn, 1e-3, args.minutes, weight_decay=0.05, decay=0.998)

    rng, n = np.random.default_rng(3), min(256, len(pictures))
    with torch.no_grad():
        say = lambda r: [world.caption(scene_and_rng(i)[0], r, drop=0.0)[0] for i in range(n)]
        t1, t2 = (F.normalize(embeds(model.get_text_features(input_ids=token_ids(tokenizer, say(random.Random(s))))), dim=1) for s in (4, 5))
        v = F.normalize(embeds(model.get_image_features(pixel_values=to_tensor(pictures[:n]))), dim=1)
    print(f"retrieval among {n}: text->image {((t1 @ v.T).argmax(1) == torch.arange(n)).float().mean():.3f}")
    print(f"cosine: same scene told twice {(t1 * t2).sum(1).mean():.3f}, other scenes {(t1 @ t2.T)[~torch.eye(n, dtype=bool)].mean():.3f}")
