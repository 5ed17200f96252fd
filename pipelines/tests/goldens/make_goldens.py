"""Golden tensors from diffusers and transformers for the Rust engine's tests.

    python make_goldens.py            # writes <shape>/golden.safetensors and <shape>/tokens.json, and scheduler/
    python make_goldens.py --check    # compares live libraries with the committed files, exit 1 on a difference

The weights are hashes of their names (hash_weights.py), the configurations are the JSON files beside this
script, so only small outputs are stored.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from hash_weights import fill, names_digest, normal_like
from noise import noise

HERE = Path(__file__).parent
SHAPES = ["storybook", "sd15", "sd21", "sdxl"]
SCHEDULER = "scheduler"
STEPS, GUIDANCE = 20, 5.0
TIME_IDS = [[64.0, 64.0, 0.0, 0.0, 64.0, 64.0], [96.0, 128.0, 8.0, 0.0, 64.0, 48.0]]
SEED = 7
# The whole SDXL pipeline: height and width differ, for time ids hold both.
PIPELINE = dict(height=64, width=96, num_inference_steps=5, guidance_scale=GUIDANCE)
PIPELINE_PROMPT, PIPELINE_NEGATIVE = "a large red house on the left in the snow at night", "a tree!"
# Every so many token states are stored: a wrong encoder, order or padding shows in all of them.
TOKEN_STRIDE = 7
LATENT = (4, 8, 8)
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


def tokens(shape: str) -> dict[str, list]:
    """The prompts and the token ids of each, padded and truncated as the pipelines do it."""
    rows = {"prompts": PROMPTS}
    for component in ["tokenizer", "tokenizer_2"]:
        if (HERE / shape / component).exists():
            t = tokenizer(shape, component)
            kwargs = dict(padding="max_length", max_length=t.model_max_length, truncation=True)
            rows[component] = [t(prompt, **kwargs).input_ids for prompt in PROMPTS]
    return rows


def text_encoder(shape: str, component: str) -> CLIPTextModel | CLIPTextModelWithProjection:
    cfg = config(shape, component)
    projected = "CLIPTextModelWithProjection" in cfg["architectures"]
    return fill((CLIPTextModelWithProjection if projected else CLIPTextModel)(CLIPTextConfig(**cfg)), component)


def text(shape: str, ids: dict[str, list]) -> tuple[dict, dict]:
    """States of two prompts (rows 2 and 3) from each text encoder, and the digest of its weights' names."""
    out, digests = {}, {}
    for component, toks in [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")]:
        if not (HERE / shape / component).exists():
            continue
        model = text_encoder(shape, component)
        digests[component] = names_digest(model)
        result = model(torch.tensor(ids[toks][2:4]), output_hidden_states=True)
        out[f"{component}.last"] = result.last_hidden_state
        out[f"{component}.penultimate"] = result.hidden_states[-2]
        if isinstance(model, CLIPTextModelWithProjection):
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


def pipeline(shape: str) -> tuple[dict, dict]:
    """SDXL from prompt to latent as its users call it, and what it makes of the prompts on the way."""
    if shape != "sdxl":
        return {}, {}
    parts = {component: text_encoder(shape, component) for component in ("text_encoder", "text_encoder_2")}
    parts |= {component: tokenizer(shape, component) for component in ("tokenizer", "tokenizer_2")}
    pipe = StableDiffusionXLPipeline(
        vae=fill(AutoencoderKL.from_config(config(shape, "vae")), "vae"),
        unet=fill(UNet2DConditionModel.from_config(config(shape, "unet")), "unet"),
        scheduler=DDIMScheduler.from_config(config(shape, "scheduler", "scheduler_config.json")),
        add_watermarker=False, **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    out = {}

    def encode(name: str, negative: str | None) -> None:
        states, negative_states, pooled, negative_pooled = pipe.encode_prompt(
            PIPELINE_PROMPT, device="cpu", negative_prompt=negative
        )
        if name == "negative":
            out["prompt.token_states"], out["prompt.pooled"] = states[0, ::TOKEN_STRIDE], pooled[0]
        out[f"{name}.token_states"] = negative_states[0, ::TOKEN_STRIDE]
        out[f"{name}.pooled"] = negative_pooled[0]

    encode("negative", PIPELINE_NEGATIVE)
    encode("empty_negative", "")
    encode("absent_negative", None)
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    encode("absent_negative_unforced", None)
    pipe.register_to_config(force_zeros_for_empty_prompt=True)

    # The time ids that the pipeline itself hands to its denoiser.
    def note_time_ids(module, args, kwargs):
        out["time_ids"] = kwargs["added_cond_kwargs"]["time_ids"][0]

    pipe.unet.register_forward_pre_hook(note_time_ids, with_kwargs=True)
    for name, negative in {"pipeline": PIPELINE_NEGATIVE, "pipeline_absent_negative": None}.items():
        generator = torch.Generator().manual_seed(SEED)
        run = pipe(PIPELINE_PROMPT, negative_prompt=negative, generator=generator, output_type="latent", **PIPELINE)
        out[name] = run.images
    return out, {}


def to_next_timestep(scheduler: DDIMScheduler, output, t: int, t_next: int, latent, eta: float, fresh):
    """One DDIM step (Song et al., 2021, eq. 12 and 16) to the plan's next timestep, in f64.

    diffusers steps to `t - T // N`, whatever the spacing. That is the next timestep under leading spacing and, where N
    divides T, under trailing. Elsewhere its latent is not at the noise level that the next call is told; the engine
    goes to the next timestep instead, deliberately: a denoising state is its timestep.
    """
    bars = scheduler.alphas_cumprod.double()
    a, a_next = bars[t], bars[t_next] if t_next >= 0 else scheduler.final_alpha_cumprod.double()
    latent, output, signal, level = latent.double(), output.double(), a.sqrt(), (1 - a).sqrt()
    if scheduler.config.prediction_type == "epsilon":
        x0, epsilon = (latent - level * output) / signal, output
    else:
        x0, epsilon = signal * latent - level * output, signal * output + level * latent
    sigma = eta * ((1 - a_next) / (1 - a) * (1 - a / a_next)).sqrt()
    return (a_next.sqrt() * x0 + (1 - a_next - sigma**2).sqrt() * epsilon + sigma * fresh).float()


def scheduler_case(case: dict) -> dict:
    """A DDIM walk without a network: each step's prediction is a hash, its noise the engine's own."""
    name, eta = case["name"], case.get("eta", 0.0)
    scheduler = DDIMScheduler.from_config(case["scheduler"])
    scheduler.set_timesteps(case["steps"])
    timesteps = scheduler.timesteps.tolist()
    latent, latents = normal_like(f"scheduler/{name}.latent", LATENT), []
    for i, (t, t_next) in enumerate(zip(timesteps, timesteps[1:] + [-1])):
        output = normal_like(f"scheduler/{name}.prediction.{i}", LATENT)
        fresh = torch.tensor(noise(b"step", SEED, float(t), output.numel())).view(LATENT)
        if case.get("to_next_timestep"):
            latent = to_next_timestep(scheduler, output, t, t_next, latent, eta, fresh)
        else:
            reached = t - scheduler.config.num_train_timesteps // case["steps"]
            assert max(reached, -1) == t_next, f"{name}: diffusers goes to {reached}, the plan to {t_next}"
            kwargs = dict(eta=eta, variance_noise=fresh) if eta else {}
            latent = scheduler.step(output, t, latent, **kwargs).prev_sample
        latents.append(latent)
    return {f"{name}.timesteps": scheduler.timesteps.float(), f"{name}.latents": torch.stack(latents)}


def forward_noise() -> dict:
    """diffusers' add_noise, with the engine's noise."""
    clean = normal_like("scheduler/forward.latent", LATENT)
    fresh = torch.tensor(noise(b"forward", SEED, 601.0, clean.numel())).view(LATENT)
    return {"forward": DDIMScheduler().add_noise(clean, fresh, torch.tensor([601]))}


def timestep_digests() -> dict[str, dict]:
    """Per spacing, sha256 over the timesteps of every step count from 1 to 1000, a line each.

    Left out are the counts for which diffusers' trailing timesteps are one too many: the last is then -1, a rounding
    error of numpy's arange.
    """
    rows = {}
    for spacing in ("leading", "linspace", "trailing"):
        scheduler, lines, left_out = DDIMScheduler(timestep_spacing=spacing), [], []
        for steps in range(1, 1001):
            scheduler.set_timesteps(steps)
            timesteps = scheduler.timesteps.tolist()
            if len(timesteps) == steps:
                lines.append(" ".join(map(str, timesteps)) + "\n")
            else:
                assert timesteps[-1] == -1, f"{spacing} {steps}: {timesteps}"
                left_out.append(steps)
        rows[spacing] = {"sha256": hashlib.sha256("".join(lines).encode()).hexdigest(), "left_out": left_out}
    return rows


def scheduler_goldens() -> dict:
    tensors = forward_noise()
    for case in json.loads((HERE / SCHEDULER / "cases.json").read_text()):
        tensors |= scheduler_case(case)
    return tensors


def compute(shape: str) -> tuple[dict, dict, dict]:
    if shape == SCHEDULER:
        return scheduler_goldens(), {}, timestep_digests()
    ids = tokens(shape)
    tensors, digests = {}, {}
    for part in (text(shape, ids), vae(shape), unet(shape), pipeline(shape)):
        tensors |= {k: v.contiguous().clone() for k, v in part[0].items()}
        digests |= part[1]
    return tensors, digests, ids


def rows_file(shape: str) -> Path:
    """What is no tensor: token ids, or the digests of the timesteps."""
    return HERE / shape / ("timesteps.json" if shape == SCHEDULER else "tokens.json")


def write(shape: str) -> None:
    tensors, digests, rows = compute(shape)
    # One key of metadata: safetensors writes several in random order.
    metadata = {"parameters": json.dumps(digests, sort_keys=True)}
    save_file(tensors, HERE / shape / "golden.safetensors", metadata=metadata)
    compact = lambda value: json.dumps(value, separators=(",", ":"))
    lines = lambda value: "[\n  " + ",\n  ".join(map(compact, value)) + "\n]" if isinstance(value, list) else compact(value)
    rows_file(shape).write_text("{\n" + ",\n".join(f"{compact(k)}: {lines(v)}" for k, v in rows.items()) + "\n}\n")
    for name, t in tensors.items():
        print(f"{shape:10} {name:40} {str(tuple(t.shape)):20} max |x| {t.abs().max():.3f}")


def check(shape: str) -> bool:
    """Prints a row per tensor: max abs difference over max abs of the golden."""
    tensors, digests, rows = compute(shape)
    good = True
    with safe_open(HERE / shape / "golden.safetensors", "pt") as golden:
        if json.loads(golden.metadata()["parameters"]) != digests:
            print(f"{shape:10} parameter names or shapes differ")
            good = False
        if set(golden.keys()) != set(tensors):
            print(f"{shape:10} names of the tensors differ: {sorted(set(golden.keys()) ^ set(tensors))}")
            return False
        for name, live in tensors.items():
            want = golden.get_tensor(name)
            largest = want.abs().max().clamp_min(torch.finfo(torch.float32).tiny)  # an absent negative prompt is all zeros
            error = ((live - want).abs().max() / largest).item()
            ok = error <= TOLERANCE
            good &= ok
            print(f"{shape:10} {name:40} {error:.2e} {'ok' if ok else 'DIFFERS'}")
    stored = json.loads(rows_file(shape).read_text())
    for name, row in rows.items():
        same = stored[name] == row
        good &= same
        print(f"{shape:10} {name:40} {'ok' if same else 'DIFFERS'}")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("shapes", nargs="*", default=[*SHAPES, SCHEDULER], help=f"default: {' '.join(SHAPES)} {SCHEDULER}")
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
