"""The two models as they were really quantized, beside the pair they were made from.

In go the pair and the two quantized files, out comes what is left of the update between their decoded weights:

    leg = measure_deployed((target, unlearned), open_deployed((q_target, q_unlearned), (target, unlearned), names))

`stored` opens the files and matches names, `gguf_names` knows llama.cpp's, `orders` puts rows back, `measure` adds up, and
`told` makes the object of `audit.json` and its sentences. No quantizer is run but our own, for the distance to it.
"""
