"""The window of a user study, offscreen and driven by its keys: what it shows, what stands in the file of answers."""

from __future__ import annotations

import os

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("PyQt6.QtWidgets")
pytest.importorskip("pytestqt")

from PyQt6.QtCore import QEvent, Qt, QTimer
from PyQt6.QtGui import QKeyEvent
from PyQt6.QtWidgets import QApplication, QLabel, QPushButton, QToolButton

from mcode.errors import InputError
from mcode.evaluation.study import ORIGINAL, Session, open_material, read_answers
from player import study as study_window
from player.study import StudyWindow, crop_side
from player.theme import DARK, LIGHT
from player.view import array_of
from tests.studies import METHODS, write_study

pytestmark = [
    pytest.mark.qt_log_level_fail("WARNING"),
    pytest.mark.qt_log_ignore("This plugin does not support propagateSizeHints"),  # the offscreen one, to a least size
]
Key = Qt.Key


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Answers come sooner than a person's."""
    monkeypatch.setattr(study_window, "LEAST_S", 0.0)


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_study(tmp_path / "study")


@pytest.fixture
def window(qtbot, folder, tmp_path):
    """window(rater=..., view=...): a shown window on the folder; always the same file of answers."""

    def make(rater: str = "ann", *, view: str = "pair", crop: int = 64) -> StudyWindow:
        made = StudyWindow(Session(open_material(folder), tmp_path / "answers.csv", rater, crop=crop), view=view)
        qtbot.addWidget(made)
        made.show()
        qtbot.waitExposed(made)
        return made

    return make


def painted(window: StudyWindow) -> list[np.ndarray]:
    """The pixels of both crops as they stand on the screen."""
    image = window.crops.grab().toImage()
    places = [place.toRect() for place in window.crops.places()]
    return [array_of(image.copy(place)) for place in places]


def crop_of(window: StudyWindow, method: str) -> np.ndarray:
    x, y, width, height = window.question.crop
    return window.session.material.read(method, window.question.picture)[y : y + height, x : x + width]


def answers_of(window: StudyWindow):
    output = window.session.output
    return read_answers(output) if output.exists() else []


def answer_well(qtbot, window: StudyWindow) -> None:
    while question := window.question:
        qtbot.keyClick(window, Key.Key_Space)
        left = METHODS.index(question.left) < METHODS.index(question.right)
        qtbot.keyClick(window, Key.Key_Left if left else Key.Key_Right)


def test_both_methods_are_shown_pixel_by_pixel_and_space_shows_the_original(window, qtbot):
    made = window()
    left, right = painted(made)
    assert np.array_equal(left, crop_of(made, made.question.left))
    assert np.array_equal(right, crop_of(made, made.question.right))
    qtbot.keyClick(made, Key.Key_Space)
    for pixels in painted(made):
        assert np.array_equal(pixels, crop_of(made, ORIGINAL))
    qtbot.keyClick(made, Key.Key_Space)
    assert np.array_equal(painted(made)[0], left)


@pytest.mark.parametrize(("key", "left"), [(Key.Key_1, True), (Key.Key_Left, True), (Key.Key_2, False), (Key.Key_Right, False)])
def test_a_key_writes_its_answer_at_once(window, qtbot, key, left):
    made = window()
    question = made.question
    qtbot.keyClick(made, Key.Key_Space)
    qtbot.keyClick(made, Key.Key_Space)
    qtbot.keyClick(made, key)
    (answer,) = answers_of(made)
    assert (answer.better, answer.worse) == ((question.left, question.right) if left else (question.right, question.left))
    assert (answer.rater, answer.left, answer.looks) == ("ann", question.left, 1) and answer.seconds >= 0
    assert made.question != question


def test_buttons_do_what_the_keys_do(window, qtbot):
    made = window()
    question = made.question
    qtbot.mouseClick(made.flip_button, Qt.MouseButton.LeftButton)
    assert made.flipped
    qtbot.mouseClick(made.right_button, Qt.MouseButton.LeftButton)
    assert answers_of(made)[0].better == question.right


def test_no_answer_before_a_look_at_the_original(window, qtbot):
    made = window()
    qtbot.keyClick(made, Key.Key_1)
    assert not answers_of(made) and made.hint.text() == "Look at the original first: press Space"
    qtbot.keyClick(made, Key.Key_Space)
    assert not made.hint.text()
    qtbot.keyClick(made, Key.Key_1)
    qtbot.keyClick(made, Key.Key_1)  # the same crop: it has been seen
    assert len(answers_of(made)) == 2


def test_a_key_held_down_answers_once(window, qtbot):
    made = window()
    qtbot.keyClick(made, Key.Key_Space)
    for repeated in (False, True, True):
        event = QKeyEvent(QEvent.Type.KeyPress, Key.Key_1, Qt.KeyboardModifier.NoModifier, "1", repeated)
        QApplication.sendEvent(made, event)
    assert len(answers_of(made)) == 1


