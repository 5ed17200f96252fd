"""The peers of engine.rs: the same lines, the same answers, from PyTorch's diffusers or from OpenVINO.

    python peers.py torch|ov-f32|ov-bf16 MODEL WIDTHxHEIGHT THREADS

OpenVINO's networks are converted once, in a process of their own, to a folder in the temporary directory, so that
what a runner measures holds no PyTorch weights.
"""

import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

peer, model, size, threads = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
torch.set_num_threads(threads)
torch.set_grad_enabled(False)

from diffusers import DDIMScheduler, StableDiffusionPipeline  # noqa: E402  after the threads are set
from transformers import CLIPTokenizer  # noqa: E402

PROMPT = "a large red house on the left in the snow at night"
config = {part: json.loads((Path(model) / part / "config.json").read_text()) for part in ("unet", "vae")}
width, height = map(int, size.split("x"))
tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
scheduler = DDIMScheduler.from_pretrained(model, subfolder="scheduler")
factor = 2 ** (len(config["vae"]["block_out_channels"]) - 1)
latent_shape = (4, height // factor, width // factor)
tokens, features = tokenizer.model_max_length, config["unet"]["cross_attention_dim"]


class Part(torch.nn.Module):
    """A network as a module of tensors alone, which can be traced."""

    def __init__(self, module, call):
        super().__init__()
        self.module, self.call = module.eval().requires_grad_(False), call

    def forward(self, *tensors):
        return self.call(self.module, *tensors)


def torch_networks():
    pipe = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32, safety_checker=None)
    return {
        "unet": Part(pipe.unet, lambda unet, sample, timestep, states: unet(sample, timestep, states).sample),
        "vae": Part(pipe.vae, lambda vae, latent: vae.decode(latent / vae.config.scaling_factor).sample),
        "text": Part(pipe.text_encoder, lambda text, ids: text(ids).last_hidden_state),
    }


def example(part, rows):
    return {
        "unet": lambda: (torch.randn(rows, *latent_shape), torch.full((rows,), 500.0), torch.randn(rows, tokens, features)),
        "vae": lambda: (torch.randn(rows, *latent_shape),),
        "text": lambda: (torch.ones(rows, tokens, dtype=torch.int64),),
    }[part]()


def convert(folder):
    """Write the networks as OpenVINO's files, for any number of rows."""
    import openvino as ov

    for part, network in torch_networks().items():
        inputs = example(part, 2)
        shapes = [(-1, *x.shape[1:]) for x in inputs]
        ov.save_model(ov.convert_model(network, example_input=inputs, input=shapes), folder / f"{part}.xml", compress_to_fp16=False)
    (folder / "complete").touch()


def converted():
    """The folder of OpenVINO's files, made if need be."""
    weights = sorted(Path(model).rglob("*.safetensors"))
    key = hashlib.sha256(f"{size} {[(str(f), f.stat().st_mtime_ns) for f in weights]}".encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"pentimento-openvino-{key}"
    if not (folder / "complete").exists():
        folder.mkdir(exist_ok=True)
        subprocess.run([sys.executable, __file__, f"convert:{folder}", model, size, str(threads)], check=True)
    return folder


compiled = {}


def network(part, rows):
    """A function of tensors; OpenVINO's is made for this number of rows, and only one per part is kept."""
    if peer == "torch":
        return networks[part]
    if compiled.get(part, (0,))[0] != rows:
        import openvino as ov

        compiled.pop(part, None)
        core = ov.Core()
        read = core.read_model(networks / f"{part}.xml")
        read.reshape({i: tuple(x.shape) for i, x in enumerate(example(part, rows))})
        made = core.compile_model(read, "CPU", {
            "INFERENCE_PRECISION_HINT": peer.removeprefix("ov-"), "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY",
        })
        compiled[part] = rows, lambda *args: torch.from_numpy(next(iter(made([a.numpy() for a in args]).values())))
    return compiled[part][1]


def timed(run):
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def picture(steps, guidance):
    """DDIM with guidance on the peer's own networks: what its users' pipelines do."""
    text, unet, decode = network("text", 2), network("unet", 2), network("vae", 1)

    def run():
        ids = tokenizer(["", PROMPT], padding="max_length", truncation=True, return_tensors="pt").input_ids
        states, x = text(ids), torch.randn(1, *latent_shape)
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            without, with_prompt = unet(torch.cat([x, x]), t.float().expand(2).contiguous(), states).chunk(2)
            x = scheduler.step(without + guidance * (with_prompt - without), t, x).prev_sample
        decode(x)

    return run


if peer.startswith("convert:"):
    convert(Path(peer.removeprefix("convert:")))
    sys.exit()
networks = torch_networks() if peer == "torch" else converted()
print("ready", flush=True)
for line in sys.stdin:
    part, _, number = line.strip().partition(" ")
    number = int(number or 1)
    if part == "memory":
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)
        continue
    if part == "picture":
        run = picture(number, 5.0)
    else:
        rows = {"unet": number, "vae": 1, "text": 2}[part]
        run = lambda f=network(part, rows), x=example(part, rows): f(*x)  # noqa: E731
    print(timed(run), flush=True)
