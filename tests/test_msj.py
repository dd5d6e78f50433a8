"""Many-shot curves: one pass equals one forward a count, contexts are what they claim, bad input is one sentence."""

from pathlib import Path

import numpy as np
import pytest
import torch

from alignbook import fits, msj
from alignbook.models import tiny
from alignbook.runtime import AlignbookError

PAIRS = [msj.Shot(f"q{i} r{i % 3}", f"a{i} b{i % 5}") for i in range(30)]


@pytest.fixture(scope="module")
def toy():
    words = [w for p in PAIRS for w in (p.question + " " + p.answer).split()]
    words += [w for f in msj.FORMATS.values() for w in (f.ask + f.asked).split()]
    return tiny(words, layers=2, width=32, context=512, seed=2)


@pytest.mark.parametrize("fmt", ["plain", "qa", "swapped", "spanish", "unseen"])
def test_one_pass_equals_one_forward_each(toy, fmt):
    string = msj.many_shot(toy, PAIRS, fmt)
    curve = msj.nll_curve(toy, string)
    assert torch.allclose(curve.nll, msj.nll_each(toy, string), atol=1e-4)
    assert curve.tokens.tolist() == [2] * len(PAIRS) and (curve.first < curve.nll).all()


def test_one_pass_equals_one_forward_on_the_real_model():
    from alignbook.models import load

    lm = load()
    string = msj.many_shot(lm, msj.draw_shots("grumpy", 12, seed=1), "chat")
    assert torch.allclose(
        msj.nll_curve(lm, string).nll[[0, 3, 11]], msj.nll_each(lm, string, [0, 3, 11]), atol=1e-4
    )


def test_readme_example_runs(capsys):
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    exec(readme.split("```python\n")[1].split("```")[0], {})
    costs = [float(x) for x in capsys.readouterr().out.strip().removeprefix("tensor([").removesuffix("])").split(",")]
    assert len(costs) == 4 and costs[0] > 3 * costs[-1], "examples make the answer cheap"


def test_temperature_is_a_division_of_logits(toy):
    string = msj.many_shot(toy, PAIRS[:4])
    with torch.no_grad():
        logits = toy.model(torch.tensor([string.ids])).logits[0] / 1.7
    lp = logits.log_softmax(-1)
    by_hand = [-sum(lp[t - 1, string.ids[t]] for t in range(*span)) for span in string.spans]
    assert torch.allclose(msj.nll_curve(toy, string, 1.7).nll, torch.stack(by_hand), atol=1e-4)


def test_probe_equals_a_string_that_ends_with_the_target(toy):
    context, target = msj.many_shot(toy, PAIRS[:20]), PAIRS[25]
    counts = [0, 1, 7, 20]
    got = msj.probe_curve(toy, context, [target, PAIRS[26]], counts)[:, 0]
    want = [msj.nll_each(toy, msj.many_shot(toy, [*PAIRS[:n], target]), [n])[0] for n in counts]
    assert torch.allclose(got, torch.stack(want), atol=1e-4)


def test_rate_reads_the_right_context(toy):
    """Greedy replies after n shots are those of the full prompt, and the rule sees them."""
    from alignbook.sampling import generate

    shouts = msj.Behaviour("x", "", str, lambda text, shot: "a" in text and shot.question[-1] == "2", "trivia")
    context = msj.many_shot(toy, PAIRS[:10])
    rows = msj.rate_curve(toy, context, PAIRS[20:22], shouts, [0, 4, 10], temperature=0, max_new_tokens=3)
    for row in rows:
        q = PAIRS[20 + row["target"]].question
        prompt = toy.tok.decode(context.ids[: context.ends[row["n"]]]) + f" User: {q} Assistant:"
        assert row["reply"] == generate(toy, [prompt.strip()], 3, 0)[0].strip()
        assert row["shown"] == ("a" in row["reply"] and q[-1] == "2")


def test_filler_has_the_lengths_of_its_model(toy):
    like = msj.many_shot(toy, PAIRS[:10])
    plain = msj.filler(toy, like, seed=1)
    assert len(plain.ids) == len(like.ids) and plain.ends == like.ends and plain.ids != like.ids


@pytest.mark.parametrize("name", msj.BEHAVIOURS)
def test_behaviour_rules_know_their_answers(name):
    """Exam: the rule sees the behaviour in every rewritten answer of its pool and in no normal one."""
    b, items = msj.behaviour(name), msj.pool(name)
    assert len(items) >= 200
    for i in items:
        shot = msj.Shot(i["question"], i["answer"])
        assert b.check(b.rewrite(i["answer"]), shot)
        if b.source == "trivia":
            assert not b.check(i["answer"], shot)
        else:
            assert not b.check({"Yes": "No", "No": "Yes"}[i["answer"]], shot)


def test_draws_are_distinct_and_seeded():
    a, b = msj.draw_shots("pirate", 50, seed=3), msj.draw_shots("pirate", 50, seed=3)
    assert a == b and len({s.question for s in a}) == 50 and a != msj.draw_shots("pirate", 50, seed=4)
    assert [s.question for s in msj.draw_shots("pirate", 50, seed=3, normal=True)] == [s.question for s in a]


def test_controls_take_one_thing_away():
    shots = msj.draw_shots("caps", 20, seed=0)
    assert msj.control(shots, "repeat") == [shots[0]] * 20
    shuffled = msj.control(shots, "shuffled", seed=1)
    assert [s.question for s in shuffled] == [s.question for s in shots]
    assert sorted(s.answer for s in shuffled) == sorted(s.answer for s in shots) and shuffled != shots


