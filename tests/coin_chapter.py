"A chapter for tests of the store and the command line; every cell marks that it was measured."

import os
import random
import time
from dataclasses import dataclass

from alignbook.runtime import Settings, experiment, note

BASE = 2


@dataclass(frozen=True)
class Coins(Settings):
    COLUMNS = {"cpu": {"flips": 40}}

    flips: int = 20
    bias: float = 0.5
    seeds: int = 3
    model: str = "tiny"


def helper(x):
    return x * BASE


def cells(s):
    return [{"bias": b, "seed": i} for b in ("fair", "loaded") for i in range(s.seeds)]


def summarise(df, s):
    p = df.heads.mean()
    return {"heads": {"value": p, "lo": p - 0.2, "hi": p + 0.2, "n": len(df), "unit": ""}}


def mark(bias, seed):
    if folder := os.environ.get("COIN_MARKS"):
        with open(os.path.join(folder, f"{bias}{seed}"), "a") as f:
            f.write("x")
    time.sleep(float(os.environ.get("COIN_SLEEP", 0)))


@experiment(
    settings=Coins(),
    cells=cells,
    summarise=summarise,
    claim="T1",
    paper={"claim": "fair", "value": 0.5},
    minutes={"toy": 0.1},
)
def exp_coins(s, bias, seed):
    "Flips with the global generator: the same only if the runner seeds each cell."
    mark(bias, seed)
    note("data", "abc")
    note("weights", f"w{seed}")
    p = 0.5 if bias == "fair" else 0.9
    rows = [{"flip": helper(i), "heads": random.random() < p} for i in range(s.flips)]
    return rows, [{"said": "über" if r["heads"] else "tails", "turns": [1, 2]} for r in rows[:2]]


@experiment(settings=Coins(), cells=cells, summarise=summarise)
def exp_plain(s, bias, seed):
    return [{"heads": seed % 2 == 0, "late": None if seed == 0 else 1.5}]
