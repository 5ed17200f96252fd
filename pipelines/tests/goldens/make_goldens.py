"""Golden tensors from diffusers and transformers for the Rust engine's tests.

    python make_goldens.py            # writes <shape>/golden.safetensors and <shape>/tokens.json
    python make_goldens.py --check    # compares live libraries with the committed files, exit 1 on a difference

The weights are hashes of their names (hash_weights.py), the configurations are the JSON files beside this
script, so only small outputs are stored.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from hash_weights import fill, names_digest, normal_like

HERE = Path(__file__).parent
SHAPES = ["storybook", "sd15", "sd21", "sdxl"]
STEPS, GUIDANCE = 20, 5.0
TIME_IDS = [[64.0, 64.0, 0.0, 0.0, 64.0, 64.0], [96.0, 128.0, 8.0, 0.0, 64.0, 48.0]]
# Live libraries may change kernels between versions; beyond this a golden is another computation.
TOLERANCE = 1e-5

PROMPTS = [
    "",
    " ",
    "a large red house on the left in the snow at night",
    "A CASTLE, by the Sea!",
    "a cat! wow!! !",
    "it's the king's 2nd boat, isn't it? we'll see; they've 1234 trees",
    "  tabs\tand\n\nnewlines   and\u00a0no-break\u3000spaces  ",
    "na\u00efve caf\u00e9 \u2014 \u201cquoted\u201d \u2026 \u00bd \u2603",
    "cafe\u0301 in combining form, \u212b\u00c5 \ufb01ne \u0130stanbul STRASSE stra\u00dfe",
    "\u65e5\u672c\u8a9e\u306e\u57ce \U0001f3f0\U0001f3fb\u200d\u2640\ufe0f \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "<|startoftext|> sneaky <|endoftext|> specials",
    "<|StartOfText|> MIXED <|ENDOFTEXT|> case",
    "!@#$%^&*()_+-=[]{};':\",./<>?\\|`~",
    "\x00\x07 control \x7f characters \u200b zero width",
    "house " * 200,
    "xyzzy" * 60,
]


def config(shape: str, component: str, file: str = "config.json") -> dict:
    return json.loads((HERE / shape / component / file).read_text())


def tokenizer(shape: str, component: str) -> CLIPTokenizer:
    """The shared toy vocabulary with the shape's own tokenizer_config.json."""
    with tempfile.TemporaryDirectory() as folder:
        shared = ["tokenizer.json"] if shape == "storybook" else ["vocab.json", "merges.txt"]
        for file in shared:
            shutil.copy(HERE / "tokenizer" / file, folder)
        for file in (HERE / shape / component).iterdir():
            shutil.copy(file, folder)
        return CLIPTokenizer.from_pretrained(folder)


def tokens(shape: str) -> dict[str, list[list[int]]]:
    """Token ids of every prompt, padded and truncated as the pipelines do it."""
    rows = {}
    for component in ["tokenizer", "tokenizer_2"]:
        if (HERE / shape / component).exists():
            t = tokenizer(shape, component)
            kwargs = dict(padding="max_length", max_length=t.model_max_length, truncation=True)
            rows[component] = [t(prompt, **kwargs).input_ids for prompt in PROMPTS]
    return rows


