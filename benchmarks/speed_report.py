"""What speed.py writes for people: tables in Markdown, and a picture."""

from pathlib import Path
from typing import Any

OF_SEEDS = "Seconds of training"  # how the titles begin whose rounds are seeds


def figure(value: float | None) -> str:
    """A figure in a table."""
    if value is None:
        return "none"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def row_of(name: str, row: dict[str, Any], rounds: int) -> str:
    """The line of a program in a table."""
    spread = f"{figure(row['lowest'])} to {figure(row['highest'])}"
    if row["missed"]:
        spread += f" ({row['missed']} did not get there)"
    if row["rounds"] < rounds:
        spread += f" ({row['rounds']} round)"
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.3g}"
    return f"| {name} | {figure(row['average'])} | {spread} | {ratio} |"


def markdown(result: dict[str, Any]) -> str:
    """The tables."""
    lines = []
    for one in result["comparisons"].values():
        reference = list(one["programs"])[-1]
        average = "mean" if one["title"].startswith(OF_SEEDS) else "median"
        about = f"{one['rounds']} rounds on {one['cores']} core(s), {one['date']}"
        lines += [
            f"**{one['title']}** ({about})\n",
            f"| program | {one['unit']}, {average} | range | ratio to {reference} |",
            "|---|---:|---|---:|",
        ]
        for name, row in one["programs"].items():
            lines.append(row_of(name, row, one["rounds"]))
        lines.append("")
    setting = ", ".join(f"{key} {value}" for key, value in result["setting"].items())
    return "\n".join([*lines, setting, ""])


def color_of(name: str) -> str:
    """The colour of a program's bar."""
    if name == "train.py":
        return "C0"
    return "0.6" if name.startswith("floor") else "0.8"


def draw_speeds(axes: Any, comparisons: dict[str, dict[str, Any]]) -> None:
    """Draw a bar for each program that trained."""
    place = 0.0
    places = []
    names = []
    for one in comparisons.values():
        if not one["title"].startswith("Training"):
            continue
        setting = one["title"].removeprefix("Training, ")
        for name, row in one["programs"].items():
            axes.barh(place, row["average"] / 1000, color=color_of(name))
            short, *_ = name.split(" (")
            places.append(place)
            names.append(f"{short}, {setting}")
            place -= 1
        place -= 0.7
    axes.set_yticks(places, names, fontsize=6)
    axes.set(xlabel="thousand samples per second (best epoch, median)")


def draw_curves(
    axes: Any,
    curves: dict[str, list],
    names: tuple[str, str],
    goal: float,
) -> None:
    """Draw the test accuracy of two programs over their seconds of training."""
    for color, name in zip(("C0", "0.5"), names, strict=True):
        for number, (seconds, accuracy) in enumerate(curves.get(name, [])):
            percent = [100 * share for share in accuracy]
            label = None if number else name
            axes.plot(
                seconds,
                percent,
                ".-",
                color=color,
                alpha=0.7,
                label=label,
            )
    axes.axhline(goal, color="black", linewidth=0.6)
    axes.set(xlabel="seconds of training", ylabel="test accuracy (%)")
    axes.set(xscale="log", title=f"to {goal:g} %")
    if axes.lines[1:]:
        axes.legend(fontsize=7)


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw speeds beside the floor's, and accuracy over seconds of training."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(11, 3.8), layout="constrained")
    bars, digits, images = picture.subplots(1, 3, width_ratios=[1.3, 1, 1])
    draw_speeds(bars, result["comparisons"])
    draw_curves(
        digits,
        result["curves"],
        ("--recipe fast", "original script"),
        96.93,
    )
    draw_curves(
        images,
        result["curves"],
        ("--recipe fast-cnn", "classic CNN"),
        99.0,
    )
    picture.savefig(path, dpi=150)
