"""EK-FAC influence of 64 x 64-token passages on 4 queries, beside kronfluence 1.0.1: same machine, same run.

    python benchmarks/ekfac.py [--modes data,sampled] [--layers 30] [--sequences 64] [--queries 4] [--peer DIR]

The 90 MLP matrices of SmolLM2-135M, fp32, eager attention, damping 0.1 x the mean eigenvalue of each module.
Each side runs in its own process, so that its peak memory is its own. Stages are compute alone: what
kronfluence spends writing and reading its factors is printed apart. kronfluence is installed without its
unused need of torchvision into a folder of its own (`--peer`, default: the cache), never into this environment.

`data` labels make both sides deterministic: the scores must agree. `sampled` labels (the true Fisher) differ by
the draw: their rank correlation stands beside that of our own two seeds. Writes benchmarks/ekfac.json.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from scipy.stats import spearmanr

from alignbook import data
from alignbook.models import load
from alignbook.runtime import AlignbookError, atomic_write, cache_dir, machine, versions

PEER = ("kronfluence==1.0.1", "einops==0.8.2", "einconv==0.1.0", "opt-einsum==3.4.0")
STAGES = ("covariance", "eigendecomposition", "correction", "scores")
PATTERN = r"\.mlp\.(gate|up|down)_proj$"


def peer_folder(folder):
    "A folder that holds kronfluence; made with pip when it is missing."
    folder = Path(folder or cache_dir("peers") / "kronfluence-1.0.1")
    if not (folder / "kronfluence").exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *PEER]
        if subprocess.run(command).returncode:
            raise AlignbookError(
                f"could not install {PEER[0]} into {folder}: check the network, or give --peer DIR"
            )
    return folder


def prepare(a):
    "The model cut to `a.layers` layers, its tracked module names, training ids and query ids [n, a.tokens]."
    lm = load(a.model, device=a.device)
    lm.model.set_attn_implementation("eager")
    lm.model.model.layers = lm.model.model.layers[: a.layers]
    texts = (lm.tok(r["passage"])["input_ids"] for r in data.sample("boolq_passages"))
    ids = list(islice((t[: a.tokens] for t in texts if len(t) >= a.tokens), a.sequences + a.queries))
    assert len(ids) == a.sequences + a.queries, f"only {len(ids)} passages have {a.tokens} tokens"
    names = [f"model.layers.{i}.mlp.{m}_proj" for i in range(a.layers) for m in ("gate", "up", "down")]
    return lm, names, ids[: a.sequences], ids[a.sequences :]


def timed(call):
    start = time.perf_counter()
    out = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return out, time.perf_counter() - start


def peer_task(names):
    "The next-token task as kronfluence wants it: summed loss, the last position out of the covariances."
    import torch.nn.functional as F
    from kronfluence.task import Task

    class NextToken(Task):
        def compute_train_loss(self, batch, model, sample=False):
            logits = model(input_ids=batch["ids"], use_cache=False).logits[:, :-1].flatten(0, 1)
            labels = batch["ids"][:, 1:].flatten()
            if sample:
                with torch.no_grad():
                    labels = torch.multinomial(logits.softmax(-1), 1).flatten()
            return F.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self):
            return names

        def get_attention_mask(self, batch):
            mask = torch.ones_like(batch["ids"])
            mask[:, -1] = 0
            return mask

    return NextToken()


def run_peer(a):
    "kronfluence: scores [queries, sequences] and seconds by stage."
    sys.path.append(str(a.peer))
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments

    lm, names, train, queries = prepare(a)
    torch.manual_seed(a.seed)
    task = peer_task(names)
    sets = [[{"ids": torch.tensor(t)} for t in part] for part in (train, queries)]
    with tempfile.TemporaryDirectory() as tmp:
        model = prepare_model(lm.model, task)
        job = Analyzer(
            "bench",
            model,
            task,
            cpu=a.device == "cpu",
            log_level=40,
            profile=True,
            disable_tqdm=True,
            output_dir=tmp,
        )
        factor_args = FactorArguments(use_empirical_fisher=a.labels == "data")
        factor_args.eigendecomposition_dtype = getattr(torch, a.peer_eigh)
        job.fit_all_factors("f", sets[0], per_device_batch_size=a.batch, factor_args=factor_args)
        job.compute_pairwise_scores(
            "s",
            "f",
            sets[1],
            sets[0],
            per_device_query_batch_size=a.queries,
            per_device_train_batch_size=a.batch,
            score_args=ScoreArguments(damping_factor=None),
        )
        scores = job.load_pairwise_scores("s")["all_modules"]
        spent = {k: sum(v) for k, v in job.profiler.recorded_durations.items()}
    actions = ("Fit Covariance", "Perform Eigendecomposition", "Fit Lambda", "Compute Pairwise Score")
    seconds = {s: spent.pop(k) for s, k in zip(STAGES, actions, strict=True)}
    return scores, seconds | {"disk": sum(spent.values())}


def run_ours(a):
    "alignbook: scores [queries, sequences] and seconds by stage."
    from alignbook import ekfac

    lm, _, train, queries = prepare(a)
    modules = ekfac.track(lm.model, PATTERN)
    train, queries = ([ekfac.Text(tuple(t)) for t in part] for part in (train, queries))
    factors, fit = timed(
        lambda: ekfac.fit_factors(lm.model, train, modules=modules, seed=a.seed, labels=a.labels)
    )
    scores, scored = timed(lambda: ekfac.scores(lm.model, factors, queries, train))
    spent = factors.seconds  # the passes feed covariances and correction both; they are booked with the first
    seconds = {
        "covariance": spent["passes"] + spent["covariances"],
        "eigendecomposition": spent["eigenbases"],
    }
    seconds |= {"correction": fit - sum(seconds.values()), "scores": scored}
    return scores, seconds | {"passes": spent["passes"]}


def run_floor(a):
    "GFLOP/s of a large fp32 product, and seconds of forward + backward (frozen weights) over the training tokens."
    lm, _, train, _ = prepare(a)
    x = torch.randn(2048, 2048, device=a.device)
    best = min(timed(lambda: x @ x)[1] for _ in range(8))

    def both():
        for i in range(0, len(train), a.batch):
            ids = torch.tensor(train[i : i + a.batch], device=a.device)
            embeds = lm.model.get_input_embeddings()(ids).requires_grad_()
            logits = lm.model(inputs_embeds=embeds, use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
            )
            loss.backward()

    return torch.zeros(0), {"gflops": 2 * 2048**3 / best / 1e9, "forward_backward": timed(both)[1]}


def flops(a, lm, mode):
    "Least GFLOP of each stage that we know of: see the comments."
    config, tokens = lm.model.config, a.sequences * a.tokens
    d, h, n = config.hidden_size, config.intermediate_size, a.layers
    weights = sum(p.numel() for p in lm.model.parameters())  # the tied embedding counts as the output layer
    both = 4 * weights  # a token forward, and backward without weight gradients
    fresh = 2 * weights * (mode == "sampled")  # backward again: the eigenvalues are measured on fresh labels
    squares = [d, h, h, h, d]  # gate and up share the input; gate, up and down have outputs of their own
    rotate = sum(2 * k * k for k in squares)  # a token into the eigenbases
    product = 3 * 2 * d * h  # a token into the gradients of the three matrices
    asked = a.queries * (
        a.tokens * (both + n * (rotate + product)) + n * 3 * 2 * d * h * (d + h)
    )  # (G + λ)⁻¹ q
    total = {
        "covariance": tokens
        * (both + fresh + n * sum(k * k for k in squares)),  # symmetric: half of the products
        "eigendecomposition": n * sum(10 / 3 * k**3 for k in squares),  # tridiagonal form and back
        "correction": tokens * n * (rotate + product),  # from the tape of the first pass
        "scores": tokens * (both + n * product) + asked + a.sequences * a.queries * n * 3 * 2 * d * h,
    }
    return {k: v / 1e9 for k, v in total.items()}


def spawn(a, side, folder, **changes):
    "Run one side in its own process: {scores, seconds, peak_gib}."
    out = Path(folder) / f"{side}{len(list(Path(folder).iterdir()))}.json"
    options = {**vars(a), **changes, "worker": side, "out": out}
    command = [sys.executable, __file__]
    command += [f"--{k.replace('_', '-')}={v}" for k, v in options.items() if v is not None]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
    found = json.loads(out.read_text())
    return found | {"scores": torch.tensor(found["scores"], dtype=torch.float64)}


def work(a):
    "Inside a process of its own: measure one side and write what came out."
    scores, seconds = {"peer": run_peer, "ours": run_ours, "floor": run_floor}[a.worker](a)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    gpu = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    record = {"scores": scores.tolist(), "seconds": seconds, "peak_gib": peak, "gpu_peak_gib": gpu}
    atomic_write(a.out, json.dumps(record))


def ranks(x, y):
    "Spearman correlation of two score matrices, query by query."
    return [float(spearmanr(p, q).statistic) for p, q in zip(x, y, strict=True)]


def agreement(mode, ours, peer, again):
    "How far the two score matrices are apart; with sampled labels, how far our own two seeds are."
    gap = (ours["scores"] - peer["scores"]).abs().amax(1) / peer["scores"].abs().amax(1)
    row = {"mode": mode, "spearman": ranks(ours["scores"], peer["scores"]), "largest_gap": float(gap.max())}
    if again:
        row["our_two_seeds"] = ranks(ours["scores"], again["scores"])
    return row


def table(mode, ours, peer, floor, least):
    "Print the stages of one mode; the rows as printed."
    print(f"\nlabels: {mode}")
    print(
        f"{'stage':<20}{'kronfluence s':>14}{'ours s':>10}{'ratio':>8}{'GFLOP':>9}{'floor s':>9}{'ours/floor':>12}"
    )
    rows = []
    for stage in (*STAGES, "all"):
        theirs, mine, need = (
            sum(x.get(s, 0.0) for s in STAGES) if stage == "all" else x[stage]
            for x in (peer["seconds"], ours["seconds"], least)
        )
        bound = need / floor["seconds"]["gflops"]
        rows.append(
            {
                "stage": stage,
                "gflop": need,
                "peer_s": theirs,
                "ours_s": mine,
                "ratio": theirs / mine,
                "floor_s": bound,
            }
        )
        print(
            f"{stage:<20}{theirs:>14.1f}{mine:>10.1f}{theirs / mine:>8.1f}{need:>9.0f}{bound:>9.1f}"
            f"{mine / bound:>12.1f}"
        )
    print(f"{'peak GiB':<20}{peer['peak_gib']:>14.2f}{ours['peak_gib']:>10.2f}")
    if ours["gpu_peak_gib"]:
        print(f"{'peak GPU GiB':<20}{peer['gpu_peak_gib']:>14.2f}{ours['gpu_peak_gib']:>10.2f}")
    print(f"ours: {ours['seconds']['passes']:.1f} s of forward and backward stand under covariance")
    print(f"kronfluence also wrote and read its factors: {peer['seconds']['disk']:.1f} s, not counted above")
    return rows


def compare(a, folder):
    "Both sides in every mode; the whole record."
    lm = prepare(a)[0]
    floor, modes = spawn(a, "floor", folder), {}
    print(
        f"{machine()['cpu']}, {machine()['cores']} cores, {torch.get_num_threads()} threads, {a.device}: "
        f"{floor['seconds']['gflops']:.0f} GFLOP/s in a large product; forward + backward of the training tokens "
        f"{floor['seconds']['forward_backward']:.1f} s"
    )
    for mode in a.modes.split(","):
        ours, peer = (spawn(a, side, folder, labels=mode) for side in ("ours", "peer"))
        again = spawn(a, "ours", folder, labels=mode, seed=a.seed + 1) if mode == "sampled" else None
        rows = table(mode, ours, peer, floor, flops(a, lm, mode))
        row = agreement(mode, ours, peer, again)
        print({k: [round(x, 5) for x in v] if isinstance(v, list) else v for k, v in row.items()})
        sides = {"ours": ours, "peer": peer} | ({"ours_again": again} if again else {})
        kept = {k: {**v, "scores": v["scores"].tolist()} for k, v in sides.items()}
        modes[mode] = {"stages": rows, "agreement": row, **kept}
    setup = {k: v for k, v in vars(a).items() if k not in ("peer", "worker", "out", "labels")}
    return {
        "setup": setup,
        "peer": PEER[0],
        "floor": floor["seconds"],
        "modes": modes,
        "machine": machine(),
        "versions": versions(),
    }


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--modes", default="data,sampled")
    p.add_argument("--model", default="smollm2-135m")
    p.add_argument("--layers", type=int, default=30)
    p.add_argument("--sequences", type=int, default=64)
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--queries", type=int, default=4)
    p.add_argument("--batch", type=int, default=8, help="sequences a pass, for kronfluence and the floor")
    p.add_argument(
        "--peer-eigh", default="float32", help="kronfluence's own default is float64, which is slower"
    )
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--peer", help="folder that holds kronfluence (default: made in the cache)")
    p.add_argument("--save", default=str(Path(__file__).with_suffix(".json")), help="where the record goes")
    p.add_argument("--labels", default="data", help=argparse.SUPPRESS)
    p.add_argument("--worker", help=argparse.SUPPRESS)
    p.add_argument("--out", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.worker:
        return work(a)
    a.peer = peer_folder(a.peer)
    with tempfile.TemporaryDirectory() as folder:
        record = compare(a, folder)
    atomic_write(a.save, json.dumps(record, indent=1) + "\n")
    if "data" in record["modes"]:
        gap = record["modes"]["data"]["agreement"]["largest_gap"]
        assert gap < 1e-2, f"with the same labels the scores differ by {gap:.1e} of the largest"


if __name__ == "__main__":
    main()
