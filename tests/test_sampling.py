"""Log-probabilities and samples do not depend on how the work was cut up; a server gives the same numbers."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch

from alignbook import sampling
from alignbook.models import load, tiny
from alignbook.runtime import AlignbookError

WORDS = [f"w{i}" for i in range(40)]
TEXTS = [" ".join(WORDS[i : i + n]) for i, n in [(0, 3), (5, 17), (2, 8), (9, 2), (1, 30)]]


@pytest.fixture(scope="module")
def toy():
    return tiny(WORDS, layers=2, width=32, context=64, seed=3)


def by_definition(lm, ids):
    with torch.no_grad():
        return (
            lm.model(torch.tensor([ids]))
            .logits[0, :-1]
            .log_softmax(-1)
            .gather(1, torch.tensor(ids)[1:, None])[:, 0]
        )


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_logprobs_equal_the_definition_whatever_the_batch(toy, batch_size):
    for text, got in zip(TEXTS, sampling.token_logprobs(toy, TEXTS, batch_size), strict=True):
        assert torch.allclose(got, by_definition(toy, sampling.encode(toy, text)), atol=1e-5)


def test_pretrained_logprobs_do_not_depend_on_padding():
    lm = load()
    texts = [
        "The sky is blue.",
        "Rome is the capital of Italy, and Paris is the capital of France.",
        "Yes",
    ] + ["a b c"] * 2
    alone = [sampling.token_logprobs(lm, [t])[0] for t in texts if len(sampling.encode(lm, t)) > 1]
    together = sampling.token_logprobs(
        lm, [t for t in texts if len(sampling.encode(lm, t)) > 1], batch_size=5
    )
    for a, b in zip(alone, together, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_prefix_reuse_changes_nothing(toy):
    prefix = sampling.share_prefix(toy, TEXTS[4])
    prompts, answers = ["w1 w2", "w3", "w4 w5 w6"], ["w7 w8", "w9", "w1 w1"]
    cached = sampling.sequence_logprob(toy, prompts, answers, prefix=prefix, batch_size=2)
    plain = sampling.sequence_logprob(toy, [f"{TEXTS[4]} {p}" for p in prompts], answers)
    assert torch.allclose(cached, plain, atol=1e-5)
    shorter = prefix.crop(10)
    head = toy.tok.decode(shorter.ids)
    cached = sampling.sequence_logprob(toy, prompts, answers, prefix=shorter)
    assert torch.allclose(
        cached, sampling.sequence_logprob(toy, [f"{head} {p}" for p in prompts], answers), atol=1e-5
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_samples_do_not_depend_on_neighbours(toy, temperature):
    one = sampling.generate(toy, TEXTS, 6, temperature, seed=4, batch_size=1)
    assert one == sampling.generate(toy, TEXTS, 6, temperature, seed=4, batch_size=5)
    if temperature:
        assert one != sampling.generate(toy, TEXTS, 6, temperature, seed=5, batch_size=5)
        prefix = sampling.share_prefix(toy, TEXTS[1])
        with_prefix = sampling.generate(toy, TEXTS[:2], 5, temperature, seed=4, prefix=prefix)
        assert with_prefix == sampling.generate(
            toy, [f"{TEXTS[1]} {t}" for t in TEXTS[:2]], 5, temperature, seed=4
        )


def test_sampling_is_exact(toy):
    """Empirical frequencies of one sampled token match the softmax: chi-square at 1 in 10,000."""
    from scipy.stats import chisquare

    n = 3000
    with torch.no_grad():
        ids = torch.tensor([sampling.encode(toy, "w1 w2")])
        p = (toy.model(ids).logits[0, -1] / 0.5).softmax(-1).double().numpy()
    texts = sampling.generate(toy, ["w1 w2"] * n, 1, 0.5, seed=0, batch_size=500)
    names = [toy.tok.decode([i], skip_special_tokens=True) for i in range(len(p))]
    counts = [texts.count(name) for name in names if name]
    expected = [q for q, name in zip(p, names, strict=True) if name]
    rest, rest_p = n - sum(counts), 1 - sum(expected)
    assert chisquare([*counts, rest], [n * q for q in [*expected, rest_p]]).pvalue > 1e-4


def test_stop_strings_and_errors(toy):
    full = sampling.generate(toy, ["w1"], 6, 0)[0]
    stop = full.split()[2]
    assert sampling.generate(toy, ["w1"], 6, 0, stop=(stop,))[0] == full[: full.index(stop)]
    for call, message in [
        (lambda: sampling.generate(toy, ["w1"], 2, -1), "temperature"),
        (lambda: sampling.generate(toy, [""], 2), "prompt is empty"),
        (lambda: sampling.generate(toy, ["w1 " * 63], 5), "do not fit"),
        (lambda: sampling.token_logprobs(toy, ["w1"]), "at least two tokens"),
        (lambda: sampling.sequence_logprob(toy, ["w1"], [""]), "completion is empty"),
        (lambda: sampling.sequence_logprob(toy, [""], ["w1"]), "prompt is empty"),
        (lambda: sampling.share_prefix(toy, "w1"), "at least two tokens"),
        (lambda: sampling.chat(toy, [{"role": "user", "content": "hi"}]), "no chat template"),
    ]:
        with pytest.raises(AlignbookError, match=message):
            call()


def test_choice_swaps_with_the_pair(toy):
    pairs = [("w1", "w2"), ("w3", "w9 w8"), ("w5", "w5")]

    def ask(a, b):
        return f"w20 {a} w21 {b} w22"

    got = sampling.choice_probs(toy, ask, pairs, labels=("w30", "w31"))
    swapped = sampling.choice_probs(toy, ask, [(b, a) for a, b in pairs], labels=("w30", "w31"))
    assert torch.allclose(got.p, 1 - swapped.p, atol=1e-5) and torch.allclose(
        got.first, swapped.first, atol=1e-5
    )
    assert got.p[2].item() == pytest.approx(0.5, abs=1e-5)
    lp = [sampling.sequence_logprob(toy, [ask(*pairs[0])], [w]).exp() for w in ("w30", "w31")]
    other = [sampling.sequence_logprob(toy, [ask(*pairs[0][::-1])], [w]).exp() for w in ("w30", "w31")]
    by_hand = (lp[0] / (lp[0] + lp[1]) + other[1] / (other[0] + other[1])) / 2
    assert got.p[0].item() == pytest.approx(by_hand.item(), abs=1e-5)


@pytest.fixture()
def server(toy):
    """A completions server in this process, backed by the toy model."""

    class Handler(BaseHTTPRequestHandler):
        seen = []

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            Handler.seen.append((body, self.headers.get("Authorization")))
            if body["model"] != "toy":
                self.send_error(404, "no such model")
                return
            if body.get("echo"):
                ids = sampling.encode(toy, body["prompt"])
                words = body["prompt"].split(" ")
                offsets = [sum(len(w) + 1 for w in words[:i]) for i in range(len(words))]
                choice = {
                    "logprobs": {
                        "token_logprobs": [None, *by_definition(toy, ids).tolist()],
                        "text_offset": offsets,
                    }
                }
            else:
                choice = {
                    "text": sampling.generate(toy, [body["prompt"]], body["max_tokens"], body["temperature"])[
                        0
                    ]
                }
            data = json.dumps({"choices": [choice]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}/v1", Handler.seen
    http.shutdown()


def test_server_gives_the_same_answers(toy, server, monkeypatch):
    url, seen = server
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-real-key")
    remote = sampling.Server(url, "toy")
    prompts, answers = ["w1 w2 ", "w3 "], ["w4 w5", "w6"]
    local = sampling.sequence_logprob(toy, prompts, answers)
    assert torch.allclose(sampling.sequence_logprob(remote, prompts, answers), local, atol=1e-4)
    assert sampling.generate(remote, ["w1 w2"], 4, 0) == sampling.generate(toy, ["w1 w2"], 4, 0)
    assert seen[0][1] == "Bearer not-a-real-key" and "not-a-real-key" not in repr(remote)


def test_server_errors_are_one_sentence(server):
    with pytest.raises(AlignbookError, match="refused the request"):
        sampling.generate(sampling.Server(server[0], "other"), ["w1"], 1)
    with pytest.raises(AlignbookError, match="is the server running"):
        sampling.generate(sampling.Server("http://127.0.0.1:9/v1", "toy", timeout=2), ["w1"], 1)


def test_a_sliding_window_cannot_be_cropped():
    from transformers import MistralConfig, MistralForCausalLM

    shape = dict(vocab_size=9, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config = MistralConfig(num_key_value_heads=2, sliding_window=4, max_position_embeddings=64, **shape)
    lm = sampling.LM(MistralForCausalLM(config).eval(), None, "slides")
    prefix = sampling.share_prefix(lm, [3, 4, 5, 6, 7, 8, 3, 4])
    with pytest.raises(AlignbookError, match="cannot be shortened: take a model with full attention"):
        prefix.crop(5)
