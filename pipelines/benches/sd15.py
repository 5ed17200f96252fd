"""A model of Stable Diffusion 1.5's shape with random weights: speed does not depend on them, and nothing need be downloaded.

    python sd15.py FOLDER
"""

import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TOKENIZER = Path(__file__).resolve().parent.parent / "tests/goldens/sd15/tokenizer"


def save(folder: Path) -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
    channels, down, up = (128, 256, 512, 512), ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    vae = AutoencoderKL(
        block_out_channels=channels, down_block_types=down, up_block_types=up, layers_per_block=2, latent_channels=4, sample_size=512,
    )
    text = CLIPTextModel(CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, max_position_embeddings=77,
        vocab_size=49408, eos_token_id=49407, bos_token_id=49406,
    ))
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    pipe.to(torch.float16).save_pretrained(part)
    part.rename(folder)


if __name__ == "__main__":
    save(Path(sys.argv[1]))
