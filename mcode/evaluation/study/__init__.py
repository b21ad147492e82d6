"""A user study by two-alternative forced choice: its folder of pictures, a rater's way through it, the Elo scores.

    methods.py, ladders.py -> preparing.py -> the folder -> material.py -> session.py -> answers.py -> scores.py -> plotting.py

After Mentzer, Toderici, Tschannen, Agustsson 2020 (HiFiC), section 3.4. No window here: `player.study` shows what `Session`
asks and tells it the answers.
"""

from mcode.evaluation.study.answers import Answer, read_all, read_answers
from mcode.evaluation.study.ladders import FLOOR_SHARE
from mcode.evaluation.study.material import ORIGINAL, Material, open_material
from mcode.evaluation.study.methods import Method, parse_methods
from mcode.evaluation.study.plotting import check_plot, plot
from mcode.evaluation.study.preparing import NOTE, Prepared, PreparedMethod, prepare
from mcode.evaluation.study.scores import MethodScore, StudyScore, bradley_terry, elo, score
from mcode.evaluation.study.session import CROP, Question, Ranking, Session

__all__ = [
    "CROP",
    "FLOOR_SHARE",
    "NOTE",
    "ORIGINAL",
    "Answer",
    "Material",
    "Method",
    "MethodScore",
    "Prepared",
    "PreparedMethod",
    "Question",
    "Ranking",
    "Session",
    "StudyScore",
    "bradley_terry",
    "check_plot",
    "elo",
    "open_material",
    "parse_methods",
    "plot",
    "prepare",
    "read_all",
    "read_answers",
    "score",
]
