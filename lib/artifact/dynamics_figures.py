"""Figures of notebook 06: what snapshots of one training show, a column per axis, a row per question."""

from __future__ import annotations

import pandas as pd

from lib.analysis import dynamics
from lib.analysis.fingerprint import RIVALS
from lib.analysis.ladder import STEPS
from lib.artifact import figures
from lib.artifact.drawings import RIVAL_COLOURS, RIVAL_MARKERS
from lib.artifact.figures import AXES, DOTS, GREY, LONG, Look

LINES = ("-", LONG, "--", "-.")  # with the marker they tell curves apart in grey print
SOURCES = {
    rival: Look(RIVAL_COLOURS[rival], line, RIVAL_MARKERS[rival]) for rival, line in zip(RIVALS, LINES, strict=True)
}
RUNGS = {
    step: Look(colour, line, marker)
    for step, colour, line, marker in zip(
        STEPS, (figures.BLACK, figures.BLUE, figures.VERMILLION, figures.ORANGE), LINES, "osD^", strict=True
    )
}
ANSWERS = {
    "right sign\n(chance: grey dots)": Look(figures.BLACK, "-", "o"),
    "correct, battery\n(guess: blue dots)": Look(figures.BLUE, "--", "s"),
}
PLACE = {"": Look(figures.PURPLE, "-", "D")}


def training(table: pd.DataFrame, guess: float | None = None):
    """One training, snapshots evenly spaced and named by the lessons seen; returns the figure.

    Rows: answers, effects of the four sources, correct answers after each step of the ladder, readout of place. table:
    `dynamics.read`. guess: accuracy on the battery of naming any thing in the picture but the one asked about, drawn as
    a line. Bands are 95 % intervals; the grey upright line is where the sign is learned, thin ones part stages.
    """
    figure, axes = figures.panels(4, 2, height=1.75, sharex=True, sharey="row")
    spots = {lessons: k for k, lessons in enumerate(dynamics.snapshots(table)["lessons"].unique())}
    for column, (axis, named) in enumerate(AXES.items()):
        for ax, curves in zip(axes[:, column], panels_of(table, axis), strict=True):
            for name, (rows, look) in curves.items():
                curve(ax, rows, name, look, spots)
            upright(ax, table, axis, spots)
        axes[0, column].set_title(named)
        axes[0, column].set_ylim(-0.05, 1.05)
        figures.level(axes[0, column], dynamics.CHANCE, "")
        if guess is not None:
            axes[0, column].axhline(guess, color=figures.BLUE, linewidth=0.8, linestyle=DOTS, zorder=0)
        axes[1, column].set_ylim(-0.2, 1.2)
        axes[2, column].set_ylim(-0.05, 1.05)
        axes[3, column].set_ylim(-0.25, 1.05)
        for row in (1, 3):
            figures.level(axes[row, column], 0, "")
        axes[3, column].set_xlabel("lessons seen (thousands)")
        names = [f"{lessons / 1000:.0f}" for lessons in spots]
        axes[3, column].set_xticks(range(len(spots)), names, fontsize=6, rotation=45)
    labels = (
        "share of answers",
        "effect at slot 0",
        "correct after\na ladder step",
        "R2 of place,\nobject's own token",
    )
    for ax, label in zip(axes[:, 0], labels, strict=True):
        ax.set_ylabel(label)
    for ax in axes[:3, 1]:
        drawn = [line for line in ax.lines if not line.get_label().startswith("_")]
        ax.legend(drawn, [line.get_label() for line in drawn], loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=6)
    return figure


def panels_of(table: pd.DataFrame, axis: str) -> list[dict[str, tuple[pd.DataFrame, Look]]]:
    """For each row of the figure its curves: name -> rows and look."""
    white = dynamics.on_white(table)
    answers = (dynamics.of(table, "sign", axis), white[white["axis"] == axis])
    return [
        {name: (rows, look) for (name, look), rows in zip(ANSWERS.items(), answers, strict=True)},
        {rival: (dynamics.of(table, "effect", axis, rival), look) for rival, look in SOURCES.items()},
        {step: (dynamics.of(table, "correct", axis, step), look) for step, look in RUNGS.items()},
        {name: (dynamics.of(table, "place", axis), look) for name, look in PLACE.items()},
    ]


def curve(ax, rows: pd.DataFrame, name: str, look: Look, spots: dict[int, int]) -> None:
    """Values with their intervals as a band, bounds beyond the panel cut by it. spots: lessons -> place on the axis."""
    x = rows["lessons"].map(spots)
    ax.plot(x, rows["value"], color=look.colour, linestyle=look.line, marker=look.marker, label=name, ms=3.5, lw=1.2)
    ax.fill_between(x, rows["low"], rows["high"], color=look.colour, alpha=0.15, linewidth=0)


def upright(ax, table: pd.DataFrame, axis: str, spots: dict[int, int]) -> None:
    """Where stages end, and where the sign of the axis is learned."""
    states = dynamics.snapshots(table)
    for _, stage in list(states.groupby("stage", sort=False))[:-1]:
        if stage["step"].iloc[-1]:  # the untrained model alone is no stage
            ax.axvline(spots[stage["lessons"].iloc[-1]], color=GREY, linewidth=0.6, linestyle=DOTS, zorder=0)
    place = dynamics.sign_learned(table, axis)
    if place is not None:
        ax.axvline(spots[states["lessons"].iloc[place]], color=GREY, linewidth=3, alpha=0.5, zorder=0)
