"""User studies: the folder of pictures, a rater's way through it, the file of answers, Elo on raters of known skill."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
from dataclasses import astuple, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mcode import cli, manifold, refine
from mcode.errors import InputError
from mcode.evaluation import stills, study
from mcode.evaluation.study import (
    NOTE,
    ORIGINAL,
    Answer,
    Ranking,
    Session,
    bradley_terry,
    elo,
    open_material,
    parse_methods,
    prepare,
    read_answers,
    score,
)
from tests.block_means import BlockMeans
from tests.small_hific import small_manifolds
from tests.test_stills import claiming

METHODS = ("good", "fair", "poor")
"""The best first; each one's pictures stand further from the original."""


def picture(seed: int, width: int = 96, height: int = 80) -> np.ndarray:
    """A grey slope with soft colours on it: what every codec can code well or badly."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(40, 200, width)[None, :, None] + np.linspace(-20, 20, height)[:, None, None]
    return np.clip(slope + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)


def write_study(folder: Path, methods=METHODS, pictures=("a", "b")) -> Path:
    for number, name in enumerate(pictures):
        rgb = picture(number)
        for step, method in enumerate((ORIGINAL, *methods)):
            (folder / method).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(rgb.astype(int) + 9 * step, 0, 255).astype(np.uint8)).save(folder / method / f"{name}.png")
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_study(tmp_path / "study")


@pytest.fixture
def session(folder, tmp_path):
    """session(rater=..., seed=...) on the folder; the same file of answers every time."""

    def make(rater: str = "ann", seed: int = 0, **options) -> Session:
        return Session(open_material(folder), tmp_path / "answers.csv", rater, seed=seed, **options)

    return make


def answer_well(session: Session, most: int = 1000) -> None:
    """Answers as one who sees every difference."""
    for _ in range(most):
        if (question := session.question) is None:
            return
        session.answer(left=METHODS.index(question.left) < METHODS.index(question.right), looks=1, seconds=1.234)


# Which pairs are asked about


@given(st.permutations(range(9)))
def test_binary_search_finds_the_order_with_few_answers(order):
    ranking, answers = Ranking([str(each) for each in order]), 0
    most = ranking.most_left
    assert most == 21  # sum of ceil(log2(k + 1)) for k = 1..8; all pairs would be 36
    while ranking.pair:
        ranking.answer(min(ranking.pair))
        answers += 1
        assert answers + ranking.most_left <= most
    assert ranking.ranked == sorted(ranking.ranked) and ranking.most_left == 0


def test_a_session_asks_about_every_picture_until_its_methods_are_in_order(session):
    rating = session()
    assert rating.most_left == 6  # three methods take 3 answers at most, two pictures
    answer_well(rating)
    assert rating.question is None and rating.most_left == 0
    wins = {(answer.picture, answer.better, answer.worse) for answer in read_answers(rating.output)}
    for name in "ab":
        assert {(name, "good", "fair"), (name, "fair", "poor")} <= wins


def test_sides_and_orders_differ_between_raters_and_are_the_same_for_one(session):
    questions = [session(f"rater {i}").question for i in range(24)]
    assert questions == [session(f"rater {i}").question for i in range(24)]
    assert {question.picture for question in questions} == {"a", "b"}
    assert {(question.left, question.right) for question in questions} == set(itertools.permutations(METHODS, 2))
    ratings = [session(f"rater {i}") for i in range(40)]
    kept = sum(rating.question.left == rating._rankings[rating.question.picture].pair[0] for rating in ratings)
    assert 10 <= kept <= 30


def test_crops_lie_within_the_picture_and_change_only_before_the_first_answer(session):
    rating = session(crop=32)
    seen = set()
    for _ in range(20):
        x, y, width, height = rating.question.crop
        assert (width, height) == (32, 32) and 0 <= x <= 96 - 32 and 0 <= y <= 80 - 32
        seen.add((x, y))
        rating.recrop()
    assert len(seen) > 10
    kept = rating.question
    rating.answer(left=True)
    assert rating.question.picture == kept.picture and rating.question.crop == kept.crop
    assert not rating.may_recrop
    rating.recrop()
    assert rating.question.crop == kept.crop


def test_a_crop_is_never_larger_than_the_picture(session):
    assert session().question.crop == (0, 0, 96, 80)


# The file of answers


def test_every_answer_is_in_the_file_at_once(session):
    rating = session()
    for count in range(1, 4):
        question = rating.question
        rating.answer(left=False, looks=2, seconds=3.456)
        lines = rating.output.read_text().splitlines()
        assert len(lines) == 1 + count
    last = read_answers(rating.output)[-1]
    expected = Answer("ann", 0, question.picture, question.right, question.left, question.left, *question.crop, 2, 3.46)
    assert last == expected


def test_a_session_goes_on_where_it_stopped(session, tmp_path):
    whole = session()
    answer_well(whole)
    complete = whole.output.read_bytes()
    whole.output.unlink()
    while (rating := session()).question:
        answer_well(rating, most=1)
    assert rating.output.read_bytes() == complete


def test_another_crop_that_was_answered_about_stays_after_a_restart(session):
    rating = session(crop=32)
    rating.recrop()
    crop = rating.question.crop
    rating.answer(left=True)
    assert session(crop=48).question.crop == crop


def test_two_raters_share_a_file(session):
    first, second = session("ann"), session("bob")
    while first.question or second.question:
        answer_well(first, most=1)
        answer_well(second, most=1)
    assert session("ann").question is None and session("bob").question is None
    assert {answer.rater for answer in read_answers(first.output)} == {"ann", "bob"}


@pytest.mark.parametrize("cut", [1, 3, 12, 30])
def test_a_line_cut_off_by_a_crash_is_asked_again(session, cut):
    rating = session()
    answer_well(rating, most=3)
    data = rating.output.read_bytes()
    rating.output.write_bytes(data[:-cut])
    again = session()
    assert again.answered == (3 if cut == 1 else len(read_answers(again.output)))
    answer_well(again)
    assert session().question is None
    assert again.output.read_bytes().count(b"\n") == 1 + again.answered


@pytest.mark.parametrize("end", [b"\r", b"\r\n"])
@pytest.mark.parametrize(("cut", "kept"), [(0, 3), (1, 3), (14, 2)])
@pytest.mark.parametrize("rater", ["ann", "bob"])
def test_answers_stay_whatever_their_line_ends(session, end, cut, kept, rater):
    rating = session()
    answer_well(rating, most=3)
    data = rating.output.read_bytes().replace(b"\n", end)
    rating.output.write_bytes(data[: len(data) - cut])
    before = read_answers(rating.output)
    again = session(rater)
    assert len(before) == kept and read_answers(again.output) == before
    answer_well(again, most=1)
    assert read_answers(again.output)[:-1] == before


def test_a_full_disk_leaves_no_half_line_and_counts_nothing(session, monkeypatch):
    rating = session()
    answer_well(rating, most=1)
    before, question, write = rating.output.read_bytes(), rating.question, study.os.write
    monkeypatch.setattr(study.os, "write", lambda file, data: write(file, data[:7]))
    with pytest.raises(OSError, match="No space left"):
        rating.answer(left=True)
    assert rating.output.read_bytes() == before
    assert rating.question == question and rating.answered == 1


def test_names_with_commas_and_other_letters_come_back(session):
    for name in ('Ann, "the eye"', "Jürgen Müller", "李"):
        rating = session(name)
        answer_well(rating)
        assert session(name).question is None


def test_another_seed_is_refused_with_the_one_to_use(session):
    answer_well(session(seed=3), most=1)
    with pytest.raises(InputError, match=r"--seed 4: ann began .*answers.csv with --seed 3; use that"):
        session(seed=4)


def test_answers_of_another_study_are_refused(session, tmp_path):
    answer_well(session(), most=2)
    other = open_material(write_study(tmp_path / "other", methods=("one", "two", "three")))
    with pytest.raises(InputError, match=r"line 2 .* belongs to another study than .*other"):
        Session(other, tmp_path / "answers.csv", "ann")


@pytest.mark.parametrize(
    ("output", "message"),
    [(".", "is a folder; name a file"), ("nowhere/answers.csv", "no folder .*nowhere; make it")],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_first_question(folder, tmp_path, output, message):
    with pytest.raises(InputError, match=message):
        Session(open_material(folder), tmp_path / output, "ann")


def test_two_sessions_of_one_rater_do_not_write_the_same_answers(session):
    first, second, other = session("ann"), session("ann"), session("bob")
    answer_well(first, most=2)
    answer_well(other, most=1)
    before, question = first.output.read_bytes(), second.question
    with pytest.raises(InputError, match="another window is answering as ann"):
        second.answer(left=True)
    assert first.output.read_bytes() == before and second.question == question and second.answered == 0
    answer_well(first, most=1)
    assert session("ann").answered == 3


def test_answers_that_are_lost_while_a_rater_answers_are_told(session):
    rating = session()
    answer_well(rating, most=2)
    rating.output.unlink()
    with pytest.raises(InputError, match=r"answers.csv has lost answers since ann began"):
        rating.answer(left=True)
    assert not rating.output.exists()


def test_answers_about_larger_pictures_belong_to_another_study(session, tmp_path):
    answer_well(session(crop=64), most=2)
    small = write_study(tmp_path / "small")
    for path in small.rglob("*.png"):
        Image.fromarray(picture(0, 60, 60)).save(path)
    with pytest.raises(InputError, match=r"line 2 \(a crop of [ab] that ends at .* belongs to another study than .*60x60"):
        Session(open_material(small), tmp_path / "answers.csv", "ann")


def test_answers_with_a_byte_order_mark_are_read_and_gone_on_with(session):
    rating = session()
    answer_well(rating, most=2)
    rating.output.write_bytes(b"\xef\xbb\xbf" + rating.output.read_bytes())
    again = session()
    assert again.answered == 2
    answer_well(again)
    assert session().question is None


@pytest.mark.parametrize("rater", ["", "  ", "a\nb", "r\udcff"])
def test_a_rater_needs_a_name_on_one_line(session, rater):
    with pytest.raises(InputError, match="--rater"):
        session(rater)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: ["x,y", *lines[1:]], "not a file of answers; its first line should be rater,seed"),
        (lambda lines: [lines[0], "ann,0", *lines[1:]], r"line 2 is no answer \(2 columns, not 12\)"),
        (lambda lines: [lines[0], lines[1].replace("ann,0", "ann,one"), *lines[2:]], "line 2 is no answer"),
        (lambda lines: [lines[0], "ann,0,a,good,good,good,0,0,1,1,1,1.0", *lines[1:]], "are no two methods"),
        (lambda lines: [lines[0], "\udcff", *lines[1:]], "not text"),
    ],
)
def test_a_damaged_file_of_answers_names_its_line(session, change, message):
    rating = session()
    answer_well(rating, most=3)
    lines = change(rating.output.read_text().splitlines())
    rating.output.write_bytes(("\n".join(lines) + "\n").encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=message):
        read_answers(rating.output)


# The folder


def test_a_field_longer_than_csv_reads_is_one_line(session, tmp_path):
    rating = session()
    rating.answer(left=True)
    text = rating.output.read_text()
    for number, lines in enumerate((text + "x" * 200_000 + "\n", "x" * 200_000), start=1):
        path = tmp_path / f"{number}.csv"
        path.write_text(lines)
        with pytest.raises(InputError, match=r"line \d is no answer \(field larger") as error:
            read_answers(path)
        assert "\n" not in str(error.value)


def test_more_methods_than_a_study_has_are_one_line():
    answers = simulated({"a": 0.0, "b": 1.0}, 1)
    many = [replace(answers[0], better=f"{i}", worse=f"{i + 1}", left=f"{i}") for i in range(40_000)]
    with pytest.raises(InputError, match="40,001 methods, and a study has at most 500"):
        score(many)
    assert len(score(many[:50], shuffles=1).methods) == 51


def test_a_folder_of_methods_is_read(folder):
    material = open_material(folder)
    assert (material.methods, material.pictures) == (tuple(sorted(METHODS)), ("a", "b"))
    assert material.sizes["a"] == (96, 80)
    assert np.array_equal(material.read(ORIGINAL, "a"), picture(0))


def remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: remove(f / ORIGINAL), "no folder named original in it"),
        (lambda f: [remove(f / name) for name in METHODS[:2]], "1 method beside original; two at least"),
        (lambda f: (f / "fair" / "b.png").unlink(), r"fair: no picture named b, which original has"),
        (lambda f: (f / ORIGINAL / "b.png").unlink(), r"original: no picture named b, which \w+ has"),
        (lambda f: (f / "fair" / "b.png").write_bytes(b"no"), r"fair.b\.png: "),
        (lambda f: Image.fromarray(picture(0, 64, 64)).save(f / "poor" / "a.png"), "64x64, but the original is 96x80"),
        (lambda f: Image.fromarray(picture(0)).save(f / "poor" / "a.webp"), "has the same name; keep one of them"),
    ],
)
def test_a_folder_whose_pictures_do_not_match_is_refused(folder, change, message):
    change(folder)
    with pytest.raises(InputError, match=message):
        open_material(folder)


def test_pictures_of_other_formats_match_by_their_names(folder):
    path = folder / "fair" / "a.png"
    Image.open(path).save(path.with_suffix(".webp"), lossless=True)
    path.unlink()
    assert open_material(folder).files["fair", "a"].name == "a.webp"


@pytest.mark.parametrize("place", ["good", "good/\udcff.png"])
def test_names_that_are_not_utf_8_are_refused(folder, place):
    path = folder / place
    path.rename(folder / "\udcff") if path.is_dir() else (folder / "good" / "a.png").rename(path)
    with pytest.raises(InputError, match="its name is not UTF-8; rename it"):
        open_material(folder)


@pytest.fixture
def turned(monkeypatch):
    """Pictures are read as if each lay on its side, which only `read_picture` knows of."""
    read = study.read_picture
    monkeypatch.setattr(study, "read_picture", lambda path: np.rot90(read(path)).copy())


def test_pictures_and_their_sizes_are_those_that_are_read(turned, folder, tmp_path):
    material = open_material(folder)
    assert material.sizes["a"] == (80, 96)
    assert np.array_equal(material.read(ORIGINAL, "a"), np.rot90(picture(0)))
    assert Session(material, tmp_path / "answers.csv", "ann").question.crop == (0, 0, 80, 96)


def test_a_damaged_picture_is_named_before_a_rater_begins(folder):
    path = folder / "poor" / "a.png"
    path.write_bytes(path.read_bytes()[:-2000])  # the header still tells its size
    with pytest.raises(InputError, match=r"poor.a\.png: "):
        open_material(folder)


def test_reading_tells_how_far_it_is(folder):
    seen = []
    open_material(folder, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 8) for done in range(1, 9)]


# Scores

SKILL = {"a": 1660.0, "b": 1560.0, "c": 1500.0, "d": 1430.0, "e": 1350.0}


def random_games(skill: dict[str, float], count: int, seed: int = 0) -> np.ndarray:
    """(count, 2), winner and loser by their places in skill: random pairs, preferred by the logistic law of Elo's model."""
    rng, truth = np.random.default_rng(seed), np.array(list(skill.values()))
    first = rng.integers(len(truth), size=count)
    second = (first + rng.integers(1, len(truth), size=count)) % len(truth)
    wins = rng.random(count) < 1 / (1 + 10 ** ((truth[second] - truth[first]) / 400))
    return np.where(wins[:, None], np.stack([first, second], 1), np.stack([second, first], 1))


