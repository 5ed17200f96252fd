"""Stage 5: the denoiser.

v-prediction (Salimans and Ho, 2022); the text tower of stage 4 frozen, captions told afresh at every
visit, one in ten dropped for classifier-free guidance; latents encoded once.

Runs three times: `--learn smallest` learns 64x64 from nothing, `--learn largest` goes on from there at 128x128, and
`--learn all` from there at all sizes. Attention and convolutions have no size of their own: one set of weights paints all.
"""

import hashlib
import random
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from tqdm import tqdm

import common
import world
from clip import WIDTH, load_clip, token_ids
from common import LARGEST, PICTURE_SIZES, SMALLEST, arguments, autocast, choose_size, first_scene, load_pictures, scene_and_rng, to_tensor
from vae import load_vae

CONFIG = dict(
    sample_size=32, in_channels=4, out_channels=4, block_out_channels=(64, 128, 160), layers_per_block=1,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=WIDTH["hidden_size"], attention_head_dim=4, norm_num_groups=16,
)
SCHEDULE = dict(
    num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
    set_alpha_to_one=False, clip_sample=False, prediction_type="v_prediction", timestep_spacing="leading",
)
MAX_SNR, CAPTION_DROPOUT = 5.0, 0.1


@dataclass(frozen=True)
class Run:
    """One of the three runs: what it learns, from which checkpoint it begins, and the peak learning rate."""

    sizes: list
    begins_with: str | None
    checkpoint: str
    rate: float
    pictures: int  # at most, of a size
    latents: int  # in a batch, four channels not counted


# Rate and batch of the two later runs are those of the first trial at 128x128 that painted coherent scenes; no others were tried.
# The last run takes 12,000 pictures of a size at most: encoding more would take longer than their share of its steps.
RUNS = {
    "smallest": Run([SMALLEST], None, "unet_smallest", 1e-3, 60_000, 64 * 16 * 16),
    "largest": Run([LARGEST], "unet_smallest", "unet_largest", 5e-4, 24_000, 24 * 32 * 32),
    "all": Run(PICTURE_SIZES, "unet_largest", "unet", 5e-4, 12_000, 24 * 32 * 32),
}


def encode_latents(args, vae, size, count) -> torch.Tensor:
    """Scaled latents (N, 4, H / 4, W / 4) of a size's first pictures, encoded once and kept for as long as the encoder is the same."""
    path = args.work / "latents" / "{}x{}.npy".format(*size)
    stamp, pictures = path.with_suffix(".txt"), load_pictures(args, size)[:count]
    encoder = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for m in (vae.encoder, vae.quant_conv) for p in m.parameters()))
    made_of = f"{len(pictures)} pictures, encoder {encoder.hexdigest()}"
    if not path.exists() or not stamp.exists() or stamp.read_text() != made_of:
        path.parent.mkdir(exist_ok=True)
        out = []
        with torch.no_grad(), autocast():
            for i in tqdm(range(0, len(pictures), 32), desc=f"latents {path.stem}", mininterval=5):
                mean = vae.encode(to_tensor(pictures[i : i + 32])).latent_dist.mean
                out.append((mean.float() * vae.config.scaling_factor).half().numpy())
        np.save(path, np.concatenate(out))
        stamp.write_text(made_of)
    return torch.from_numpy(np.load(path))


def load_unet(args) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(**CONFIG)
    unet.load_state_dict(torch.load(args.work / "unet.pt", weights_only=True)["ema"])
    return unet.eval()


if __name__ == "__main__":
    args = arguments(__doc__, learn=("all", "smallest, largest or all"), minutes=(45.0, "wall-clock budget"))
    run = RUNS[args.learn]
    vae = load_vae(args)
    latents = {size: encode_latents(args, vae, size, run.pictures) for size in run.sizes}
    tokenizer, clip = load_clip(args)
    text_tower = clip.text_model
    unet = UNet2DConditionModel(**CONFIG)
    if run.begins_with:
        unet.load_state_dict(torch.load(args.work / f"{run.begins_with}.pt", weights_only=True)["ema"])
    unet.set_attn_processor(AttnProcessor())  # several times as fast to train on a CPU as the fused one
    schedule = DDIMScheduler(**SCHEDULE)

    def caption_of(scene, caption_rng):
        if caption_rng.random() < CAPTION_DROPOUT:
            return ""
        return world.caption(scene_and_rng(scene)[0], caption_rng)[0]

    def loss_fn(rng):
        width, height = size = choose_size(rng) if len(run.sizes) > 1 else run.sizes[0]
        batch = 4 if args.smoke else round(4 * 4 * run.latents / (width * height))  # a latent's sides are a quarter of the picture's
        index = rng.integers(len(latents[size]), size=batch)
        x0 = latents[size][index].float()
        noise, t = torch.randn_like(x0), torch.randint(0, 1000, (batch,))
        x, v = schedule.add_noise(x0, noise, t), schedule.get_velocity(x0, noise, t)
        caption_rng = random.Random(int(rng.integers(2**62)))
        with autocast():
            with torch.no_grad():
                captions = [caption_of(first_scene(size) + int(i), caption_rng) for i in index]
                states = text_tower(input_ids=token_ids(tokenizer, captions)).last_hidden_state
            out = unet(x, t, states).sample
        a = schedule.alphas_cumprod[t]
        # Timesteps with little noise count less. Those with much noise, where the prompt decides what is painted, count
        # in full, unlike under min-SNR weighting (Hang et al., 2023).
        weight = (MAX_SNR * (1 - a) / a).clamp(max=1)
        return ((out.float() - v).pow(2).mean(dim=(1, 2, 3)) * weight).mean()

    common.train(args, run.checkpoint, unet, loss_fn, run.rate, args.minutes, warmup=300)
