"""The prompts of the precision bench: held-out ones of the storybook world, the model card's first.

    VENV/bin/python benches/precision/prompts.py > benches/precision/prompts.jsonl

Writes a JSON line each: the prompt, and what it names.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "weights-manifest/storybook/recipe"))
from evaluate import held_out  # noqa: E402

COUNT = 256

for _, _, (text, named, subjects) in held_out(0, COUNT):
    print(json.dumps({"prompt": text, "named": {**named, "subjects": subjects}}))
