"""What the demo found out: figures for machines, promises for people, a closing table for both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

__all__ = ["Report"]


@dataclass
class Report:
    """Collects what each part measured and whether it kept its promises."""

    console: Console = field(default_factory=Console)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    promises: list[tuple[str, bool]] = field(default_factory=list)

    def begin(self, title: str, what: str) -> None:
        """Announce a part."""
        self.console.print()
        self.console.rule(f"[bold]{title}")
        self.console.print(what, style="dim")

    def progress(self) -> Progress:
        """Return a progress display to use in a `with` block."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        return Progress(*columns, console=self.console)

    def promise(self, text: str, kept: bool) -> None:
        """Note a promise and whether it was kept, and say so."""
        self.promises.append((text, bool(kept)))
        self.console.print(f"  [green]✓[/] {text}" if kept else f"  [bold red]✗ {text}")

    @property
    def all_kept(self) -> bool:
        """Whether every promise so far was kept."""
        return all(kept for _, kept in self.promises)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures and the promises for a JSON file."""
        promises = [{"promise": text, "kept": kept} for text, kept in self.promises]
        return {"ok": self.all_kept, "figures": self.figures, "promises": promises}

    def close(self, seconds: float) -> None:
        """Print the closing table."""
        table = Table(title="What happened", show_header=True, header_style="bold")
        table.add_column("part")
        table.add_column("figure")
        table.add_column("value", justify="right")
        for part, figures in self.figures.items():
            for number, (name, value) in enumerate(figures.items()):
                table.add_row(
                    part if number == 0 else "", name.replace("_", " "), _readable(value), end_section=number == len(figures) - 1
                )
        self.console.print()
        self.console.print(table)
        kept = sum(kept for _, kept in self.promises)
        style = "green" if self.all_kept else "bold red"
        self.console.print(Panel(f"{kept} of {len(self.promises)} promises kept in {seconds:.0f} s", style=style, expand=False))
        self.console.print("The dashboard: [bold]make demo-serve[/], then open the address that it prints.")


def _readable(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
