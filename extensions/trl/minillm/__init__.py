"""MiniLLM: on-policy distillation of language models by policy gradient on the reverse KL."""
