"""Constitutions are checked; the loop equals a naive one and resumes to the byte; its experiments go on and sum up."""

import json
import random
import shutil
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer

import pandas as pd
import pytest
from scipy.stats import chisquare

from alignbook import cai, data, frontdesk, sampling
from alignbook.experiments import cai as loop
from alignbook.models import tiny
from alignbook.runtime import AlignbookError

RULE = {"name": "calm", "critique": "Was it calm?", "revision": "Say it calmly."}
OTHER = {"name": "kind", "critique": "Was it kind?", "revision": "Say it kindly.", "comparison": "kinder"}
SHOT = {"conversation": "Human: a\n\nAssistant:", "response": "b", "critique": "c", "revision": "d"}
VISITORS = frontdesk.items(5, seed=1)
PROMPTS = [v.prompt for v in VISITORS]
REPLIES = [frontdesk.clerk(v, random.Random(i), "rude") for i, v in enumerate(VISITORS)]


def model(seed=4):
    """A tiny decoder whose words depend on all that it reads, not on the noise alone."""
    book = cai.constitution()
    texts = [*frontdesk.words(), cai.worked_examples(book), *(p.critique + " " + p.revision for p in book.principles)]
    lm = tiny(sorted({w for t in texts for w in t.split()}), layers=2, width=32, context=1024, seed=seed)
    for w in lm.model.model.layers.parameters():
        w.data.mul_(15 if w.dim() == 2 else 1)
    lm.model.model.norm.weight.data.mul_(20)
    return lm


@pytest.fixture(scope="module")
def toy():
    return model()


def run(lm, out=None, rounds=2, prompts=PROMPTS, replies=REPLIES, book=None, critique="own", **more):
    more = {"temperature": 0.7, "max_new_tokens": 5, "seed": 3} | more
    return cai.critique_revise(lm, prompts, replies, book or cai.constitution(), rounds, critique, out=out, **more)


def shown(*examples):
    return json.dumps({"principles": [RULE], "examples": examples})


# --- constitutions


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.json", "", "a.json is no JSON .line 1: .*: mend it"),
        ("a.jsonl", "", "a.jsonl has no principles: give at least one"),
        ("a.json", "[]", "a.json has no principles: give at least one"),
        ("a.json", "{}", "has no principles"),
        ("a.json", '{"principles": []}', "has no principles"),
        ("a.json", json.dumps({"principles": RULE}), "has no principles"),
        ("a.json", json.dumps([RULE, OTHER], indent=1)[:-40], r"is no JSON .line \d+: "),
        ("a.json", "null", "holds a NoneType: a constitution is a list"),
        ("a.json", '"be kind"', "holds a str: a constitution is a list of principles or an object"),
        ("a.json", "7", "holds a int"),
        ("a.json", json.dumps([RULE, "be kind"]), "principle 2 has no 'name': give it a text"),
        ("a.jsonl", json.dumps(RULE) + "\n" + json.dumps([OTHER]), "principle 2 has no 'name'"),
        ("a.json", '[{"name": "höflich"}]'.encode("latin-1"), "not UTF-8 .byte 12.: save"),
        ("a.json", json.dumps([RULE]).encode("utf-16"), "not UTF-8 .byte 0.: save it as UTF-8"),
        ("a.json", shown(SHOT, SHOT | {"critique": ""}), "example 2 has no 'critique'"),
        ("a.json", shown("b"), "example 1 has no 'conversation': every example needs"),
        ("a.json", shown({"conversation": "a", "response": "b"}), "example 1 has no 'critique'"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_clear_error(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AlignbookError, match=message) as e:
        cai.constitution(tmp_path / name)
    assert str(tmp_path / name) in str(e.value) and "\n" not in str(e.value), "it names the place"


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "the list has no principles"),
        ([RULE, OTHER | {"name": "calm"}], "principle 'calm' repeats 'calm': remove one"),
        ([RULE, RULE | {"name": "still"}], "principle 'still' repeats 'calm': remove one"),
        ([{k: v for k, v in RULE.items() if k != "name"}], "principle 1 has no 'name'"),
        ([RULE, {k: v for k, v in OTHER.items() if k != "critique"}], "principle 2 has no 'critique': give it a text"),
        ([{k: v for k, v in RULE.items() if k != "revision"}], "principle 1 has no 'revision'"),
        ([RULE | {"revision": " \n"}], "principle 1 has no 'revision'"),
        ([RULE | {"critique": 5}], "principle 1 has no 'critique'"),
        ([RULE | {"weight": 2}], "principle 'calm' has 'weight': known are comparison, critique, name, revision"),
        ([None], "principle 1 has no 'name'"),
    ],
)
def test_bad_principles_are_one_clear_error(rows, message):
    with pytest.raises(AlignbookError, match=message):
        cai.constitution(rows)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(AlignbookError, match="cannot read the constitution .*none.json: No such file"):
        cai.constitution(tmp_path / "none.json")
    with pytest.raises(AlignbookError, match="Is a directory"):
        cai.constitution(tmp_path)


