"""What theory recommends against quantization: losses of the quantized model, of perturbed weights, and moves across cell edges."""