def ranked_games(skill: dict[str, float], rankings: int, seed: int = 0) -> np.ndarray:
    """The same raters, asked about the pairs that binary search leads to: one `Ranking` of all methods after the other."""
    rng, names, games = np.random.default_rng(seed), list(skill), []
    for _ in range(rankings):
        ranking = Ranking([names[i] for i in rng.permutation(len(names))])
        while ranking.pair:
            first, second = ranking.pair
            wins = rng.random() < 1 / (1 + 10 ** ((skill[second] - skill[first]) / 400))
            better, worse = (first, second) if wins else (second, first)
            ranking.answer(better)
            games.append((names.index(better), names.index(worse)))
    return np.array(games)


def answers_of(games: np.ndarray, skill: dict[str, float], raters: int = 4) -> list[Answer]:
    """In turns of the raters, and on twenty pictures."""
    names = list(skill)
    return [
        Answer(f"rater {number % raters}", 0, f"{number % 20}", names[better], names[worse], names[better], 0, 0, 8, 8, 1, 1.0)
        for number, (better, worse) in enumerate(games)
    ]


def simulated(skill: dict[str, float], count: int) -> list[Answer]:
    return answers_of(random_games(skill, count), skill)


def test_one_game_between_equals_is_worth_half_of_k():
    scores = elo(np.array([[0, 1]]), 2, shuffles=3, rng=np.random.default_rng(0))
    assert scores.tolist() == [[1515, 1485]] * 3