def test_a_readers_own_files_are_read_in_every_form(tmp_path):
    rows, long = [RULE, OTHER], {"critique": "critique_request", "revision": "revision_request"}
    longer = [{long.get(k, k): v for k, v in r.items()} for r in rows]
    about = {"name": "mine", "source": "me", "licence": "CC0-1.0", "examples": [SHOT]}
    lines = "\n\n".join(json.dumps(r) for r in longer) + "\n"
    (tmp_path / "list.json").write_text(json.dumps(rows))
    (tmp_path / "object.json").write_text(json.dumps({**about, "principles": rows}))
    (tmp_path / "lines.jsonl").write_text(lines)
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.replace("\n", "\r\n").encode())
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(rows).encode())
    want = (cai.Principle(**RULE), cai.Principle(**OTHER))
    for name in ("list.json", "lines.jsonl", "bom.jsonl", "bom.json"):
        book = cai.constitution(str(tmp_path / name))
        assert book.principles == want and book.name == name.partition(".")[0] and book.source.endswith(name)
        assert book.digest == cai.constitution(rows).digest
    book = cai.constitution(tmp_path / "object.json")
    assert (book.name, book.source, book.licence, book.examples) == ("mine", "me", "CC0-1.0", (SHOT,))
    assert book.principles == want and book.digest != cai.constitution(rows).digest, "models see the examples"
    assert cai.constitution(rows).name == "own" and cai.constitution([RULE]).digest != cai.constitution([OTHER]).digest
    odd = RULE | {"critique": "Höflich? <b>&\u2028 {fact} \\n \u202e"}
    assert cai.constitution([odd]).principles[0].critique == odd["critique"]


def test_the_papers_principles_and_whose_they_are():
    book, about = cai.constitution("bai2022"), data.attributions()["cai_principles"]
    assert len(book.principles) == 16 == len({p.name for p in book.principles})
    assert all(p.critique and p.revision for p in book.principles) and len({p.critique for p in book.principles}) == 16
    assert "Bai et al. 2022" in book.source and "langchain" in book.source and "langchain" in about["source"].lower()
    assert book.licence == "MIT" and "MIT" in about["licence"]


def test_the_front_desks_own_constitution():
    book = cai.constitution()
    assert len(book.principles) == 8 == len({p.comparison for p in book.principles} - {""}) and len(book.examples) == 3
    for x in book.examples:
        assert frontdesk.harm()([x["response"], x["revision"]]) == [1, 0], "the shots show what is asked for"
        assert not any(p in x["conversation"] for p in frontdesk.PLACES), "and give no answer away"
    assert book.subset(3).principles == book.principles[:3] and book.subset(3).examples == book.examples
    for n in (0, -1, 9):
        with pytest.raises(AlignbookError, match=f"{n} principles asked of 'front-desk', which has 8"):
            book.subset(n)


