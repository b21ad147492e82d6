"""User studies as raters see them: the folder of pictures, a rater's way through it, the file of answers."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mcode.errors import InputError
from mcode.evaluation.study import ORIGINAL, Answer, Ranking, Session, open_material, read_answers, score
from tests.studies import METHODS, SKILL, answer_well, picture, simulated, turn_pictures, write_answers, write_study


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_study(tmp_path / "study")


@pytest.fixture
def session(folder, tmp_path):
    """session(rater=..., seed=...) on the folder; the same file of answers every time."""

    def make(rater: str = "ann", seed: int = 0, **options) -> Session:
        return Session(open_material(folder), tmp_path / "answers.csv", rater, seed=seed, **options)

    return make


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
    before, question, write = rating.output.read_bytes(), rating.question, os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:7]))
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
    turn_pictures(monkeypatch)


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


def test_answers_by_binary_search_give_the_raters_order(session):
    for number in range(5):
        answer_well(session(f"rater {number}"))
    result = score(read_answers(session().output), shuffles=500)
    assert [each.method for each in result.methods] == list(METHODS)
    assert result.pictures == 2 and len(result.raters) == 5


def test_the_group_alone_shows_its_commands(mcode):
    status, out, err = mcode("study")
    assert status == 2 and all(command in out + err for command in ("prepare", "run", "score"))


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