def test_elo_is_that_of_a_plain_loop_over_each_order():
    games = np.array([[0, 1], [2, 0], [1, 2], [0, 2]])
    expected = set()
    for order in itertools.permutations(games.tolist()):
        scores = [1500.0] * 3
        for winner, loser in order:
            gain = 30 * (1 - 1 / (1 + 10 ** ((scores[loser] - scores[winner]) / 400)))
            scores[winner] += gain
            scores[loser] -= gain
        expected.add(tuple(np.round(scores, 6)))
    got = {tuple(row) for row in np.round(elo(games, 3, shuffles=1000, rng=np.random.default_rng(0)), 6)}
    assert got == expected and len(expected) > 10


def test_known_skill_is_recovered_within_the_intervals():
    result = score(simulated(SKILL, 2000), shuffles=500)
    assert [each.method for each in result.methods] == list(SKILL)
    for each in result.methods:
        assert each.low < SKILL[each.method] < each.high
        assert abs(each.elo - SKILL[each.method]) < 40
        assert abs(each.strength - SKILL[each.method]) < 40
    by_name = {each.method: each for each in result.methods}
    for first, second in itertools.pairwise(SKILL):
        apart = by_name[first].elo - by_name[second].elo
        assert abs(apart - (SKILL[first] - SKILL[second])) < 45
    assert result.raters.keys() == {f"rater {i}" for i in range(4)}
    for scores in result.raters.values():
        assert (scores[0].method, scores[-1].method) == ("a", "e")
        assert sum(each.games for each in scores) == 2 * 500


def test_bradley_terrys_intervals_hold_the_truth_nineteen_times_in_twenty_and_shrink_with_more_answers():
    inside, widths = [], {}
    truth = np.array(list(SKILL.values()))
    for count in (200, 800):
        for seed in range(60):
            strength, half = bradley_terry(random_games(SKILL, count, seed), len(SKILL))
            inside.append(np.abs(strength - truth) < half)
        widths[count] = half.mean()
    assert 0.92 < np.mean(inside) < 0.985
    assert widths[800] == pytest.approx(widths[200] / 2, rel=0.15)


def test_elo_recovers_the_skill_from_noisy_answers_by_binary_search():
    answers = answers_of(ranked_games(SKILL, 300), SKILL)
    result = score(answers, shuffles=200)
    assert 1800 < result.answers < 2400  # 3000 if all pairs were asked about
    assert [each.method for each in result.methods] == list(SKILL)
    for each in result.methods:
        assert abs(each.elo - SKILL[each.method]) < 40
        assert each.strength_low < SKILL[each.method] < each.strength_high


def test_bradley_terrys_intervals_hold_the_truth_of_noisy_answers_by_binary_search():
    truth, inside = np.array(list(SKILL.values())), []
    for seed in range(40):
        strength, half = bradley_terry(ranked_games(SKILL, 50, seed), len(SKILL))
        inside.append(np.abs(strength - truth) < half)
    assert 0.92 < np.mean(inside) < 0.985


