"""Stage 5: the denoiser.

v-prediction (Salimans and Ho, 2022); the text tower of stage 4 frozen, captions told afresh at every
visit, one in ten dropped for classifier-free guidance; latents encoded once.
"""

import hashlib
import random

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from tqdm import tqdm

import common
import world
from clip import WIDTH, load_clip, token_ids
from common import arguments, autocast, load_pictures, scene_and_rng, to_tensor
from vae import load_vae

CONFIG = dict(
    sample_size=16, in_channels=4, out_channels=4, block_out_channels=(64, 128, 160), layers_per_block=1,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=WIDTH["hidden_size"], attention_head_dim=4, norm_num_groups=16,
)
SCHEDULE = dict(
    num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
    set_alpha_to_one=False, clip_sample=False, prediction_type="v_prediction", timestep_spacing="leading",
)
BATCH, MAX_SNR, CAPTION_DROPOUT = 64, 5.0, 0.1


def encode_latents(args, pictures, count) -> torch.Tensor:
    """Scaled latents (N, 4, 16, 16) of the first pictures, encoded once and kept for as long as the encoder is the same."""
    path, stamp = args.work / "latents.npy", args.work / "latents.txt"
    vae, out = load_vae(args), []
    encoder = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for m in (vae.encoder, vae.quant_conv) for p in m.parameters()))
    made_of = f"{min(count, len(pictures))} pictures, encoder {encoder.hexdigest()}"
    if not path.exists() or not stamp.exists() or stamp.read_text() != made_of:
        with torch.no_grad(), autocast():
            for i in tqdm(range(0, min(count, len(pictures)), 64), desc="latents", mininterval=5):
                mean = vae.encode(to_tensor(pictures[i : i + 64])).latent_dist.mean
                out.append((mean.float() * vae.config.scaling_factor).half().numpy())
        np.save(path, np.concatenate(out))
        stamp.write_text(made_of)
    return torch.from_numpy(np.load(path)).float()


def load_unet(args) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(**CONFIG)
    unet.load_state_dict(torch.load(args.work / "unet.pt", weights_only=True)["ema"])
    return unet.eval()


if __name__ == "__main__":
    args = arguments(__doc__, minutes=(45.0, "wall-clock budget"), count=(60_000, "pictures to learn from"))
    pictures = load_pictures(args)
    latents = encode_latents(args, pictures, args.count)
    tokenizer, clip = load_clip(args)
    text_tower = clip.text_model
    unet = UNet2DConditionModel(**CONFIG)
    unet.set_attn_processor(AttnProcessor())  # several times as fast to train on a CPU as the fused one
    schedule = DDIMScheduler(**SCHEDULE)
    forward = unet if args.smoke else torch.compile(unet)
    batch = 4 if args.smoke else BATCH

    def caption_of(i, caption_rng):
        if caption_rng.random() < CAPTION_DROPOUT:
            return ""
        return world.caption(scene_and_rng(int(i))[0], caption_rng)[0]

    def loss_fn(rng):
        index = rng.integers(len(latents), size=batch)
        x0, noise = latents[index], torch.randn(batch, *latents.shape[1:])
        t = torch.randint(0, 1000, (batch,))
        x, v = schedule.add_noise(x0, noise, t), schedule.get_velocity(x0, noise, t)
        caption_rng = random.Random(int(rng.integers(2**62)))
        with autocast():
            with torch.no_grad():
                captions = [caption_of(i, caption_rng) for i in index]
                states = text_tower(input_ids=token_ids(tokenizer, captions)).last_hidden_state
            out = forward(x, t, states).sample
        a = schedule.alphas_cumprod[t]
        # Timesteps with little noise count less. Those with much noise, where the prompt decides what is painted, count
        # in full, unlike under min-SNR weighting (Hang et al., 2023).
        weight = (MAX_SNR * (1 - a) / a).clamp(max=1)
        return ((out.float() - v).pow(2).mean(dim=(1, 2, 3)) * weight).mean()

    common.train(args, "unet", unet, loss_fn, 1e-3, args.minutes, warmup=300)
