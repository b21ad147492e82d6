"""Colours, fonts and the style sheet of the window: one accent on calm greys, dark and light."""

from __future__ import annotations

from dataclasses import dataclass

from PyQt6.QtCore import Qt
from PyQt6.QtGui import QColor, QFont, QFontDatabase, QPalette, QTextOption
from PyQt6.QtWidgets import QApplication

FAMILIES = (
    "Inter",
    "SF Pro Text",
    "Segoe UI Variable Text",
    "Segoe UI",
    "Roboto",
    "Noto Sans",
    "Cantarell",
    "DejaVu Sans",
)
"""The first of these that is installed; all have digits of equal width."""


@dataclass(frozen=True)
class Theme:
    """Colours by purpose, as #rrggbb. canvas: around the pictures; surface: panels; raised: controls on them; faint: what is
    disabled or needs no reading, the others have the contrast of WCAG AA."""

    name: str
    canvas: str
    surface: str
    raised: str
    hover: str
    line: str
    text: str
    dim: str
    faint: str
    accent: str
    on_accent: str
    baseline: str
    warning: str
    problem: str


DARK = Theme(
    name="dark",
    canvas="#0c0e12",
    surface="#13161b",
    raised="#1d2128",
    hover="#272c35",
    line="#22262e",
    text="#e9ecf1",
    dim="#98a1b0",
    faint="#5d6675",
    accent="#45d6b5",
    on_accent="#04231b",
    baseline="#aab4c4",
    warning="#f2b45c",
    problem="#f0716f",
)
LIGHT = Theme(
    name="light",
    canvas="#e6e9ee",
    surface="#f8f9fb",
    raised="#e9ecf1",
    hover="#dde2e9",
    line="#dfe3e9",
    text="#161a20",
    dim="#566072",
    faint="#8c96a6",
    accent="#097561",
    on_accent="#ffffff",
    baseline="#5d6b80",
    warning="#a86400",
    problem="#c2372f",
)

TITLE, BODY, SMALL, TINY = 13, 12, 11, 10
"""Font sizes in pixels at a scale of 1."""


def family() -> str:
    installed = set(QFontDatabase.families())
    return next((name for name in FAMILIES if name in installed), QApplication.font().family())


def font(size_px: int = BODY, weight: QFont.Weight = QFont.Weight.Normal, spacing: float = 0.0) -> QFont:
    """The window's font with digits of equal width, so that changing numbers do not dance."""
    made = QFont(family())
    made.setPixelSize(size_px)
    made.setWeight(weight)
    made.setFeature(QFont.Tag("tnum"), 1)
    if spacing:
        made.setLetterSpacing(QFont.SpacingType.AbsoluteSpacing, spacing)
    return made


def wrapped(alignment: Qt.AlignmentFlag) -> QTextOption:
    """For drawText: lines break between words, and within one that is longer than a line, as a path may be."""
    made = QTextOption(alignment)
    made.setWrapMode(QTextOption.WrapMode.WrapAtWordBoundaryOrAnywhere)
    return made


def with_alpha(colour: str, alpha: float) -> QColor:
    made = QColor(colour)
    made.setAlphaF(alpha)
    return made


def palette(theme: Theme) -> QPalette:
    made = QPalette()
    role = QPalette.ColorRole
    for which, colour in (
        (role.Window, theme.surface),
        (role.Base, theme.raised),
        (role.AlternateBase, theme.surface),
        (role.Button, theme.raised),
        (role.WindowText, theme.text),
        (role.Text, theme.text),
        (role.ButtonText, theme.text),
        (role.PlaceholderText, theme.dim),
        (role.ToolTipBase, theme.hover),
        (role.ToolTipText, theme.text),
        (role.Highlight, theme.accent),
        (role.HighlightedText, theme.on_accent),
        (role.Mid, theme.line),
        (role.Dark, theme.canvas),
        (role.Link, theme.accent),
    ):
        made.setColor(which, QColor(colour))
    return made


