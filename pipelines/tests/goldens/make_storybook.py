"""Golden tensors of the real storybook weights, painted by diffusers, judged by the recipe's scorers.

    python make_storybook.py            # writes storybook_real/golden.safetensors
    python make_storybook.py --check    # paints again and compares, exit 1 on a difference

Both languages start from PyTorch's noise of the same seed, so nothing but results is stored.
"""

import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
STORYBOOK = HERE.parents[2] / "weights-manifest" / "storybook"
sys.path.insert(0, str(STORYBOOK / "recipe"))

from common import to_smallest  # noqa: E402
from evaluate import clip_score, load_scorers  # noqa: E402

GOLDEN = HERE / "storybook_real" / "golden.safetensors"
PROMPT, NEGATIVE, SEED, STEPS, GUIDANCE = "a large red house on the left in the snow at night", "a tree", 7, 20, 3.0
WIDTH, HEIGHT = 96, 128
TOLERANCE = 1e-4


@torch.no_grad()
def compute() -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    pipe = StableDiffusionPipeline.from_pretrained(STORYBOOK / "model", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    classifier, clip = load_scorers(STORYBOOK / "model", pipe)
    states, negative = pipe.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE)
    kwargs = dict(prompt=PROMPT, negative_prompt=NEGATIVE, width=WIDTH, height=HEIGHT, num_inference_steps=STEPS, guidance_scale=GUIDANCE)
    latent = pipe(**kwargs, generator=torch.Generator().manual_seed(SEED), output_type="latent").images
    image = pipe.vae.decode(latent / pipe.vae.config.scaling_factor).sample
    picture = ((image.clamp(-1, 1) + 1) * 127.5).round()
    seen = to_smallest(picture / 127.5 - 1)  # what a scorer reads from the 8-bit picture
    return {
        "token_states": states[0], "negative_token_states": negative[0], "latent": latent[0],
        "picture": picture[0].permute(1, 2, 0).to(torch.uint8), "logits": classifier(seen)[0],
        "clip_score": clip_score(clip, pipe, seen, [PROMPT]),
    }


def main() -> int:
    live = {k: v.contiguous().clone() for k, v in compute().items()}
    if sys.argv[1:] != ["--check"]:
        GOLDEN.parent.mkdir(exist_ok=True)
        save_file(live, GOLDEN)
        return 0
    good = True
    for name, want in load_file(GOLDEN).items():
        error = ((live[name].float() - want.float()).abs().max() / want.float().abs().max()).item()
        ok = error <= (TOLERANCE if want.is_floating_point() else 1 / 255)
        good &= ok
        print(f"{'storybook, real weights':26} {name:24} {error:.2e} {'ok' if ok else 'DIFFERS'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
