"""The shared x axis of the figures: groups side by side, and in each group one slot for every member."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from unforgotten.reports.labels import short
from unforgotten.reports.style import INK, LINE

GAP = 0.8  # slots between two groups
DODGE = 0.22  # from one storage arm to the next
ROTATE_ABOVE = 9  # more slots than this do not fit beside each other


@dataclass(frozen=True)
class Slots:
    """Places of `members` in `groups`, in slot widths."""

    groups: Sequence[str]
    members: Sequence[str]

    def start(self, group: str) -> float:
        """Return the centre of the first slot of a group."""
        return self.groups.index(group) * (len(self.members) + GAP)

    def x(self, group: str, member: str) -> float:
        """Return the centre of a slot."""
        return self.start(group) + self.members.index(member)

    def span(self, group: str) -> tuple[float, float]:
        """Return the left and the right end of a group."""
        return self.start(group) - 0.5, self.start(group) + len(self.members) - 0.5

    def cells(self) -> Iterator[tuple[str, str, float]]:
        """Yield (group, member, x) of every slot."""
        return ((g, m, self.x(g, m)) for g in self.groups for m in self.members)

    def dress(self, ax: Axes, *, members: bool = True, groups: bool = True) -> None:
        """Give an axis its limits, separators and names."""
        ax.set_xlim(self.span(self.groups[0])[0] - GAP / 2, self.span(self.groups[-1])[1] + GAP / 2)
        for group in self.groups[1:]:
            ax.axvline(self.span(group)[0] - GAP / 2, color=LINE, linewidth=0.8, zorder=0.5)
        places = [x for _, _, x in self.cells()] if members else []
        names = [short(m) for _, m, _ in self.cells()] if members else []
        rotation = 90 if len(places) > ROTATE_ABOVE else 0
        ax.set_xticks(places, names, rotation=rotation, fontsize=8)
        ax.tick_params(axis="x", length=0)
        for group in self.groups if groups else ():
            left, right = self.span(group)
            ax.text(
                (left + right) / 2,
                1.02,
                short(group),
                transform=ax.get_xaxis_transform(),
                ha="center",
                va="bottom",
                color=INK,
                fontsize=9,
            )


def dodge(index: int, count: int) -> float:
    """Return the offset of storage arm `index` of `count` from the middle of its slot."""
    return (index - (count - 1) / 2) * DODGE
