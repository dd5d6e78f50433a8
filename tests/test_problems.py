"""The small problems of the influence chapter, and the pieces of its experiments that have an oracle."""

import gzip
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch

from alignbook import problems
from alignbook.ekfac import gradients, precondition
from alignbook.experiments import influence, influence_truth
from alignbook.influence import cg, flatten, solve
from alignbook.problems import InfluenceSettings, fitted, problem, real
from alignbook.runtime import AlignbookError, experiments


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package like mlxtend's, with tables of a few rows."""
    rng = np.random.default_rng(0)
    pixels = np.c_[rng.integers(0, 256, (12, 784)), np.arange(12) % 10]
    cars = [f"{i % 4},300,130,{3500 + i},12.0,70,1,car number {i},{15 + i}.5" for i in range(9)]
    wine = np.c_[rng.normal(size=(8, 13)), np.arange(8) % 3]
    text = {
        "mnist_5k.csv.gz": "\n".join(",".join(map(str, r)) for r in pixels),
        "autompg.csv.gz": "\n".join(cars),
        "wine.csv": "\n".join(",".join(f"{v:.3f}" for v in r) for r in wine),
    }
    path = tmp_path / "mlxtend.whl"
    with zipfile.ZipFile(path, "w") as z:
        for name, t in text.items():
            z.writestr(f"mlxtend/data/data/{name}", gzip.compress(t.encode()) if name.endswith("gz") else t)
    monkeypatch.setattr(problems, "fetch_package", lambda *a: path)
    real.cache_clear()
    yield pixels, wine
    real.cache_clear()


def test_tables_are_read_from_the_package(package):
    pixels, wine = package
    x, y = real("mnist")
    assert x.shape == (12, 49) and y.tolist() == [i % 10 for i in range(12)] and y.dtype == torch.long
    corner = pixels[:, :784].reshape(-1, 28, 28)[:, :4, :4].mean((1, 2))
    assert np.corrcoef(corner, x[:, 0])[0, 1] > 0.999
    x, y = real("mpg")
    assert x.shape == (9, 7) and y.shape == (9, 1) and y.dtype == torch.float64, "the car's name is left out"
    assert float(y.mean()) == pytest.approx(0, abs=1e-9) and float(y.std()) == pytest.approx(1)
    x, y = real("wine")
    assert x.shape == (8, 13) and y.tolist() == wine[:, -1].astype(int).tolist()


def test_a_split_keeps_queries_out_of_training_and_follows_its_seed():
    s = InfluenceSettings()
    p, again, other = (problem("blobs", s, k) for k in (0, 0, 1))
    key = lambda items: {tuple(x.tolist()) for x, _ in items}  # noqa: E731
    assert len(p.items) == s.items and len(p.queries) == s.queries and not key(p.items) & key(p.queries)
    assert key(p.items) == key(again.items) != key(other.items)
    with pytest.raises(AlignbookError, match="unknown data set 'cars'"):
        problem("cars", s, 0)


def test_sentences_are_of_the_grammar():
    rows = problems.sentences(300, np.random.default_rng(0))
    words = [[problems.WORDS[i - 3] for i in t.ids] for t in rows]
    assert all(w[0] in problems.NAMES and w[1] in problems.VERBS and w[-1] == "." for w in words)
    own = [problems.NAMES.index(w[0]) == problems.THINGS.index(w[-3]) for w in words]
    assert 0.75 < np.mean(own) < 0.92  # 0.8 + 0.2 / 6


def test_the_exact_estimator_is_what_conjugate_gradients_find():
    f = fitted("blobs", InfluenceSettings(), 1)
    g = gradients(f.model, f.problem.queries, f.problem.task, f.modules)
    found = cg(g, f.product, f.damping, tol=1e-8)
    assert torch.allclose(flatten(f.exact(g)), flatten(found), rtol=1e-5, atol=1e-6 * float(flatten(found).abs().max()))
    assert sum(b.numel() for b in f.blocks.values()) == sum(w.numel() ** 2 for w in f.weights.values())


@pytest.mark.parametrize("estimator", influence.LADDER)
def test_recomposed_curvature_is_what_precondition_inverts(estimator):
    f = fitted("blobs", InfluenceSettings(), 0)
    g = gradients(f.model, f.problem.queries, f.problem.task, f.modules)
    for name in f.modules:
        whole = influence.recomposed(f, name, estimator)
        expected = solve({name: g[name]}, whole, f.damping)[name]
        assert torch.allclose(precondition(g, f.factors, estimator, f.damping)[name], expected, rtol=1e-8, atol=1e-9)


def test_response_agrees_with_the_exact_inverse_and_least_with_none():
    s = InfluenceSettings(items=60, copies=0.01)
    df = pd.DataFrame(influence.exp_pbrf(s, data="waves", seed=0))
    found = influence.correlations(df.assign(data="waves", seed=0), "response", ["exact", "down", "dot"])
    r = found.groupby("estimator").r.mean()
    assert r["exact"] > 0.99 and r["down"] > 0.99 and r["dot"] < 0.9, r


def test_full_rank_is_no_loss_and_bytes_grow():
    e = experiments("influence")["rank"]
    s = e.settings.but(ranks=(1, 4, 16))
    df = pd.DataFrame(e(s, seed=0)).assign(seed=0)
    found = e.summarise(df, s)
    values = [found[f"pearson/{r}"]["value"] for r in s.ranks]
    assert values == sorted(values) and values[-1] == pytest.approx(1, abs=1e-6)
    assert found["bytes/1"]["value"] < found["bytes/4"]["value"] < found["bytes/16"]["value"]


def test_metrics_of_known_rows():
    df = pd.DataFrame({"data": "a", "seed": [0, 0, 1, 1], "query": 0, "t": [1.0, 2, 3, 1], "e": [2.0, 4, 9, 1]})
    r = influence.correlations(df, "t", ["e"])
    assert np.allclose(r.r, 1) and len(r) == 2
    times = pd.DataFrame({"k": "x", "seed": [0, 1, 2], "v": [1.0, 10, 100]})
    m = influence.means(times, ["k"], "v", "s", log=True)["x"]
    assert m["value"] == pytest.approx(10) and 0 < m["lo"] < 10 < m["hi"]
    rows = [dict(data="a", seed=0, flipped=i < 2, ekfac=-i, norm=i, loss=float(i == 1)) for i in range(20)]
    found = influence_truth.label_metrics(pd.DataFrame(rows))
    assert found["auroc/a/ekfac"]["value"] == 1 and found["auroc/a/norm"]["value"] == 0
    assert found["top/a/ekfac"]["value"] == 1 and found["top/a/norm"]["value"] == 0


def test_wrong_labels_are_wrong():
    s = experiments("influence")["labels"].settings.but(items=60)
    df = pd.DataFrame(influence_truth.exp_labels(s, data="blobs", seed=0))
    assert df.flipped.sum() == 6 and len(df) == 60 and (df.ekfac >= 0).all()
    assert df[df.flipped].loss.mean() > 1.3 * df[~df.flipped].loss.mean()