def differing(pictures: int, raters: int, by_picture: float, by_rater: float, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Games of `ranked_games`, each picture and each rater with skills of its own, which deviate by so many points; and the
    picture and the rater of each game."""
    rng, skill = np.random.default_rng(seed), np.array(list(SKILL.values()))
    own, taste = rng.normal(0, by_picture, (pictures, len(skill))), rng.normal(0, by_rater, (raters, len(skill)))
    games, parts = [], []
    for picture, rater in itertools.product(range(pictures), range(raters)):
        here = dict(enumerate(skill + own[picture] + taste[rater]))
        games.append(ranked_games(here, 1, int(rng.integers(1 << 31))))
        parts.append(np.tile((picture, rater), (len(games[-1]), 1)))
    return np.concatenate(games), list(np.concatenate(parts).T)


@pytest.mark.parametrize(
    ("pictures", "raters", "by_picture", "by_rater"),
    [(10, 5, 200, 0), (10, 1, 200, 0), (3, 5, 200, 0), (10, 5, 0, 100), (10, 5, 150, 100), (10, 5, 0, 0)],
)
def test_bradley_terrys_intervals_hold_what_other_pictures_and_raters_give(pictures, raters, by_picture, by_rater):
    truth, _ = bradley_terry(differing(40, 40, by_picture, by_rater, 0)[0], len(SKILL))
    inside, alone = [], []
    for seed in range(1, 61):
        games, parts = differing(pictures, raters, by_picture, by_rater, seed)
        strength, half = bradley_terry(games, len(SKILL), parts)
        inside.append(np.abs(strength - truth) < half)
        alone.append(np.abs(strength - truth) < bradley_terry(games, len(SKILL))[1])
    assert np.mean(inside) > 0.91
    assert by_picture + by_rater == 0 or np.mean(inside) > np.mean(alone)


def test_scores_tell_pictures_and_raters_apart():
    games, (pictures, raters) = differing(6, 3, 300, 0, 1)
    names = list(SKILL)
    answers = [
        replace(answers_of(games[:1], SKILL)[0], rater=f"{r}", picture=f"{p}", better=names[a], worse=names[b], left=names[a])
        for (a, b), p, r in zip(games.tolist(), pictures, raters, strict=True)
    ]
    strength, half = bradley_terry(games, len(names), [pictures, raters])
    for each in score(answers, shuffles=1).methods:
        at = names.index(each.method)
        assert each.strength_low == pytest.approx(strength[at] - half[at])
        assert each.strength_high == pytest.approx(strength[at] + half[at])
    for picture in score(answers, shuffles=1).by_picture.values():
        assert all(np.isfinite((each.strength_low, each.strength_high)).all() for each in picture)


def test_bradley_terry_of_two_methods_is_the_logarithm_of_the_odds():
    games = np.array([[0, 1]] * 3000 + [[1, 0]] * 1000)
    strength, _ = bradley_terry(games, 2)
    assert strength[0] - strength[1] == pytest.approx(400 * math.log10(3), abs=0.1)
    assert strength.mean() == pytest.approx(1500)


def test_a_method_that_always_wins_has_a_finite_strength():
    strength, half = bradley_terry(np.array([[0, 1]] * 50), 2, [np.arange(50) % 5, np.arange(50) % 2])
    assert np.isfinite(strength).all() and np.isfinite(half).all() and strength[0] > strength[1] + 400


def test_answers_by_binary_search_give_the_raters_order(session):
    for number in range(5):
        answer_well(session(f"rater {number}"))
    result = score(read_answers(session().output), shuffles=500)
    assert [each.method for each in result.methods] == list(METHODS)
    assert result.pictures == 2 and len(result.raters) == 5


def test_a_picture_has_its_own_tournament():
    """Nine of ten pictures say a, b, c; the last says the reverse, and does not know b."""
    usual = [Answer("ann", 0, f"{i}", *pair, "b", 0, 0, 8, 8, 1, 1.0) for i in range(9) for pair in ("ab", "bc")]
    result = score([*usual, Answer("bob", 0, "odd", "c", "a", "c", 0, 0, 8, 8, 1, 1.0)], shuffles=20)
    assert [each.method for each in result.methods] == ["a", "b", "c"]
    assert list(result.by_picture) == [*"012345678", "odd"]
    assert [each.method for each in result.by_picture["0"]] == ["a", "b", "c"]
    odd = result.by_picture["odd"]
    assert [(each.method, each.elo, each.wins, each.games) for each in odd] == [("c", 1515, 1, 1), ("a", 1485, 0, 1)]
    assert odd == result.raters["bob"]


def test_the_order_in_the_file_does_not_matter_and_the_seed_does():
    answers = simulated(SKILL, 120)
    assert score(answers, shuffles=200, seed=1) == score(answers, shuffles=200, seed=1)
    first, second = (score(given, shuffles=4000) for given in (answers, answers[::-1]))
    for one, other in zip(first.methods, second.methods, strict=True):
        assert one.method == other.method and one.elo == pytest.approx(other.elo, abs=8)
    assert score(answers, shuffles=200, seed=2) != score(answers, shuffles=200, seed=1)


def test_the_work_is_bounded_by_fewer_shuffles(monkeypatch):
    monkeypatch.setattr(study, "MOST_GAMES", 60_000)
    assert score(simulated(SKILL, 100)).shuffles == 200
    assert score(simulated(SKILL, 100), shuffles=50).shuffles == 50


def test_no_answers_are_no_scores():
    with pytest.raises(InputError, match="no answers to score"):
        score([])


def test_names_with_dollars_are_drawn_as_they_are(tmp_path):
    dollars = dict(zip(("cost_$_and_$", "$^$", *"cde"), SKILL.values(), strict=True))
    study.plot(score(simulated(dollars, 60), shuffles=50), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()


def test_the_plot_is_drawn_and_not_over_another_file(tmp_path):
    result = score(simulated(SKILL, 60), shuffles=50)
    study.plot(result, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 600 and len(image.convert("RGB").getcolors(1 << 20)) > 20
    with pytest.raises(InputError, match=r"plot.png: exists; add --force"):
        study.plot(result, tmp_path / "plot.png")
    with pytest.raises(InputError, match=r"written as .png, .svg or .pdf"):
        study.plot(result, tmp_path / "plot.gif")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


# Preparing


class Blocks(BlockMeans):
    name, qualities, frame_size = "blocks", 1, None


class Coarse(Blocks):
    """Steps four times as large: fewer bits."""

    name, id = "coarse", "ffeeddccbbaa9988"

    def gain(self, quality: int) -> torch.Tensor:
        return super().gain(quality) / 4

    def inverse(self, quality: int) -> torch.Tensor:
        return super().inverse(quality) * 4


@pytest.fixture
def images(tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(2):
        Image.fromarray(picture(number)).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "notes.txt").write_text("no picture")
    return tmp_path / "images"


def test_methods_are_read_from_settings_rates_and_multiples():
    methods = parse_methods(["mcode:q3", "jpeg:10", "h265@0.2", "webp@1.5x"])
    assert [each.name for each in methods] == ["mcode-3", "jpeg-10", "h265-at-0.2", "webp-at-1.5x"]
    assert [(each.setting, each.bpp, each.times, each.of) for each in methods] == [
        (3, None, None, None),
        (10, None, None, None),
        (None, 0.2, None, None),
        (None, None, 1.5, "mcode-3"),
    ]


def test_methods_name_manifolds_refinement_and_whose_bits_are_meant():
    text = ["mcode/hific-lo:q1", "mcode-unrefined/a/b c:q2", "h265@1.5x:mcode-hific-lo-1", "mcode/m-1+m-2+m-3@1x"]
    methods = parse_methods(text)
    assert [each.name for each in methods] == [
        "mcode-hific-lo-1",
        "mcode-unrefined-a-b-c-2",
        "h265-at-1.5x-of-mcode-hific-lo-1",
        "mcode-m-1-to-m-3-at-1x",
    ]
    assert [each.manifold for each in methods] == ["hific-lo", "a/b c", None, "m-1+m-2+m-3"]
    assert [each.refined for each in methods] == [True, False, True, True]
    assert [each.of for each in methods] == [None, None, "mcode-hific-lo-1", "mcode-hific-lo-1"]


def test_the_papers_own_study_can_be_written_down():
    """Section 5, User Study: nine methods, M&S at the bits of each HiFiC, BPG (here H.265 intra) at 1.5 and 2 times Mi's."""
    mns = "+".join(f"ms-{i}" for i in range(1, 16))
    hific = [f"mcode/hific-{rate}:q1" for rate in ("lo", "mi", "hi")]
    baselines = [f"mcode/{mns}@1x:mcode-hific-{rate}-1" for rate in ("lo", "mi", "hi")]
    others = ["mcode/no-gan:q1", "h265@1.5x:mcode-hific-mi-1", "h265@2x:mcode-hific-mi-1"]
    methods = parse_methods([*hific, *baselines, *others])
    assert len({each.name for each in methods}) == 9
    assert [each.of for each in methods if each.times] == [f"mcode-hific-{rate}-1" for rate in ("lo", "mi", "hi", "mi", "mi")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mcode:q3", "two methods at least"),
        ("mcode:q3,vp9:30", "--codecs vp9:30: give CODEC:SETTING"),
        ("mcode:q3,jpeg", "--codecs jpeg: give CODEC:SETTING"),
        ("mcode:q3,jpeg:96", "--codecs jpeg:96: jpeg's setting is 1 to 95"),
        ("mcode:q3,h265:52", "--codecs h265:52: h265's setting is 0 to 51"),
        ("mcode:q3,jpeg2000:0", "the compression ratio, 1 to 2000"),
        ("jpeg@2x,webp:3", "the first method has none before it"),
        ("jpeg:3,webp@0", "a rate is more than 0 and at most 24"),
        ("jpeg:3,jpeg:3", "--codecs jpeg:3: named twice"),
        ("mcode/:q3,jpeg:3", "--codecs mcode/:q3: give CODEC:SETTING"),
        ("mcode/a,jpeg:3", "--codecs mcode/a: give CODEC:SETTING"),
        ("mcode-refined:q3,jpeg:3", "--codecs mcode-refined:q3: give CODEC:SETTING"),
        ("jpeg/a:3,webp:3", "--codecs jpeg/a:3: jpeg has no manifolds and is never refined"),
        ("jpeg-unrefined:3,webp:3", "jpeg has no manifolds and is never refined"),
        ("mcode/a b:q3,mcode/a?b:q3", "--codecs mcode/a?b:q3: named twice"),
        ("jpeg:3,webp@1x:jpeg-4", "--codecs webp@1x:jpeg-4: no method named jpeg-4 before it, but jpeg-3"),
        ("jpeg:3,webp@1:jpeg-3", "--codecs webp@1:jpeg-3: give CODEC:SETTING"),
        ("mcode:q" + "9" * 5000 + ",jpeg:3", "give CODEC:SETTING"),
    ],
)
def test_methods_that_cannot_be_are_refused(text, message):
    with pytest.raises(InputError) as refused:
        parse_methods(text.split(","))
    assert message in str(refused.value)


