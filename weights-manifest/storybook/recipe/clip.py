"""Stage 4: the tokenizer and the CLIP pair, trained contrastively (Radford et al., 2021).

The text tower conditions the UNet with its token states and gives the cache its prompt embeddings;
with the image tower it gives a CLIP score. Contrast alone learns slowly which colour belongs to which
subject (two random scenes of a batch seldom differ in that alone), so both embeddings must also give
the scene's attributes to a linear head, which is dropped after training.
"""

import json
import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
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
    trained = Trained(build_clip(tokenizer))
    trained.load_state_dict(torch.load(args.work / "clip.pt", weights_only=True)["ema"])
    return tokenizer, trained.clip.eval()


# What the attribute head gives: the scene's three attributes, which kinds are present, and for each kind its colour,
# size and place (no scene has a kind twice).
SCENE = [("time", world.TIMES), ("terrain", world.TERRAINS), ("weather", world.WEATHERS)]
OF_KIND = [("colour", world.COLOURS), ("size", world.SIZES), ("place", world.PLACES)]
GROUPS = [len(v) for _, v in SCENE] + [len(v) for _ in world.KINDS for _, v in OF_KIND]
UNKNOWN = -1


def attributes(named: dict, subjects: list[dict]) -> list[int]:
    """Targets for the head: one class per group, UNKNOWN where nothing is said, then 0 or 1 per kind."""
    by_kind = {s["kind"]: s for s in subjects}
    index = lambda said, key, values: values.index(said[key]) if key in said else UNKNOWN
    row = [index(named, key, values) for key, values in SCENE]
    row += [index(by_kind.get(kind, {}), key, values) for kind in world.KINDS for key, values in OF_KIND]
    return row + [int(kind in by_kind) for kind in world.KINDS]


def attributes_of(scene) -> list[int]:
    named = {key: getattr(scene, key) for key, _ in SCENE}
    return attributes(named, [vars(s) for s in scene.subjects])


def attribute_loss(logits, targets):
    """Mean cross entropy of the groups that are known, plus that of the kinds' presence."""
    *groups, present = logits.split(GROUPS + [len(world.KINDS)], 1)
    parts = [F.cross_entropy(g, targets[:, k], ignore_index=UNKNOWN, reduction="sum") for k, g in enumerate(groups)]
    known = (targets[:, : len(GROUPS)] != UNKNOWN).sum()
    return sum(parts) / known + F.binary_cross_entropy_with_logits(present, targets[:, len(GROUPS) :].float())


@torch.no_grad()
def attributes_right(logits, targets) -> dict[str, float]:
    """Share of the known attributes that the head gives rightly; kind: exactly the kinds that are present."""
    *groups, present = logits.split(GROUPS + [len(world.KINDS)], 1)
    right = {"kind": ((present > 0) == (targets[:, len(GROUPS) :] > 0)).all(1).float().mean().item()}
    names = [key for key, _ in SCENE] + [key for _ in world.KINDS for key, _ in OF_KIND]
    for key in dict.fromkeys(names):
        columns = [k for k, name in enumerate(names) if name == key]
        known = torch.cat([targets[:, k] != UNKNOWN for k in columns])
        hit = torch.cat([groups[k].argmax(1) == targets[:, k] for k in columns])
        right[key] = hit[known].float().mean().item()
    return right


class Trained(nn.Module):
    """The pair and the head that only training needs."""

    def __init__(self, clip):
        super().__init__()
        self.clip = clip
        self.head = nn.Linear(clip.config.projection_dim, sum(GROUPS) + len(world.KINDS))

    def text(self, ids):
        longest = int((ids == self.clip.config.text_config.eos_token_id).int().argmax(1).max()) + 1
        out = self.clip.get_text_features(input_ids=ids[:, :longest])  # causal: what is cut off changes nothing
        return getattr(out, "pooler_output", out)

    def image(self, pixels):
        out = self.clip.get_image_features(pixel_values=pixels)
        return getattr(out, "pooler_output", out)


if __name__ == "__main__":
    args = arguments(__doc__, minutes=(22.0, "wall-clock budget"))
    pictures = load_pictures(args)
    tokenizer = load_tokenizer(args)
    model = Trained(build_clip(tokenizer))
    batch = 16 if args.smoke else BATCH
    model.clip.set_attn_implementation("eager")  # twice as fast to train on a CPU as the fused one
    image = model.image if args.smoke else torch.compile(model.image)

    def told(index, rng, drop):
        """Token ids of a caption of each scene, and what it says; and what the scene is."""
        scenes = [scene_and_rng(int(i))[0] for i in index]
        captions, *says = zip(*(world.caption(scene, rng, drop) for scene in scenes))
        said = [attributes(*s) for s in zip(*says)]
        return token_ids(tokenizer, list(captions)), torch.tensor(said), torch.tensor([attributes_of(s) for s in scenes])

    def loss_fn(rng):
        index = rng.integers(2000 if len(pictures) > 4000 else 0, len(pictures), size=batch)
        ids, said, shown = told(index, random.Random(int(rng.integers(2**62))), drop=0.1)
        with autocast():
            t, v = model.text(ids), image(to_tensor(pictures[index]))
            guess_t, guess_v = model.head(t), model.head(v)
        t, v = F.normalize(t.float(), dim=1), F.normalize(v.float(), dim=1)
        logits = model.clip.logit_scale.clamp(max=4.6).exp() * t @ v.T
        target = torch.arange(batch)
        contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return contrast + attribute_loss(guess_t.float(), said) + attribute_loss(guess_v.float(), shown)

    model = common.train(args, "clip", model, loss_fn, 1e-3, args.minutes, weight_decay=0.05, decay=0.998)

    n = min(1000, len(pictures))
    with torch.no_grad():
        (ids1, said, shown), (ids2, _, _) = (told(range(n), random.Random(s), drop=0.0) for s in (4, 5))
        t1, t2, v = model.text(ids1), model.text(ids2), model.image(to_tensor(pictures[:n]))
    for name, embeds, targets in (("text", t1, said), ("image", v, shown)):
        shares = attributes_right(model.head(embeds), targets)
        print(f"{name} embedding tells " + ", ".join(f"{k} {x:.3f}" for k, x in shares.items()))
    t1, t2, v = (F.normalize(x, dim=1) for x in (t1, t2, v))
    print(f"retrieval among {n}: text->image {((t1 @ v.T).argmax(1) == torch.arange(n)).float().mean():.3f}")
    print(f"cosine: same scene told twice {(t1 * t2).sum(1).mean():.3f}, other scenes {(t1 @ t2.T)[~torch.eye(n, dtype=bool)].mean():.3f}")
