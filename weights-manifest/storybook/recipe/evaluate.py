"""Stage 7: fidelity of the exported model on held-out prompts, as diffusers paints them.

Prints the model card's table, the classifier's score on the drawn pictures themselves and on their
VAE reconstructions (the ceilings), the CLIP score, how much seeds differ and what a denoiser call costs;
writes a grid.
"""

import json
import random
import statistics
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import CLIPConfig, CLIPModel

import world
from classifier import Classifier, predict
from common import arguments, scene_and_rng, to_tensor
from fidelity import score, table

HERE = Path(__file__).resolve().parent
HELD_OUT = 10**9  # scenes that no stage trains on
TRAINED = 60_000  # scenes that the denoiser trains on


def held_out(first, count):
    """(scene, drawn picture, caption, what it names) of `count` scenes."""
    for i in range(first, first + count):
        rng = random.Random(HELD_OUT + i)
        scene = world.sample_scene(rng)
        yield scene, world.draw(scene, rng), world.caption(scene, rng)


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
def unet_milliseconds(unet, calls=30):
    """Median wall time of a denoiser call in PyTorch, one row, one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    x, states, times = torch.randn(1, 4, 16, 16), torch.randn(1, 40, unet.config.cross_attention_dim), []
    for _ in range(calls):
        start = time.perf_counter()
        unet(x, 500, states)
        times.append(1000 * (time.perf_counter() - start))
    torch.set_num_threads(threads)
    return statistics.median(times)


if __name__ == "__main__":
    args = arguments(
        __doc__, folder=(str(HERE.parent / "model"), "the exported model"), count=(500, "held-out prompts"),
        first=(0, "the first held-out scene: the card's are 0 to 499, tune on others"), steps=(50, "DDIM steps"),
        guidance_scale=(5.0, "guidance scale"), batch=(25, "pictures painted together"), grid=("grid.png", "where the grid goes, below --work"),
    )
    count, steps = (4, 4) if args.smoke else (args.count, args.steps)
    folder = Path(args.folder)
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    classifier, clip = load_scorers(folder, pipe)

    def paint(captions, first_seed):
        generators = [torch.Generator().manual_seed(first_seed + i) for i in range(len(captions))]
        return pipe(captions, num_inference_steps=steps, guidance_scale=args.guidance_scale, generator=generators, output_type="np").images

    data = list(held_out(args.first, count))
    drawn = to_tensor(np.stack([p for _, p, _ in data]))
    captions = [c for _, _, (c, _, _) in data]
    painted = []
    for i in tqdm(range(0, count, args.batch), desc="painting"):
        painted.append(paint(captions[i : i + args.batch], i))
    images = torch.from_numpy(np.concatenate(painted)).permute(0, 3, 1, 2) * 2 - 1
    with torch.no_grad():
        rebuilt = torch.cat([pipe.vae(x).sample.clamp(-1, 1) for x in drawn.split(50)])

    content = lambda scene: (scene.time, scene.terrain, scene.weather, frozenset(scene.subjects))
    trained = {content(scene_and_rng(i)[0]) for i in range(TRAINED)}
    new = [content(scene) not in trained for scene, _, _ in data]

    def fidelity(pictures, only=lambda i: True):
        rows = zip(predict(classifier, pictures), data)
        counts = [score(row, named, subjects) for row, (_, _, (_, named, subjects)) in rows]
        return table(sum((c for i, c in enumerate(counts) if only(i)), Counter()))

    other = drawn.roll(1, 0)  # each prompt with the next scene's picture
    rows = {
        "painted": fidelity(images), "painted, scenes not trained on": fidelity(images, lambda i: new[i]),
        "drawn, through the VAE": fidelity(rebuilt), "drawn": fidelity(drawn), "drawn, of another prompt": fidelity(other),
    }
    print(f"\n{count} held-out prompts ({sum(new)} of scenes whose attributes no trained scene has together), "
          f"{steps} DDIM steps, guidance scale {args.guidance_scale}\n")
    keys = list(rows["painted"])
    print("| fidelity | " + " | ".join(keys) + " |\n|---" + "|---" * len(keys) + "|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[k]:.3f}" for k in keys) + " |")
    print(f"\nStandard error of the overall fidelity: {standard_error(predict(classifier, images), data):.3f}")
    psnr = -10 * ((rebuilt - drawn) / 2).pow(2).mean(dim=(1, 2, 3)).log10()
    scores = {name: clip_score(clip, pipe, x, captions).mean().item() for name, x in (("painted", images), ("drawn", drawn))}
    again = torch.from_numpy(paint(captions[: args.batch], 10**6)).permute(0, 3, 1, 2) * 2 - 1
    apart = (again - images[: len(again)]).abs().mean().item() / 2
    print(f"\nVAE PSNR {psnr.mean():.2f} dB; CLIP score {scores['painted']:.3f} (drawn pictures {scores['drawn']:.3f}); "
          f"mean pixel distance between two seeds {apart:.3f}")
    print(f"UNet call at batch 1, one thread: {unet_milliseconds(pipe.unet):.1f} ms")
    (args.work / "evaluation.json").write_text(json.dumps({"count": count, "steps": steps, "guidance_scale": args.guidance_scale, **rows}, indent=2))

    n = min(48, count)
    cells = ((images[:n].permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()
    grid = Image.new("RGB", (8 * 66 + 2, (n + 7) // 8 * 66 + 2), (255, 255, 255))
    for i, cell in enumerate(cells):
        grid.paste(Image.fromarray(cell), (2 + i % 8 * 66, 2 + i // 8 * 66))
    grid.resize((grid.width * 2, grid.height * 2), Image.NEAREST).save(args.work / args.grid)
    (args.work / "grid.txt").write_text("\n".join(captions[:n]) + "\n")
