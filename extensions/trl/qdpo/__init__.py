"""QDPO: a quantized model aligned to its own full-precision self."""