def test_principles_are_drawn_uniformly_and_independently():
    book = cai.constitution()
    drawn = [p.name for p in book.draw(8000, seed=1)]
    assert drawn == [p.name for p in book.draw(8000, seed=1)] != [p.name for p in book.draw(8000, seed=2)]
    assert len(set(drawn)) == 8 and chisquare([*Counter(drawn).values()]).pvalue > 1e-4
    pairs = Counter(zip(drawn[::2], drawn[1::2], strict=True))
    assert len(pairs) == 64 and chisquare([*pairs.values()]).pvalue > 1e-4
    rounds = Counter(tuple(p.name for p in book.draw(2, seed=f"x{k}")) for k in range(4000))
    assert len(rounds) == 64 and chisquare([*rounds.values()]).pvalue > 1e-4, "seeds are independent too"


# --- the loop


def test_prompts_are_those_of_the_paper():
    p = cai.Principle("n", "What is bad?", "Make it good.")
    asked = "Human: Hi\n\nAssistant: Go!\n\nCritiqueRequest: What is bad?\n\nCritique:"
    assert cai.critique_prompt("Human: Hi\n\nAssistant:", "Go!", p) == asked
    full = cai.revision_prompt("Human: Hi\n\nAssistant:", "Go!", p, "Rude.")
    assert full == asked + " Rude.\n\nRevisionRequest: Make it good.\n\nRevision:"
    direct = cai.revision_prompt("Human: Hi\n\nAssistant:", "Go!", p)
    assert direct == "Human: Hi\n\nAssistant: Go!\n\nRevisionRequest: Make it good.\n\nRevision:"
    book = cai.Constitution("x", (p,), (SHOT,))
    shot = "Human: a\n\nAssistant: b\n\nCritiqueRequest: What is bad?\n\nCritique: c\n\nRevisionRequest: Make it good."
    assert cai.worked_examples(book) == shot + "\n\nRevision: d\n\n###\n\n"
    assert "Critique" not in cai.worked_examples(book, critique=False)


def naive(lm, critique, rounds=2, seed=3):
    """The loop by hand: one long prompt at a time, no shared prefix."""
    book, shots = cai.constitution(), ""
    for x in book.examples:
        shots += f"{x['conversation']} {x['response']}"
        if critique != "none":
            shots += f"\n\nCritiqueRequest: {book.principles[0].critique}\n\nCritique: {x['critique']}"
        shots += f"\n\nRevisionRequest: {book.principles[0].revision}\n\nRevision: {x['revision']}\n\n###\n\n"

    def say(prompts, seed):
        got = sampling.generate(lm, [shots + p for p in prompts], 5, 0.7, seed, ("\n",), batch_size=1)
        return [g.strip() for g in got]

    n, rows, texts = len(PROMPTS), [], list(REPLIES)
    for i in range(n):
        rows.append({"item": i, "round": 0, "principle": "", "critique": "", "text": texts[i], "empty": False})
    for k in range(1, rounds + 1):
        rules, talks = book.draw(n, cai.digest([seed, k], 8)), [f"{p} {t}" for p, t in zip(PROMPTS, texts, strict=True)]
        found = [""] * n
        if critique != "none":
            asked = [f"{talks[i]}\n\nCritiqueRequest: {rules[i].critique}\n\nCritique:" for i in range(n)]
            found = say(asked, 1000 * seed + 2 * k)
            used = [found[(i + 1) % n] if critique == "irrelevant" else found[i] for i in range(n)]
            talks, found = [f"{a} {c}" for a, c in zip(asked, used, strict=True)], used
        asked = [f"{talks[i]}\n\nRevisionRequest: {rules[i].revision}\n\nRevision:" for i in range(n)]
        new = say(asked, 1000 * seed + 2 * k + 1)
        texts = [a or b for a, b in zip(new, texts, strict=True)]
        for i in range(n):
            row = {"item": i, "round": k, "principle": rules[i].name, "critique": found[i], "text": texts[i]}
            rows.append(row | {"empty": new[i] == ""})
    return rows