def text(shape: str, ids: dict[str, list[list[int]]]) -> tuple[dict, dict]:
    """States of two prompts (rows 2 and 3) from each text encoder, and the digest of its weights' names."""
    out, digests = {}, {}
    for component, toks in [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")]:
        if not (HERE / shape / component).exists():
            continue
        cfg = config(shape, component)
        projected = "CLIPTextModelWithProjection" in cfg["architectures"]
        cls = CLIPTextModelWithProjection if projected else CLIPTextModel
        model = fill(cls(CLIPTextConfig(**cfg)), component)
        digests[component] = names_digest(model)
        result = model(torch.tensor(ids[toks][2:4]), output_hidden_states=True)
        out[f"{component}.last"] = result.last_hidden_state
        out[f"{component}.penultimate"] = result.hidden_states[-2]
        if projected:
            out[f"{component}.projected"] = result.text_embeds
        else:
            out[f"{component}.pooled"] = result.pooler_output
    return out, digests


def vae(shape: str) -> tuple[dict, dict]:
    """Encode's scaled mean and decode."""
    cfg = config(shape, "vae")
    model = fill(AutoencoderKL.from_config(cfg), "vae")
    scaling, shift = cfg["scaling_factor"], cfg.get("shift_factor") or 0.0
    side = 64 // 2 ** (len(cfg["block_out_channels"]) - 1)
    image = normal_like(f"{shape}/vae.image", (1, 3, 64, 64))
    latent = normal_like(f"{shape}/vae.latent", (1, cfg["latent_channels"], side, side))
    return {
        "vae.encode": (model.encode(image).latent_dist.mean - shift) * scaling,
        "vae.decode": model.decode(latent / scaling + shift).sample,
    }, {"vae": names_digest(model)}


def added(shape: str, cfg: dict, name: str, rows: int) -> dict | None:
    """SDXL's pooled embedding and time ids, from the hash."""
    if cfg.get("addition_embed_type") != "text_time":
        return None
    width = cfg["projection_class_embeddings_input_dim"] - 6 * cfg["addition_time_embed_dim"]
    pooled = normal_like(f"{shape}/{name}.pooled", (rows, width))
    return {"text_embeds": pooled, "time_ids": torch.tensor(TIME_IDS[:rows])}


def unet_calls(shape: str, model: UNet2DConditionModel, cfg: dict) -> dict:
    """One call with two different timesteps in the batch, on even and on odd latent sizes."""
    width = cfg["cross_attention_dim"]
    states = normal_like(f"{shape}/unet.states", (2, 40, width))
    extra = added(shape, cfg, "unet", 2)
    out = {}
    for name, (h, w) in {"unet": (16, 16), "unet.odd": (13, 11)}.items():
        sample = normal_like(f"{shape}/{name}.sample", (2, cfg["in_channels"], h, w))
        out[name] = model(sample, torch.tensor([981.0, 240.0]), states, added_cond_kwargs=extra).sample
    return out


def trajectory(shape: str, model: UNet2DConditionModel, cfg: dict, scheduler: DDIMScheduler, name: str) -> dict:
    """DDIM (eta 0) with classifier-free guidance; row 0 of the conditioning is the unconditional one."""
    states = normal_like(f"{shape}/{name}.states", (2, 40, cfg["cross_attention_dim"]))
    extra = added(shape, cfg, name, 2)
    if extra:
        extra["time_ids"] = torch.tensor([TIME_IDS[0]] * 2)
    latent = normal_like(f"{shape}/{name}.noise", (1, cfg["in_channels"], 16, 16)) * scheduler.init_noise_sigma
    scheduler.set_timesteps(STEPS)
    for t in scheduler.timesteps:
        both = model(torch.cat([latent] * 2), t, states, added_cond_kwargs=extra).sample
        uncond, cond = both.chunk(2)
        latent = scheduler.step(uncond + GUIDANCE * (cond - uncond), t, latent, eta=0.0).prev_sample
    return {name: latent, f"{name}.timesteps": scheduler.timesteps.float()}


def unet(shape: str) -> tuple[dict, dict]:
    cfg = config(shape, "unet")
    model = fill(UNet2DConditionModel.from_config(cfg), "unet")
    out = unet_calls(shape, model, cfg)
    schedule = config(shape, "scheduler", "scheduler_config.json")
    out |= trajectory(shape, model, cfg, DDIMScheduler.from_config(schedule), "trajectory")
    if shape == "sd21":
        zero_snr = DDIMScheduler.from_config(
            schedule, timestep_spacing="trailing", rescale_betas_zero_snr=True
        )
        out |= trajectory(shape, model, cfg, zero_snr, "trajectory_zero_snr")
    return out, {"unet": names_digest(model)}


def compute(shape: str) -> tuple[dict, dict, dict]:
    ids = tokens(shape)
    tensors, digests = {}, {}
    for part in (text(shape, ids), vae(shape), unet(shape)):
        tensors |= {k: v.contiguous().clone() for k, v in part[0].items()}
        digests |= part[1]
    return tensors, digests, ids


def write(shape: str) -> None:
    tensors, digests, ids = compute(shape)
    # One key of metadata: safetensors writes several in random order.
    metadata = {"parameters": json.dumps(digests, sort_keys=True)}
    save_file(tensors, HERE / shape / "golden.safetensors", metadata=metadata)
    rows = [f'{json.dumps(k)}: [\n  ' + ",\n  ".join(json.dumps(r, separators=(",", ":")) for r in v) + "\n]"
            for k, v in ({"prompts": PROMPTS} | ids).items()]
    (HERE / shape / "tokens.json").write_text("{\n" + ",\n".join(rows) + "\n}\n")
    for name, t in tensors.items():
        print(f"{shape:10} {name:30} {str(tuple(t.shape)):20} max |x| {t.abs().max():.3f}")


def check(shape: str) -> bool:
    """Prints a row per tensor: max abs difference over max abs of the golden."""
    tensors, digests, ids = compute(shape)
    good = True
    with safe_open(HERE / shape / "golden.safetensors", "pt") as golden:
        if json.loads(golden.metadata()["parameters"]) != digests:
            print(f"{shape:10} parameter names or shapes differ")
            good = False
        for name, live in tensors.items():
            want = golden.get_tensor(name)
            error = ((live - want).abs().max() / want.abs().max()).item()
            ok = error <= TOLERANCE
            good &= ok
            print(f"{shape:10} {name:30} {error:.2e} {'ok' if ok else 'DIFFERS'}")
    stored = json.loads((HERE / shape / "tokens.json").read_text())
    for name, rows in ids.items():
        same = stored[name] == rows and stored["prompts"] == PROMPTS
        good &= same
        print(f"{shape:10} {name:30} {'ok' if same else 'DIFFERS'}")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("shapes", nargs="*", default=SHAPES, help=f"default: {' '.join(SHAPES)}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        if args.check:
            return 0 if all([check(shape) for shape in args.shapes]) else 1
        for shape in args.shapes:
            write(shape)
    return 0


if __name__ == "__main__":
    sys.exit(main())
