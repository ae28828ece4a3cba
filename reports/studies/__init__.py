"""The files that are made of each study's rows: one module a study, found by `registry`, which states what a module has."""
