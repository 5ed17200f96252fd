"""Stage 6: write the model folder (fp16, diffusers' layout) and the manifest with its digests."""

import hashlib
import json
import shutil
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file
from transformers import CLIPTextModel

import critic
import world
from classifier import CHANNELS, GROUPS, load_classifier
from clip import load_clip
from common import arguments
from critic import load_critic
from digests import digests
from unet import SCHEDULE, load_unet
from vae import load_vae

HERE = Path(__file__).resolve().parent
MANIFEST = """\
# Written by storybook/recipe/export.py.
id = "storybook"
description = "Storybook landscapes, 64 to 128 pixels a side: time of day, terrain, weather and one or two coloured subjects."
source = "trained by weights-manifest/storybook/recipe"
licence = "Apache-2.0"
latent_space = "storybook-{latent_space}"
folder = "storybook/model"

[defaults]
steps = 50
guidance_scale = {guidance_scale}
size = "128x128"

[sizes]
grid = 16
min = 64
max = 128

[files]
{files}
"""

args = arguments(__doc__, out=(str(HERE.parent), "the folder that gets model/ and, beside it, the manifest"), guidance_scale=(5.0, "the default to write down"))
out = Path(args.out)
folder = out / "model.tmp"
shutil.rmtree(folder, ignore_errors=True)

tokenizer, clip = load_clip(args)
text_encoder = CLIPTextModel(clip.config.text_config)
tower = {k.removeprefix("text_model."): v for k, v in clip.state_dict().items() if k.startswith("text_model.")}
names = text_encoder.state_dict().keys()
text_encoder.load_state_dict({n: tower[n.removeprefix("text_model.")] for n in names})
pipe = StableDiffusionPipeline(
    vae=load_vae(args), text_encoder=text_encoder, tokenizer=tokenizer, unet=load_unet(args), scheduler=DDIMScheduler(**SCHEDULE),
    safety_checker=None, feature_extractor=None, requires_safety_checker=False,
)
pipe.to(torch.float16).save_pretrained(folder)
for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"):
    shutil.copy(args.work / "tokenizer" / name, folder / "tokenizer" / name)


def half(module_state):
    return {k: v.half().contiguous() for k, v in module_state.items()}


(folder / "clip").mkdir()
clip.config.save_pretrained(folder / "clip")
save_file(half({k: v for k, v in clip.state_dict().items() if not k.startswith("text_model.") and not k.endswith("position_ids")}), folder / "clip/model.safetensors")

(folder / "classifier").mkdir()
save_file(half(load_classifier(args).state_dict()), folder / "classifier/model.safetensors")
(folder / "classifier/config.json").write_text(json.dumps({
    "channels": CHANNELS, "mix_channels": 48, "hidden": 256, "norm_groups": 8, "groups": GROUPS,
    "times": world.TIMES, "terrains": world.TERRAINS, "weathers": world.WEATHERS,
    "places": world.PLACES, "kinds": world.KINDS, "colours": world.COLOURS, "sizes": world.SIZES,
}, indent=2) + "\n")

if (args.work / "critic.pt").exists():  # learned from pictures of the exported model: not there the first time
    (folder / "critic").mkdir()
    save_file(half(load_critic(args).state_dict()), folder / "critic/model.safetensors")
    (folder / "critic/config.json").write_text(json.dumps({"channels": critic.CHANNELS, "norm_groups": critic.NORM_GROUPS}, indent=2) + "\n")

# Calibration tables belong to the weights they were measured of; the pairs they are measured on do not. After this:
# `calibrate`, copy its tables there, and run digests.py.
(folder / "calibration").mkdir()
shutil.copy(HERE.parent / "model/calibration/pairs.jsonl", folder / "calibration")

encoder = pipe.vae.encoder.state_dict() | pipe.vae.quant_conv.state_dict()
latent_space = hashlib.sha256(b"".join(v.numpy().tobytes() for v in encoder.values())).hexdigest()
text = MANIFEST.format(latent_space=latent_space[:12], guidance_scale=args.guidance_scale, files=digests(folder))
(out.parent / "storybook.toml").write_text(text)
shutil.rmtree(out / "model", ignore_errors=True)
folder = folder.rename(out / "model")
sizes = [p.stat().st_size for p in folder.rglob("*") if p.is_file()]
print(f"{len(sizes)} files, {sum(sizes) / 1e6:.1f} MB in {folder}")
