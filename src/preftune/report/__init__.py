"""One self-contained HTML page from run folders: numbers, figures, samples side by side."""

from preftune.report.page import write_report
from preftune.report.samples import SampleRewards, SideBySide
from preftune.report.tradeoff import START, SweepPoint, planes, tradeoff_table

__all__ = [
    "START",
    "SampleRewards",
    "SideBySide",
    "SweepPoint",
    "planes",
    "tradeoff_table",
    "write_report",
]