def test_a_double_click_answers_once(window, qtbot, monkeypatch):
    monkeypatch.setattr(study_window, "LEAST_S", 0.4)
    made = window()
    now_s = [made._asked_at + 3.0]
    monkeypatch.setattr(made, "_now", lambda: now_s[0])
    qtbot.keyClick(made, Key.Key_Space)
    qtbot.mouseClick(made.left_button, Qt.MouseButton.LeftButton)
    now_s[0] += 0.2
    qtbot.mouseClick(made.left_button, Qt.MouseButton.LeftButton)
    (answer,) = answers_of(made)
    assert answer.seconds == 3.0
    now_s[0] += 1.0
    qtbot.mouseClick(made.left_button, Qt.MouseButton.LeftButton)
    assert len(answers_of(made)) == 2


def test_a_second_window_of_the_same_rater_says_so_and_writes_nothing(window, qtbot):
    first, second = window(), window()
    for made in (first, second):
        qtbot.keyClick(made, Key.Key_Space)
        qtbot.keyClick(made, Key.Key_1)
    assert len(answers_of(first)) == 1
    assert second.hint.text() == "another window is answering as ann; nothing is written from this one"
    answer_well(qtbot, first)
    assert first.done.isVisible()


def test_the_counter_falls_to_the_thanks_at_the_end(window, qtbot):
    made = window()
    assert made.counter.text() == "at most 6 left"
    qtbot.keyClick(made, Key.Key_Space)
    qtbot.keyClick(made, Key.Key_1)
    assert made.counter.text() in ("at most 5 left", "at most 4 left")
    answer_well(qtbot, made)
    assert made.done.isVisible() and "answers are in answers.csv" in made.done.text()
    assert made.counter.text() == f"{len(answers_of(made))} answered"
    assert not made.left_button.isVisible() and made.end_button.isVisible()
    qtbot.keyClick(made, Key.Key_1)
    qtbot.keyClick(made, Key.Key_Space)
    assert made.done.isVisible()


def test_escape_ends_and_the_next_window_goes_on(window, qtbot):
    first = window()
    qtbot.keyClick(first, Key.Key_Space)
    qtbot.keyClick(first, Key.Key_2)
    question = first.question
    qtbot.keyClick(first, Key.Key_Escape)
    assert not first.isVisible()
    second = window()
    assert second.question == question
    answer_well(qtbot, second)
    assert second.session.answered == len(answers_of(second)) >= 4


def test_another_crop_until_the_first_answer(window, qtbot):
    made = window(crop=40)
    crops = set()
    for _ in range(8):
        crops.add(made.question.crop)
        qtbot.keyClick(made, Key.Key_N)
    assert len(crops) > 4 and made.crop_button.isVisible()
    qtbot.keyClick(made, Key.Key_Space)
    qtbot.keyClick(made, Key.Key_1)
    kept = made.question.crop
    qtbot.keyClick(made, Key.Key_N)
    assert made.question.crop == kept and not made.crop_button.isVisible()
    assert answers_of(made)[0].x == kept[0]


def test_a_new_crop_wants_a_new_look(window, qtbot):
    made = window(crop=40)
    qtbot.keyClick(made, Key.Key_Space)
    qtbot.keyClick(made, Key.Key_N)
    qtbot.keyClick(made, Key.Key_1)
    assert not answers_of(made) and made.hint.text()


def test_the_papers_view_has_the_original_beside_one_method_at_a_time(window, qtbot):
    made = window(view="paper")
    left, right = painted(made)
    assert np.array_equal(left, crop_of(made, made.question.left)) and np.array_equal(right, crop_of(made, ORIGINAL))
    qtbot.keyClick(made, Key.Key_1)
    assert not answers_of(made) and made.hint.text() == "Look at the other one first: press Space"
    qtbot.keyClick(made, Key.Key_Space)
    left, right = painted(made)
    assert np.array_equal(left, crop_of(made, made.question.right)) and np.array_equal(right, crop_of(made, ORIGINAL))
    question = made.question
    qtbot.keyClick(made, Key.Key_2)
    assert answers_of(made)[0].better == question.right
    qtbot.keyClick(made, Key.Key_1)
    assert len(answers_of(made)) == 1  # another pair: its second method has not been seen


def test_dark_and_light(window, qtbot):
    made = window()
    for theme in (LIGHT, DARK):
        qtbot.keyClick(made, Key.Key_T)
        assert made.theme is theme
        assert made.crops.grab().toImage().pixelColor(1, 1).name() == theme.canvas


def test_everything_has_a_name_and_the_pictures_say_what_they_show(window, qtbot):
    made = window()
    for button in (*made.findChildren(QPushButton), *made.findChildren(QToolButton)):
        assert button.accessibleName() and button.toolTip(), button
    assert made.crops.accessibleName() == "Pictures" and made.crops.accessibleDescription() == "left: 1, right: 2"
    qtbot.keyClick(made, Key.Key_Space)
    assert made.crops.accessibleDescription() == "left: Original, right: Original"


