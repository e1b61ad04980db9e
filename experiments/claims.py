"""What papers claim, beside what the experiments found: one table from all results on disk.

    python -m experiments.claims [--results FOLDER] [--write README.md]

With --write it takes the place of what stands in that file between <!-- claims --> and <!-- /claims -->.

A claim holds if the whole 95 % interval over seeds (Student's t) is on the claimed side. "Direction only": it is, but
the mean does not reach the paper's number. "Open": the interval is on both sides. "Not judged": fewer than three seeds.
Of a parameter of a law the interval is that of the fit, and the points that were fitted stand for seeds.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.table import replaced
from experiments.verdicts import Claim, as_rows, interval, interval_of_ratio, said

RESULTS = Path(__file__).parent / "results"
START, END = "<!-- claims -->", "<!-- /claims -->"
BRAUN, KARVONEN = "Braun et al. 2024", "Karvonen 2025"
# Experiments that keep their claims with their verdicts, in the order of the table.
JUDGED = (
    "topk_vs_baselines",
    "dead_latents",
    "shrinkage",
    "progressive_codes",
    "explanations",
    "ablation_sparsity",
    "probe_loss",
    "scaling_n",
    "scaling_nk",
    "scaling_compute",
    "scaling_tokens",
    "scaling_lr",
    "scaling_batch",
    "scaling_noise",
    "scaling_subject",
    "scaling_layers",
    "scaling_synthetic",
    "scaling_e2e",
    "context",
)
LONGER = "training: the paper's runs read a thousand times as many tokens of a larger model"


def of_pareto(facts: dict) -> list[Claim]:
    found = facts["layer 3"]
    l0, alive = (found[f"{what} at equal CE increase, of local's"] for what in ("L0", "living latents"))
    at_l0 = found["CE increase at equal L0, of local's"]
    names = {"e2e": "e2e", "e2e_downstream": "e2e + downstream"}
    own = lambda table, kind: {key: table[kind][key] for key in ("mean", "low", "high", "seeds")}
    out = []
    for kind, name in names.items():
        claim = f"End to end, fewer latents per token do for the same loss ({name})"
        measure = "L0 at equal CE increase, of local's"
        out.append(
            Claim(claim, f"{BRAUN}, sec. 3.1", "below 0.5", measure, own(l0, kind), below=1, size=0.5, needs=LONGER)
        )
    for kind, name in names.items():
        claim, measure = f"The loss at equal L0 is smaller ({name})", "CE increase at equal L0, of local's"
        out.append(
            Claim(
                claim, f"{BRAUN}, sec. 3.1", "below 0.45", measure, own(at_l0, kind), below=1, size=0.45, needs=LONGER
            )
        )
    for kind, name in names.items():
        claim, measure = f"Fewer latents in all do ({name})", "living latents at equal CE increase, of local's"
        out.append(Claim(claim, f"{BRAUN}, sec. 3.1", "fewer", measure, own(alive, kind), below=1, needs=LONGER))
    return out


def of_layers(facts: dict) -> list[Claim]:
    places = {kind: facts["layer 3"][kind]["places"] for kind in ("local", "e2e", "e2e_downstream")}
    first, *_, last = places["local"]
    ratio = lambda kind, place: interval([places[kind][place]["mse"] / places["local"][place]["mse"]])
    at = f"{BRAUN}, sec. 3.3"
    return [
        Claim(
            "e2e reconstructs its own layer badly",
            at,
            "badly",
            "squared error, of local's",
            ratio("e2e", first),
            above=1,
        ),
        Claim(
            "and the end of the model never as well as local",
            at,
            "above 1",
            "squared error at the end, of local's",
            ratio("e2e", last),
            above=1,
        ),
        Claim(
            "With downstream errors later layers are as close as with local",
            at,
            "1",
            "squared error at the end, of local's; below 1.1",
            ratio("e2e_downstream", last),
            below=1.1,
        ),
    ]


def of_geometry(facts: dict) -> list[Claim]:
    found, at = facts["layer 3"], f"{BRAUN}, sec. 3.4"
    thin = found["mean of the largest cosine, dictionaries thinned to the smallest one's size"]
    less = lambda table, a, b: interval([table[a] - table[b]])
    own = "mean largest cosine within"
    return [
        Claim(
            "e2e's features are the most orthogonal",
            at,
            "most",
            f"{own}, e2e minus local",
            less(thin["within"], "e2e", "local"),
            below=0,
        ),
        Claim(
            "Two seeds of e2e find other features, of local the same",
            at,
            "other",
            "mean largest cosine between seeds, e2e minus local",
            less(thin["cross-seed"], "e2e", "local"),
            below=0,
        ),
    ]


def of_finetuning(facts: dict) -> list[Claim]:
    share = lambda family: interval([100 * facts["families"][family]["finetune_kl, share of the gap closed"]])
    measure = "share of the gap closed, %"
    return [
        Claim(
            f"Fine-tuning on KL closes part of the gap ({name})",
            KARVONEN,
            "20 to 50 %",
            measure,
            share(family),
            above=20,
        )
        for family, name in (("topk", "TopK"), ("relu", "ReLU"))
    ]


def of_topk(facts: dict) -> list[Claim]:
    best = facts["best"]
    ratio = lambda kind: interval(
        [sum(own[kind]["delta_ce"] / own["local"]["delta_ce"] for own in best.values()) / len(best)]
    )
    measure = "CE increase, of local's, mean over k 4 to 32"
    at = f"{BRAUN}, sec. 3.1, asked of TopK"
    return [
        Claim("TopK at equal k is better end to end", at, "below 0.5", measure, ratio("e2e"), below=1, size=0.5),
        Claim(
            "with the reconstruction error beside the KL",
            "asked here",
            "none",
            measure,
            ratio("e2e_reconstruction"),
            below=1,
        ),
    ]


def of_agreement(facts: dict) -> list[Claim]:
    found = facts["faithfulness"]["similar CE increase"]
    gap = {kind: abs(1 - found[kind]["simple"]["faithfulness"]) for kind in ("local", "e2e")}
    measure = "distance of faithfulness from 1 (simple), e2e minus local"
    return [
        Claim(
            "No training is more faithful on agreement",
            f"{BRAUN}, app. I",
            "none",
            measure,
            interval([gap["e2e"] - gap["local"]]),
            above=0,
        )
    ]


def of_transcoders(facts: dict) -> list[Claim]:
    """At the smallest and the largest k of the runs."""
    of = lambda kind, k: [row["delta_ce"] for row in facts["rows"] if (row["kind"], row["k"]) == (kind, k)]
    ratio = lambda a, b, k: interval_of_ratio([x / y for x, y in zip(of(a, k), of(b, k))])
    few, many = min(facts["settings"]["ks"]), max(facts["settings"]["ks"])
    needs, other = "longer training, and transcoders with their own learning rate", "autoencoder"
    out = [
        Claim(
            f"{kind.capitalize()}s cost the language model no more than autoencoders of the MLP's output",
            source,
            "about the same",
            f"CE increase at L0 {k}, of an autoencoder's; about is below 1.1",
            ratio(kind, other, k),
            below=1.1,
            needs=needs,
        )
        for kind, source in (("transcoder", "Dunefsky et al. 2024"), ("skip transcoder", "Paulo et al. 2025"))
        for k in (few, many)
    ]
    measure = f"CE increase at L0 {many}, skip transcoder's over transcoder's"
    lower = ratio("skip transcoder", "transcoder", many)
    return [*out, Claim("A skip connection lowers the cost", "Paulo et al. 2025", "lower", measure, lower, below=1)]


EARLIER: dict[str, Callable[[dict], list[Claim]]] = {
    "e2e_pareto": of_pareto,
    "e2e_topk": of_topk,
    "e2e_layers": of_layers,
    "e2e_geometry": of_geometry,
    "finetune_kl": of_finetuning,
    "agreement": of_agreement,
    "transcoders": of_transcoders,
}


def gathered(folder: Path) -> dict[str, list[dict]]:
    """{experiment: its claims, with verdicts}, of all results in the folder."""
    out = {}
    for name in (*JUDGED, *EARLIER):
        if not (path := folder / f"{name}.json").exists():
            continue
        facts = json.loads(path.read_text())
        out[name] = as_rows(EARLIER[name](facts)) if name in EARLIER else facts["claims"]
    return out


def table(found: dict[str, list[dict]]) -> str:
    """A Markdown table of all claims: a line each, under a line for each experiment."""
    lines = [
        "| claim | source | the paper | what is measured here | mean (95 %) | verdict | seeds or points |",
        "| --- | --- | --- | --- | ---: | --- | ---: |",
    ]
    for name, claims in found.items():
        lines.append(f"| **[{name}](experiments/{name}.py)** | | | | | | |")
        for row in claims:
            cells = (
                row["claim"],
                row["source"],
                row["theirs"],
                row["measure"],
                said(row["ours"]),
                f"**{row['verdict']}**",
                str(row["ours"]["seeds"]),
            )
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def count(found: dict[str, list[dict]]) -> str:
    """How many claims there are of each verdict, in words."""
    verdicts = [row["verdict"] for claims in found.values() for row in claims]
    return f"{len(verdicts)} claims. " + ", ".join(f"{v}: {verdicts.count(v)}" for v in dict.fromkeys(verdicts))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results (%(default)s)")
    parser.add_argument("--write", type=Path, help="file whose table is replaced; default: it is printed")
    args = parser.parse_args()
    found = gathered(args.results)
    if not found:
        sys.exit(f"{args.results} has no results: run the experiments first")
    inside = f"{count(found)}.\n\n{table(found)}"
    if args.write is None:
        print(inside)
        return
    try:
        args.write.write_text(replaced(args.write.read_text(), inside, START, END))
    except ValueError as error:
        sys.exit(f"{args.write}: {error}")


if __name__ == "__main__":
    main()
