"""Where a pair of checkpoints comes from: files, the Hub, adapters, GGUF; and which tensors make a pair."""
