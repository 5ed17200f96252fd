"""Writes the checkpoints of the published model into --work: stages 2 to 6 can then run without those before, and training
goes on from the published weights. Training needs the pictures of stage 1 all the same.

The CLIP pair's attribute head and every optimizer's state are not in the published model: they begin anew.
"""

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file

import common
from classifier import Classifier
from clip import Trained, build_clip, load_tokenizer
from common import arguments

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    args = arguments(__doc__, folder=(str(HERE.parent / "model"), "the published model"), unet=("unet", "the checkpoint that its denoiser becomes"))
    folder = Path(args.folder)

    def keep(name, module):
        common.write(args.work / f"{name}.pt", {"ema": module.float().state_dict()})

    shutil.copytree(folder / "tokenizer", args.work / "tokenizer", dirs_exist_ok=True)
    keep("vae_standardised", AutoencoderKL.from_pretrained(folder / "vae"))
    keep(args.unet, UNet2DConditionModel.from_pretrained(folder / "unet"))
    classifier = Classifier()
    classifier.load_state_dict(load_file(folder / "classifier/model.safetensors"))
    keep("classifier", classifier)
    pair = Trained(build_clip(load_tokenizer(args)))
    state = load_file(folder / "clip/model.safetensors")
    text = load_file(folder / "text_encoder/model.safetensors")
    state |= {f"text_model.{k.removeprefix('text_model.')}": v for k, v in text.items()}
    left = pair.clip.load_state_dict(state, strict=False)
    assert not left.unexpected_keys and all(k.endswith("position_ids") for k in left.missing_keys), left
    keep("clip", pair)
