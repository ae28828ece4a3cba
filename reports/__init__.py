"""Result rows in, a self-contained report out. Reports read rows and never compute a measurement."""

from unforgotten.records.rows import Row as Row
from unforgotten.records.rows import Run as Run
from unforgotten.records.rows import read_rows as read_rows
from unforgotten.records.rows import read_run as read_run
from unforgotten.records.rows import select as select
from unforgotten.reports.run.build import build_report as build_report
