"""Pretrain the language model that ships inside jaxsae.

Claim: a GPT-2 of 3.5 million parameters, small enough for a Python package, learns enough English and Python in two
hours on two CPU cores to have features worth finding (at most 1.9 bits per byte on novels that it never saw).

    python -m experiments.pretrain_embedded_lm --novels novels.tar.xz --out runs/embedded

Cost: about an hour and a half on 2 cores. Checkpoints every few minutes; after a kill, add --resume.
The learning rate is constant and then falls linearly to zero over the last part of the run, so a resumed run
may change --tokens until that part begins.

Training text: nine of ten novels in alphabetical order and the standard library without email, json and unittest.
Held out: the tenth novels and those three packages. OUT/model is a Hugging Face folder (float16 safetensors,
config.json, tokenizer.json) with a model card and the training curve; copy it to jaxsae/lm/embedded to ship it.
"""

import csv
import dataclasses
import json
import os
import tarfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from jaxsae.data.text import END_OF_TEXT, stdlib_files
from jaxsae.lm.gpt2 import GPT2, GPT2Config, to_hf
from jaxsae.lm.tokenizer import make_tokenizer
from jaxsae.lm.weights import load

HELD_OUT_PACKAGES = ("email", "json", "unittest")


@dataclasses.dataclass(frozen=True)
class Config:
    novels: str
    """Archive of novels as .txt files."""
    out: str = "runs/embedded"
    """Folder for checkpoints, logs and the finished model."""
    resume: bool = False
    """Go on from the newest checkpoint in OUT."""
    tokens: int = 17_000_000
    """Tokens to train on."""
    decay: float = 0.45
    """Share of the run, at its end, over which the learning rate falls linearly to zero."""
    vocab_size: int = 4096
    context: int = 128
    n_embd: int = 192
    n_layer: int = 6
    n_head: int = 4
    batch: int = 32
    """Contexts per step."""
    lr: float = 0.02
    """Learning rate of Muon, for the matrices inside the blocks."""
    adam_lr: float = 4e-3
    """Learning rate of Adam, for embeddings, biases and norms."""
    warmup: int = 100
    """Steps of linear warm-up."""
    eval_every: int = 1_000_000
    """Tokens between two rows of the training curve."""
    checkpoint_minutes: float = 4
    seed: int = 0


def read_texts(novels: str) -> dict[str, list[str]]:
    """{"train", "novels", "stdlib"}: documents to train on, and the two held-out sets."""
    with tarfile.open(novels) as archive:
        files = sorted((m for m in archive.getmembers() if m.isfile()), key=lambda m: m.name)
        books = [archive.extractfile(m).read().decode("utf-8", errors="replace") for m in files]
    held_out = lambda path: bool(set(path.parts) & set(HELD_OUT_PACKAGES))
    code = [(held_out(path), path.read_text("utf-8", errors="replace")) for path in stdlib_files()]
    return {
        "train": [b for i, b in enumerate(books) if i % 10 != 9] + [text for held, text in code if not held],
        "novels": books[9::10],
        "stdlib": [text for held, text in code if held],
    }


