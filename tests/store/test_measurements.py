import math
import threading
from dataclasses import replace

import pytest

from kvtuner_core.domain.metrics import Interval, Measured
from kvtuner_core.domain.objective import Objective
from kvtuner_core.domain.policy import KVPolicy
from kvtuner_core.domain.precision import PrecisionPair
from kvtuner_core.domain.questions import Question, Reply, TaskKind
from kvtuner_core.domain.scheme import QuantScheme
from kvtuner_core.domain.stopping import PartialScore
from kvtuner_core.domain.tasks import ModelReport
from kvtuner_core.errors import StoreError
from kvtuner_core.store import Store, reply_identity
from tests.fakes.measurements import PROVENANCE, profile, score, session
from tests.fakes.studies import model_info

POLICIES = [KVPolicy.uniform(name, layers=2, scheme=QuantScheme.per_token()) for name in ("KV8", "KV4", "KV2")]
SCORES = [session().score(policy) for policy in POLICIES]
PROFILES = [session().profile(layer, PrecisionPair.parse("K4V2")) for layer in range(3)]


@pytest.fixture
def store():
    with Store.open(None) as opened:
        yield opened


@pytest.mark.parametrize("kl", [0.0, 0.1, 1e-320, math.inf])
def test_a_score_comes_back_bit_for_bit(store, kl):
    store.put_score(SCORES[0], score(kl), PROVENANCE)
    assert store.get_score(SCORES[0].key) == score(kl)
    assert store.get_score(SCORES[1].key) is None
    assert store.get_provenance(SCORES[0].key) == PROVENANCE


def test_a_profile_comes_back_bit_for_bit(store):
    store.put_profile(PROFILES[0], profile(), PROVENANCE)
    assert store.get_profile(PROFILES[0].key) == profile()
    assert store.get_profile(PROFILES[1].key) is None
    assert store.get_provenance(PROFILES[0].key) == PROVENANCE
    assert store.get_provenance("unknown") is None


@pytest.mark.parametrize("loss", [0.25, 1e-320, math.inf])
def test_what_was_seen_of_a_stopped_policy_is_no_score_of_it(store, loss):
    partial = PartialScore(
        objective=Objective.MEAN_KL, prompts=(2, 0), losses=(loss, 0.5), ends=(1, 2), tokens_per_prompt=(24, 24, 7)
    )
    identity = session().partial(POLICIES[0], Objective.MEAN_KL)
    others = [session().partial(POLICIES[0], Objective.ANSWER_ERROR), session().partial(POLICIES[1], Objective.MEAN_KL)]
    assert len({one.key for one in (identity, *others, SCORES[0])}) == 4
    store.put_partial(identity, replace(partial, prompts=(2,), losses=(loss,), ends=(1,)), PROVENANCE)
    store.put_partial(identity, partial, PROVENANCE)
    assert store.get_partial(identity.key) == partial
    assert [store.get_partial(one.key) for one in (*others, SCORES[0])] == [None] * 3
    assert store.get_score(SCORES[0].key) is None
    assert store.get_score(identity.key) is None
    store.put_score(SCORES[0], score(), PROVENANCE)
    assert store.get_score(SCORES[0].key) == score()
    assert store.get_partial(identity.key) == partial


def test_the_first_number_under_a_key_stays(store):
    store.put_score(SCORES[0], score(0.1), PROVENANCE)
    store.put_score(SCORES[0], score(0.2), PROVENANCE)
    assert store.get_score(SCORES[0].key) == score(0.1)


def test_of_scores_that_are_put_together_the_new_ones_are_kept_beside_the_known(store):
    store.put_score(SCORES[1], score(0.1), PROVENANCE)
    store.put_scores([(identity, score(0.2)) for identity in SCORES], PROVENANCE)
    found = store.get_scores([identity.key for identity in SCORES])
    assert [found[identity.key] for identity in SCORES] == [score(0.2), score(0.1), score(0.2)]


