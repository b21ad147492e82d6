"""Scores of user studies: Elo and Bradley-Terry on raters of known skill, their picture, and what the command prints."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mcode.errors import InputError
from mcode.evaluation import study
from mcode.evaluation.study import Answer, Ranking, bradley_terry, elo, score
from tests.studies import SKILL, answers_of, random_games, simulated, write_answers


def test_more_methods_than_a_study_has_are_one_line():
    answers = simulated({"a": 0.0, "b": 1.0}, 1)
    many = [replace(answers[0], better=f"{i}", worse=f"{i + 1}", left=f"{i}") for i in range(40_000)]
    with pytest.raises(InputError, match="40,001 methods, and a study has at most 500"):
        score(many)
    assert len(score(many[:50], shuffles=1).methods) == 51


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
    monkeypatch.setattr("mcode.evaluation.study.scores.MOST_GAMES", 60_000)
    assert score(simulated(SKILL, 100)).shuffles == 200
    assert score(simulated(SKILL, 100), shuffles=50).shuffles == 50


def test_no_answers_are_no_scores():
    with pytest.raises(InputError, match="no answers to score"):
        score([])


def test_files_without_answers_are_named(tmp_path):
    (tmp_path / "empty.csv").touch()
    bare = write_answers(tmp_path / "bare.csv", [])
    with pytest.raises(InputError, match=f"^{tmp_path}/empty.csv, {bare}: no answers to score$"):
        study.read_all([tmp_path / "empty.csv", bare])
    full = write_answers(tmp_path / "full.csv", simulated(SKILL, 3))
    assert len(study.read_all([bare, full])) == 3


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
