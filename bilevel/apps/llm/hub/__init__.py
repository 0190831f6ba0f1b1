"""Files in and out: checkpoints of Hugging Face, GGUF, tokenizers."""