@pytest.mark.parametrize("critique", cai.CRITIQUE)
def test_the_loop_equals_a_naive_one(toy, critique):
    got = run(toy, critique=critique, batch_size=3)
    assert got == naive(toy, critique)
    assert all(r["critique"] == "" for r in got if critique == "none")
    assert len({r["text"] for r in got}) > len(PROMPTS), "texts change"


def test_kinds_differ_and_what_a_model_reads_matters(toy):
    kinds = [[r["text"] for r in run(toy, critique=c, rounds=1)] for c in cai.CRITIQUE]
    assert kinds[0] != kinds[1] != kinds[2] != kinds[0]
    assert run(toy, rounds=1) != run(model(seed=5), rounds=1) and run(toy, rounds=1) != run(toy, rounds=1, seed=4)


def scripted(monkeypatch, reply):
    """`generate` is replaced by reply(call, item, prompt); returns the prompts of each call."""
    calls = []

    def generate(lm, prompts, *_, **__):
        calls.append(prompts)
        return [reply(len(calls) - 1, i, p) for i, p in enumerate(prompts)]

    monkeypatch.setattr(cai, "generate", generate)
    return calls


BOOK = cai.Constitution("plain", (cai.Principle("p", "Bad?", "Good!"),))


def test_an_irrelevant_critique_is_the_next_items(toy, monkeypatch):
    calls = scripted(monkeypatch, lambda call, i, prompt: f" said {call} {i} ")
    rows = run(toy, critique="irrelevant", book=BOOK, rounds=1)
    assert [r["critique"] for r in rows[5:]] == [f"said 0 {(i + 1) % 5}" for i in range(5)]
    for i, prompt in enumerate(calls[1]):
        assert prompt == f"{calls[0][i]} said 0 {(i + 1) % 5}\n\nRevisionRequest: Good!\n\nRevision:"
    assert [r["text"] for r in rows[5:]] == [f"said 1 {i}" for i in range(5)]


def test_direct_revision_never_asks_for_a_critique(toy, monkeypatch):
    calls = scripted(monkeypatch, lambda call, i, prompt: "fine")
    rows = run(toy, critique="none", rounds=3)
    assert len(calls) == 3 and not any("Critique" in p for c in calls for p in c)
    assert {r["critique"] for r in rows} == {""}


def test_an_empty_revision_keeps_the_old_text_and_is_counted(toy, monkeypatch):
    scripted(monkeypatch, lambda call, i, prompt: " \t" if call == 3 and i in (1, 4) else f"r{call} {i}")
    rows = run(toy, book=BOOK, rounds=3)
    by = {(r["round"], r["item"]): r for r in rows}
    assert [k for k, r in by.items() if r["empty"]] == [(2, 1), (2, 4)]
    assert by[2, 1]["text"] == by[1, 1]["text"] == "r1 1" and by[2, 0]["text"] == "r3 0" and by[3, 1]["text"] == "r5 1"
    assert len(cai.revisions_for(rows, PROMPTS)) == 13, "what was not revised is not trained on"


@pytest.mark.parametrize("dies", [2, 3])  # the calls of round 2: critique, revision
def test_a_killed_loop_goes_on_to_the_same_bytes(toy, tmp_path, monkeypatch, dies):
    whole, part, real, calls = tmp_path / "whole.jsonl", tmp_path / "part.jsonl", sampling.generate, []
    rows = run(toy, whole, rounds=3)

    def generate(*args, **more):
        calls.append(1)
        if len(calls) - 1 == dies:
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr(cai, "generate", generate)
    with pytest.raises(KeyboardInterrupt):
        run(toy, part, rounds=3)
    assert part.read_bytes() == whole.read_bytes()[: part.stat().st_size], "round 1 is kept"
    assert len(part.read_text().splitlines()) == 1 + 2 * len(PROMPTS)
    dies, before = None, len(calls)
    assert run(toy, part, rounds=3) == rows and part.read_bytes() == whole.read_bytes()
    assert len(calls) - before == 4, "round 1 is not sampled again"