def test_a_prepared_folder_is_a_study_with_its_rates_noted(images, tmp_path):
    methods = parse_methods(["mcode:q1", "jpeg@1x", "webp@1", "jpeg:5"])
    prepared = prepare(images, tmp_path / "study", methods, manifolds=[Blocks()])
    material = open_material(tmp_path / "study")
    assert set(material.methods) == {"mcode-1", "jpeg-at-1x", "webp-at-1", "jpeg-5"} and material.pictures == ("0", "1")
    assert np.array_equal(material.read(ORIGINAL, "1"), picture(1))
    note = json.loads((tmp_path / "study" / NOTE).read_text())
    assert note["methods"]["mcode-1"]["manifolds"] == {"blocks": Blocks.id} and note["methods"]["mcode-1"]["coder"] == "huffman"
    assert note["methods"]["jpeg-5"]["manifolds"] == {} and note["methods"]["jpeg-5"]["coder"] is None
    rates = {name: [each["bpp"] for each in method["pictures"].values()] for name, method in note["methods"].items()}
    for mine, jpeg, webp in zip(rates["mcode-1"], rates["jpeg-at-1x"], rates["webp-at-1"], strict=True):
        assert mine <= jpeg < 1.1 * mine and 1 <= webp < 1.1
    for method in prepared.methods:
        assert method.reached == 2 and method.bpp == pytest.approx(np.mean(rates[method.method]))
    entry = note["methods"]["jpeg-5"]["pictures"]["0"]
    assert entry["setting"] == 5 and entry["bpp"] == entry["bytes"] * 8 / (96 * 80)


def test_what_is_coded_is_what_is_read(turned, images, tmp_path):
    prepare(images, tmp_path / "study", parse_methods(["jpeg:95", "jpeg:5"]))
    with Image.open(tmp_path / "study" / ORIGINAL / "0.png") as image, Image.open(tmp_path / "study/jpeg-95/0.png") as coded:
        assert np.array_equal(np.array(image), np.rot90(picture(0))) and coded.size == (80, 96)


def noted(folder: Path) -> dict[str, dict]:
    return json.loads((folder / NOTE).read_text())["methods"]


def test_each_method_is_of_the_manifold_that_it_names(images, tmp_path):
    methods = parse_methods(["mcode:q1", "mcode/coarse:q1"])
    prepare(images, tmp_path / "study", methods, manifolds=[Blocks(), Coarse()])
    material, note = open_material(tmp_path / "study"), noted(tmp_path / "study")
    assert material.methods == ("mcode-1", "mcode-coarse-1")
    for method, model in (("mcode-1", Blocks()), ("mcode-coarse-1", Coarse())):
        size, decoded = stills.mcode_still(model, 1).code(picture(0))
        assert np.array_equal(material.read(method, "0"), decoded)
        assert note[method]["pictures"]["0"]["bytes"] == size and note[method]["pictures"]["0"]["manifold"] == model.name
        assert note[method]["manifolds"] == {model.name: model.id}
        assert (note[method]["coder"], note[method]["refine"], note[method]["refine_by"]) == ("huffman", 0, None)


def test_of_several_manifolds_the_cheapest_with_enough_bits_is_taken_for_each_picture(images, tmp_path):
    """As the paper takes one of its fifteen M&S models (section 5, User Study)."""
    methods = parse_methods(["mcode:q1", "mcode/coarse:q1", "mcode/blocks+coarse@1x", "mcode/blocks+coarse@1x:mcode-coarse-1"])
    prepare(images, tmp_path / "study", methods, manifolds=[Blocks(), Coarse()])
    note = noted(tmp_path / "study")
    for name, of in (
        ("mcode-blocks-to-coarse-at-1x", "mcode-1"),
        ("mcode-blocks-to-coarse-at-1x-of-mcode-coarse-1", "mcode-coarse-1"),
    ):
        assert note[name]["pictures"] == note[of]["pictures"] and note[name]["reached"] == 2
        assert note[name]["manifolds"] == {"blocks": Blocks.id, "coarse": Coarse.id}
    prepare(images, tmp_path / "more", parse_methods(["jpeg:9", "mcode/coarse+blocks@20"]), manifolds=[Blocks(), Coarse()])
    beyond = noted(tmp_path / "more")["mcode-coarse-to-blocks-at-20"]
    assert beyond["reached"] == 0 and {each["manifold"] for each in beyond["pictures"].values()} == {"blocks"}


