"""One self-contained HTML page from run folders: numbers, figures, samples side by side."""

from preftune.report.page import write_report
from preftune.report.samples import SampleRewards, SideBySide

__all__ = ["SampleRewards", "SideBySide", "write_report"]
