"""The prefix of a language model, up to a hook point, beside Hugging Face transformers (PyTorch) on the same weights.

    python -m benchmarks.lm [--shape gpt2 llama] [--context 128] [--rounds 10] [--python PYTHON] [--json] [--keep]

Weights are random, written once by transformers, and read by both in float32; both run on the same cores, in processes
of their own that take turns. Each reads the residual stream at three quarters of the depth: jaxsae as `jaxsae train`
does, transformers with the later blocks left out, in inference mode, in its default form of attention; of as many
tokens at once as jaxsae takes, and of all. What they compute is compared. --python is an interpreter that has torch and
transformers; by default an environment is made at the first run.
"""

import json
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks import common
from benchmarks.compare_peers import progress
from benchmarks.peers.environments import default_cache, python
from benchmarks.peers.protocol import Worker
from jaxsae.data.activations import TOKENS_AT_ONCE
from jaxsae.lm.architecture import ARCHITECTURES

PEER = "transformers"
SHAPES = {
    "gpt2": {"model_type": "gpt2"},  # its defaults are GPT-2 small
    "llama": {
        "model_type": "llama",
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "intermediate_size": 2048,
        "vocab_size": 32_000,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
}
HOOK, BLOCKS = "blocks.8.hook_resid_post", 9
AT_ONCE, WARMUP = TOKENS_AT_ONCE["cpu"], 1
# Values that both give may differ by so much of their size.
TOLERANCE = 1e-3


def measure(shape: str, args) -> list[dict]:
    if SHAPES[shape]["model_type"] not in ARCHITECTURES:
        progress(f"{shape} is left out: jaxsae does not have {SHAPES[shape]['model_type']}")
        return []
    peer = args.python or str(python(PEER, args.cache, args.torch_index))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        settings = {"model": SHAPES[shape], "folder": folder, "hook": HOOK, "blocks": BLOCKS}
        settings |= {"context": args.context, "tokens": args.tokens, "cores": len(os.sched_getaffinity(0))}
        sizes = {f"{size:,} tokens at once": size for size in sorted({AT_ONCE, args.tokens})}
        variants = {(PEER, how): ("transformers_worker", peer, size) for how, size in sizes.items()}
        variants["jaxsae", next(iter(sizes))] = "jaxsae_lm_worker", sys.executable, AT_ONCE
        workers, facts = {}, {}
        for variant, (module, interpreter, at_once) in variants.items():
            progress(f"{shape}: starting {', '.join(variant)}")
            workers[variant] = Worker(f"benchmarks.peers.{module}", interpreter)
            stack.callback(workers[variant].close)
            facts[variant] = workers[variant].build(settings | {"at_once": at_once})
        answers = {variant: [] for variant in workers}
        turn = lambda variant: answers[variant].append(workers[variant].steps(1))
        common.in_turns({variant: lambda v=variant: turn(v) for variant in workers}, args.rounds, WARMUP)
    return rows(shape, args, facts, answers)


def rows(shape: str, args, facts: dict, answers: dict) -> list[dict]:
    values = {variant: said[-1]["losses"][-1] for variant, said in answers.items()}
    ours = next(value for (library, _), value in values.items() if library == "jaxsae")
    if any(abs(value - ours) > TOLERANCE * abs(ours) for value in values.values()):
        raise SystemExit(f"they compute different things: mean squares of the activations are {values}")
    least = {variant: min(ms for answer in said[WARMUP:] for ms in answer["ms"]) for variant, said in answers.items()}
    ms = next(ms for (library, _), ms in least.items() if library == "jaxsae")
    return [
        {
            "shape": shape,
            "library": library,
            "version": next(iter(facts[library, how]["versions"].values())),
            "variant": how,
            "context": args.context,
            "ms_min": least[library, how],
            "ms_median": median(ms for answer in said[WARMUP:] for ms in answer["ms"]),
            "cpu_ms": min(ms for answer in said[WARMUP:] for ms in answer["cpu_ms"]),
            "tokens_per_second": 1e3 * args.tokens / least[library, how],
            "ratio_to_jaxsae": least[library, how] / ms,
            "peak_rss_mb": said[-1]["peak_rss_mb"],
        }
        for (library, how), said in answers.items()
    ]


def show(rows: list[dict]):
    if not rows:
        return
    print(f"\n{rows[0]['shape']}, to {HOOK}, contexts of {rows[0]['context']}")
    columns = {
        "library": lambda row: f"{row['library']} {row['version']}, {row['variant']}",
        "ms": lambda row: f"{row['ms_min']:.0f}",
        "median": lambda row: f"{row['ms_median']:.0f}",
        "cpu ms": lambda row: f"{row['cpu_ms']:.0f}",
        "tokens/s": lambda row: f"{row['tokens_per_second']:,.0f}",
        "× jaxsae": lambda row: f"{row['ratio_to_jaxsae']:.2f}",
        "peak MB": lambda row: f"{row['peak_rss_mb']:,.0f}",
    }
    common.print_table(columns, rows)


def main():
    parser = common.arguments(__doc__, SHAPES, list(SHAPES), rounds=10)
    parser.add_argument("--context", type=int, default=128, help="tokens of a context (%(default)s)")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of a round (%(default)s)")
    parser.add_argument("--python", help="an interpreter that has torch and transformers")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of environments (%(default)s)")
    parser.add_argument("--torch-index", help="package index to take PyTorch from")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    for shape in args.shape:
        table = measure(shape, args)
        print("\n".join(map(json.dumps, table)), flush=True) if args.json else show(table)
        if args.keep and table:
            common.keep(f"lm-{shape}-cpu", common.manifest(), table)


if __name__ == "__main__":
    main()