def test_several_manifolds_stand_at_their_floor_only_where_none_has_fewer_bits(images, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "FLOOR_SHARE", 0.0)
    methods = parse_methods(["mcode/coarse:q1", "mcode/blocks+coarse@0.5x", "mcode/blocks+coarse@1.002x"])
    prepare(images, tmp_path / "study", methods, manifolds=[Blocks(), Coarse()])
    _, below, between = noted(tmp_path / "study").values()
    for note, name, floor in ((below, "coarse", 2), (between, "blocks", 0)):
        assert {picture["manifold"] for picture in note["pictures"].values()} == {name}
        assert note["at_floor"] == floor and note["reached"] == 2


def test_a_rate_may_be_that_of_any_method_before_it(images, tmp_path):
    methods = parse_methods(["mcode:q1", "jpeg:80", "webp@1.5x:jpeg-80", "webp@1.5x"])
    prepare(images, tmp_path / "study", methods, manifolds=[Blocks()])
    note = noted(tmp_path / "study")
    for name, of in (("webp-at-1.5x-of-jpeg-80", "jpeg-80"), ("webp-at-1.5x", "mcode-1")):
        for rate, wanted in zip(note[name]["pictures"].values(), note[of]["pictures"].values(), strict=True):
            assert 1.5 * wanted["bpp"] <= rate["bpp"] < 1.65 * wanted["bpp"]


def test_manifolds_that_no_method_names_are_not_loaded(images, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(manifold, "load", lambda given, device: loaded.append((given, device)) or Blocks())
    given = {"manifolds": ["talking-head", "general"], "device": "cpu"}
    prepare(images, tmp_path / "study", parse_methods(["mcode/general:q1", "mcode/general@1x", "jpeg:5"]), **given)
    assert loaded == [("general", "cpu")]
    prepare(images, tmp_path / "more", parse_methods(["jpeg:4", "jpeg:5"]), manifolds=["nowhere"])
    assert loaded == [("general", "cpu")]


def test_the_coder_decides_what_equal_bits_are(images, tmp_path):
    model, rates = manifold.load(small_manifolds(tmp_path)[1], "cpu"), {}
    for coder in ("huffman", "range"):
        prepare(images, tmp_path / coder, parse_methods(["mcode:q1", "jpeg@1x"]), manifolds=[model], coder=coder)
        mine, jpeg = noted(tmp_path / coder).values()
        assert (mine["coder"], jpeg["coder"]) == (coder, None)
        for name in "01":
            assert mine["pictures"][name]["bytes"] == stills.mcode_still(model, 1, coder).code(picture(int(name)))[0]
            assert jpeg["pictures"][name]["bpp"] >= mine["pictures"][name]["bpp"]
        rates[coder] = mine["bpp"]
    assert rates["range"] != rates["huffman"]


@pytest.fixture
def brighter(monkeypatch) -> list[tuple]:
    """A refinement that makes every symbol larger by one, and with what it was called."""

    class Brighter:
        def __init__(self, model, steps: int, *, judge: str, weights) -> None:
            self.steps, self.judge = steps, judge
            called.append((model.name, steps, judge, weights))

        def __call__(self, rgb, latent, symbols: np.ndarray, previous, quality: int) -> np.ndarray:
            return symbols + np.int16(1)

    called: list[tuple] = []
    monkeypatch.setattr(refine, "Refiner", Brighter)
    return called


def test_refined_pictures_stand_beside_others_where_they_are_asked_for(images, tmp_path, brighter):
    methods = parse_methods(["mcode:q1", "mcode-unrefined:q1", "mcode-unrefined/coarse:q1", "jpeg:9"])
    given = {"manifolds": [Blocks(), Coarse()], "refine": 10, "refine_by": "vgg19", "perceptual": "weights"}
    prepare(images, tmp_path / "study", methods, **given)
    assert brighter == [("blocks", 10, "vgg19", "weights")]
    material, note = open_material(tmp_path / "study"), noted(tmp_path / "study")
    refined, plain = (material.read(name, "0").astype(int) for name in ("mcode-1", "mcode-unrefined-1"))
    assert np.array_equal(plain, stills.mcode_still(Blocks(), 1).code(picture(0))[1])
    assert np.array_equal(refined, plain + 2)  # a symbol is a step of 2
    found = [(each["refine"], each["refine_by"]) for each in note.values()]
    assert found == [(10, "vgg19"), (0, None), (0, None), (0, None)]


@pytest.mark.parametrize(
    ("codecs", "options", "message"),
    [
        ("mcode:q1,mcode/fine:q1", {}, "--codecs mcode/fine: no such manifold; --manifold gives blocks, coarse"),
        ("mcode:q1,mcode/coarse+fine@1x", {}, "--codecs mcode/fine: no such manifold; --manifold gives blocks, coarse"),
        ("mcode:q1,mcode/coarse:q2", {}, "mcode:q2: manifold coarse has the qualities 1 to 1"),
        ("mcode:q1,mcode/blocks:q1", {}, "--codecs: mcode-1 and mcode-blocks-1 are the same; give one of them"),
        ("jpeg:5,mcode/blocks+coarse:q1", {}, "has several manifolds; these are for a rate, as mcode/blocks+coarse@1x"),
        ("mcode:q1,mcode-unrefined:q1", {}, "mcode-unrefined-1 is as mcode where nothing is refined; give --refine STEPS"),
        ("mcode:q1,jpeg:5", {"coder": "range"}, "--coder range: manifold blocks has no hyperprior"),
        ("mcode:q1,jpeg:5", {"manifolds": [Blocks(), Blocks()]}, "--manifold: two manifolds are named blocks; give each once"),
        ("mcode:q1,jpeg:5", {"manifolds": ["talking-head"]}, "manifold talking-head holds 128x128 alone"),
    ],
)
def test_methods_that_the_manifolds_do_not_allow_are_refused_before_coding(images, tmp_path, codecs, options, message):
    with pytest.raises(InputError) as refused:
        prepare(images, tmp_path / "study", parse_methods(codecs.split(",")), **({"manifolds": [Blocks(), Coarse()]} | options))
    assert message in str(refused.value) and not (tmp_path / "study").exists()


def test_a_rate_is_reached_at_the_cheapest_setting_or_said_not_to_be(images, tmp_path):
    prepared = prepare(images, tmp_path / "study", parse_methods(["jpeg@1.2", "webp@20"]))
    note = json.loads((tmp_path / "study" / NOTE).read_text())["methods"]["jpeg-at-1.2"]["pictures"]["0"]
    below, _ = stills.jpeg(note["setting"] - 1).code(picture(0))
    assert below * 8 / (96 * 80) < 1.2 <= note["bpp"]
    assert [each.reached for each in prepared.methods] == [2, 0]


def test_a_fault_while_preparing_leaves_nothing(images, tmp_path):
    (images / "2.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"2\.png: "):
        prepare(images, tmp_path / "study", parse_methods(["jpeg:5", "jpeg:9"]))
    assert {path.name for path in tmp_path.iterdir()} == {"images"}


def test_a_folder_is_replaced_only_by_force_and_only_a_study(images, tmp_path):
    methods = parse_methods(["jpeg:5", "jpeg:9"])
    prepare(images, tmp_path / "study", methods)
    with pytest.raises(InputError, match=r"study: exists; add --force"):
        prepare(images, tmp_path / "study", methods)
    prepare(images, tmp_path / "study", parse_methods(["jpeg:7", "jpeg:9"]), force=True)
    assert open_material(tmp_path / "study").methods == ("jpeg-7", "jpeg-9")
    with pytest.raises(InputError, match=r"images: has no study.json, so it is no study and is not replaced"):
        prepare(images, images, methods, force=True)
    assert len(list(images.glob("*.png"))) == 2


@pytest.mark.parametrize("place", ["answers.csv", "jpeg-5/answers.csv", "original/mine.png", "more/0.png"])
def test_what_is_no_part_of_a_study_keeps_it_from_being_replaced(images, tmp_path, place):
    methods, folder = parse_methods(["jpeg:5", "jpeg:9"]), tmp_path / "study"
    prepare(images, folder, methods)
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).write_text("months of work")
    (folder / ".DS_Store").write_text("")
    with pytest.raises(
        InputError,
        match=r"study holds (answers.csv|jpeg-5/answers.csv|original/mine.png|more), which is no part of the study",
    ):
        prepare(images, folder, methods, force=True)
    assert (folder / place).read_text() == "months of work" and len(list((folder / "jpeg-9").glob("*.png"))) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"images", "study"}


