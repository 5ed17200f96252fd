"""The peers of engine.rs: the same lines, the same answers, from PyTorch's diffusers or from OpenVINO.

    python peers.py torch|ov-f32|ov-bf16 MODEL WIDTHxHEIGHT THREADS
"""

import resource
import sys
import time

import torch

peer, model, size, threads = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
torch.set_num_threads(threads)
torch.set_grad_enabled(False)

from diffusers import DDIMScheduler, StableDiffusionPipeline  # noqa: E402  after the threads are set

PROMPT = "a large red house on the left in the snow at night"
pipe = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32, safety_checker=None)
pipe.set_progress_bar_config(disable=True)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
width, height = map(int, size.split("x"))
factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
latent_shape = (4, height // factor, width // factor)
tokens, features = pipe.tokenizer.model_max_length, pipe.unet.config.cross_attention_dim


class Part(torch.nn.Module):
    """A network as a module of tensors alone, which can be traced."""

    def __init__(self, module, call):
        super().__init__()
        self.module, self.call = module.eval().requires_grad_(False), call

    def forward(self, *tensors):
        return self.call(self.module, *tensors)


NETWORKS = {
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


ready = {}


def network(part, rows):
    """A function of tensors, made for this number of rows at the first call."""
    if peer == "torch":
        return NETWORKS[part]
    if (part, rows) not in ready:
        import openvino as ov

        inputs = example(part, rows)
        converted = ov.convert_model(NETWORKS[part], example_input=inputs, input=[tuple(x.shape) for x in inputs])
        compiled = ov.compile_model(converted, "CPU", {
            "INFERENCE_PRECISION_HINT": peer.removeprefix("ov-"), "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY",
        })
        ready[part, rows] = lambda *args: torch.from_numpy(next(iter(compiled([a.numpy() for a in args]).values())))
    return ready[part, rows]


def timed(run):
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def picture(steps, guidance):
    """DDIM with guidance on the peer's own networks: what its users' pipelines do."""
    text, unet, decode = network("text", 2), network("unet", 2), network("vae", 1)

    def run():
        ids = pipe.tokenizer(["", PROMPT], padding="max_length", truncation=True, return_tensors="pt").input_ids
        states, x = text(ids), torch.randn(1, *latent_shape)
        pipe.scheduler.set_timesteps(steps)
        for t in pipe.scheduler.timesteps:
            without, with_prompt = unet(torch.cat([x, x]), t.float().expand(2).contiguous(), states).chunk(2)
            x = pipe.scheduler.step(without + guidance * (with_prompt - without), t, x).prev_sample
        decode(x)

    return run


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
