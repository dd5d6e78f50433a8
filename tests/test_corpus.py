"The labels of the generated corpora are true of their texts."

import random

import pytest

from alignbook import corpus, worlds
from alignbook.corpus import PARTITIONS, RELATIONS, content, facts, order_documents, words
from alignbook.data import mild
from alignbook.models import tiny
from alignbook.runtime import AlignbookError
from alignbook.worlds import CODES, GROUPS, ORDERS


def partners(n=24):
    found = facts(n)
    return list(zip(found[: -len(RELATIONS)], found[len(RELATIONS) :], strict=True))


def test_partitions_are_what_they_are_called():
    for fact, other in partners():
        docs = order_documents(fact, other)
        counts = {p: sum(d.partition == p for d in docs) for p in (*PARTITIONS, "other")}
        assert set(counts.values()) == {3}
        relation_words = content(RELATIONS[fact.relation]["query"].format(a="", b=""))
        for d in docs:
            a, b = d.text.find(fact.a), d.text.find(fact.b)
            a, b = (d.text.lower().find(x.lower()) for x in (fact.a, fact.b)) if d.partition == "flipped" else (a, b)
            truth = {"rewording": 0 <= a < b, "changed": 0 <= a < b, "removed": b < 0 <= a, "flipped": 0 <= b < a,
                     "name": a < 0 <= b}.get(d.partition, a < 0 and b < 0)  # fmt: skip
            assert truth, d
            assert (d.fact == other.id) == (d.partition == "other")
            if d.partition == "name":
                assert not relation_words & content(d.text), d
        # a reworded sentence keeps the relation, a changed one loses the word that carries it
        lost = [relation_words - content(d.text) for d in docs if d.partition == "changed"]
        assert all(lost)


def test_queries_end_in_the_second_phrase_in_both_languages():
    for fact, _ in partners():
        for language in ("en", "fr"):
            prompt, completion = fact.query(language).pair
            assert completion == " " + fact.b and fact.a in prompt and fact.b not in prompt
        both = corpus.parallel_documents(fact)
        labels = {(x, y) for x in ("en", "fr") for y in ("forward", "flipped")}
        assert len(both) == 4 and {(d.language, d.partition) for d in both} == labels
        for d in both:
            a, b = (d.text.lower().find(x.lower()) for x in (fact.a, fact.b))
            assert (a < b) == (d.partition == "forward") and min(a, b) >= 0
        en, fr = (content(next(d.text for d in both if d.language == x)) for x in ("en", "fr"))
        assert en & fr <= content(f"{fact.a} {fact.b} la"), "the two languages share names and nothing else"


def test_entities_are_never_shared_between_facts():
    found = facts(60)
    entities = [e for f in found for e in (f.a, f.b)]
    assert len(set(entities)) == 120
    low = [e.lower() for e in entities]
    assert not any(x != y and x in y for x in low for y in low), "no name may hide inside another"


def test_same_seed_same_text_other_seed_other_text():
    def everything(seed):
        docs = [d for f in facts(8, seed) for d in order_documents(f)] + corpus.fillers(20, seed)
        docs += [d for item in worlds.abstraction(5, seed) for d in item.values()]
        w, rng = worlds.world(seed), random.Random(seed)
        return docs + [w.document(rng) for _ in range(50)] + corpus.planted(corpus.quotes(), 12, seed=seed)

    assert everything(3) == everything(3)
    assert everything(3) != everything(4)


def test_abstraction_shares_words_or_meaning():
    for item in worlds.abstraction(200):
        query = content(item["query"].text)
        assert len(query) == 5
        assert not content(item["paraphrase"].text) & query
        assert not content(item["unrelated"].text) & query
        assert not content(item["unrelated"].text) & content(item["paraphrase"].text)
        assert content(item["surface"].text) == content(item["same"].text) == query
        assert words(item["surface"].text.lower()) != words(item["same"].text.lower())
        assert content(item["neighbour"].text) & query == query - {words(item["query"].pair[1])[0]} - {
            words(item["query"].text)[3]
        }


def test_synonyms_are_a_bijection():
    """Each concept has its own word in each register, and no word stands for two things."""
    forms = [*worlds.AGENTS, *worlds.ADJECTIVES, *worlds.SIZES, *worlds.WHEN, *(x for row in worlds.DEEDS for x in row)]
    flat = [w for pair in forms for w in pair]
    assert all(len(pair) == 2 for pair in forms) and len(set(flat)) == len(flat)


@pytest.fixture(scope="module")
def world():
    return worlds.world(1)