def test_the_methods_names_are_never_shown(window, qtbot):
    made = window()
    texts = [made.windowTitle(), made.crops.accessibleDescription()]
    texts += [each.text() for each in (*made.findChildren(QLabel), *made.findChildren(QPushButton))]
    assert not any(name in text for text in texts for name in METHODS)


def test_an_answer_that_cannot_be_written_is_said_and_can_be_given_again(window, qtbot, monkeypatch):
    made = window()
    qtbot.keyClick(made, Key.Key_Space)
    write, question = made.session._file._write, made.question

    def fail(data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(made.session._file, "_write", fail)
    qtbot.keyClick(made, Key.Key_1)
    assert made.hint.text() == "not written: No space left on device" and made.question == question
    monkeypatch.setattr(made.session._file, "_write", write)
    qtbot.keyClick(made, Key.Key_1)
    assert len(answers_of(made)) == 1 and not made.hint.text()


@pytest.mark.parametrize("smaller", [False, True])
def test_a_picture_that_has_gone_ends_the_window_and_keeps_the_answers(window, qtbot, folder, smaller):
    made = window()
    first = made.question.picture
    for path in folder.glob("*/*.png"):
        if path.stem != first:
            path.write_bytes(b"no picture")
            if smaller:
                Image.new("RGB", (3, 2)).save(path)
    answer_well(qtbot, made)
    assert isinstance(made.problem, InputError) and ".png: " in str(made.problem)
    assert not made.isVisible() and len(answers_of(made)) >= 2


@pytest.mark.parametrize(
    ("width", "height", "ratio", "side"),
    [(1920, 1080, 1.0, 768), (1366, 768, 1.0, 598), (1280, 1024, 1.0, 615), (1280, 720, 2.0, 768), (200, 200, 1.0, 64)],
)
def test_crops_are_as_large_as_two_fit_the_screen(width, height, ratio, side):
    assert crop_side(width, height, ratio) == side


def run_and(monkeypatch, act) -> None:
    """act(window), soon after `run` has shown its window."""

    def shown(self):
        self.setVisible(True)
        QTimer.singleShot(0, lambda: act(self))

    monkeypatch.setattr(StudyWindow, "show", shown)


def press(window, qtbot, *keys) -> None:
    for key in keys:
        qtbot.keyClick(window, key)


def test_the_command_opens_the_window_and_counts_the_answers(qapp, qtbot, folder, tmp_path, monkeypatch, mcode):
    output = tmp_path / "answers.csv"
    run_and(monkeypatch, lambda window: press(window, qtbot, Key.Key_Space, Key.Key_1, Key.Key_1, Key.Key_Escape))
    status, out, _ = mcode("study", "run", folder, "-o", output, "--rater", "ann", "--json")
    assert status == 0
    counts = json.loads(out)
    assert (counts["rater"], counts["answers"], counts["new_answers"]) == ("ann", 2, 2) and 2 <= counts["most_left"] <= 4
    run_and(monkeypatch, lambda window: press(window, qtbot, Key.Key_Escape))
    status, out, _ = mcode("study", "run", folder, "-o", output, "--rater", "ann")
    assert status == 0 and "2, 0 of them now" in out and "the same command goes on" in out
    status, _, err = mcode("study", "run", folder, "-o", output, "--rater", "ann", "--seed", 5)
    assert status == 2 and "--seed 5: ann began" in err


def test_the_command_says_in_one_line_which_picture_has_gone(qapp, qtbot, folder, tmp_path, monkeypatch, mcode):
    def act(window):
        for path in folder.glob("*/*.png"):
            if path.stem != window.question.picture:
                path.write_bytes(b"no picture")
        answer_well(qtbot, window)

    run_and(monkeypatch, act)
    status, out, err = mcode("study", "run", folder, "-o", tmp_path / "answers.csv", "--rater", "ann")
    assert (status, out) == (2, "") and ".png: " in err and err.count("\n") == 1


def test_a_first_picture_that_has_gone_opens_no_window(qapp, folder, tmp_path, monkeypatch):
    material = open_material(folder)
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"no picture")
    monkeypatch.setattr(StudyWindow, "show", lambda self: pytest.fail("an empty window is shown"))
    with pytest.raises(InputError, match="picture is cut off or damaged"):
        study_window.run(material, tmp_path / "answers.csv", "ann")


def test_an_unknown_view_is_refused(qapp, folder, tmp_path):
    with pytest.raises(InputError, match="--view three: choose pair or paper"):
        study_window.run(open_material(folder), tmp_path / "answers.csv", "ann", view="three")


def test_a_display_that_does_not_answer_is_one_line(folder, tmp_path, monkeypatch, mcode):
    monkeypatch.delenv("QT_QPA_PLATFORM")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":987")
    status, out, err = mcode("study", "run", folder, "-o", tmp_path / "answers.csv", "--rater", "ann")
    assert (status, out) == (2, "") and "no window can be opened on this display" in err and err.count("\n") == 1
