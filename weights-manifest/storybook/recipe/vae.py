"""Stage 2: the VAE (f = 4, 4 latent channels).

L1 at three scales (the coarse ones hold the colours), L1 of the gradients (the outlines), a small KL
term. `--decoder-minutes` afterwards trains the decoder alone, on pictures of all sizes and the frozen encoder's latents,
which the UNet may meanwhile already learn.
"""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

import common
from common import LARGEST, PICTURE_SIZES, SMALLEST, arguments, autocast, choose_size, load_pictures, to_tensor

CONFIG = dict(
    block_out_channels=(32, 64, 96), down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=1, latent_channels=4, norm_num_groups=16, sample_size=128, scaling_factor=1.0,
)
BATCH = 16  # pictures of 64x64, or as many pixels in larger ones


def load_vae(args, trained=True) -> AutoencoderKL:
    """The best VAE so far: the fine-tuned decoder's where there is one."""
    vae = AutoencoderKL(**CONFIG)
    if trained:
        path = next(p for p in (args.work / "vae_decoder.pt", args.work / "vae_standardised.pt") if p.exists())
        vae.load_state_dict(torch.load(path, weights_only=True)["ema"])
    return vae.eval()


@torch.no_grad()
def standardise_latents(vae, pictures):
    """Folds each latent channel's mean and standard deviation into the 1x1 convolutions around the
    latent, so that every channel has mean 0 and deviation 1 and the scaling factor is 1."""
    mean = torch.cat([vae.encode(to_tensor(pictures[i : i + 64])).latent_dist.mean for i in range(0, min(1024, len(pictures)), 64)])
    mu, std = mean.mean(dim=(0, 2, 3)), mean.std(dim=(0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    post.bias += post.weight[:, :, 0, 0] @ mu
    post.weight *= std[None, :, None, None]
    quant.weight[:4] /= std[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - mu) / std
    quant.bias[4:] -= 2 * std.log()


def reconstruction_loss(y, x):
    loss = 0.0
    for scale in (1, 2, 4):
        a, b = (F.avg_pool2d(t, scale) if scale > 1 else t for t in (y, x))
        loss = loss + (a - b).abs().mean()
        if scale < 4:
            loss = loss + (a.diff(dim=2) - b.diff(dim=2)).abs().mean() + (a.diff(dim=3) - b.diff(dim=3)).abs().mean()
    return loss


if __name__ == "__main__":
    args = arguments(__doc__, minutes=(25.0, "wall-clock budget"), decoder_minutes=(0.0, "budget of the decoder alone"))
    decoder_only = args.decoder_minutes > 0
    pictures = {size: load_pictures(args, size) for size in (PICTURE_SIZES if decoder_only else [SMALLEST])}
    vae = load_vae(args, trained=decoder_only)
    if decoder_only:
        vae.encoder.requires_grad_(False), vae.quant_conv.requires_grad_(False)

    def forward(x, noise):
        q = vae.encode(x).latent_dist
        return vae.decode(q.mean + q.std * noise).sample, q.mean, q.logvar

    run = forward if args.smoke or decoder_only else torch.compile(forward)

    def loss_fn(rng):
        width, height = size = choose_size(rng) if decoder_only else SMALLEST
        batch = round(BATCH * SMALLEST[0] * SMALLEST[1] / (width * height))
        x = to_tensor(pictures[size][np.sort(rng.integers(len(pictures[size]), size=batch))])
        if rng.random() < 0.5:
            x = x.flip(-1)
        noise = torch.randn(batch, 4, height // 4, width // 4)
        with autocast():
            y, mean, logvar = run(x, noise)
        mean, logvar = mean.float(), logvar.float()
        kl = (mean**2 + logvar.exp() - 1 - logvar).mean()
        return reconstruction_loss(y.float(), x) + 2e-4 * kl

    if decoder_only:
        vae = common.train(args, "vae_decoder", vae, loss_fn, 4e-4, args.decoder_minutes, weight_decay=0.0)
    else:
        vae = common.train(args, "vae", vae, loss_fn, 1.5e-3, args.minutes, weight_decay=0.0)
        standardise_latents(vae, pictures[SMALLEST])
        common.write(args.work / "vae_standardised.pt", {"ema": vae.state_dict()})
    with torch.no_grad():
        for size in dict.fromkeys((SMALLEST, LARGEST if decoder_only else SMALLEST)):
            x = to_tensor(pictures[size][:128])
            mse = ((vae(x).sample.clamp(-1, 1) - x) / 2).pow(2).mean(dim=(1, 2, 3))
            print(f"{size[0]}x{size[1]}: PSNR {(-10 * mse.log10()).mean():.2f} dB, latent std {vae.encode(x).latent_dist.mean.std():.3f}")