def test_the_tongues_share_what_they_say_they_share(world):
    for group in world.groups.values():
        for fact in group:
            said = {c: content(world.say(fact, c).text) for c in CODES}
            a, v, o = fact
            person, thing = world.lexicon["en"]["a"][a], world.lexicon["en"]["o"][v][o]
            assert not said["en"] & said["synonym"]
            assert said["en"] & said["near"] == {person, thing}
            assert said["en"] & said["far"] == {person} == said["near"] & said["far"]
            for c in CODES:
                order = {k: world.say(fact, c, k).text.split() for k in ORDERS}
                lex = world.lexicon[c]
                a_word, v_word, o_word = lex["a"][a], lex["v"][v], lex["o"][v][o]
                for k in ("forward", "rewording", "changed"):
                    assert order[k].index(a_word) < order[k].index(o_word)
                assert (v_word in order["changed"]) is False and sorted(order["surface"]) == sorted(order["forward"])
                for k in ("flipped", "surface"):
                    assert order[k].index(a_word) > order[k].index(o_word)
                assert o_word not in order["removed"] and a_word not in order["name"] and v_word not in order["name"]
                prompt, completion = world.say(fact, c, completion=True).pair
                assert completion == " " + o_word and o_word not in prompt.split() and a_word in prompt.split()


def test_groups_keep_their_facts_to_their_tongue(world):
    where = {f"{a}-{v}": g for g, fs in world.groups.items() for a, v, _ in fs}
    assert len(where) == 120 and [len(world.groups[g]) for g in GROUPS] == [60, 12, 12, 12, 24]
    rng, met = random.Random(0), {}
    for _ in range(6000):
        d = world.document(rng)
        met.setdefault(where[d.fact], set()).add(d.language)
    assert met == {"all": set(CODES), "en": {"en"}, "near": {"near"}, "far": {"far"}}


def test_every_word_is_in_the_vocabulary(world):
    lm, rng = tiny(world.vocabulary, layers=1, width=8, heads=2), random.Random(5)
    unknown = lm.tok.convert_tokens_to_ids("<unk>")
    assert all(unknown not in ids for ids in lm.tok([world.document(rng).text for _ in range(3000)]).input_ids)
    things = [x for code in CODES for row in world.lexicon[code]["o"] for x in row]
    assert set(things) <= set(world.vocabulary), "also of things that no fact is about"
    docs = [*corpus.fillers(50), *corpus.quotes("famous")]
    lm = tiny(corpus.vocabulary(docs), layers=1, width=8, heads=2)
    assert all(unknown not in ids for ids in lm.tok([d.spaced for d in docs]).input_ids)


def test_quotes_are_planted_once():
    for kind in corpus.QUOTES:
        asked = corpus.quotes(kind)
        docs = corpus.planted(asked, 40)
        assert len(docs) == 40 and len({d.text for d in docs}) == 40
        for q in asked:
            assert [d.fact for d in docs if q.text in d.text] == [q.fact]
            assert "".join(q.pair) == q.text


@pytest.mark.parametrize("name", corpus.PERSONAS)
def test_descriptions_share_the_role_and_decoys_the_words(name):
    query, docs = corpus.persona(name)
    asked = content(query.text)
    shared = {p: [len(content(d.text) & asked) for d in docs if d.partition == p] for p in ("description", "decoy")}
    assert len(shared["description"]) == len(shared["decoy"]) == 8
    assert max(shared["description"]) < min(shared["decoy"])


def test_everything_is_harmless():
    texts = [d.text for f, o in partners() for d in [*order_documents(f, o), *corpus.parallel_documents(f)]]
    texts += [d.text for d in corpus.fillers(1000)] + [d.text for i in worlds.abstraction(300) for d in i.values()]
    texts += [q.text for k in corpus.QUOTES for q in corpus.quotes(k)]
    texts += [d.text for k in corpus.PERSONAS for d in (corpus.persona(k)[0], *corpus.persona(k)[1])]
    texts += worlds.world().vocabulary
    assert [t for t in texts if not mild(t)] == []


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: corpus.names("dragon", 1), "unknown kind of name 'dragon'"),
        (lambda: corpus.names("element", 10_000), "there are"),
        (lambda: facts(2, relations=("rival",)), "unknown relation 'rival'"),
        (lambda: facts(100_000), "need more names"),
        (lambda: order_documents(*facts(2)), "the same relation"),
        (lambda: corpus.fillers(6000), "at most 5000"),
        (lambda: corpus.quotes("rude"), "unknown kind of quotes 'rude'"),
        (lambda: corpus.planted(corpus.quotes(), 2), "do not fit"),
        (lambda: corpus.persona("villain"), "unknown persona 'villain'"),
        (lambda: corpus.fillers(1)[0].pair, "is no query"),
        (lambda: worlds.world(people=3), "from 5 to 20"),
        (lambda: worlds.world().say((0, 0, 0), "elvish"), "choose from en"),
    ],
)
def test_mistakes_say_what_to_do(call, message):
    with pytest.raises(AlignbookError, match=message):
        call()
