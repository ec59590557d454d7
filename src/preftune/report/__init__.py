"""One self-contained HTML page from run folders: numbers, figures, samples side by side.

Here live the reading of run folders, the figures and the page. May import every package up to evaluation; no
package below it imports it: they get a callable that writes pages.
"""

from preftune.report.page import PAGES, write_report

__all__ = ["PAGES", "write_report"]
