"""Stage 7: fidelity of the exported model on held-out prompts, as diffusers or a running pentimento paints them.

Prints the model card's table, the classifier's score on the drawn pictures themselves and on their
VAE reconstructions (the ceilings), the CLIP score, how much seeds differ and what a denoiser call costs;
writes a grid of each size.
"""

import base64
import hashlib
import io
import json
import statistics
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import CLIPConfig, CLIPModel

import world
from classifier import Classifier, predict
from common import SMALLEST, arguments, scene_and_rng, to_smallest, to_tensor, write
from fidelity import score, table

HERE = Path(__file__).resolve().parent
HELD_OUT = 10**9  # scenes that no stage trains on
TRAINED = 60_000  # scenes that the denoiser trains on


def held_out(first, count, size=SMALLEST):
    """(scene, drawn picture, caption, what it names) of `count` scenes; the captions are the same at every size."""
    for i in range(HELD_OUT + first, HELD_OUT + first + count):
        scene, rng = scene_and_rng(i)
        drawn = world.draw(scene, rng)
        told = world.caption(scene, rng)
        yield scene, drawn if size == SMALLEST else world.draw(*scene_and_rng(i), *size), told


def load_scorers(folder, pipe):
    classifier = Classifier()
    classifier.load_state_dict(load_file(folder / "classifier/model.safetensors"))
    clip = CLIPModel(CLIPConfig.from_pretrained(folder / "clip")).float().eval()
    state = {k: v.float() for k, v in load_file(folder / "clip/model.safetensors").items()}
    state |= {f"text_model.{k.removeprefix('text_model.')}": v for k, v in pipe.text_encoder.state_dict().items()}
    missing = [k for k in clip.load_state_dict(state, strict=False).missing_keys if not k.endswith("position_ids")]
    assert not missing, missing
    return classifier.eval(), clip


@torch.no_grad()
def clip_score(clip, pipe, images, captions):
    """Cosine of image and text embedding, one per picture (Hessel et al., 2021, without the factor)."""
    ids = pipe.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    embed = lambda out: torch.nn.functional.normalize(getattr(out, "pooler_output", out), dim=1)
    return (embed(clip.get_text_features(input_ids=ids)) * embed(clip.get_image_features(pixel_values=images))).sum(1)


def standard_error(predictions, data) -> float:
    """Of the overall fidelity, over prompts."""
    shares = []
    for row, (_, _, (_, named, subjects)) in zip(predictions, data):
        shares.append(table(score(row, named, subjects))["overall"])
    return float(np.std(shares) / np.sqrt(len(shares)))


