"""Result rows in, a self-contained report out. Reports read rows and never compute a measurement."""

from unforgotten.reports.build import build_report as build_report
from unforgotten.reports.rows import Row as Row
from unforgotten.reports.rows import Run as Run
from unforgotten.reports.rows import read_rows as read_rows
from unforgotten.reports.rows import read_run as read_run
from unforgotten.reports.rows import select as select
