"""Quantization formats as data, levels, scales and rounding, and the numpy reference that applies them.

`names.format_named` turns a name into a `description.Format`, and `reference` applies it: fit a grid (`grids`, with
`scales` and searches as `kquants`), round (`rounding`), read back. What rounds with calibration data, and so is no
`Format`, has a module of its own: `gptq`, `awq`, and the grids of their groups; so has `double_quant` with the mean of a
library, where the formats nf4-bN-dq have an exact one (`dynamic`).
"""
