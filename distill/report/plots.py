"""Plots as coordinates in px; plots.html draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.ticker import MaxNLocator


@dataclass
class Tick:
    """A tick of an axis, at ``at`` px."""

    at: float  # px
    label: str


@dataclass
class Mark:
    """A point: centre and radius, ends of its interval (None: no interval), tooltip (``title``) and label."""

    x: float
    y: float
    radius: float
    title: str
    low: float | None = None
    high: float | None = None
    label: str = ""
    label_y: float = 0.0


@dataclass
class Line:
    """A series; ``style`` is the CSS class of its colour and stroke, ``path`` the SVG path through its points."""

    name: str
    style: str
    marks: list[Mark] = field(default_factory=list)
    path: str = ""


@dataclass
class Plot:
    """A plot of ``width`` x ``height``; its axes enclose ``left`` to ``right`` and ``top`` to ``bottom``."""

    title: str
    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_label: str
    y_label: str = ""
    description: str = ""  # for screen readers
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    box: tuple[float, float, float, float] | None = None  # x, y, width, height of a highlighted area
    box_label: str = ""


class Scale:
    """Map values to px, linearly or logarithmically: ``low`` to ``start``, ``high`` to ``end``."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False) -> None:
        self.log = log
        if high <= low:
            low, high = (low / 1.5, high * 1.5) if log else (low - 0.5, high + 0.5)
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, count: int = 5) -> list[Tick]:
        """Ticks at round values, at most about ``count``."""
        if not self.log:
            values = [float(v) for v in MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)]
        else:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
                values = [step * 10.0**decade for decade in decades for step in steps]
                if sum(self.low <= value <= self.high for value in values) <= count:
                    break
        slack = 1e-9 * (self.high - self.low)
        return [Tick(self(v), number(v)) for v in values if self.low - slack <= v <= self.high + slack]


def number(value: float) -> str:
    """Format a value in short, without trailing zeros."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def polyline(marks: Sequence[Mark]) -> str:
    """SVG path of a line through marks."""
    return " ".join(f"{'L' if index else 'M'}{mark.x:g} {mark.y:g}" for index, mark in enumerate(marks))


def separate_labels(marks: Sequence[Mark], height: float = 13, character: float = 6.5) -> None:
    """Move labels, which are centred above their marks, upwards until none overlaps another."""
    placed: list[Mark] = []
    for mark in sorted(marks, key=lambda mark: -mark.label_y):
        moved = True
        while moved:
            moved = False
            for other in placed:
                apart = character * (len(mark.label) + len(other.label)) / 2
                if abs(mark.x - other.x) < apart and abs(mark.label_y - other.label_y) < height:
                    mark.label_y = other.label_y - height
                    moved = True
        placed.append(mark)