def style_sheet(t: Theme) -> str:
    focus = with_alpha(t.accent, 0.65).name(QColor.NameFormat.HexArgb)
    return f"""
* {{ outline: 0; }}
QWidget {{ color: {t.text}; }}
QWidget#window, QWidget#canvas {{ background: {t.canvas}; }}
QWidget#bar, QWidget#panel, QWidget#charts {{ background: {t.surface}; }}
QFrame#rule {{ background: {t.line}; border: 0; }}
QLabel {{ background: transparent; }}
QLabel[tone="dim"] {{ color: {t.dim}; }}
QLabel[tone="faint"] {{ color: {t.faint}; }}
QLabel[tone="accent"] {{ color: {t.accent}; }}
QLabel[tone="problem"] {{ color: {t.problem}; }}
QPushButton, QToolButton {{
    background: transparent; border: 0; border-radius: 7px; padding: 0 10px; min-height: 30px; color: {t.dim};
}}
QToolButton {{ padding: 0; min-width: 30px; }}
QPushButton:hover, QToolButton:hover {{ background: {t.hover}; color: {t.text}; }}
QPushButton:focus, QToolButton:focus {{ border: 1px solid {focus}; }}
QPushButton:disabled, QToolButton:disabled {{ color: {t.faint}; }}
QPushButton#solid {{ background: {t.raised}; color: {t.text}; padding: 0 16px; min-height: 34px; }}
QPushButton#solid:hover {{ background: {t.hover}; }}
QPushButton#primary {{
    background: {t.accent}; color: {t.on_accent}; padding: 0 18px; min-height: 34px; font-weight: 600;
}}
QPushButton#primary:hover {{ background: {QColor(t.accent).lighter(110).name()}; }}
QPushButton#link {{ text-align: left; padding: 0 10px; color: {t.text}; min-height: 32px; }}
QWidget#segments {{ background: {t.raised}; border-radius: 8px; }}
QWidget#segments QPushButton {{ min-height: 24px; border-radius: 6px; padding: 0 10px; margin: 2px; color: {t.dim}; }}
QWidget#segments QPushButton:hover {{ color: {t.text}; background: transparent; }}
QWidget#segments QPushButton:checked {{ background: {t.hover if t.name == "dark" else "#ffffff"}; color: {t.text}; }}
QWidget#segments QPushButton:disabled {{ color: {t.faint}; }}
QWidget#segments QPushButton:checked:disabled {{ color: {t.dim}; }}
QComboBox {{
    background: {t.raised}; border: 0; border-radius: 8px; padding: 0 10px; min-height: 30px; color: {t.text};
}}
QComboBox:hover {{ background: {t.hover}; }}
QComboBox:focus {{ border: 1px solid {focus}; }}
QComboBox:disabled {{ color: {t.faint}; }}
QComboBox::drop-down {{ border: 0; width: 22px; }}
QComboBox::down-arrow {{ image: none; }}
QComboBox QAbstractItemView {{
    background: {t.raised}; border: 1px solid {t.line}; border-radius: 8px; padding: 4px;
    selection-background-color: {t.hover}; selection-color: {t.text};
}}
QMenu {{ background: {t.raised}; border: 1px solid {t.line}; border-radius: 8px; padding: 5px; }}
QMenu::item {{ padding: 6px 26px 6px 12px; border-radius: 5px; color: {t.text}; }}
QMenu::item:selected {{ background: {t.hover}; }}
QMenu::item:disabled {{ color: {t.faint}; }}
QMenu::separator {{ height: 1px; background: {t.line}; margin: 5px 8px; }}
QToolTip {{
    background: {t.hover}; color: {t.text}; border: 1px solid {t.line}; padding: 5px 8px;
}}
QScrollArea, QScrollArea > QWidget > QWidget {{ background: transparent; border: 0; }}
QScrollBar:vertical {{ background: transparent; width: 8px; margin: 0; }}
QScrollBar::handle:vertical {{ background: {t.hover}; border-radius: 4px; min-height: 24px; }}
QScrollBar::add-line, QScrollBar::sub-line, QScrollBar::add-page, QScrollBar::sub-page {{
    height: 0; background: none;
}}
"""
