"""What a run of the verification leaves: its suite and report, runs under many seeds, and comparison of prints.

`suite` runs the tests for `unforgotten verify`, and `suite_plugin` speaks meanwhile; `report_plugin` writes what
`tallies` has counted; `recorded` reads the committed report back; `seeds` repeats what draws samples.
"""
