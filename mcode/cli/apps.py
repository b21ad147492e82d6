"""The command line's groups of commands."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="MCode sends video as coordinates on a learned manifold: a few hundred bytes a second.",
    epilog="Start with:  mcode encode clip.mp4 -o clip.mcode,  then  mcode decode clip.mcode -o back.mp4",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
manifolds_app = typer.Typer(
    help="List, show, verify, import and fetch manifolds.",
    epilog="They are found by name in the folders of $MCODE_MANIFOLDS, in ~/.local/share/mcode/manifolds and in the package.",
    no_args_is_help=True,
)
app.add_typer(manifolds_app, name="manifolds")
evaluate_app = typer.Typer(help="Measure codecs on test material.", no_args_is_help=True)
app.add_typer(evaluate_app, name="evaluate")
