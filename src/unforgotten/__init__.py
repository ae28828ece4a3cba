"""Does quantization bring back what your model unlearned?"""