def test_a_study_comes_back_where_its_replacement_cannot_be_put_in(images, tmp_path, monkeypatch):
    folder, rename = tmp_path / "study", os.replace
    prepare(images, folder, parse_methods(["jpeg:5", "jpeg:9"]))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def fail(old, new):
        if Path(new) == folder / "original" and not Path(old).parent.name.endswith("-old"):
            raise OSError(errno.EIO, "the disk failed", str(new))
        rename(old, new)

    monkeypatch.setattr("mcode.evaluation.study.os.replace", fail)
    with pytest.raises(OSError, match="the disk failed"):
        prepare(images, folder, parse_methods(["jpeg:7", "jpeg:9"]), force=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"images", "study"}


def test_an_existing_folder_is_filled_without_a_place_beside_it(images, tmp_path, monkeypatch):
    folder = tmp_path / "mounted"
    folder.mkdir()
    made = []
    mkdir = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda path, *given, **also: (made.append(path), mkdir(path, *given, **also))[1])
    prepare(images, folder, parse_methods(["jpeg:5", "jpeg:9"]))
    assert made and all(folder in path.parents for path in made)
    assert {path.name for path in folder.iterdir()} == {NOTE, "original", "jpeg-5", "jpeg-9"}


@pytest.mark.parametrize("note", ["", "[]", '{"methods": 3}', '{"methods": {"../images": {}}}'])
def test_a_damaged_note_lets_nothing_be_deleted(images, tmp_path, note):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / NOTE).write_text(note)
    (tmp_path / "study" / "thesis.txt").write_text("kept")
    with pytest.raises(InputError, match=r"its study.json is damaged|holds thesis.txt"):
        prepare(images, tmp_path / "study", parse_methods(["jpeg:5", "jpeg:9"]), force=True)
    assert (tmp_path / "study" / "thesis.txt").exists() and len(list(images.glob("*.png"))) == 2


def test_a_picture_whose_name_is_not_utf_8_is_refused_before_coding(images, tmp_path):
    (images / "0.png").rename(images / "\udcff.png")
    with pytest.raises(InputError, match="its name is not UTF-8; rename it"):
        prepare(images, tmp_path / "study", parse_methods(["jpeg:5", "jpeg:9"]))
    assert not (tmp_path / "study").exists()


def test_a_study_may_be_made_here_and_through_a_link(images, tmp_path, monkeypatch):
    methods = parse_methods(["jpeg:5", "jpeg:9"])
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert prepare(images, ".", methods).folder == "."
    assert open_material(".").methods == ("jpeg-5", "jpeg-9")  # "." is still where the study lies
    (tmp_path / "link").symlink_to(here)
    prepare(images, tmp_path / "link", parse_methods(["jpeg:7", "jpeg:9"]), force=True)
    assert open_material(".").methods == ("jpeg-7", "jpeg-9") and (tmp_path / "link").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"images", "here", "link"}


def test_a_quality_that_the_manifold_lacks_is_refused(images, tmp_path):
    with pytest.raises(InputError, match="manifold blocks has the qualities 1 to 1"):
        prepare(images, tmp_path / "study", parse_methods(["mcode:q2", "jpeg:9"]), manifolds=[Blocks()])


# The commands