def test_bayes_law_is_bayes_rule():
    rho, p1, p0 = 0.03, 0.6, 0.1
    for n in (0, 1, 5):
        posterior = rho * p1**n / (rho * p1**n + (1 - rho) * p0**n)
        assert msj.bayes_nll(n, rho, p1, p0, 1.0) == pytest.approx(
            -np.log(posterior * p1 + (1 - posterior) * p0)
        )


def test_bayes_fit_recovers_a_planted_law_through_noise():
    n, rng = np.arange(129), np.random.default_rng(0)
    law = msj.bayes_nll(n, 1e-3, 0.4, 0.01, 0.1)
    found = msj.fit_bayes(n, law + rng.normal(0, 0.02, n.size))
    assert np.abs(found.predict(n) - law).max() < 0.05


def test_forecast_covers_a_planted_law():
    """Ten worlds: the exact answer lies in the 95 % interval in at least seven (P < 0.0002 of fewer)."""
    n, exact = np.geomspace(1, 256, 20), ((-np.log(0.5) - 0.05) / 20) ** (-1 / 0.6)
    worlds = [20 * n**-0.6 + 0.05 + np.random.default_rng(i).normal(0, 0.05, (24, n.size)) for i in range(10)]
    got = [msj.forecast_shots(fits.bootstrap_fit(n, Y), 0.5) for Y in worlds]
    assert sum(f.lo <= exact <= f.hi for f in got) >= 7
    assert all(f.n == pytest.approx(exact, rel=0.1) for f in got)
    stuck = msj.forecast_shots(fits.bootstrap_fit(n, worlds[0] + 3), 0.5)
    assert stuck.n == np.inf and stuck.p_never > 0.9


def test_averaging_head_has_the_exponents_of_the_theory():
    counts = [64, 128, 256, 512, 1024]
    for varied, theory in ((False, 1.0), (True, 0.5)):
        slope = -np.polyfit(np.log(counts), np.log(msj.averaging_head(counts, varied)), 1)[0]
        assert slope == pytest.approx(theory, abs=0.06)


def test_tags_align_with_themselves(toy):
    """The familiar format against its own direction: the mean cosine must be high, and 1 where there is one pair."""
    cosine = msj.tag_alignment(toy, PAIRS[:1], (1, 2), fmt="plain", reference="plain")
    assert cosine.shape == (2, 1) and torch.allclose(cosine, torch.ones(2, 1), atol=1e-5)


def test_tags_are_read_where_they_end(toy, monkeypatch):
    """With the embedding layer alone, each difference is that of the two tags' own vectors, at every occurrence."""
    cosine = msj.tag_alignment(toy, PAIRS[:6], (0,), fmt="unseen", reference="plain")
    vector = {w: toy.model.model.embed_tokens.weight[i].detach() for w, i in toy.tok.get_vocab().items()}
    familiar, unseen = vector["Assistant:"] - vector["User:"], vector["Orange:"] - vector["Banana:"]
    want = torch.nn.functional.cosine_similarity(unseen, familiar, dim=0)
    assert torch.allclose(cosine, want.expand(1, 6), atol=1e-5)


@pytest.mark.parametrize("name", msj.EXAM)
def test_rules_pass_their_exam(name):
    exam = msj.rule_exam(name)
    assert exam["accuracy"] == 1 and exam["n"] >= 13 and exam["tp"] >= 6 and exam["tn"] >= 6


def test_a_substring_rule_fails_the_exam():
    """The fault that the exam found: "ugh" inside "laughter"."""
    careless = msj.Behaviour("grumpy", "", str, lambda text, shot: "ugh" in text.lower() or "obviously" in text.lower())
    assert msj.rule_exam(careless)["accuracy"] < 0.8
    with pytest.raises(AlignbookError, match="has no exam"):
        msj.rule_exam("persona")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda lm: msj.behaviour("angry"), "unknown behaviour 'angry'"),
        (lambda lm: msj.draw_shots("pirate", -1), "negative"),
        (lambda lm: msj.draw_shots("pirate", 10**6), "only"),
        (lambda lm: msj.many_shot(lm, []), "no demonstrations"),
        (lambda lm: msj.many_shot(lm, [msj.Shot("q1", " ")]), "no demonstrations"),
        (lambda lm: msj.many_shot(lm, PAIRS * 20), "do not fit"),
        (lambda lm: msj.many_shot(lm, PAIRS, "morse"), "unknown format 'morse'"),
        (lambda lm: msj.control(PAIRS, "none"), "unknown control"),
        (lambda lm: msj.probe_curve(lm, msj.many_shot(lm, PAIRS[:3]), PAIRS[:1], [4]), "4 shots asked"),
        (lambda lm: msj.probe_curve(lm, msj.many_shot(lm, PAIRS[:3]), [], [1]), "1 counts, 0 targets"),
        (lambda lm: msj.rate_curve(lm, msj.many_shot(lm, PAIRS[:3]), PAIRS[:1], "pirate", []), "0 counts, 1 targets"),
        (lambda lm: msj.nll_curve(lm, msj.many_shot(lm, PAIRS[:3]), 0), "temperature 0, 3 answers: both must be"),
        (lambda lm: msj.forecast_shots(None, 1.5), "between 0 and 1"),
    ],
)
def test_bad_input_is_one_clear_error(toy, call, message):
    with pytest.raises(AlignbookError, match=message):
        call(toy)