def train_tokenizer(documents: list[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE in the manner of GPT-2, END_OF_TEXT its last id."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # Every tenth 100 kB is plenty for counting pairs.
    sample = (d[i : i + 100_000] for d in documents for i in range(0, len(d), 500_000))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(sample, trainer)
    tokenizer.add_special_tokens([END_OF_TEXT])
    assert tokenizer.get_vocab_size() == vocab_size, tokenizer.get_vocab_size()
    return tokenizer


def pack(tokenizer: Tokenizer, documents: list[str], context: int) -> np.ndarray:
    """Documents, each after END_OF_TEXT, cut into contexts, uint16 [N, context]."""
    record = make_tokenizer(tokenizer, "")
    end = np.array([record.end_of_text])
    stream = np.concatenate([part for ids in record.encode_documents(documents) for part in (end, ids)])
    return stream[: len(stream) // context * context].reshape(-1, context).astype(np.uint16)


def token_losses(params, tokens, model):
    """Cross entropy [B, T - 1] in nats."""
    logits = model.apply({"params": params}, tokens)[:, :-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])


def make_optimizer(config: Config, params):
    def schedule(peak):
        steps = config.tokens // (config.batch * config.context)
        return lambda step: (
            peak * jnp.minimum(1.0, jnp.minimum((step + 1) / config.warmup, (steps - step) / (config.decay * steps)))
        )

    in_block = lambda path, leaf: path[0].key.startswith("h_") and leaf.ndim == 2
    numbers = jax.tree.map_with_path(
        lambda path, leaf: optax.contrib.MuonDimensionNumbers() if in_block(path, leaf) else None, params
    )
    return optax.contrib.muon(
        schedule(config.lr),
        adam_learning_rate=schedule(config.adam_lr),
        adam_b2=0.98,
        muon_weight_dimension_numbers=numbers,
    )


@partial(jax.jit, static_argnums=(3, 4), donate_argnums=(0, 1))
def train_step(params, opt_state, tokens, model, optimizer):
    loss, grads = jax.value_and_grad(lambda p: token_losses(p, tokens, model).mean())(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


mean_loss = jax.jit(lambda params, tokens, model: token_losses(params, tokens, model).mean(), static_argnums=2)


def held_out_loss(params, rows, model, batch=64) -> float:
    """Mean nats per predicted token over whole batches of contexts."""
    starts = range(0, len(rows) - batch + 1, batch)
    return float(np.mean([mean_loss(params, rows[i : i + batch].astype(np.int32), model) for i in starts]))


def flops_per_token(config: Config, params) -> int:
    """6 FLOPs per weight of every matrix product, the unembedding's included, plus attention's products."""
    weights = sum(x.size for x in jax.tree.leaves(params) if x.ndim == 2) - params["wpe"]["embedding"].size
    return 6 * weights + 12 * config.n_layer * config.n_embd * config.context


def main(config: Config):
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    cached = out / "contexts.npz"
    if config.resume and cached.exists():
        tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    else:
        print("reading text, training the tokenizer")
        texts = read_texts(config.novels)
        tokenizer = train_tokenizer(texts["train"], config.vocab_size)
        tokenizer.save(str(out / "tokenizer.json"))
        sizes = {f"{k}_bytes": sum(len(d.encode()) for d in v) for k, v in texts.items()}
        np.savez(cached, **{k: pack(tokenizer, v, config.context) for k, v in texts.items()}, **sizes)
        del texts
    with np.load(cached) as file:
        data = {k: file[k] for k in file}
    train = data["train"]
    print({k: v.size if v.ndim else int(v) for k, v in data.items()})

    shape = GPT2Config(
        config.vocab_size, config.context, config.n_embd, config.n_layer, config.n_head, 4 * config.n_embd,
        precision="bfloat16",
    )  # fmt: skip
    model = GPT2(shape)
    params = jax.jit(model.init)(jax.random.key(config.seed), jnp.zeros((1, 8), jnp.int32))["params"]
    params = initialise(params, jax.random.key(config.seed), config.n_layer)
    optimizer = make_optimizer(config, params)
    opt_state = optimizer.init(params)

    per_step = config.batch * config.context
    steps = config.tokens // per_step
    step, seconds, curve = 0, 0.0, []
    flops = flops_per_token(config, params)
    checkpointer = ocp.training.Checkpointer(
        out.absolute() / "checkpoints", preservation_policy=ocp.training.preservation_policies.LatestN(2)
    )
    state = lambda: {"params": params, "opt_state": opt_state}
    if config.resume and checkpointer.latest:
        step = checkpointer.latest.step
        loaded = checkpointer.load_checkpointables(step, {"state": state(), "progress": None})
        params, opt_state = loaded["state"]["params"], loaded["state"]["opt_state"]
        seconds, curve = loaded["progress"]["seconds"], loaded["progress"]["curve"]
        print(f"resumed at step {step}")

    def row():
        values = {"tokens": step * per_step, "flops": step * per_step * flops, "seconds": round(seconds)}
        for name in ("novels", "stdlib"):
            values[f"{name}_nats_per_token"] = held_out_loss(
                params, data[name][:: max(1, len(data[name]) // 768)], model
            )
        curve.append(values)
        tqdm.write(json.dumps(values))

    def save():
        checkpointer.save_checkpointables(
            step, {"state": state(), "progress": {"seconds": seconds, "curve": curve}}, overwrite=True
        )

    clock = saved = time.monotonic()
    bar = tqdm(total=steps, initial=step, unit="step", mininterval=10)
    while step < steps:
        # The order is a pure function of the epoch, the batch of the step.
        where = (step * config.batch + np.arange(config.batch)) % len(train)
        order = np.random.default_rng((config.seed, step * config.batch // len(train))).permutation(len(train))
        batch = train[order[where]].astype(np.int32)
        params, opt_state, loss = train_step(params, opt_state, batch, model, optimizer)
        step += 1
        bar.update()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{float(loss):.3f}")
        now = time.monotonic()
        seconds, clock = seconds + now - clock, now
        if step % max(1, config.eval_every // per_step) == 0 or step == steps:
            row()
            clock = time.monotonic()
        if now - saved > 60 * config.checkpoint_minutes or step == steps:
            save()
            saved = clock = time.monotonic()
    checkpointer.close()
    export(config, out / "model", tokenizer, params, model, data, curve, seconds)


def initialise(params, key, n_layer):
    """GPT-2's: normal(0.02) everywhere, the matrices that write into the residual stream smaller by sqrt(2 L)."""
    leaves = jax.tree.leaves_with_path(params)

    def draw(key, path, leaf):
        if leaf.ndim != 2:
            return leaf
        scale = 0.02 / (2 * n_layer) ** 0.5 if "c_proj" in jax.tree_util.keystr(path) else 0.02
        return scale * jax.random.normal(key, leaf.shape)

    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(jax.tree.structure(params), [draw(k, *pair) for k, pair in zip(keys, leaves)])


@partial(jax.jit, static_argnums=(3, 4))
def sample_text(params, tokens, key, model, temperature):
    """Fill tokens [1, T] after the first by sampling from the model."""

    def fill(i, carry):
        tokens, key = carry
        key, draw = jax.random.split(key)
        logits = model.apply({"params": params}, tokens)[0, i - 1] / temperature
        return tokens.at[0, i].set(jax.random.categorical(draw, logits)), key

    return jax.lax.fori_loop(1, tokens.shape[1], fill, (tokens, key))[0]


def export(config: Config, folder: Path, tokenizer, params, model, data, curve, seconds):
    """A Hugging Face folder with float16 weights, a model card and the training curve; figures are of those weights."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = model.config
    tensors = {k: v.astype(np.float16) for k, v in to_hf(params, shape).items()}
    save_file(tensors, folder / "model.safetensors", {"format": "np"})
    end = tokenizer.token_to_id(END_OF_TEXT)
    hf = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "tie_word_embeddings": True}
    hf |= {"vocab_size": shape.vocab_size, "n_positions": shape.n_ctx, "n_embd": shape.d_model}
    hf |= {key: getattr(shape, key) for key in ("n_layer", "n_head", "n_inner", "activation_function")}
    hf |= {"layer_norm_epsilon": shape.layer_norm_epsilon, "bos_token_id": end, "eos_token_id": end}
    (folder / "config.json").write_text(json.dumps(hf, indent=1) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT, "bos_token": END_OF_TEXT}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind, indent=1) + "\n")
    with (folder / "training_curve.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(curve[0]))
        writer.writeheader()
        writer.writerows(curve)

    # The card tells of what ships: float16 weights, float32 products.
    shipped = load(str(folder))
    model, params = GPT2(shipped.config), shipped.params
    scores = {}
    for name in ("novels", "stdlib"):
        nats = held_out_loss(params, data[name], model)
        scores[name] = nats, nats * data[name].size / int(data[f"{name}_bytes"]) / np.log(2)
    starts = jnp.full((1, config.context), end, jnp.int32)
    samples = [sample_text(params, starts, jax.random.key(i), model, 0.8)[0, 1:].tolist() for i in range(3)]
    texts = [tokenizer.decode(s) for s in samples]
    card = model_card(config, params, scores, texts, curve[-1], seconds)
    (folder / "README.md").write_text(card)
    print(card)


def model_card(config: Config, params, scores, texts, last, seconds) -> str:
    count = sum(x.size for x in jax.tree.leaves(params))
    quoted = "\n\n".join("    " + "\n    ".join(text.splitlines()) for text in texts)
    return f"""# The embedded language model

A GPT-2 that jaxsae trained itself, so that everything runs on any machine with no network. Made by
`experiments/pretrain_embedded_lm.py`.

| | |
|---|---|
| parameters | {count:,} ({config.n_layer} layers, width {config.n_embd}, {config.n_head} heads) |
| context | {config.context} tokens |
| tokenizer | byte-level BPE, {config.vocab_size:,} tokens, {END_OF_TEXT} = {config.vocab_size - 1} |
| training tokens | {last["tokens"]:,} |
| training FLOPs | {last["flops"]:.3g} |
| time | {seconds / 60:.0f} minutes |
| device | {device_name()} |
| held-out novels | {scores["novels"][1]:.3f} bits per byte ({scores["novels"][0]:.3f} nats per token) |
| held-out standard library | {scores["stdlib"][1]:.3f} bits per byte ({scores["stdlib"][0]:.3f} nats per token) |
| weights | float16 safetensors; the figures are of these weights |

Training text: 85 English novels of 1839 to 1929 (public domain; every tenth of 94 in alphabetical order is held out)
and the source files of Python's standard library (held out: {", ".join(HELD_OUT_PACKAGES)}), documents shuffled as
contexts. Bits per byte are over contexts that do not overlap: each token is predicted from at most {config.context - 1}
before it, and the first of each context is left out.

`training_curve.csv` has tokens, FLOPs (6 per weight and token, and attention), seconds, and the held-out losses in nats
per token on a fixed sample of 768 contexts each. The learning rate is constant up to {1 - config.decay:.0%} of the
tokens and then falls linearly to zero.

Three samples at temperature 0.8:

{quoted}
"""


def device_name() -> str:
    device = jax.devices()[0]
    return f"{os.cpu_count()} CPU cores" if device.platform == "cpu" else device.device_kind


if __name__ == "__main__":
    main(tyro.cli(Config))