def test_more_rounds_can_be_added_and_fewer_read(toy, tmp_path, monkeypatch):
    out = tmp_path / "deep" / "t.jsonl"
    run(toy, out, rounds=1)
    more = run(toy, out, rounds=3)
    assert more == run(toy, rounds=3)
    kept, calls = out.read_bytes(), scripted(monkeypatch, lambda *_: "x")
    assert run(toy, out, rounds=1) == more[:10] and run(toy, out, rounds=3) == more and not calls
    assert out.read_bytes() == kept and not [p for p in out.parent.iterdir() if p != out]
    assert [json.loads(x) for x in kept.decode().splitlines()[1:]] == more, "the transcript holds the rows"
    assert run(toy, tmp_path / "none.jsonl", rounds=0) == more[:5] and not (tmp_path / "none.jsonl").exists()


def test_a_foreign_transcript_is_refused(toy, tmp_path):
    out = tmp_path / "t.jsonl"
    run(toy, out, rounds=1)
    kept = out.read_bytes()
    for change in (
        {"seed": 4}, {"temperature": 0.6}, {"max_new_tokens": 6}, {"critique": "none"},
        {"book": cai.constitution().subset(7)}, {"lm": model(seed=5)},
        {"prompts": [*PROMPTS[:-1], PROMPTS[0]]}, {"replies": [*REPLIES[:-1], "Ten."]},
        {"prompts": PROMPTS[:-1], "replies": REPLIES[:-1]},
    ):  # fmt: skip
        with pytest.raises(AlignbookError, match="holds another run's transcript: choose another file or delete it"):
            run(change.pop("lm", toy), out, **change)
    assert out.read_bytes() == kept and run(toy, out, rounds=1, batch_size=1) == run(toy, rounds=1)


@pytest.mark.parametrize("keep", [-3, -200, 40, 0], ids=["end", "a row or two", "head", "all"])
def test_a_damaged_transcript_is_refused(toy, tmp_path, keep):
    out = tmp_path / "t.jsonl"
    run(toy, out, rounds=1)
    out.write_bytes(out.read_bytes()[:keep])
    with pytest.raises(AlignbookError, match="another run's transcript"):
        run(toy, out, rounds=2)
    out.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AlignbookError, match="another run's transcript"):
        run(toy, out, rounds=2)


