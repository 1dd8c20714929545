"""Charts as SVG text and pages as self-contained HTML: no script, no outside resource, light and dark.

Knows numbers and words alone: no models, no torch, no NumPy. Every chart carries the table of what it shows.
"""

from cuvee.charts.bars import bars
from cuvee.charts.chart import Chart, Table
from cuvee.charts.contour import contour
from cuvee.charts.heat import heat
from cuvee.charts.lines import lines
from cuvee.charts.page import fragment, page, prose, table

__all__ = ["Chart", "Table", "bars", "contour", "fragment", "heat", "lines", "page", "prose", "table"]