def test_objectives_that_an_older_score_lacks_are_added_to_it(store):
    tail = Measured(
        objective=Objective.P95_KL, interval=Interval(mean=0.5, low=0.4, high=0.6), per_prompt=(0.5, 0.4, math.inf)
    )
    store.put_score(SCORES[0], score(0.1), PROVENANCE)
    store.put_score(SCORES[0], replace(score(0.2), others=(tail,)), PROVENANCE)
    assert store.get_score(SCORES[0].key) == replace(score(0.1), others=(tail,))


def test_counting_asks_once_for_all_keys(store):
    for identity in SCORES[:2]:
        store.put_score(identity, score(), PROVENANCE)
    store.put_profile(PROFILES[0], profile(), PROVENANCE)
    keys = [identity.key for identity in SCORES]
    assert store.count_scores([*keys, *keys, "unknown"]) == 2
    assert store.count_scores([]) == 0
    assert store.count_profiles(identity.key for identity in PROFILES) == 1


@pytest.mark.parametrize(
    "broken",
    [
        replace(score(), nll_change=math.nan),
        replace(score(), kl_per_prompt=(0.1, math.nan, 0.1)),
        replace(score(), kl=Interval(mean=math.nan, low=0.0, high=1.0)),
        replace(
            score(),
            others=(
                Measured(
                    objective=Objective.NLL_CHANGE, interval=Interval(mean=0, low=0, high=0), per_prompt=(math.nan,)
                ),
            ),
        ),
    ],
)
def test_a_score_that_is_not_a_number_is_refused(store, broken):
    with pytest.raises(StoreError, match=r"got nan.*bfloat16 or float32"):
        store.put_score(SCORES[0], broken, PROVENANCE)
    assert store.count_scores([SCORES[0].key]) == 0


def test_a_profile_that_is_not_a_number_is_refused(store):
    with pytest.raises(StoreError, match="A stored profile"):
        store.put_profile(PROFILES[0], profile(kl=math.nan), PROVENANCE)


def test_threads_that_put_the_same_keys_do_not_conflict(store):
    failures = []

    def put_all():
        try:
            for number in range(20):
                policy = KVPolicy.uniform("KV4", layers=number + 1, scheme=QuantScheme.per_token())
                store.put_score(session().score(policy), score(), PROVENANCE)
                assert store.get_score(session().score(policy).key) == score()
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=put_all) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


REPORT = ModelReport(info=model_info(2), provenance=PROVENANCE, free_bytes=1, total_bytes=2)
QUESTION = Question(kind=TaskKind.RECALL, prompt="amber fox: 31\n\namber fox:", answer=" 31")


@pytest.mark.parametrize("nll", [0.25, math.inf])
def test_a_reply_comes_back_bit_for_bit(store, nll):
    reply = Reply(correct=True, nll=nll, given=" 31\n\0 \N{SNOWMAN}", prompt_tokens=12, seconds=0.5)
    identity = reply_identity(REPORT, QUESTION, POLICIES[1])
    store.put_reply(identity, reply, PROVENANCE)
    assert store.get_reply(identity.key) == reply
    assert store.get_reply(reply_identity(REPORT, QUESTION, POLICIES[2]).key) is None
    assert store.count_replies([identity.key, identity.key, "other"]) == 1


def test_a_reply_without_a_likelihood_is_refused(store):
    reply = Reply(correct=False, nll=math.nan, given="", prompt_tokens=12, seconds=0.5)
    with pytest.raises(StoreError, match="nan"):
        store.put_reply(reply_identity(REPORT, QUESTION, None), reply, PROVENANCE)


def test_what_changes_a_reply_changes_its_key():
    def key(policy=POLICIES[0], **changes):
        return reply_identity(REPORT, replace(QUESTION, **changes), policy).key

    others = [key(POLICIES[1]), key(None), *(key(**change) for change in QUESTION_CHANGES)]
    assert len({key(), *others}) == len(others) + 1
    full = KVPolicy.uniform("KV16", layers=2, scheme=QuantScheme.kivi())
    assert key(full) == key(None), "Nothing is quantised either way."


QUESTION_CHANGES = (
    {"prompt": "other"},
    {"answer": " 32"},
    {"kind": TaskKind.EXACT_MATCH},
    {"solution": " 31."},
    {"max_new_tokens": 9},
    {"stop": "\n"},
    {"choices": (" 31", " 32")},
)