@pytest.fixture()
def server(toy):
    """A completions server in this process: greedy, backed by the toy model."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(body)
            asked = [body["prompt"]], body["max_tokens"], body["temperature"]
            text = sampling.generate(toy, *asked, stop=tuple(body["stop"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"text": text[0]}]}).encode())

        def log_message(self, *args):
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield sampling.Server(f"http://127.0.0.1:{http.server_port}/v1", "toy"), seen
    http.shutdown()


def test_a_server_goes_through_the_same_loop(toy, server, tmp_path):
    remote, seen = server
    part = dict(prompts=PROMPTS[:2], replies=REPLIES[:2], temperature=0)
    out = tmp_path / "t.jsonl"
    assert run(remote, out, **part) == run(toy, **part)
    assert len(seen) == 8 and all(b["stop"] == ["\n"] and b["max_tokens"] == 5 and b["model"] == "toy" for b in seen)
    assert all(b["prompt"].startswith(cai.worked_examples(cai.constitution())) for b in seen)
    assert run(remote, out, **part) == run(toy, **part) and len(seen) == 8, "resumed, not asked again"
    with pytest.raises(AlignbookError, match="is the server running"):
        run(sampling.Server("http://127.0.0.1:9/v1", "toy", timeout=2), **part)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda lm: run(lm, critique="both"), "unknown kind of critique 'both': choose one of own, none, irrelevant"),
        (lambda lm: run(lm, critique=True), "unknown kind of critique True"),
        (lambda lm: run(lm, replies=REPLIES[:-1]), "5 prompts, 4 responses, 2 rounds: one response a prompt"),
        (lambda lm: run(lm, prompts=[], replies=[]), "0 prompts, 0 responses"),
        (lambda lm: run(lm, rounds=-1), "-1 rounds"),
        (lambda lm: run(lm, temperature=-1), "temperature -1 is negative"),
        (lambda lm: run(lm, max_new_tokens=1024), "do not fit"),
        (lambda lm: cai.revisions_for(run(lm, rounds=0), PROMPTS), "no revision to train on: run critique_revise"),
        (lambda lm: cai.revision_pairs(run(lm, rounds=0), PROMPTS), "there is no pair to prefer"),
        (lambda lm: cai.revisions_for([], []), "no revision to train on"),
    ],
)
def test_bad_input_is_one_clear_error(toy, call, message):
    with pytest.raises(AlignbookError, match=message):
        call(toy)


def test_training_rows_of_the_two_ways_to_learn_from_revisions():
    def row(item, k, text, empty=False):
        return {"item": item, "round": k, "principle": "p", "critique": "c", "text": text, "empty": empty}

    rows = [row(0, 0, "a"), row(1, 0, "b"), row(2, 0, "c")]
    rows += [row(0, 1, "a1"), row(1, 1, "b", True), row(2, 1, "c1")]
    rows += [row(0, 2, "a2"), row(1, 2, "b", True), row(2, 2, "c")]
    asked = ["P0", "P1", "P2"]

    def got(*upto):
        return [(r["prompt"], r["completion"]) for r in cai.revisions_for(rows, asked, *upto)]

    assert got(1) == [("P0", " a1"), ("P2", " c1")]
    assert got() == got(2) == [*got(1), ("P0", " a2"), ("P2", " c")], "all rounds (§3.2), none that was empty"
    assert cai.revision_pairs(rows, asked) == [{"prompt": "P0", "chosen": " a2", "rejected": " a"}], "only what changed"
    with pytest.raises(AlignbookError, match="no revision"):
        cai.revisions_for([r for r in rows if r["round"] == 0 or r["empty"]], asked)


# --- bad input that was once let through


def file(path, text):
    path.write_text(text)
    return path


FAULTS = {
    "one irrelevant item": (
        lambda lm, d: run(lm, prompts=PROMPTS[:1], replies=REPLIES[:1], critique="irrelevant"), "irrelevant"
    ),
    "other weights": (lambda lm, d: run(lm, d / "t") and run(model(seed=5), d / "t"), "another run's transcript"),
    "scalar transcript": (lambda lm, d: run(lm, file(d / "t", "5\n")), "another run's transcript"),
    "upto 0": (lambda lm, d: cai.revisions_for(run(lm, rounds=1), PROMPTS, upto=0), "no revision to train on"),
    "comparison 5": (lambda lm, d: cai.constitution([RULE | {"comparison": 5}]), "comparison"),
    "key 1": (lambda lm, d: cai.constitution([RULE | {1: "x"}]), "principle 'calm' has '1'"),
    "examples null": (
        lambda lm, d: cai.constitution(file(d / "a", json.dumps({"principles": [RULE], "examples": None}))), "example"
    ),
    "jsonl line": (lambda lm, d: cai.constitution(file(d / "a.jsonl", json.dumps(RULE) + '\n{"name": ')), "line 2"),
}  # fmt: skip


@pytest.mark.parametrize("call, message", FAULTS.values(), ids=FAULTS)
def test_bad_input_is_refused(toy, tmp_path, call, message):
    with pytest.raises(AlignbookError, match=message):
        call(toy, tmp_path)


def test_a_line_separator_inside_a_reply(toy, tmp_path):
    """U+2028 and U+0085 end a line for `splitlines`, not for JSON."""
    replies = [*REPLIES[:-1], "You fool.\u2028Ten."]
    run(toy, tmp_path / "t.jsonl", rounds=1, replies=replies)
    run(toy, tmp_path / "t.jsonl", rounds=2, replies=replies)


# --- the experiments at toy

TOY = loop.LoopSettings()
STORED = (loop.start, loop.helpful_only, loop.sl_cai, loop.ai_feedback, loop.rl_cai)


def forget():
    for stage in STORED:
        stage.cache_clear()


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """All three experiments, once; with the visitors that were drawn: (n, seed, red)."""
    cache, drawn, real = tmp_path_factory.mktemp("cache"), set(), frontdesk.items

    def items(n, seed=0, red=True):
        drawn.add((n, seed, red))
        return real(n, seed, red)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNBOOK_CACHE", str(cache))
        patch.setattr(frontdesk, "items", items)
        forget()
        found = {e.name: {tuple(c.values()): e(TOY, **c) for c in e.cells(TOY)} for e in EXPERIMENTS}
    forget()
    return cache, found, drawn


EXPERIMENTS = (loop.exp_revisions, loop.exp_feedback, loop.exp_stages)


@pytest.fixture()
def again(ran, tmp_path, monkeypatch):
    """A copy of that cache for a process that has nothing in memory."""
    monkeypatch.setenv("ALIGNBOOK_CACHE", str(tmp_path))
    shutil.copytree(ran[0], tmp_path, dirs_exist_ok=True)
    forget()
    yield tmp_path
    forget()


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def table(exp, cells):
    rows = []
    for key, got in cells.items():
        cell = dict(zip(exp.cells(TOY)[0], key, strict=True))
        rows += [cell | r for r in (got[0] if isinstance(got, tuple) else got)]
    assert all(isinstance(v, (int, float, str, type(None))) for r in rows for v in r.values())
    return pd.DataFrame(rows)


def test_a_second_process_finds_what_the_first_has_made(ran, again):
    before = contents(again)
    for exp, cell in zip(EXPERIMENTS, (("own", 0), ("SL-CAI pairs", 0), ("RL-CAI", 0)), strict=True):
        assert exp.fn(TOY, *cell) == ran[1][exp.name][cell]
    assert contents(again) == before and len(before) > 20


def test_a_killed_rl_stage_goes_on_to_the_same_rows(ran, again, monkeypatch):
    home, real = loop.home(TOY, 0, "."), loop.answer
    shutil.rmtree(home / "rl-cai")
    (home / "rl-path.json").unlink()

    def answer(s, lm, visitors, seed):
        if "2" in lm.name.partition("@")[2]:  # at the second checkpoint
            raise KeyboardInterrupt
        return real(s, lm, visitors, seed)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "answer", answer)
        loop.exp_stages.fn(TOY, "RL-CAI", 0)
    assert [*json.loads((home / "rl-path.json").read_text())] == ["1"]
    forget()
    assert loop.exp_stages.fn(TOY, "RL-CAI", 0) == ran[1][loop.exp_stages.name]["RL-CAI", 0]


def test_other_settings_live_elsewhere(again):
    homes = {loop.home(s, seed, "x") for s in (TOY, TOY.but(beta=0.1), TOY.at("cpu"), TOY.at("gpu")) for seed in (0, 1)}
    assert len(homes) == 8 and all(h.is_relative_to(again) for h in homes)


def trained_on(s, seed):
    """(n, seed, red) of every draw of visitors that some stage trains on."""
    v, red, greets = s.visitors, True, False
    draws = {(v, 100 + seed, red), (v, 200 + seed, greets), (2 * v, 300 + seed, red)}
    return draws | {d for r in (red, greets) for d in (
        (v, 400 + seed, r), (2 * s.steps, 500 + seed, r), (4 * s.steps, 10_000 + seed, r))}  # fmt: skip


def overlap(s):
    """Exam visitors that are trained on, and those of them that some stage of the same run meets."""
    exams = {(s.test, 9_000, True), (s.test, 9_000, False)} | {(s.test, 9_500 + k, True) for k in range(s.seeds)}
    lessons = set().union(*(trained_on(s, k) for k in range(s.seeds)))
    asked, taught = ({i.prompt for d in draws for i in frontdesk.items(*d)} for draws in (exams, lessons))
    assert len(asked) > s.test and len(taught) > s.visitors
    return asked & taught


def test_the_list_of_draws_is_complete(ran):
    exams = {(TOY.test, 9_000, True), (TOY.test, 9_000, False), (TOY.test, 9_500, True)}
    assert ran[2] == trained_on(TOY, 0) | exams


@pytest.mark.parametrize("tier", ["toy", "cpu", "gpu"])
def test_held_out_visitors_are_met_by_no_stage(tier):
    """Ten times the visitors cannot all be different: at gpu a few prompts in a hundred come twice."""
    s = TOY.at(tier)
    assert len(overlap(s)) <= (0.1 * 2 * s.test if tier == "gpu" else 0)


@pytest.fixture(scope="module")
def sums(ran):
    return {e.name: e.summarise(table(e, ran[1][e.name]), TOY) for e in EXPERIMENTS}


def test_summaries_are_of_the_rows_and_intervals_hold_their_values(ran, sums):
    for found in sums.values():
        assert found
        for name, m in found.items():
            assert m["lo"] <= m["value"] <= m["hi"] and m["n"] > 0 and m["unit"], name
    said, found = table(loop.exp_revisions, ran[1]["revisions"]), sums["revisions"]
    for kind, k in said[["kind", "round"]].drop_duplicates().itertuples(index=False):
        g = said[(said.kind == kind) & (said["round"] == k)]
        for axis in ("harm", "help", "evasive"):
            m = found[f"{axis}/{kind}/{k}"]
            assert m["n"] == len(g) == TOY.visitors and m["value"] == pytest.approx(g[axis].mean())
    assert {k.split("/")[1] for k in found} == set(cai.CRITIQUE)


def test_one_revisions_accuracy_is_counted_by_hand():
    """q: of replies rude before, the share that is not rude after and lost no fact."""
    before, after = [(1, 1), (1, 1), (1, 0), (0, 1), (1, 1)], [(0, 1), (0, 0), (0, 0), (1, 1), (1, 1)]
    rows = [{"kind": "own", "seed": 0, "item": i, "round": k, "harm": h, "help": f, "evasive": 0}
            for k, said in ((0, before), (1, after)) for i, (h, f) in enumerate(said)]  # fmt: skip
    found = loop.revision_metrics(pd.DataFrame(rows), TOY)["q/own"]
    assert (found["value"], found["n"]) == (0.5, 4), "items 0 and 2 of 0, 1, 2, 4"


def test_stages_answer_the_same_visitors_and_the_last_update_counts(ran, sums):
    cells = ran[1][loop.exp_stages.name]
    df = table(loop.exp_stages, cells)
    assert [*dict.fromkeys(df.stage)] == [*loop.STAGES]
    for (stage, _), (rows, texts) in cells.items():
        assert len(rows) == len(texts) == 2 * TOY.test * (2 if stage == "RL-CAI" else 1)
        asked = {i.prompt for i in loop.held_out(TOY)}
        assert {t["prompt"] for t in texts} == asked
    found = sums["stages"]
    last = df[(df.stage == "RL-CAI") & (df.step == TOY.rl_steps) & df.red]
    assert found["words/RL-CAI/provoking"]["value"] == pytest.approx(last.words.mean())
    assert found["harm/RL-CAI/provoking"]["n"] == TOY.test
    duels = Counter(k.partition("/")[0] for k in found if k.startswith("duel"))
    assert duels == {"duel": 3 * len(loop.DUELS), "duel at equal length": 3 * len(loop.DUELS)}


def test_known_pairs_have_a_known_order():
    visitors, pairs, truth = loop.known_pairs(20, 1)
    for v, pair, first in zip(visitors, pairs, truth, strict=True):
        polite, rude = pair if first else pair[::-1]
        marks = frontdesk.axes(polite, v), frontdesk.axes(rude, v)
        assert [m["harm"] for m in marks] == [0, 1] and [m["help"] for m in marks] == [1, 1]
    assert sum(truth) == 10, "an answer that always names the first place is right half of the time"