@torch.no_grad()
def unet_milliseconds(unet, size, calls=30):
    """Median wall time of a denoiser call in PyTorch, one row, one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    x, states, times = torch.randn(1, 4, size[1] // 4, size[0] // 4), torch.randn(1, 40, unet.config.cross_attention_dim), []
    for _ in range(calls):
        start = time.perf_counter()
        unet(x, 500, states)
        times.append(1000 * (time.perf_counter() - start))
    torch.set_num_threads(threads)
    return statistics.median(times)


def fidelity(classifier, pictures, data, only=lambda i: True):
    """Share found of the attributes that the captions name, by attribute; pictures of any size."""
    rows = zip(predict(classifier, to_smallest(pictures)), data)
    counts = [score(row, named, subjects) for row, (_, _, (_, named, subjects)) in rows]
    return table(sum((c for i, c in enumerate(counts) if only(i)), Counter()))


class Painter:
    """Paints captions with the exported model in diffusers."""

    def __init__(self, folder, steps, guidance_scale, batch, bf16):
        self.pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        self.steps, self.guidance_scale, self.batch, self.bf16 = steps, guidance_scale, batch, bf16
        weights = (p.detach().numpy().tobytes() for part in (self.pipe.unet, self.pipe.vae, self.pipe.text_encoder) for p in part.parameters())
        self.digest = hashlib.sha256(b"".join([*weights, str((guidance_scale, bf16)).encode()])).hexdigest()[:12]

    def paint(self, captions, size, first_seed=0):
        """(B, 3, H, W) in [-1, 1]."""
        out = []
        for i in tqdm(range(0, len(captions), self.batch), desc="{}x{}".format(*size), mininterval=5):
            some = captions[i : i + self.batch]
            seeds = [torch.Generator().manual_seed(first_seed + i + k) for k in range(len(some))]
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                out.append(self.pipe(
                    some, width=size[0], height=size[1], num_inference_steps=self.steps, guidance_scale=self.guidance_scale,
                    generator=seeds, output_type="np",
                ).images)
        return torch.from_numpy(np.concatenate(out)).permute(0, 3, 1, 2) * 2 - 1


class ServerPainter:
    """Paints with a running `pentimento serve --model` of the same manifest, in about two thirds of the time of diffusers in f32."""

    def __init__(self, url, steps, guidance_scale, batch):
        self.url, self.batch = url.rstrip("/") + "/v1/images/generations", batch
        self.fixed = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "pentimento": {"cache": "off", "max_latency_ms": 3_600_000}}

    def one(self, request):
        prompt, size, seed = request
        body = json.dumps({"prompt": prompt, "size": "{}x{}".format(*size), "seed": seed, **self.fixed}).encode()
        with urlopen(Request(self.url, body, {"content-type": "application/json"})) as answer:
            answer = json.load(answer)
        assert answer["pentimento"]["steps"] == self.fixed["num_inference_steps"], answer["pentimento"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))).convert("RGB"))

    def paint(self, captions, size, first_seed=0):
        """(B, 3, H, W) in [-1, 1]."""
        requests = [(caption, size, first_seed + i) for i, caption in enumerate(captions)]
        with ThreadPoolExecutor(self.batch) as threads:
            pictures = list(tqdm(threads.map(self.one, requests), desc="{}x{}".format(*size), total=len(requests), mininterval=5))
        return to_tensor(np.stack(pictures))


def grid_of(images, columns):
    """One picture of many, with white lines between them."""
    height, width = images.shape[2] + 2, images.shape[3] + 2
    grid = Image.new("RGB", (columns * width + 2, -(-len(images) // columns) * height + 2), (255, 255, 255))
    for i, cell in enumerate(((images.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()):
        grid.paste(Image.fromarray(cell), (2 + i % columns * width, 2 + i // columns * height))
    return grid


def size_of(text):
    width, height = text.split("x")
    return int(width), int(height)


if __name__ == "__main__":
    args = arguments(
        __doc__, folder=(str(HERE.parent / "model"), "the exported model"), count=(500, "held-out prompts"),
        first=(0, "the first held-out scene: the card's are 0 to 499, tune on others"), steps=(50, "DDIM steps"),
        guidance_scale=(5.0, "guidance scale"), batch=(25, "pictures painted together"),
        sizes=("128x128,64x64,128x64,96x128", "sizes to paint; the first is looked at more closely"), bf16=(0, "1: paint in bf16, in half the time"),
        server=("", "paint with the pentimento that serves this model at this URL, --batch pictures at a time, not with diffusers"),
    )
    count, steps = (4, 4) if args.smoke else (args.count, args.steps)
    sizes, folder = [size_of(s) for s in args.sizes.split(",")], Path(args.folder)
    painter = Painter(folder, steps, args.guidance_scale, args.batch, bool(args.bf16))
    classifier, clip = load_scorers(folder, painter.pipe)
    paint = ServerPainter(args.server, steps, args.guidance_scale, args.batch).paint if args.server else painter.paint
    rows, lines = {}, []
    for size in sizes:
        data = list(held_out(args.first, count, size))
        drawn = to_tensor(np.stack([p for _, p, _ in data]))
        captions = [c for _, _, (c, _, _) in data]
        name = "{}x{}".format(*size)
        kept = args.work / f"painted-{name}-{args.first}-{count}-{steps}-{painter.digest}{'-server' if args.server else ''}.pt"
        if not kept.exists():  # an evaluation that was stopped goes on with the next size
            write(kept, paint(captions, size))
        images = torch.load(kept, weights_only=True)
        with torch.no_grad():
            rebuilt = torch.cat([painter.pipe.vae(x).sample.clamp(-1, 1) for x in drawn.split(50)])
        rows[f"{name} painted"] = fidelity(classifier, images, data)
        if size == sizes[0]:
            content = lambda scene: (scene.time, scene.terrain, scene.weather, frozenset(scene.subjects))
            trained = {content(scene_and_rng(i)[0]) for i in range(TRAINED)}
            new = [content(scene) not in trained for scene, _, _ in data]
            rows[f"{name} painted, scenes not trained on"] = fidelity(classifier, images, data, lambda i: new[i])
            rows[f"{name} drawn, of another prompt"] = fidelity(classifier, drawn.roll(1, 0), data)
            again = paint(captions[: args.batch], size, first_seed=10**6)
            lines.append(f"Mean pixel distance between two seeds: {(again - images[: len(again)]).abs().mean() / 2:.3f}.")
        rows[f"{name} drawn, through the VAE"] = fidelity(classifier, rebuilt, data)
        rows[f"{name} drawn"] = fidelity(classifier, drawn, data)
        psnr = -10 * ((rebuilt - drawn) / 2).pow(2).mean(dim=(1, 2, 3)).log10()
        scores = [clip_score(clip, painter.pipe, to_smallest(x), captions).mean() for x in (images, drawn)]
        error = standard_error(predict(classifier, to_smallest(images)), data)
        lines.append(f"{name}: standard error of the overall fidelity {error:.3f}; VAE {psnr.mean():.1f} dB; "
                     f"CLIP score {scores[0]:.3f} (drawn pictures {scores[1]:.3f}).")
        grid_of(images[:24], 6).save(args.work / f"grid-{name}.png")
    print(f"\n{count} held-out prompts ({sum(new)} of scenes whose attributes no trained scene has together), "
          f"{steps} DDIM steps{' in bf16' if args.bf16 else ''}{' by pentimento' if args.server else ''}, guidance scale {args.guidance_scale}\n")
    keys = list(next(iter(rows.values())))
    print("| fidelity | " + " | ".join(keys) + " |\n|---" + "|---" * len(keys) + "|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[k]:.3f}" for k in keys) + " |")
    print("\n" + "\n".join(lines))
    print(f"UNet call at batch 1, {sizes[0][0]}x{sizes[0][1]}, one thread: {unet_milliseconds(painter.pipe.unet, sizes[0]):.1f} ms")
    (args.work / "evaluation.json").write_text(json.dumps({"count": count, "steps": steps, "guidance_scale": args.guidance_scale, **rows}, indent=2))
    (args.work / "grid.txt").write_text("\n".join(captions[:24]) + "\n")
