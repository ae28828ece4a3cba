"""A judged evaluation for a terminal: the verdict first, then one row a format and metric, and what would decide it."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unforgotten.audit.judged.judge import Judged
from unforgotten.audit.outputs.answer import NO_VALUE, TONES, recovered_text, text_of
from unforgotten.audit.outputs.summary import STYLES
from unforgotten.audit.verdict.legs import deciding_of, retained_of
from unforgotten.audit.verdict.power import power_sentence


def print_judged(result: Judged, last: str, console: Console | None = None) -> None:
    """Print the verdict, the rows, the reasons, the notes, and last why the command ends with its code."""
    console = console or Console()
    overall, leg = result["overall"], result["behaviour"]
    tone = "bad" if result["findings"] else TONES.get(overall, "open")
    console.print(Text(f"Verdict: {overall}", STYLES[tone]))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in ("format", "metric", "target", "unlearned", "both quantized", "recovered"):
        table.add_column(name, no_wrap=True)
    for found in leg["formats"]:
        for row in found["recoveries"]:
            decides = row["metric"] in deciding_of(leg)
            name = row["metric"] if decides else f"({row['metric']})"
            both = f"{text_of(row['quantized_target'])}, {text_of(row['quantized_unlearned'])}"
            cells = (
                found["format"],
                name,
                text_of(row["target"]),
                text_of(row["unlearned"]),
                both,
                recovered_text(row),
            )
            table.add_row(*map(Text, cells))
        for name in retained_of(leg):
            models = (*(leg["metrics"][who] for who in ("target", "unlearned")), *found["metrics"].values())
            told = [text_of(means[name]["value"]) for means in models if name in means]
            table.add_row(*map(Text, (found["format"], name, *told[:2], ", ".join(told[2:]), NO_VALUE)))
    console.print(table)
    wrap = not console.is_terminal
    for reason in result["reasons"]:
        console.print(Text(f"• {reason}"), soft_wrap=wrap)
    for note in leg["notes"]:
        console.print(Text(f"Note: {note}"), soft_wrap=wrap)
    items = power_sentence(result["power"])
    if items:
        console.print(
            Text(f"{'To decide: more items: ' if overall == 'undecided' else 'Items: '}{items}"), soft_wrap=wrap
        )
    retrained = {name: text_of(mean["value"]) for name, mean in leg["metrics"].get("retrained", {}).items()}
    if retrained:
        line = ", ".join(f"{name} {value}" for name, value in retrained.items())
        console.print(Text(f"Retrained model: {line}."), soft_wrap=wrap)
    if any(row["metric"] not in deciding_of(leg) for found in leg["formats"] for row in found["recoveries"]):
        console.print(Text('Metrics in brackets decide nothing; they can only object to "survives".'), soft_wrap=wrap)
    console.print(Text(last), soft_wrap=wrap)
