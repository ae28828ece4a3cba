"""A base model of one's own: `unforgotten run tiny --model examples/own_model.py:narrow_gpt2`."""

from transformers import GPT2Config, GPT2LMHeadModel, set_seed

from unforgotten.experiments.models.tokenizer import train_tokenizer


def narrow_gpt2(config, texts, seed):
    """Return a narrow GPT-2 of random weights, which the profile's `pretraining` trains, and a tokenizer of its text."""
    set_seed(seed)
    tokenizer = train_tokenizer(texts, config.vocabulary or 2048)
    sizes = GPT2Config(
        vocab_size=config.vocabulary or 2048,
        n_positions=config.positions or 512,
        n_embd=config.width or 128,
        n_layer=config.layers or 4,
        n_head=config.heads or 4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(sizes), tokenizer
