"""The page of verdicts: what all published rows together say of the conjectures and of the paper's open questions.

    text = page(Path("reports/published"))

`evidence` reads the rows and takes means over seeds, `paper` holds published numbers, `claims` judges by rules that stand there,
and `page` writes `reports/published/README.md`.
"""
