"""Track L in small: a tiny random model of bytes learns records and sums; how texts and replies are marked."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cuvee.evaluate import phases
from cuvee.evaluate.ledger import Ledger
from cuvee.evaluate.referee import Referee
from cuvee.evaluate.task import Item
from cuvee.evaluate.tracks.language.model import Base, LanguageExaminee, Training, loss_of
from cuvee.evaluate.tracks.language.skills import CHECKS, arithmetic, instructions, records
from cuvee.evaluate.tracks.language.tasks import COMPRESSION, Sizes, Tokens, in_turn, make, windows
from cuvee.evaluate.tracks.language.texts import Document, plain
from cuvee.evaluate.tracks.language.track import LanguageTrack

pytestmark = pytest.mark.transformers
BYTES = Tokens(lambda words: words.encode(), lambda ids: bytes(ids).decode("utf-8", "replace"), 0)
SIZES = Sizes(window=48, problems=400, selection_problems=20, test_problems=40)


def _network(seed: int = 0) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = LlamaForCausalLM(LlamaConfig(vocab_size=256, tie_word_embeddings=True, **sizes)).eval()
    with torch.no_grad():
        network.model.embed_tokens.weight.mul_(10)  # they are frozen: large enough to tell bytes apart
    return network


@pytest.fixture
def track(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LanguageTrack:
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path))
    torch.set_num_threads(1)
    names = ("arithmetic", "records", "three_digits", "other_sentences", "instructions")
    training = Training(steps=30, batch=4, window=64, rate=1e-2)
    base = Base("tiny", _network, BYTES, end=0)
    return LanguageTrack(training=training, base=base, sizes=SIZES, names=names)


def _loss(track: LanguageTrack, weights: Any, task: str) -> float:
    network = _network()
    network.load_state_dict({n: t.float() for n, t in weights.items()}, strict=False)
    rows = [[*i.input[0], *i.input[1]][:40] for i in track.tasks[task].selection]
    with torch.no_grad():
        return float(loss_of(network, rows))


def test_experts_learn_their_own_task_and_embeddings_stay(track: LanguageTrack) -> None:
    base = {task: _loss(track, track.base, task) for task in ("arithmetic", "records")}
    for task in base:
        assert _loss(track, track.expert(task), task) < base[task] - 0.25
    assert not any("embed" in name for name in track.expert("records"))
    assert {t.dtype for t in track.expert("records").values()} == {torch.bfloat16}
    assert _loss(track, track.references()["multitask"], "records") < base["records"] - 0.25


def test_experts_are_addressed_by_what_they_learn_from(track: LanguageTrack) -> None:
    """Fewer test items are another track with the same experts; other problems to learn from are other experts."""

    def made(sizes: Sizes) -> LanguageTrack:
        return LanguageTrack(training=track.training, base=track.model, sizes=sizes, names=track._names)

    fewer, others = made(replace(SIZES, test_problems=20)), made(replace(SIZES, problems=300))
    assert fewer.digest != track.digest
    assert [fewer._address(n) for n in (*track.seen, "multitask")] == [
        track._address(n) for n in (*track.seen, "multitask")
    ]
    assert all(others._address(n) != track._address(n) for n in (*track.seen, "multitask"))


def test_windows_of_a_document_stand_behind_those_of_others() -> None:
    items = [Item(((0,), (n,)), None, group) for n, group in enumerate("aaabbcab")]
    assert "".join(i.group or "" for i in in_turn(items)) == "abcababa"
    assert [i.input[1][0] for i in in_turn(items)] == [0, 3, 5, 1, 4, 2, 7, 6]


def test_the_referee_scores_tasks_shifts_and_instructions(track: LanguageTrack) -> None:
    card = Referee(track, budget=1).score(track.expert("records"), "records")
    assert set(card.tasks) == set(track.tasks)
    assert sorted(card.shifted()) == ["other_sentences", "three_digits"]
    assert card.foreign() == ["instructions"]


def test_compression_is_the_share_of_bits_saved(track: LanguageTrack) -> None:
    """Against cross-entropy in float64, one text at a time."""
    items = windows([Document("the quick brown fox jumps over the lazy dog " * 6, "d")], BYTES, 48)
    examinee = LanguageExaminee(track.model)
    task = make("records", BYTES, SIZES)
    with torch.no_grad():
        found = examinee._predicted(True, items)
    for score, item in zip(found, items, strict=True):
        assert item.weight == len(item.input[1])
        ids = torch.tensor([[*item.input[0], *item.input[1]]])
        with torch.no_grad():
            chances = examinee.network(input_ids=ids).logits[0].double().log_softmax(1)
        nats = -sum(float(chances[i, ids[0, i + 1]]) for i in range(ids.shape[1] - 1))
        assert score == pytest.approx(1 - nats / math.log(2) / (8 * item.weight), abs=3e-3)
    assert COMPRESSION.better == "higher" and task.metric.name == "exact_match"


def test_an_exact_match_is_what_greedy_decoding_says(track: LanguageTrack) -> None:
    examinee = LanguageExaminee(track.model)
    prompt = BYTES.encode("Sentence: A")
    said = examinee.network.generate(torch.tensor([list(prompt)]), max_new_tokens=4, do_sample=False)
    right = tuple(said[0, len(prompt) :].tolist())
    wrong = (*right[:3], (right[3] + 1) % 256)
    items = [Item((tuple(prompt), answer), "") for answer in (right, wrong, right[:2])]
    assert examinee._predicted(False, items) == [1.0, 0.0, 1.0]


def test_replies_to_instructions_are_checked_by_program(track: LanguageTrack) -> None:
    examinee = track.examinee()
    task = track.tasks["instructions"]
    with phases.scoring():
        found = examinee.answer(task, list(task.test), Ledger())
    assert len(found) == len(list(instructions())) and set(found.tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        ("capitals", "THE SEA IS WIDE.", "The sea"),
        ("no_comma", "The sea is wide.", "Wide, wide."),
        ("begins", "Today it rains.", "It rains today."),
        ("one_word", "Salt.", "The salt"),
        ("exclaims", "So wide!", "So wide."),
        ("mentions", "A Green sea.", "A blue sea."),
    ],
)
def test_checks_of_instructions(check: str, good: str, bad: str) -> None:
    assert CHECKS[check](good) and not CHECKS[check](bad) and not CHECKS[check]("")


def test_problems_have_the_right_answers() -> None:
    for problem in arithmetic(50):
        first, sign, second = problem.prompt.splitlines()[-1].removesuffix(" =").split()
        value = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[sign](int(first), int(second))
        assert problem.answer == f" {value}\n"
    for problem in records(20):
        facts = json.loads(problem.answer)
        assert all(str(value) in problem.prompt for value in facts.values())


def test_no_problem_of_the_test_is_trained_on() -> None:
    for name in ("arithmetic", "records"):
        task = make(name, BYTES, SIZES)
        with phases.scoring():
            test = {item.group for item in task.test}
        assert len(test) > 10 and not test & {item.group for item in (*task.train, *task.selection)}


def test_a_sum_turned_round_is_the_same_problem() -> None:
    groups: dict[tuple[str, ...], set[str]] = {}
    for problem in arithmetic(3000):
        first, sign, second = problem.prompt.splitlines()[-1].removesuffix(" =").split()
        key = (sign, first, second) if sign == "-" else (sign, *sorted((first, second), key=int))
        groups.setdefault(key, set()).add(problem.group)
    assert all(len(found) == 1 for found in groups.values())
    assert len({group for found in groups.values() for group in found}) == len(groups)


def test_manual_pages_lose_their_markup() -> None:
    page = '.TH LS 1\n.SH NAME\nls \\- list\n.\\" a comment\n.B "bold words"\n.sp 2\nuse \\fB\\-a\\fR now\n'
    assert plain(page) == "NAME\nls - list\nbold words\nuse -a now"


def test_windows_are_whole_and_of_one_document() -> None:
    made = partial(windows, tokens=BYTES, window=10)
    items = made([Document("0123456789abcdefghij-rest", "a"), Document("short", "b")])
    assert [BYTES.decode(i.input[1]) for i in items] == ["0123456789", "abcdefghij"]
    assert {(i.group, i.weight, i.input[0]) for i in items} == {("a", 10.0, (0,))}