@pytest.fixture
def mcode(capsys):
    """mcode("study", ...) -> (status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = cli.main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


def test_the_group_alone_shows_its_commands(mcode):
    status, out, err = mcode("study")
    assert status == 2 and all(command in out + err for command in ("prepare", "run", "score"))


def test_prepare_prints_the_rates(mcode, images, tmp_path):
    status, out, err = mcode("study", "prepare", images, "-o", tmp_path / "study", "--codecs", "jpeg:5,webp@20")
    assert status == 0 and "jpeg-5" in out and "bit/pixel" in out
    assert "webp-at-20: 2 of 2 pictures have fewer bits than wanted" in err
    status, out, err = mcode("study", "prepare", images, "-o", tmp_path / "more", "--codecs", "jpeg:5,jpeg:9", "--json")
    assert [each["method"] for each in json.loads(out)["methods"]] == ["jpeg-5", "jpeg-9"]


def test_prepare_warns_where_the_cheapest_setting_has_far_more_bits_than_wanted(mcode, images, tmp_path):
    status, out, err = mcode(
        "study", "prepare", images, "-o", tmp_path / "study", "--codecs", "webp:0,jpeg@0.5x,webp@1x", "--json"
    )
    assert status == 0 and [each["at_floor"] for each in json.loads(out)["methods"]] == [0, 2, 0]
    assert err.count("\n") == 1
    assert "jpeg-at-0.5x: 2 of 2 pictures have over 5% more bits than wanted, at jpeg's cheapest setting; a higher rate" in err
    assert {facts["at_floor"] for facts in noted(tmp_path / "study")["jpeg-at-0.5x"]["pictures"].values()} == {True}


def test_prepare_takes_several_manifolds_a_coder_and_refinement(mcode, images, tmp_path, brighter):
    first, second = small_manifolds(tmp_path)[1], tmp_path / "second.safetensors"
    manifold.rewrite(first, second, card={}, name="second")
    files = f"{first},{second}"
    command = ("study", "prepare", images, "-o", tmp_path / "study", "-m", files, "--coder", "range", "--refine", 2)
    codecs = "mcode/second:q2,mcode-unrefined:q2,webp@9x"
    status, out, err = mcode(*command, "--device", "cpu", "--codecs", codecs)
    assert (status, err) == (0, "")
    rows = [line.split("  ") for line in out.splitlines()[2:]]
    assert [[cell.strip() for cell in row if cell][:3] for row in rows] == [
        ["mcode-second-2", "second", "range, refined 2 by eye"],
        ["mcode-unrefined-2", "plain", "range"],
        ["webp-at-9x", "-", "-"],
    ]
    assert [each[:3] for each in brighter] == [("second", 2, "eye")]
    found = {name: (*each["manifolds"], each["coder"], each["refine"]) for name, each in noted(tmp_path / "study").items()}
    assert found == {
        "mcode-second-2": ("second", "range", 2),
        "mcode-unrefined-2": ("plain", "range", 0),
        "webp-at-9x": (None, 0),
    }


def test_a_picture_too_large_to_open_is_one_line(mcode, images, tmp_path):
    claiming(images / "big.png", 20_000, 20_000)
    status, out, err = mcode("study", "prepare", images, "-o", tmp_path / "study", "--codecs", "jpeg:5,jpeg:9")
    assert (status, out) == (2, "") and "big.png: 20000x20000 is more than" in err and err.count("\n") == 1
    assert not (tmp_path / "study").exists()


def write_answers(path: Path, answers: list[Answer]) -> Path:
    rows = [",".join(field.name for field in fields(Answer)), *(",".join(map(str, astuple(answer))) for answer in answers)]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_score_prints_all_raters_and_each_and_draws(mcode, tmp_path):
    answers = simulated(SKILL, 400)
    mine = write_answers(tmp_path / "1.csv", answers[:200])
    theirs = write_answers(tmp_path / "2.csv", [replace(each, rater="bob") for each in answers[200:]])
    status, out, err = mcode("study", "score", mine, theirs, "--shuffles", 200, "-o", tmp_path / "plot.png")
    assert (status, err) == (0, "") and (tmp_path / "plot.png").exists()
    assert "400 answers of 5 raters on 20 pictures" in out and "bob" in out
    status, out, err = mcode("study", "score", mine, theirs, "--shuffles", 200, "--json")
    report = json.loads(out)
    assert report["answers"] == 400 and report["shuffles"] == 200 and len(report["raters"]) == 5
    first = report["methods"][0]
    assert first["method"] == "a" and first["low"] < first["elo"] < first["high"]
    assert report["by_picture"].keys() == {f"{i}" for i in range(20)} and report["pictures"] == 20
    assert report["by_picture"]["7"][0].keys() == first.keys()


def test_answers_that_stand_in_two_files_are_refused(mcode, tmp_path):
    answers = simulated(SKILL, 40)
    whole, part = write_answers(tmp_path / "all.csv", answers), write_answers(tmp_path / "part.csv", answers[30:])
    status, out, err = mcode("study", "score", whole, part)
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert f"{part}: rater 2's answer about 10, " in err and f"stands in {whole}, too; give each answer once" in err


def test_score_prints_a_table_by_picture_where_there_are_several(mcode, tmp_path):
    cells = [("one", "a", "b"), ("two", "b", "a"), ("two", "b", "c")]
    answers = [Answer("ann", 0, picture, *pair, "b", 0, 0, 8, 8, 1, 1.0) for picture, *pair in cells]
    _, out, _ = mcode("study", "score", write_answers(tmp_path / "1.csv", answers), "--shuffles", 1)
    table = out[out.index("Elo by picture") :].split("\n\n")[0].splitlines()
    assert [line.split() for line in table[1:3]] == [["picture", "b", "a", "c"], ["one", "1485", "1515", "-"]]
    assert table[3].split()[0] == "two" and len(table) == 4 and "Elo by rater" not in out
    _, out, _ = mcode("study", "score", write_answers(tmp_path / "2.csv", answers[:1]), "--shuffles", 1)
    assert "Elo by picture" not in out


@pytest.mark.parametrize(
    ("raters", "pictures", "words"),
    [
        (1, 2, "of one rater: the intervals do not cover what other raters would give"),
        (2, 1, "of one picture: the intervals do not cover what other pictures would give"),
        (1, 1, "of one rater and one picture: the intervals do not cover what other raters and pictures would give"),
        (2, 2, None),
    ],
)
def test_score_warns_where_nothing_tells_how_others_differ(mcode, tmp_path, raters, pictures, words):
    cells = [(f"{rater}", f"{picture}") for rater in range(raters) for picture in range(pictures)]
    answers = [Answer(rater, 0, picture, "a", "b", "b", 0, 0, 8, 8, 1, 1.0) for rater, picture in cells]
    status, _, err = mcode("study", "score", write_answers(tmp_path / "1.csv", answers), "--shuffles", 1, "--json")
    assert status == 0 and err.count("\n") == bool(words) and (words or "") in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("score nowhere.csv", "nowhere.csv: cannot be read (No such file or directory)"),
        ("score {0} {0}", "{0}: named twice; name each file of answers once"),
        ("score {0} -o plot.gif", "plot.gif: a plot is written as .png, .svg or .pdf"),
        ("score {0} --shuffles 0", "--shuffles 0: the number of shuffles is a whole number from 1 to 1000000"),
        ("run nowhere -o answers.csv", "nowhere: no such folder; `mcode study prepare` makes one"),
        ("run {1} -o {0} --crop 3", "--crop 3: the side of a crop is a whole number from 64 to 4096"),
        ("run {1} -o {0} --view three", "--view three: choose pair or paper"),
        ("run {1} -o {0} --rater=", "--rater '': give a name"),
        ("prepare nowhere -o {1} --codecs jpeg:3,jpeg:4", "{1}: exists; add --force"),
        ("prepare nowhere -o new --codecs jpeg:3,jpeg:4", "nowhere: no such folder of pictures"),
        ("prepare {1}/good -o new -m nowhere --codecs mcode:q1,jpeg:4", "no manifold named 'nowhere' is installed"),
        (
            "prepare {1}/good -o new --codecs mcode/nowhere:q1,jpeg:4",
            "--codecs mcode/nowhere: no such manifold; --manifold gives",
        ),
        ("prepare {1}/good -o new --coder best --codecs mcode:q1,jpeg:4", "--coder best: choose"),
        ("prepare {1}/good -o new --refine -1 --codecs mcode:q1,jpeg:4", "--refine -1: the number of steps is a whole number"),
    ],
)
def test_a_bad_value_is_named_with_its_remedy(mcode, folder, tmp_path, arguments, message):
    answers = write_answers(tmp_path / "1.csv", simulated(SKILL, 4))
    status, out, err = mcode("study", *arguments.format(answers, folder).split())
    assert (status, out) == (2, "")
    assert err.startswith(f"mcode: error: {message.format(answers, folder)}") and err.count("\n") == 1
