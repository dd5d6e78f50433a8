"""One-pass many-shot curves against one forward pass for each shot count: same strings, same run.

    python benchmarks/msj.py [--shots 128] [--strings 1] [--every 1] [--model smollm2-135m]

Prints seconds for both ways, the ratio and the largest difference, and writes them to benchmarks/msj.json.
`--every k` times the slow way at every k-th count only and scales up: without it, nothing is extrapolated.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from alignbook import msj
from alignbook.models import load
from alignbook.runtime import atomic_write, machine, progress, versions


def timed(call):
    start = time.perf_counter()
    out = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return out, time.perf_counter() - start


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--shots", type=int, default=128)
    p.add_argument("--strings", type=int, default=1)
    p.add_argument("--every", type=int, default=1)
    p.add_argument("--model", default="smollm2-135m")
    a = p.parse_args()
    lm, rows = load(a.model), []
    msj.nll_curve(lm, msj.many_shot(lm, msj.draw_shots("pirate", 4)))  # warm up
    for seed in progress(range(a.strings), "strings"):
        string = msj.many_shot(lm, msj.draw_shots("pirate", a.shots + 1, seed))
        counts = list(range(a.shots, -1, -a.every))
        (fast, _, tokens), one_pass = timed(lambda s=string: msj.nll_curve(lm, s))
        slow, each = timed(lambda s=string, c=counts: msj.nll_each(lm, s, c))
        each *= (a.shots + 1) / len(counts)
        gap = (fast[counts] - slow).abs()
        rows.append({"tokens": len(string.ids), "one_pass_s": one_pass, "each_s": each, "ratio": each / one_pass})
        rows[-1] |= {"gap_per_token": float((gap / tokens[counts]).max()), "gap_per_answer": float(gap.max())}
        print({k: round(v, 6) for k, v in rows[-1].items()})
    ratio = min(r["ratio"] for r in rows)
    token, answer = (max(r[k] for r in rows) for k in ("gap_per_token", "gap_per_answer"))
    print(f"{lm.name}, {a.shots} shots: at least {ratio:.0f} times faster")
    print(f"largest difference {token:.1e} nats a token, {answer:.1e} nats summed over an answer")
    record = {
        "shots": a.shots,
        "every": a.every,
        "model": lm.name,
        "rows": rows,
        "machine": machine(),
        "versions": versions(),
    }
    atomic_write(Path(__file__).with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    assert token < 1e-4, f"the two ways differ by {token} nats a token"


if __name__ == "__main__":
    main()
